-- A data set that is loaded again replaces what it brought, but nothing that somebody has edited meanwhile. Until now
-- the version alone told that, so what the loader itself replaced counts as edited once.
ALTER TABLE metric_configurations ADD COLUMN is_edited boolean NOT NULL DEFAULT false;

UPDATE metric_configurations
SET is_edited = true
WHERE version > 1;
