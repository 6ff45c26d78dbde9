-- title: Alerts by category
-- description: Alerts of each category raised in the period, of all types or of one.
-- chart: hbar
-- param start_date: First day counted; default day_range days before end_date
-- param end_date: Last day counted; default today
-- param day_range: Days before end_date at which the period starts, unless start_date is given; default 30
-- param type: Only alerts of this type, for example Critical; default all types
SELECT
    alert_category,
    COUNT(*) AS alerts
FROM metrics
WHERE date >= COALESCE(:start_date, COALESCE(:end_date, CURRENT_DATE) - COALESCE(:day_range, 30))
AND date < COALESCE(:end_date, CURRENT_DATE) + 1
AND alert_category IS NOT NULL
AND alert_type = COALESCE(:type, alert_type)
GROUP BY alert_category
ORDER BY alerts DESC, alert_category
