DROP FUNCTION unwatch(text);
DROP FUNCTION watch(text);
DROP FUNCTION family_of(regclass);
-- Tables that were put under watch lose their triggers with the function.
DROP FUNCTION metrics_api_notify() CASCADE;
