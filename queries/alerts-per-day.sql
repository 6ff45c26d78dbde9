-- title: Alerts per day
-- description: Alerts raised each day, by type; a day without any is 0.
-- chart: stacked
-- param start_date: First day counted; default day_range days before end_date
-- param end_date: Last day counted; default today
-- param day_range: Days before end_date at which the period starts, unless start_date is given; default 30
-- param category: Only alerts of this category, for example End of life; default all categories
WITH alerts AS (
    SELECT
        DATE(date) AS day,
        alert_type
    FROM metrics
    WHERE date >= COALESCE(:start_date, COALESCE(:end_date, CURRENT_DATE) - COALESCE(:day_range, 30))
    AND date < COALESCE(:end_date, CURRENT_DATE) + 1
    AND alert_category = COALESCE(:category, alert_category)
)

SELECT
    DATE(days.day) AS day,
    COUNT(*) FILTER (WHERE alerts.alert_type = 'Critical') AS critical,
    COUNT(*) FILTER (WHERE alerts.alert_type = 'Warning') AS warning,
    COUNT(*) FILTER (WHERE alerts.alert_type = 'Info') AS info
FROM GENERATE_SERIES((SELECT MIN(day) FROM alerts), (SELECT MAX(day) FROM alerts), INTERVAL '1 day') AS days (day)
LEFT JOIN alerts
    ON alerts.day = days.day
GROUP BY days.day
ORDER BY days.day
