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
    COALESCE(json_agg(l ORDER BY l.breakpoint) FILTER (WHERE l.item_id IS NOT NULL), '[]') AS layouts
FROM metric_configurations AS c
JOIN queries AS q ON q.id = c.query_id
LEFT JOIN layout_items AS l ON l.item_id = c.id
GROUP BY c.id, q.id;

-- A table is watched when each of its partitions, and of those that inherit from it, is.
CREATE VIEW watched_tables AS
WITH RECURSIVE watched AS (
    SELECT tgrelid
    FROM pg_trigger
    WHERE tgname = 'metrics_api_watch'
    AND tgenabled <> 'D'
),
family (root, relid) AS (
    SELECT tgrelid, tgrelid
    FROM watched
    UNION
    SELECT root, inhrelid
    FROM family
    JOIN pg_inherits ON inhparent = relid
)
SELECT tgrelid AS oid
FROM watched
EXCEPT
SELECT root
FROM family
WHERE relid NOT IN (SELECT tgrelid FROM watched);
