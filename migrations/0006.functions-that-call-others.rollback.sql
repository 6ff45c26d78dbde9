CREATE OR REPLACE FUNCTION why_not_said(names text[]) RETURNS TABLE (name text, reason text)
LANGUAGE sql STABLE
AS $$
    WITH said AS (
        SELECT said FROM unnest(names) AS said
    ),
    lent AS MATERIALIZED (
        SELECT
            p.oid,
            p.proname,
            p.prosecdef OR NOT EXISTS (
                SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND deptype = 'e'
            ) AS counts
        FROM pg_proc AS p
        JOIN pg_language AS l ON l.oid = p.prolang
        WHERE p.oid >= 16384
        AND (p.prosecdef OR NOT l.lanpltrusted)
        AND has_function_privilege(p.oid, 'EXECUTE')
        AND NOT EXISTS (SELECT FROM aclexplode(p.proacl) WHERE grantee = current_user::regrole)
    ),
    refused AS (
        SELECT said, oid
        FROM lent
        JOIN said ON said = lower(proname)
        WHERE counts
        OR NOT EXISTS (SELECT FROM pg_proc AS own WHERE own.proname = lent.proname AND own.oid < 16384)
        UNION ALL
        SELECT said, lent.oid
        FROM lent
        JOIN pg_operator ON oprcode = lent.oid
        JOIN said ON strpos(said, oprname) > 0
        WHERE counts
        UNION ALL
        SELECT said, lent.oid
        FROM lent
        JOIN pg_cast AS c ON c.castfunc = lent.oid
        JOIN pg_type AS t ON t.oid IN (c.castsource, c.casttarget)
        JOIN said ON said = lower(t.typname)
        WHERE counts
        AND t.oid >= 16384
        UNION ALL
        SELECT said, lent.oid
        FROM lent
        JOIN pg_depend AS d ON d.refclassid = 'pg_proc'::regclass AND d.refobjid = lent.oid
        JOIN pg_constraint AS k ON d.classid = 'pg_constraint'::regclass AND d.objid = k.oid
        JOIN pg_type AS t ON t.oid = k.contypid
        JOIN said ON said = lower(t.typname)
        WHERE counts
        AND t.oid >= 16384
    )
    SELECT said, 'does more than read'
    FROM said
    WHERE does_more_than_read(said)
    UNION ALL
    SELECT
        said,
        format(
            'has other rights than this SQL; GRANT EXECUTE ON FUNCTION %s TO %I lets it be called',
            oid::regprocedure,
            current_user
        )
    FROM refused
$$;
