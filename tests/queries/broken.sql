-- title: Does not compile
SELECT
  no_such_column
FROM metrics
