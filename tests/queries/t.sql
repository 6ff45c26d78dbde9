SELECT 'a table of one column, called as the service calls its own' AS t
