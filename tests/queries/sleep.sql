SELECT PG_SLEEP(:seconds::float8)::text AS slept
