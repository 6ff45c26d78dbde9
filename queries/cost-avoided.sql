-- title: Cost avoided
-- description: Obsolescence cost avoided each day by redesigns, substitutions and last time buys.
-- unit: USD
-- chart: bar
-- param start_date: First day counted; default day_range days before end_date
-- param end_date: Last day counted; default today
-- param day_range: Days before end_date at which the period starts, unless start_date is given; default 30
SELECT
    DATE(date) AS day,
    SUM(obsolescence) AS cost_avoided
FROM metrics
WHERE date >= COALESCE(:start_date, COALESCE(:end_date, CURRENT_DATE) - COALESCE(:day_range, 30))
AND date < COALESCE(:end_date, CURRENT_DATE) + 1
AND obsolescence IS NOT NULL
GROUP BY DATE(date)
ORDER BY day
