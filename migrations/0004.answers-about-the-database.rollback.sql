DROP FUNCTION end_of_log();
DROP FUNCTION unrevoked_functions();
DROP FUNCTION does_more_than_read(text);
DROP FUNCTION readable_columns();
DROP FUNCTION relation_shapes(oid[]);
DROP FUNCTION type_names(oid[]);
DROP FUNCTION relations_under_lock();
DROP VIEW metric_definitions;
