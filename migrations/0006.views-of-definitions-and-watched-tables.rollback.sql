DROP VIEW watched_tables;
DROP VIEW metric_definitions;
