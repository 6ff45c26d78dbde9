-- Spreads the records over the nodes of a Citus cluster by series. No migration, and run once, by hand, as the owner:
--     psql "$DATABASE_URL" --set ON_ERROR_STOP=1 --file migrations/citus/distribute.sql

-- Citus distributes no table that has triggers; the service's own writes notify without them.
DROP TRIGGER metrics_api_watch ON metrics;
DROP TRIGGER metrics_api_watch ON layout_items;
DROP TRIGGER metrics_api_watch ON metric_configurations;
DROP TRIGGER metrics_api_watch ON queries;

-- In the order of their foreign keys, which may only point at tables that every node has whole.
SELECT create_reference_table('queries');
SELECT create_reference_table('metric_configurations');
SELECT create_reference_table('layout_items');
SELECT create_distributed_table('metrics', 'id');
