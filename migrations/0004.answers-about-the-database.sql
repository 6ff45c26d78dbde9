-- What the service reads again whenever something says that it has changed.

CREATE VIEW metric_definitions AS
SELECT
    c.id,
    c.source,
    c.query_id AS series,
    q.query AS sql,
    c.title,
    c.is_editable,
    c.version,
    c.prompt,
    c.created_by,
    COALESCE(json_agg(l ORDER BY l.breakpoint) FILTER (WHERE l.item_id IS NOT NULL), '[]') AS layouts
FROM metric_configurations AS c
JOIN queries AS q ON q.id = c.query_id
LEFT JOIN layout_items AS l ON l.item_id = c.id
GROUP BY c.id, q.id
ORDER BY c.created_at, c.id;

-- For whoever begins to listen: what has been committed until now, the database's clock (seconds), what tells it from
-- others, and the tables whose changes make the definitions other ones.
CREATE FUNCTION begin_listening()
RETURNS TABLE (snapshot text, taken_at float8, database_id text, definitions oid[])
LANGUAGE sql
AS $$
    SELECT
        pg_current_snapshot()::text,
        EXTRACT(EPOCH FROM clock_timestamp())::float8,
        (SELECT min(applied_at_utc)::text FROM _yoyo_migration),
        ARRAY['queries'::regclass, 'metric_configurations'::regclass, 'layout_items'::regclass]::oid[]
$$;

-- The rest is for every login that runs SQL, whichever the operator names: the catalogs, which anybody may read.
-- Functions rather than views, for a view would itself be locked, be read and be readable.

-- What the transaction has locked until now, and what that inherits from: who writes to a parent may write to these,
-- and only the parent's own trigger fires.
CREATE FUNCTION relations_under_lock()
RETURNS TABLE (oid oid, relkind "char", reltuples real, relname name, name text)
LANGUAGE sql
AS $$
    WITH RECURSIVE relations (relid) AS (
        SELECT relation
        FROM pg_locks
        WHERE pid = pg_backend_pid()
        AND locktype = 'relation'
        UNION
        SELECT inhparent
        FROM relations
        JOIN pg_inherits ON inhrelid = relid
    )
    SELECT
        c.oid,
        c.relkind,
        c.reltuples,
        c.relname,
        c.oid::regclass::text
    FROM relations
    JOIN pg_class AS c ON c.oid = relid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
$$;

-- The short name of each type, what a cast wants, and the built-in type that its values, or those of an array's items,
-- look like: domains are followed to the end. The last are an enum's labels.
CREATE FUNCTION describe_types(types oid[]) RETURNS json
LANGUAGE sql STABLE
AS $$
    SELECT COALESCE(
        json_agg(
            json_build_array(
                CASE item.typarray WHEN t.oid THEN item.typname || '[]' ELSE t.typname END,
                format_type(t.oid, -1),
                base.typname,
                last.is_array,
                base.typcategory,
                ARRAY(SELECT enumlabel FROM pg_enum WHERE enumtypid = base.oid ORDER BY enumsortorder)
            )
            ORDER BY place
        ),
        '[]'
    )
    FROM unnest(types) WITH ORDINALITY AS given (oid, place)
    JOIN pg_type AS t ON t.oid = given.oid
    LEFT JOIN pg_type AS item ON item.oid = t.typelem
    CROSS JOIN LATERAL (
        WITH RECURSIVE steps (type, is_array, depth) AS (
            SELECT t.oid, false, 0
            UNION ALL
            SELECT COALESCE(i.oid, d.typbasetype), i.oid IS NOT NULL OR is_array, depth + 1
            FROM steps
            JOIN pg_type AS d ON d.oid = type
            LEFT JOIN pg_type AS i ON i.oid = d.typelem AND i.typarray = d.oid AND NOT is_array
            WHERE d.typtype = 'd'
            OR i.oid IS NOT NULL
        )
        SELECT type, is_array
        FROM steps
        ORDER BY depth DESC
        LIMIT 1
    ) AS last
    JOIN pg_type AS base ON base.oid = last.type
