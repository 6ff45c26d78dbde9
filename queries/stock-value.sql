-- title: Stock at risk
-- description: What the stock at risk of obsolescence is worth on the newest day of the period, and how it came to that.
-- unit: USD
-- chart: number
-- param start_date: First day counted; default day_range days before end_date
-- param end_date: Last day counted; default today
-- param day_range: Days before end_date at which the period starts, unless start_date is given; default 30
SELECT
    DATE(date) AS day,
    ROUND(AVG(obsolescence_val)) AS worth
FROM metrics
WHERE date >= COALESCE(:start_date, COALESCE(:end_date, CURRENT_DATE) - COALESCE(:day_range, 30))
AND date < COALESCE(:end_date, CURRENT_DATE) + 1
AND obsolescence_val IS NOT NULL
AND alert_type IS NULL
GROUP BY DATE(date)
ORDER BY day
