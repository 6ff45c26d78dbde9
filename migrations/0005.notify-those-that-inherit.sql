-- A table's rows show in the tables that it inherits from, partitioned or not: all of them are told.
CREATE OR REPLACE FUNCTION metrics_api_notify() RETURNS trigger
LANGUAGE plpgsql
AS $$
DECLARE
    relations text;
BEGIN
    WITH RECURSIVE above (relid) AS (
        SELECT TG_RELID
        UNION
        SELECT inhparent
        FROM above
        JOIN pg_inherits ON inhrelid = relid
    )
    SELECT string_agg(relid::text, ',')
    INTO relations
    FROM above;
    EXECUTE format('NOTIFY metrics_api, %L', pg_current_xact_id()::text || ' ' || relations);
    RETURN NULL;
END
$$;
