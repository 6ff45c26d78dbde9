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
        'unwatchable', COALESCE(json_agg(name) FILTER (WHERE relkind IN ('m', 'f')), '[]'),
        'large', COALESCE(json_object_agg(relname, name) FILTER (WHERE reltuples >= 100000), '{}'),
        'shapes', COALESCE(json_object_agg(oid, fingerprint), '{}')
    )
    FROM relations
);

CREATE OR REPLACE FUNCTION does_more_than_read(name text) RETURNS boolean
LANGUAGE sql IMMUTABLE
AS $$
    SELECT name ~ ('^(set_config|pg_notify|pg_(try_)?advisory_(?!unlock_all).*|pg_(cancel|terminate)_backend'
        '|ts_stat|ts_rewrite|setseed|pg_logical_emit_message|pg_export_snapshot'
        '|lo_(close|creat|create|export|from_bytea|get|import|open|put|unlink|(lseek|tell|truncate)(64)?)'
        '|loread|lowrite|(query|table|schema|database|cursor)_to_xml.*)$')
$$;

DROP FUNCTION is_distributed(oid);
DROP FUNCTION tell_of_changes(text[]);
