DROP FUNCTION holds_nothing();
DROP FUNCTION mirror_file(text, text, text);