$$;

-- A number for each relation that is another one when its name, its columns, a view's query, its parents, or what is
-- below it has changed.
CREATE FUNCTION relation_shapes(relations oid[])
RETURNS TABLE (relation oid, fingerprint bigint)
LANGUAGE sql STABLE
AS $$
    WITH RECURSIVE family (root, relid, part) AS (
        SELECT oid, oid, row(relnamespace, relname)::text
        FROM pg_class
        WHERE oid = ANY (relations)
        UNION
        SELECT root, inhrelid, row(inhparent, inhrelid, i.xmin)::text
        FROM family
        JOIN pg_inherits AS i ON inhparent = relid
    ),
    parts AS (
        SELECT root, part
        FROM family
        UNION ALL
        SELECT attrelid, row(attnum, attname, atttypid, atttypmod)::text
        FROM pg_attribute
        WHERE attrelid = ANY (relations)
        AND attnum > 0
        AND NOT attisdropped
        UNION ALL
        SELECT ev_class, row(oid, xmin)::text
        FROM pg_rewrite
        WHERE ev_class = ANY (relations)
        UNION ALL
        SELECT inhrelid, row(inhparent, xmin)::text
        FROM pg_inherits
        WHERE inhrelid = ANY (relations)
    )
    SELECT root, sum(hashtext(part))
    FROM parts
    GROUP BY root
$$;

-- Whether Citus has placed a table on its nodes, whole or by a column, which nothing else tells. It also takes note of
-- tables that stay where they are, because others refer to them.
CREATE FUNCTION is_distributed(relation oid) RETURNS boolean
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = relation AND (partmethod <> 'n' OR repmodel = 't'));
EXCEPTION
    WHEN undefined_table THEN RETURN false;
END
$$;

-- What there is to know of the statement that the transaction has prepared, given the types of its parameters and
-- columns. It finds the others wherever the login looks for tables, for its body is no text. What only a plan tells:
-- which of the tables are large, by the name that it has there.
CREATE FUNCTION describe_statement(parameters oid[], columns oid[]) RETURNS json
LANGUAGE sql
RETURN (
    WITH relations AS MATERIALIZED (
        SELECT r.*, s.fingerprint
        FROM relations_under_lock() AS r
        CROSS JOIN LATERAL relation_shapes(ARRAY[r.oid]) AS s
    )
    SELECT json_build_object(
        'types', describe_types(parameters),
        'column_types', describe_types(columns),
        'tables', COALESCE(json_object_agg(oid, name ORDER BY name) FILTER (WHERE relkind <> 'v'), '{}'),
        'unwatchable', COALESCE(json_agg(name) FILTER (WHERE relkind IN ('m', 'f') OR is_distributed(oid)), '[]'),
        'large', COALESCE(json_object_agg(relname, name) FILTER (WHERE reltuples >= 100000), '{}'),
        'shapes', COALESCE(json_object_agg(oid, fingerprint), '{}')
    )
    FROM relations
);

-- The columns of tables and views that whoever asks may read, partitions aside.
CREATE FUNCTION readable_columns()
RETURNS TABLE ("table" text, "column" text, type text, is_text boolean)
LANGUAGE sql STABLE
AS $$
    SELECT
        c.oid::regclass::text,
        quote_ident(a.attname),
        format_type(a.atttypid, a.atttypmod),
        a.atttypid IN ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype)
    FROM pg_class AS c
    JOIN pg_attribute AS a ON a.attrelid = c.oid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND NOT c.relispartition
    AND n.nspname NOT IN ('pg_catalog', 'information_schema')
    AND a.attnum > 0
    AND NOT a.attisdropped
    AND has_schema_privilege(n.oid, 'USAGE')
    AND has_column_privilege(c.oid, a.attnum, 'SELECT')
    ORDER BY c.oid, a.attnum
$$;

