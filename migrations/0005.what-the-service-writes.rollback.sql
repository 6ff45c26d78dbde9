DROP FUNCTION mirror_file(text, text, text);
