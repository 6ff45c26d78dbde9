SELECT 1 / 0 AS quotient
