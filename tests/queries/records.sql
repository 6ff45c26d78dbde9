-- title: Records of a series
-- description: What was written, newest last.
-- chart: table
-- param series (required): The series' id
SELECT
  date,
  obsolescence,
  parts_flagged,
  alert_type
FROM metrics
WHERE id = :series
ORDER BY date, metric_id
