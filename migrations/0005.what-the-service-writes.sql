-- What the service writes in more than one statement.

-- Gives a file the rows that its records and layouts refer to. A series that a data set brought under the same id keeps
-- its query.
CREATE FUNCTION mirror_file(file_id text, sql text, file_title text) RETURNS void
LANGUAGE sql
AS $$
    INSERT INTO queries (id, query)
    SELECT file_id, sql
    WHERE NOT EXISTS (SELECT FROM metric_configurations WHERE query_id = file_id AND source <> 'file')
    ON CONFLICT (id) DO UPDATE
    SET query = excluded.query;

    INSERT INTO metric_configurations (id, query_id, source, title, is_editable)
    VALUES (file_id, file_id, 'file', file_title, false)
    ON CONFLICT (id) DO UPDATE
    SET title = excluded.title
    WHERE metric_configurations.source = 'file';
$$;

-- Whether there is neither a record nor a query but those of files: an embedded database in which nobody has begun.
CREATE FUNCTION holds_nothing() RETURNS boolean
LANGUAGE sql STABLE
AS $$
    SELECT NOT EXISTS (SELECT FROM metrics)
    AND NOT EXISTS (SELECT id FROM queries EXCEPT SELECT query_id FROM metric_configurations WHERE source = 'file')
$$;
