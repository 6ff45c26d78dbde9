DROP TABLE metrics;
DROP TABLE layout_items;
DROP TABLE metric_configurations;
DROP TABLE queries;
