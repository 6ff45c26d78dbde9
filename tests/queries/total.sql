-- unit: USD
-- chart: number
-- ttl: 300
SELECT
  COALESCE(SUM(obsolescence), 0) AS total,
  COUNT(*) AS records
FROM metrics
WHERE date >= COALESCE(:start_date, DATE '2000-01-01')
