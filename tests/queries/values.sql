-- title: Every kind of value
-- chart: table
SELECT
  12345678901234567890.12345678901234567890 AS digits,
  0.10 AS zero,
  'NaN'::numeric AS nan,
  'Infinity'::float8 AS infinity,
  '-Infinity'::numeric AS minus_infinity,
  9007199254740993 AS big,
  TIMESTAMPTZ '2025-06-30 12:00:00+02' AS instant,
  DATE 'infinity' AS never,
  INTERVAL '1 month 2 days' AS duration,
  '\xdeadbeef'::bytea AS bytes,
  ARRAY[1, NULL, 3] AS numbers,
  E'{\n "a":\r\n [1,\t2]}'::json AS document,
  E'two\nlines, "quoted"' AS text,
  '' AS empty,
  NULL AS nothing,
  true AS yes,
  1 AS "t",
  2 AS "rows, ""quoted""",
  3 AS "größe"
