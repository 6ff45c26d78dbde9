-- The version before asks for each name on its own, of the function that has this name already.
--
-- Why SQL that nobody reviewed may not say a name or an operator: what lets a SELECT do more than read, and whatever is
-- not PostgreSQL's own and calls what has the rights of its owner, or is written in a language that knows no bounds,
-- unless the caller was granted that by name: a function, or one whose text names it, an operator (in a run of their
-- characters, which PostgreSQL takes apart), a type that is cast or checked by it. Everybody may call what nobody took
-- from PUBLIC. The comparisons and casts of an extension are in C, too, and its operators and aggregates have the names
-- of PostgreSQL's own: these are no reason.
CREATE FUNCTION why_not_said(names text[]) RETURNS TABLE (name text, reason text)
LANGUAGE sql STABLE
AS $$
    WITH RECURSIVE said AS (
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
    called(said, first, oid) AS (
        SELECT said, p.oid, p.oid
        FROM said
        JOIN pg_proc AS p ON lower(p.proname) = said
        WHERE p.oid >= 16384
        UNION
        SELECT c.said, c.first, p.oid
        FROM called AS c
        JOIN pg_proc AS caller ON caller.oid = c.oid
        JOIN pg_proc AS p ON lower(p.proname) = ANY (regexp_split_to_array(lower(caller.prosrc), '[^[:alnum:]_$]+'))
        OR EXISTS (
            SELECT
            FROM pg_depend
            WHERE classid = 'pg_proc'::regclass
            AND objid = caller.oid
            AND refclassid = 'pg_proc'::regclass
            AND refobjid = p.oid
        )
        WHERE p.oid >= 16384
        AND NOT EXISTS (SELECT FROM aclexplode(caller.proacl) WHERE grantee = current_user::regrole)
        AND NOT EXISTS (
            SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = caller.oid AND deptype = 'e'
        )
    ),
    refused AS (
        SELECT said, first AS oid
        FROM called
        JOIN lent USING (oid)
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

-- Where nothing is given to PUBLIC by default, it is here.
GRANT EXECUTE ON FUNCTION why_not_said(text[]) TO PUBLIC;
