DROP FUNCTION keep_watch();
DROP FUNCTION unwatch(text);
DROP FUNCTION watch(text);
DROP FUNCTION put_under_watch(regclass, text);
DROP FUNCTION family_of(regclass);
DROP VIEW watched_tables;
DROP VIEW watched_families;
DROP VIEW watches;
DROP FUNCTION tell_of_changes(text[]);
DROP FUNCTION notify_changes(oid[]);
-- Tables that were put under watch lose their triggers with the function.
DROP FUNCTION metrics_api_notify() CASCADE;
