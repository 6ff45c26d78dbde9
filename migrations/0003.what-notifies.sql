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

-- The same for what no trigger tells of.
CREATE FUNCTION notify_changes(relations oid[]) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pg_notify('metrics_api', concat(pg_current_xact_id(), ' ', relation))
    FROM unnest(relations) AS relation;
END
$$;

-- The same for tables by name, whether or not triggers tell of them, too. Returns whether to tell again when the
-- transaction is over: where no trigger fires, be it that Citus has none for tables on several nodes, these may commit
-- one after the other, and who looks at the first word sees on some of them what was before.
CREATE FUNCTION tell_of_changes(tables text[]) RETURNS boolean
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM notify_changes(tables::regclass[]::oid[]);
    RETURN NOT tables::regclass[]::oid[] <@ ARRAY(SELECT relation FROM watches);
END
$$;

-- The tables under watch; name is what a table was called when it was put there by name.
CREATE VIEW watches AS
SELECT
    tgrelid AS relation,
    CASE tgnargs WHEN 1 THEN convert_from(substring(tgargs FOR length(tgargs) - 1), getdatabaseencoding()) END AS name
FROM pg_trigger
WHERE tgname = 'metrics_api_watch'
AND tgenabled <> 'D';

-- What ought to be under watch on account of each of them, which is a member, too: its partitions and the tables that
-- inherit from it, at any depth, and the table that has its name by now, such as a partitioned one that took its place.
-- Temporary tables are read by nobody but their own session.
CREATE VIEW watched_families AS
WITH RECURSIVE families (root, member) AS (
    SELECT relation, relation
    FROM watches
    UNION
    SELECT w.relation, c.oid
    FROM watches AS w
    JOIN pg_class AS c ON c.oid = to_regclass(w.name)
    WHERE c.relkind IN ('r', 'p')
    UNION
    SELECT f.root, c.oid
    FROM families AS f
    JOIN pg_inherits AS i ON i.inhparent = f.member
    JOIN pg_class AS c ON c.oid = i.inhrelid
    WHERE c.relpersistence <> 't'
)
SELECT
    root,
    member,
    member IN (SELECT relation FROM watches) AS is_watched
FROM families;

-- Whose changes are all told of.
CREATE VIEW watched_tables AS
SELECT root AS oid
FROM watched_families
GROUP BY root
HAVING bool_and(is_watched);

-- A table, its partitions and those that inherit from it, at any depth.
CREATE FUNCTION family_of(root regclass) RETURNS SETOF regclass
LANGUAGE sql STABLE
AS $$
    WITH RECURSIVE family (member) AS (
        SELECT root::oid
        UNION
        SELECT c.oid
        FROM family
        JOIN pg_inherits ON inhparent = member
        JOIN pg_class AS c ON c.oid = inhrelid
        WHERE c.relpersistence <> 't'
    )
    SELECT member::regclass
    FROM family
$$;

-- name is what somebody called it, none for what comes with another table.
CREATE FUNCTION put_under_watch(relation regclass, name text = NULL) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_class WHERE oid = relation AND relkind IN ('r', 'p')) THEN
        RAISE EXCEPTION '%', COALESCE(
            relation || ' is no table; for a view, name the tables that it reads',
            'there is no such table'
        );
    END IF;
    EXECUTE format(
        'CREATE OR REPLACE TRIGGER metrics_api_watch AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s '
        'FOR EACH STATEMENT EXECUTE FUNCTION metrics_api_notify(%s)',
        relation,
        quote_literal(name)
    );
END
$$;

CREATE FUNCTION watch(table_name text) RETURNS void
LANGUAGE sql
AS $$
    SELECT put_under_watch(member, CASE oid WHEN member THEN format('%I.%I', relnamespace::regnamespace, relname) END)
    FROM family_of(to_regclass(table_name)) AS member
    LEFT JOIN pg_class ON oid = to_regclass(table_name)
$$;

CREATE FUNCTION unwatch(table_name text) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    whole regclass;
    relation regclass;
BEGIN
    IF to_regclass(table_name) IS NULL THEN
        RAISE EXCEPTION 'there is no such table';
    END IF;
    SELECT f.root
    INTO whole
    FROM watched_families AS f
    WHERE f.member = to_regclass(table_name)
    AND f.root <> f.member
    AND NOT EXISTS (SELECT FROM watches AS w WHERE w.relation = f.root AND to_regclass(w.name) = f.member);
    IF FOUND THEN
        RAISE EXCEPTION 'it belongs to %, which is watched as a whole', whole;
    END IF;
    FOR relation IN
        SELECT family_of(to_regclass(table_name))
        UNION
        SELECT f.member
        FROM watches AS w
        JOIN watched_families AS f ON f.root = w.relation
        WHERE to_regclass(w.name) = to_regclass(table_name)
    LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS metrics_api_watch ON %s', relation);
    END LOOP;
END
$$;

-- Puts under watch what has come to a watched table, says that this has changed, and gives the watched tables.
-- What is locked for longer, is somebody else's or has gone meanwhile is left for the next time.
CREATE FUNCTION keep_watch() RETURNS oid[]
LANGUAGE plpgsql
SET lock_timeout = '20ms'
AS $$
DECLARE
    newcomer regclass;
    roots oid[];
BEGIN
    FOR newcomer, roots IN
        SELECT member, array_agg(root)
        FROM watched_families
        WHERE NOT is_watched
        AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = member AND tgname = 'metrics_api_watch')
        GROUP BY member
        ORDER BY member
    LOOP
        BEGIN
            PERFORM put_under_watch(newcomer);
            PERFORM notify_changes(roots || newcomer::oid || 'metric_configurations'::regclass::oid);
        EXCEPTION
            WHEN OTHERS THEN NULL;
        END;
    END LOOP;
    RETURN ARRAY(SELECT oid FROM watched_tables);
END
$$;

-- yoyo prints what a SELECT gives.
DO $$
BEGIN
    PERFORM watch(name)
    FROM unnest(ARRAY['metrics', 'queries', 'metric_configurations', 'layout_items']) AS name;
END
$$;
