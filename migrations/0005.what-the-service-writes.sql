-- What the service writes in more than one statement. Citus takes no parameters in SQL functions, but in PL/pgSQL.

-- Gives a file the rows that its records and layouts refer to; several instances may do so at once. A series that a data
-- set brought under the same id keeps its query.
CREATE FUNCTION mirror_file(file_id text, sql text, file_title text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO queries (id, query)
    SELECT file_id, sql
    WHERE NOT EXISTS (SELECT FROM metric_configurations WHERE query_id = file_id AND source <> 'file')
    ON CONFLICT (id) DO UPDATE
    SET query = excluded.query
    WHERE queries.query <> excluded.query;

    INSERT INTO metric_configurations (id, query_id, source, title, is_editable)
    VALUES (file_id, file_id, 'file', file_title, false)
    ON CONFLICT (id) DO UPDATE
    SET title = excluded.title
    WHERE metric_configurations.source = 'file'
    AND metric_configurations.title IS DISTINCT FROM excluded.title;
END
$$;

-- Whether there is neither a record nor a query but those of files: an embedded database in which nobody has begun.
CREATE FUNCTION holds_nothing() RETURNS boolean
LANGUAGE sql STABLE
AS $$
    SELECT NOT EXISTS (SELECT FROM metrics)
    AND NOT EXISTS (SELECT id FROM queries EXCEPT SELECT query_id FROM metric_configurations WHERE source = 'file')
$$;

-- A metric from the API has a series and a query of its own id.
CREATE FUNCTION create_metric(
    metric_id text, sql text, metric_title text, editable boolean, from_prompt text, author text
) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO queries (id, query)
    VALUES (metric_id, sql);

    INSERT INTO metric_configurations (id, query_id, source, title, is_editable, prompt, created_by)
    VALUES (metric_id, metric_id, 'api', metric_title, editable, from_prompt, author);
END
$$;

-- What is NULL stays as it is. A query that several metrics of a data set share is not changed under the others, nor is
-- one that has the metric's id: it gets a fresh one.
CREATE FUNCTION change_metric(metric_id text, new_title text, sql text, from_prompt text) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    own text;
BEGIN
    IF sql IS NOT NULL THEN
        INSERT INTO queries (id, query)
        SELECT CASE count(*) WHEN 1 THEN min(query_id) ELSE gen_random_uuid()::text END, sql
        FROM metric_configurations
        WHERE query_id = (SELECT query_id FROM metric_configurations WHERE id = metric_id)
        ON CONFLICT (id) DO UPDATE
        SET query = excluded.query
        RETURNING id
        INTO own;
    END IF;

    UPDATE metric_configurations
    SET
        title = COALESCE(new_title, title),
        query_id = COALESCE(own, query_id),
        prompt = CASE WHEN own IS NULL THEN prompt ELSE from_prompt END,
        version = version + 1,
        is_edited = true
    WHERE id = metric_id;
END
$$;

-- The records of a series outlive its metric, and so does a query that others use. Citus reads no records in a statement
-- that changes another table.
CREATE FUNCTION delete_metric(metric_id text) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    own text;
    has_records boolean;
BEGIN
    DELETE FROM metric_configurations
    WHERE id = metric_id
    RETURNING query_id
    INTO own;

    has_records := EXISTS (SELECT FROM metrics WHERE id = own);

    IF NOT has_records THEN
        DELETE FROM queries AS q
        WHERE q.id = own
        AND NOT EXISTS (SELECT FROM metric_configurations WHERE query_id = q.id);
    END IF;
END
$$;

-- Where a dashboard puts a metric's tile, for each breakpoint, as the service's JSON has it.
CREATE FUNCTION place_metric(metric_id text, layouts json) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    DELETE FROM layout_items
    WHERE item_id = metric_id;

    INSERT INTO layout_items (item_id, breakpoint, x, y, w, h, static)
    SELECT metric_id, breakpoint, x, y, w, h, static
    FROM json_populate_recordset(NULL::layout_items, layouts);
END
$$;
