-- Reviewed SQL runs as metrics_reader, unreviewed SQL as metrics_guest: two logins without memberships, because
-- sessions of one login may end each other. Logins belong to the cluster: another database may have made them.
-- Where the owner may not create logins the service says at its start what to do; passwords are set there, too.
DO $$
DECLARE
    login text;
BEGIN
    FOREACH login IN ARRAY ARRAY['metrics_reader', 'metrics_guest'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I LOGIN NOINHERIT', login);
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN RAISE NOTICE 'the login % could not be created', login;
        END;
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = login) THEN
            EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), login);
            EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), login);
            EXECUTE format('GRANT SELECT ON metrics TO %I', login);
        END IF;
    END LOOP;
END
$$;
