-- param n (required): A number
SELECT :n::int4 AS n, :day_range::int4 AS day_range
