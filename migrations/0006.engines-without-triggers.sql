-- What an engine such as Citus, which has tables on several nodes and no triggers for these, makes different.

-- Functions run where the service is connected; other nodes of Citus may not have what these need.
SET LOCAL citus.enable_ddl_propagation = off;

-- Says that the transaction changes these tables, be it that triggers say so, too, and returns whether to say it again
-- when it is over: where no trigger fires, nodes may commit one after the other, and who looks at the first word sees on
-- some of them what was before.
CREATE FUNCTION tell_of_changes(tables text[]) RETURNS boolean
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM notify_changes(tables::regclass[]::oid[]);
    RETURN NOT tables::regclass[]::oid[] <@ ARRAY(SELECT relation FROM watches);
END
$$;

-- Whether Citus has placed a table, which nothing else tells.
CREATE FUNCTION is_distributed(relation oid) RETURNS boolean
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = relation);
EXCEPTION
    WHEN undefined_table THEN RETURN false;
END
$$;

GRANT EXECUTE ON FUNCTION is_distributed(oid) TO PUBLIC;

-- As before, but that a distributed table cannot be watched.
CREATE OR REPLACE FUNCTION describe_statement(parameters oid[], columns oid[]) RETURNS json
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

-- As before, and what lets a SELECT run any statement on another node or open connections to any host.
CREATE OR REPLACE FUNCTION does_more_than_read(name text) RETURNS boolean
LANGUAGE sql IMMUTABLE
AS $$
    SELECT name ~ ('^(set_config|pg_notify|pg_(try_)?advisory_(?!unlock_all).*|pg_(cancel|terminate)_backend'
        '|ts_stat|ts_rewrite|setseed|pg_logical_emit_message|pg_export_snapshot'
        '|lo_(close|creat|create|export|from_bytea|get|import|open|put|unlink|(lseek|tell|truncate)(64)?)'
        '|loread|lowrite|run_command_on_.*|citus_(run_local_command|check_.*)'
        '|(query|table|schema|database|cursor)_to_xml.*)$')
$$;
