-- Tables that were put under watch later lose their triggers with the function.
DROP FUNCTION metrics_api_notify() CASCADE;
