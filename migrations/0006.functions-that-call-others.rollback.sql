DROP FUNCTION why_not_said(text[]);
