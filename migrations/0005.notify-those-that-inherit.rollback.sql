CREATE OR REPLACE FUNCTION metrics_api_notify() RETURNS trigger
LANGUAGE plpgsql
AS $$
DECLARE
    relations text;
BEGIN
    SELECT string_agg(relid::oid::text, ',')
    INTO relations
    FROM (SELECT relid FROM pg_partition_ancestors(TG_RELID) UNION SELECT TG_RELID) AS tree;
    EXECUTE format('NOTIFY metrics_api, %L', pg_current_xact_id()::text || ' ' || relations);
    RETURN NULL;
END
$$;
