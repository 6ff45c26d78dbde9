-- Tells every instance which tables a transaction changed, when it commits and not before: the transaction's number,
-- then the table and, for a partition, those above it. NOTIFY rather than pg_notify(), which a hardened database
-- keeps from logins that may well write to a watched table.
CREATE FUNCTION metrics_api_notify() RETURNS trigger
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

CREATE TRIGGER metrics_api_watch
AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON metrics
FOR EACH STATEMENT EXECUTE FUNCTION metrics_api_notify();

CREATE TRIGGER metrics_api_watch
AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON queries
FOR EACH STATEMENT EXECUTE FUNCTION metrics_api_notify();

CREATE TRIGGER metrics_api_watch
AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON metric_configurations
FOR EACH STATEMENT EXECUTE FUNCTION metrics_api_notify();

CREATE TRIGGER metrics_api_watch
AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON layout_items
FOR EACH STATEMENT EXECUTE FUNCTION metrics_api_notify();
