ALTER TABLE metric_configurations DROP COLUMN is_edited;
