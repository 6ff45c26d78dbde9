-- title: Recent alerts
-- description: The newest alerts of the period, of all categories or of one.
-- chart: table
-- param start_date: First day counted; default day_range days before end_date
-- param end_date: Last day counted; default today
-- param day_range: Days before end_date at which the period starts, unless start_date is given; default 30
-- param category: Only alerts of this category, for example End of life; default all categories
-- param with_stock: Only alerts that say what stock is at risk; default all
-- param most: How many alerts; default 25
SELECT
    date AS raised_at,
    alert_type,
    alert_category,
    obsolescence_val AS stock_at_risk,
    id AS series
FROM metrics
WHERE date >= COALESCE(:start_date, COALESCE(:end_date, CURRENT_DATE) - COALESCE(:day_range, 30))
AND date < COALESCE(:end_date, CURRENT_DATE) + 1
AND alert_type IS NOT NULL
AND alert_category IS NOT DISTINCT FROM COALESCE(:category, alert_category)
AND (obsolescence_val IS NOT NULL OR NOT COALESCE(:with_stock, FALSE))
ORDER BY date DESC, metric_id
LIMIT LEAST(COALESCE(:most, 25), 500)
