DROP FUNCTION place_metric(text, json);
DROP FUNCTION delete_metric(text);
DROP FUNCTION change_metric(text, text, text, text);
DROP FUNCTION create_metric(text, text, text, boolean, text, text);
DROP FUNCTION holds_nothing();
DROP FUNCTION mirror_file(text, text, text);
