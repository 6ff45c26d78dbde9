-- title: Critical alerts
-- description: Raised in the period, of all categories or of one.
-- chart: number
-- param start_date: First day counted; default day_range days before end_date
-- param end_date: Last day counted; default today
-- param day_range: Days before end_date at which the period starts, unless start_date is given; default 7
-- param category: Only alerts of this category, for example End of life; default all categories
SELECT
    COUNT(*) AS raised
FROM metrics
WHERE date >= COALESCE(:start_date, COALESCE(:end_date, CURRENT_DATE) - COALESCE(:day_range, 7))
AND date < COALESCE(:end_date, CURRENT_DATE) + 1
AND alert_type = 'Critical'
AND alert_category = COALESCE(:category, alert_category)
