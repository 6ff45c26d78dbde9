-- title: Alerts by type
-- description: How many alerts of each type were raised in the period.
-- chart: bar
-- param start_date: First day counted; default day_range days before end_date
-- param end_date: Last day counted; default today
-- param day_range: Days before end_date at which the period starts, unless start_date is given; default 30
SELECT
    alert_type,
    COUNT(*) AS total_alerts
FROM metrics
WHERE date >= COALESCE(:start_date, COALESCE(:end_date, CURRENT_DATE) - COALESCE(:day_range, 30))
AND date < COALESCE(:end_date, CURRENT_DATE) + 1
AND alert_type IS NOT NULL
GROUP BY alert_type
ORDER BY total_alerts DESC, alert_type
