-- title: Savings
-- description: Obsolescence cost that was avoided in the period.
-- unit: USD
-- chart: number
-- param start_date: First day counted; default day_range days before end_date
-- param end_date: Last day counted; default today
-- param day_range: Days before end_date at which the period starts, unless start_date is given; default 30
SELECT
    ROUND(COALESCE(SUM(obsolescence), 0)) AS cost_avoided
FROM metrics
WHERE date >= COALESCE(:start_date, COALESCE(:end_date, CURRENT_DATE) - COALESCE(:day_range, 30))
AND date < COALESCE(:end_date, CURRENT_DATE) + 1
