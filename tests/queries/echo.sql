SELECT :n::int4 AS n, :t::text AS t, :d::date AS d
