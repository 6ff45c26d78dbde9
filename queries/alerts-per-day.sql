-- title: Alerts per day
-- description: Alerts raised each day, one line for each type.
-- unit: alerts
-- chart: line
-- param start_date: First day counted; default day_range days before end_date
-- param end_date: Last day counted; default today
-- param day_range: Days before end_date at which the period starts, unless start_date is given; default 30
SELECT
    DATE(date) AS day,
    COUNT(*) FILTER (WHERE alert_type = 'Critical') AS critical,
    COUNT(*) FILTER (WHERE alert_type = 'Warning') AS warning,
    COUNT(*) FILTER (WHERE alert_type = 'Info') AS info
FROM metrics
WHERE date >= COALESCE(:start_date, COALESCE(:end_date, CURRENT_DATE) - COALESCE(:day_range, 30))
AND date < COALESCE(:end_date, CURRENT_DATE) + 1
AND alert_type IS NOT NULL
GROUP BY DATE(date)
ORDER BY day
