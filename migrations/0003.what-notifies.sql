-- Tells every instance which tables a transaction changed, when it commits and not before: the transaction's number,
-- then the table and those that it is a partition of or inherits from, for its rows show in them, too. NOTIFY rather
-- than pg_notify(), which a hardened database keeps from logins that may well write to a watched table.
CREATE FUNCTION metrics_api_notify() RETURNS trigger
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

-- A table, its partitions and those that inherit from it, at any depth.
CREATE FUNCTION family_of(root regclass)
RETURNS TABLE (relation regclass)
LANGUAGE sql STABLE
AS $$
    WITH RECURSIVE family (relid) AS (
        SELECT root::oid
        UNION
        SELECT inhrelid
        FROM family
        JOIN pg_inherits ON inhparent = relid
    )
    SELECT relid::regclass
    FROM family
$$;

CREATE FUNCTION watch(table_name text) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    relation regclass;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass(table_name) AND relkind IN ('r', 'p')) THEN
        RAISE EXCEPTION 'it is no table; for a view, name the tables that it reads';
    END IF;
    FOR relation IN SELECT f.relation FROM family_of(to_regclass(table_name)) AS f LOOP
        EXECUTE format(
            'CREATE OR REPLACE TRIGGER metrics_api_watch AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s '
            'FOR EACH STATEMENT EXECUTE FUNCTION metrics_api_notify()',
            relation
        );
    END LOOP;
END
$$;

CREATE FUNCTION unwatch(table_name text) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    relation regclass;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass(table_name) AND relkind IN ('r', 'p')) THEN
        RAISE EXCEPTION 'it is no table; for a view, name the tables that it reads';
    END IF;
    FOR relation IN SELECT f.relation FROM family_of(to_regclass(table_name)) AS f LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS metrics_api_watch ON %s', relation);
    END LOOP;
END
$$;

-- yoyo prints what a SELECT gives.
DO $$
BEGIN
    PERFORM watch(name)
    FROM unnest(ARRAY['metrics', 'queries', 'metric_configurations', 'layout_items']) AS name;
END
$$;
