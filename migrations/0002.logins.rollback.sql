-- A login that other databases of the cluster still use stays.
DO $$
DECLARE
    login text;
BEGIN
    FOREACH login IN ARRAY ARRAY['metrics_reader', 'metrics_guest'] LOOP
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = login) THEN
            EXECUTE format('REVOKE ALL ON metrics FROM %I', login);
            EXECUTE format('REVOKE ALL ON SCHEMA %I FROM %I', current_schema(), login);
            EXECUTE format('REVOKE ALL ON DATABASE %I FROM %I', current_database(), login);
            BEGIN
                EXECUTE format('DROP ROLE %I', login);
            EXCEPTION
                WHEN dependent_objects_still_exist OR insufficient_privilege OR object_in_use THEN
                    RAISE NOTICE 'the login % is kept', login;
            END;
        END IF;
    END LOOP;
END
$$;