-- Whether a function of this name lets a SELECT tell, lock, signal, write large objects, change the session, run SQL out
-- of a text, here or on another node, or connect to any host.
CREATE FUNCTION does_more_than_read(name text) RETURNS boolean
LANGUAGE sql IMMUTABLE
AS $$
    SELECT name ~ ('^(set_config|pg_notify|pg_(try_)?advisory_(?!unlock_all).*|pg_(cancel|terminate)_backend'
        '|ts_stat|ts_rewrite|setseed|pg_logical_emit_message|pg_export_snapshot'
        '|lo_(close|creat|create|export|from_bytea|get|import|open|put|unlink|(lseek|tell|truncate)(64)?)'
        '|loread|lowrite|run_command_on_.*|citus_(run_local_command|check_.*)'
        '|(query|table|schema|database|cursor)_to_xml.*)$')
$$;

-- Why SQL that nobody reviewed may not say a name or an operator: what lets a SELECT do more than read, and whatever is
-- not PostgreSQL's own and calls what has the rights of its owner, or is written in a language that knows no bounds,
-- unless the caller was granted that by name: a function, an operator (in a run of their characters, which PostgreSQL
-- takes apart), a type that is cast or checked by it. Everybody may call what nobody took from PUBLIC.
CREATE FUNCTION why_not_said(name text) RETURNS text
LANGUAGE sql STABLE
RETURN CASE
    WHEN does_more_than_read(name) THEN 'does more than read'
    ELSE (
        SELECT format(
            'has other rights than this SQL; GRANT EXECUTE ON FUNCTION %s TO %I lets it be called',
            p.oid::regprocedure,
            current_user
        )
        FROM pg_proc AS p
        JOIN pg_language AS l ON l.oid = p.prolang
        WHERE p.oid >= 16384
        AND (p.prosecdef OR NOT l.lanpltrusted)
        AND has_function_privilege(p.oid, 'EXECUTE')
        AND NOT EXISTS (SELECT FROM aclexplode(p.proacl) WHERE grantee = current_user::regrole)
        AND (
            lower(p.proname) = why_not_said.name
            OR EXISTS (SELECT FROM pg_operator WHERE oprcode = p.oid AND strpos(why_not_said.name, oprname) > 0)
            OR EXISTS (
                SELECT
                FROM pg_type AS t
                LEFT JOIN pg_cast AS c ON t.oid IN (c.castsource, c.casttarget)
                LEFT JOIN pg_constraint AS k ON k.contypid = t.oid
                LEFT JOIN pg_depend AS d ON d.classid = 'pg_constraint'::regclass AND d.objid = k.oid
                WHERE t.oid >= 16384
                AND lower(t.typname) = why_not_said.name
                AND (c.castfunc = p.oid OR (d.refclassid = 'pg_proc'::regclass AND d.refobjid = p.oid))
            )
        )
        LIMIT 1
    )
END;

-- Those of PostgreSQL's own that everybody may still call, but for the one that drivers need.
CREATE FUNCTION unrevoked_functions()
RETURNS TABLE (name text, signature text)
LANGUAGE sql STABLE
AS $$
    SELECT proname::text, oid::regprocedure::text
    FROM pg_proc
    WHERE pronamespace = 'pg_catalog'::regnamespace
    AND does_more_than_read(proname)
    AND proname <> 'set_config'
    AND has_function_privilege('public', oid, 'EXECUTE')
    ORDER BY 1
$$;

-- How many bytes the write-ahead log has. Before the first record on a page comes the page's head, which no replica
-- says that it has replayed.
CREATE FUNCTION end_of_log() RETURNS bigint
LANGUAGE sql
AS $$
    SELECT position - CASE WHEN position % 8192 IN (24, 40) THEN position % 8192 ELSE 0 END
    FROM (SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint AS position) AS p
$$;

-- Where nothing is given to PUBLIC by default, it is here.
GRANT EXECUTE ON FUNCTION
    relations_under_lock(),
    describe_types(oid[]),
    relation_shapes(oid[]),
    is_distributed(oid),
    describe_statement(oid[], oid[]),
    readable_columns(),
    does_more_than_read(text),
    why_not_said(text)
TO PUBLIC;
