"""SQL that nobody reviewed: refused with a reason, or run without a trace, in an own or a shared database."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import asyncpg
import httpx
import pytest
from conftest import Serve
from helpers import Service, another_database, eventually, wait_until

pytestmark = pytest.mark.anyio

KEY = "the-secret-row"
BACKSLASH = "\\"

# Each is refused when it is sent, with a reason.
REFUSED = {
    # It takes PostgreSQL's lexer as long as it likes.
    "comments in comments": f"SELECT 1 AS a {'/*' * 45_000}",
    # It writes.
    "insert": "INSERT INTO metrics (id) VALUES ('total')",
    "insert returning": "INSERT INTO metrics (id) VALUES ('total') RETURNING id",
    "update returning": "UPDATE metrics SET obsolescence = 0 RETURNING id",
    "delete returning": "DELETE FROM metrics RETURNING id",
    "merge": "MERGE INTO metrics AS m USING (VALUES (1)) AS v(x) ON true WHEN MATCHED THEN DELETE RETURNING m.id",
    "truncate": "TRUNCATE metrics",
    "select into": "SELECT id INTO stolen FROM metrics",
    "select into temp": "SELECT 1 AS a INTO TEMP stolen",
    "create table as": "CREATE TABLE stolen AS SELECT 1 AS a",
    "create temp table": "CREATE TEMP TABLE metrics AS SELECT 1 AS a",
    "drop": "DROP TABLE metrics",
    "alter role": "ALTER ROLE metrics_guest SUPERUSER",
    "grant": "GRANT SELECT ON secret TO metrics_guest",
    "cte insert": "WITH w AS (INSERT INTO metrics (id) VALUES ('total') RETURNING id) SELECT id FROM w",
    "cte delete": "WITH w AS (DELETE FROM metrics RETURNING id) SELECT id FROM w",
    "cte update nested": "SELECT * FROM (WITH w AS (UPDATE metrics SET id = id RETURNING id) SELECT id FROM w) AS x",
    "large object": "SELECT lo_from_bytea(0, 'x') AS a",
    "large object create": "SELECT lo_create(4711) AS a",
    "large object import": "SELECT lo_import('/etc/passwd') AS a",
    "large object export": "SELECT lo_export(1, '/tmp/x') AS a",
    "wal message": "SELECT pg_logical_emit_message(false, 'a', 'b')::text AS a",
    # It runs programs and reads files.
    "copy to program": "COPY (SELECT 1) TO PROGRAM 'touch /tmp/pwned'",
    "copy from program": "COPY metrics FROM PROGRAM 'id'",
    "copy to stdout": "COPY metrics TO STDOUT",
    "copy to file": "COPY metrics TO '/tmp/pwned'",
    "read file": "SELECT pg_read_file('/etc/passwd') AS a",
    "read binary file": "SELECT pg_read_binary_file('/etc/passwd')::text AS a",
    "list directory": "SELECT pg_ls_dir('/') AS a",
    "stat file": "SELECT size FROM pg_stat_file('postgresql.conf')",
    "list log directory": "SELECT name FROM pg_ls_logdir()",
    "load": "LOAD 'auto_explain'",
    # It locks.
    "for update": "SELECT id FROM metrics FOR UPDATE",
    "for key share": "SELECT id FROM metrics FOR KEY SHARE",
    "lock table": "LOCK TABLE metrics IN ACCESS EXCLUSIVE MODE",
    "advisory lock": "SELECT pg_advisory_lock(1)::text AS a",
    "try advisory lock": "SELECT pg_try_advisory_lock(7102025) AS a",
    "advisory transaction lock": "SELECT pg_advisory_xact_lock_shared(1, 2)::text AS a",
    # It reaches other sessions.
    "terminate": "SELECT pg_terminate_backend(pid) AS a FROM pg_stat_activity",
    "cancel": "SELECT pg_cancel_backend(pid) AS a FROM pg_stat_activity",
    "notify function": "SELECT pg_notify('metrics_api', '1 1')::text AS a",
    "notify": "NOTIFY metrics_api, '1 1'",
    "listen": "LISTEN metrics_api",
    "unlisten": "UNLISTEN *",
    "export snapshot": "SELECT pg_export_snapshot() AS a",
    # It changes the session.
    "set config": "SELECT set_config('statement_timeout', '0', false) AS a",
    "set config role": "SELECT set_config('role', 'postgres', false) AS a",
    "set config read write": "SELECT set_config('transaction_read_only', 'off', false) AS a",
    "set config client encoding": "SELECT set_config('client_encoding', 'EUC_TW', false) AS a",
    "set config transaction timeout": "SELECT set_config('transaction_timeout', '1', false) AS a, pg_sleep(1) AS b",
    "set config in where": "SELECT 1 AS a WHERE pg_catalog.set_config('search_path', 'x', false) IS NOT NULL",
    "seed of random numbers": "SELECT setseed(0.5)::text AS a",
    "set": "SET statement_timeout = 0",
    "set role": "SET ROLE postgres",
    "set session authorization": "SET SESSION AUTHORIZATION postgres",
    "reset all": "RESET ALL",
    "discard all": "DISCARD ALL",
    "prepare": "PREPARE x AS SELECT 1",
    "execute": "EXECUTE __asyncpg_stmt_1__",
    "deallocate all": "DEALLOCATE ALL",
    "declare": "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "fetch": "FETCH ALL FROM c",
    "begin": "BEGIN",
    "commit": "COMMIT",
    "rollback": "ROLLBACK",
    "read write": "SET TRANSACTION READ WRITE",
    "do": "DO $$ BEGIN PERFORM pg_sleep(60); END $$",
    "call": "CALL nothing()",
    "explain analyze": "EXPLAIN ANALYZE SELECT pg_sleep(60)",
    "show": "SHOW ALL",
    # It runs SQL out of a text.
    "query to xml": "SELECT query_to_xml('SELECT * FROM secret', true, true, '')::text AS a",
    "table to xml": "SELECT table_to_xml('secret', true, true, '')::text AS a",
    "database to xml": "SELECT database_to_xml(true, true, '')::text AS a",
    "cursor to xml": "SELECT cursor_to_xml('c', 1, true, true, '')::text AS a",
    "ts_stat": "SELECT word FROM ts_stat('SELECT to_tsvector(password) FROM secret')",
    "ts_rewrite": "SELECT ts_rewrite('a', 'SELECT a, a FROM secret')::text AS a",
    # It reads what is not its own.
    "secret": "SELECT password FROM secret",
    "secret as table": "TABLE secret",
    "secret as row": "SELECT s::text AS a FROM secret AS s",
    "secret in a subquery": "SELECT (SELECT string_agg(password, '') FROM secret) AS a",
    "secret behind false": "SELECT 1 AS a WHERE EXISTS (SELECT FROM secret WHERE false)",
    "secret by its schema": 'SELECT password FROM "public"."secret"',
    "queries": "SELECT query FROM queries",
    "configurations": "SELECT prompt FROM metric_configurations",
    "pg_authid": "SELECT rolpassword FROM pg_authid",
    "pg_shadow": "SELECT passwd FROM pg_shadow",
    "pg_statistic": "SELECT stavalues1::text AS a FROM pg_statistic",
    "pg_largeobject": "SELECT data::text AS a FROM pg_largeobject",
    "pg_hba": "SELECT auth_method FROM pg_hba_file_rules",
    "pg_file_settings": "SELECT setting FROM pg_file_settings",
    "subscriptions": "SELECT subconninfo FROM pg_subscription",
    "another database": "SELECT a FROM postgres.public.secret",
    # It has another function's name written in another way.
    "quoted": "SELECT \"pg_notify\"('a', 'b')::text AS a",
    "qualified": "SELECT pg_catalog . pg_notify('a', 'b')::text AS a",
    "upper case": "SELECT PG_NOTIFY('a', 'b')::text AS a",
    "comment before the parenthesis": "SELECT pg_notify/* */('a', 'b')::text AS a",
    "Unicode escapes": "SELECT U&\"pg\\005fnotify\"('a', 'b')::text AS a",
    "Unicode escapes of one's own": "SELECT U&\"pg!005fnotify\" UESCAPE '!' ('a', 'b')::text AS a",
    "comment that a carriage return ends": "SELECT 1 AS a, --\rpg_notify('a', 'b')::text AS b",
    "sessions behind a carriage return": "SELECT --\rpg_terminate_backend(pid)::text AS a\nFROM pg_stat_activity",
    "dollar quote with a tag of symbols": "SELECT $€$'$€$ AS a, pg_notify('x', 'y')::text AS b, $€$'$€$ AS c",
    "string that goes on": f"SELECT E'a'\n'{BACKSLASH}' ' || pg_notify('x', 'y') AS b, '' AS c",
    "string that goes on after a comment": f"SELECT E'a' -- '\n'{BACKSLASH}' ' || pg_notify('x', 'y') AS b, '' AS c",
    "string that goes on after a carriage return": f"SELECT E'a'\r'{BACKSLASH}' ' || pg_notify('x', 'y') AS b, '' AS c",
    # It leaves the wrapper.
    "two statements": "SELECT 1 AS a; SELECT 2 AS a",
    "drop behind": "SELECT 1 AS a; DROP TABLE metrics",
    "statement in front": "DROP TABLE metrics; SELECT 1 AS a",
    "closes the parenthesis": "SELECT 1 AS a) AS t; DROP TABLE metrics; --",
    "closes and opens": "SELECT 1 AS a) AS t, (SELECT 2 AS b",
    "closes and comments": "SELECT 1 AS a) AS t --",
    "comment that stays open": "SELECT 1 AS a /*",
    "nested comment that stays open": "SELECT 1 AS a /* /* */",
    "parenthesis behind a comment": "SELECT 1 AS a /* ( */ )",
    "parenthesis that stays open": "SELECT (1 AS a",
    "closing parentheses": "SELECT 1 AS a))))",
    "string that stays open": "SELECT 'a AS b",
    "escaped string that stays open": "SELECT E'\\' AS b",
    "identifier that stays open": 'SELECT 1 AS "a',
    "dollar quote that stays open": "SELECT $$a AS b",
    "dollar quote with another tag": "SELECT $x$a$y$ AS b",
    "no columns": "SELECT FROM metrics",
    "nothing": "-- nothing\n;",
    "semicolons": ";;;",
    "two columns of one name": "SELECT 1 AS a, 2 AS a",
    "backslash command": "\\! id",
    "NUL": "SELECT 1 AS a\0",
    # It tricks the parameters.
    "numbered parameter": "SELECT $1::int AS a",
    "numbered beside named": "SELECT :a::int AS a, $1::text AS b",
    "numbered with letters": "SELECT $1a AS a",
    "parameter as a table": "SELECT a FROM :a",
    "parameter as an identifier": 'SELECT 1 AS ":a", x FROM (SELECT :b) AS y',
    "parameter without a type": "SELECT pg_typeof(:a)::text AS a, array_agg(:b) AS b FROM :c",
    "parameter in a quote of symbols": "SELECT $€$ :a $€$ AS a, :a AS b FROM :b",
    # It is a bomb.
    "parentheses": "SELECT " + "(" * 30_000 + "1" + ")" * 30_000,
    "subqueries": "SELECT * FROM (" * 3000 + "SELECT 1 AS a" + ") AS t" * 3000,
    "1 MB": "SELECT '" + "x" * 2**20 + "' AS a",
    "cost": "SELECT COUNT(*) AS a FROM generate_series(1, 1000000) AS b, generate_series(1, 1000000) AS c",
    "cost beyond words": "SELECT 1 AS a FROM " + ", ".join(f"generate_series(1, 1000000) AS s{i}" for i in range(50)),
    "columns": "SELECT " + ", ".join(f"1 AS c{i}" for i in range(1700)),
    "database that is not there": "SELECT id FROM metrics WHERE id = has_database_privilege('no', 'TEMP')::text",
    "schema that is not there": "SELECT 'no.no'::regclass::text AS a",
    "planning without end": f"SELECT {' + '.join(f'factorial({n})' for n in range(30_000, 30_090))} AS a",
}

# Each is taken, and ends at a limit: the time's, the database's memory's or the result's.
BOMBS = {
    "sleep": "SELECT pg_sleep(60)::text AS a",
    "sleep in where": "SELECT id FROM metrics WHERE pg_sleep(60) IS NULL",
    "recursion without end": "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT 1 FROM r) SELECT MAX(n) AS a FROM r",
    "recursion that grows": "WITH RECURSIVE r(t) AS (SELECT 'x' UNION ALL SELECT t || t FROM r) SELECT t FROM r",
    "counting without end": "SELECT COUNT(*) AS a FROM generate_series(1, 100000000)",
    "a cell of 300 MB": "SELECT REPEAT('x', n) AS a FROM generate_series(300000000, 300000000) AS n",
    "a cell beyond a gigabyte": "SELECT REPEAT('x', n) AS a FROM generate_series(2000000000, 2000000000) AS n",
    "many long cells": "SELECT REPEAT('x', 1000000) AS a FROM generate_series(1, 100)",
    "a long aggregate": "SELECT STRING_AGG(MD5(n::text), '') AS a FROM generate_series(1, 700000) AS n",
    "a long array": "SELECT ARRAY_AGG(n) AS a FROM generate_series(1, 3000000) AS n",
}

# Each is taken and runs; what comes of it.
HARMLESS: dict[str, tuple[str, int, object]] = {
    "a database that is not there, by its data": (
        "SELECT has_database_privilege(name, 'CONNECT') AS a FROM (VALUES ('no'::name)) AS v(name)",
        500,
        None,
    ),
    "a schema that is not there, by its data": (
        "SELECT n::regclass::text AS a FROM (VALUES ('no.no')) AS v(n)",
        500,
        None,
    ),
    "create slot": ("SELECT slot_name FROM pg_create_physical_replication_slot('x')", 500, None),
    "division by zero": ("SELECT 1 / n AS a FROM (VALUES (0)) AS v(n)", 500, None),
    "for update of values": ("SELECT a FROM (VALUES (1)) AS v(a) FOR UPDATE", 200, [{"a": 1}]),
    "comment at the end": ("SELECT 1 AS a --", 200, [{"a": 1}]),
    "comment of a carriage return": ("SELECT 1 --\r+ 1 AS a", 200, [{"a": 2}]),
    "semicolon and comment": ("SELECT 1 AS a; -- ) AS t", 200, [{"a": 1}]),
    "nested comments": ("/* /* ) */ ; */ SELECT 1 /* ' */ AS a", 200, [{"a": 1}]),
    "wrapper in a string": (
        "SELECT ') AS t; DROP TABLE metrics; --' AS a",
        200,
        [{"a": ") AS t; DROP TABLE metrics; --"}],
    ),
    "function in a string": ("SELECT 'pg_notify' AS a", 200, [{"a": "pg_notify"}]),
    "parameter in a string": ("SELECT ':a' || $$:b$$ || E'\\':c' AS a", 200, [{"a": ":a:b':c"}]),
    "parameter in a quote of symbols": ("SELECT $€$ :a ' $€$ AS a", 200, [{"a": " :a ' "}]),
    "parameter in a string that goes on": ("SELECT E'a'\n'\\':b ' AS a", 200, [{"a": "a':b "}]),
    "semicolon in a quote of symbols": ("SELECT $ä€$;$$;$ä€$ AS a;", 200, [{"a": ";$$;"}]),
    "names of the wrapper": (
        "SELECT 1 AS t, 2 AS r, 3 AS record, 4 AS records",
        200,
        [{"t": 1, "r": 2, "record": 3, "records": 4}],
    ),
    "Unicode escapes in a string": ("SELECT U&'\\0061' AS a", 200, [{"a": "a"}]),
    "JSON with line breaks": ("SELECT E'{\"a\":\\n[1,\\r\\n2]}'::json AS a", 200, [{"a": {"a": [1, 2]}}]),
    "volatile cast": (
        "SELECT (RANDOM() < 2)::text::bool AS a, NOW() > '2020-01-01' AS b",
        200,
        [{"a": True, "b": True}],
    ),
    "names that begin as a large object's functions": (
        "SELECT lo_limit FROM (VALUES (1)) AS v(lo_limit)",
        200,
        [{"lo_limit": 1}],
    ),
    "own privileges": ("SELECT HAS_TABLE_PRIVILEGE('secret', 'SELECT') AS a", 200, [{"a": False}]),
    "number of a transaction": ("SELECT PG_CURRENT_XACT_ID() IS NOT NULL AS a", 200, [{"a": True}]),
    "what others run": (
        "SELECT COUNT(*) AS a FROM pg_stat_activity WHERE usename <> CURRENT_USER AND query ~ '^[^<]'",
        200,
        [{"a": 0}],
    ),
    "statistics of a secret": ("SELECT COUNT(*) AS a FROM pg_stats WHERE tablename = 'secret'", 200, [{"a": 0}]),
    "passwords of foreign servers": ("SELECT COUNT(umoptions) AS a FROM pg_user_mappings", 200, [{"a": 0}]),
}

SESSION = """\
SELECT
  (SELECT STRING_AGG(setting, ' ' ORDER BY name) FROM pg_settings WHERE name <> 'application_name') AS settings,
  (SELECT COUNT(*) FROM pg_prepared_statements WHERE name NOT LIKE '\\_\\_asyncpg%') AS prepared,
  (SELECT COUNT(*) FROM PG_LISTENING_CHANNELS()) AS channels,
  (SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory') AS locks,
  PG_MY_TEMP_SCHEMA()::int8 AS temporary,
  CURRENT_USER::text AS login,
  'ä€' AS text
"""
DATABASE = """\
SELECT
  (SELECT STRING_AGG(c.relname, ',' ORDER BY c.oid) FROM pg_class AS c WHERE c.oid >= 16384) AS relations,
  (SELECT STRING_AGG(r::text, ',' ORDER BY r.oid) FROM pg_authid AS r) AS roles,
  (SELECT STRING_AGG(m::text, ',' ORDER BY m.metric_id) FROM metrics AS m) AS records,
  (SELECT STRING_AGG(s::text, ',') FROM secret AS s) AS secret,
  (SELECT COUNT(*) FROM pg_largeobject_metadata) AS objects,
  (SELECT COUNT(*) FROM pg_replication_slots) AS slots,
  (SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory') AS locks
"""


class Sandbox(NamedTuple):
    client: httpx.AsyncClient
    owner: asyncpg.Connection
    sessions: list[asyncpg.Connection]
    heard: list[object]
    probe: str
    session: dict[str, Any]

    async def post(self, query: str) -> httpx.Response:
        return await self.client.post("/metrics", json={"query": query})

    async def run(self, metric_id: str) -> httpx.Response:
        return await self.client.get(f"/metrics/{metric_id}", headers={"Cache-Control": "no-cache"})


@pytest.fixture(scope="module", params=["on", "off"])
async def sandbox(cluster: str, start_service: Serve, request: pytest.FixtureRequest) -> AsyncIterator[Sandbox]:
    """A service on a database with a secret table, a session of the guest's login and a listener."""
    with another_database(cluster, f"hostile_{request.param}") as url:
        service = start_service(
            DATABASE_URL=url, HARDEN_DATABASE=request.param, STATEMENT_TIMEOUT="0.5", POOL_TIMEOUT="5"
        )
        owner = await asyncpg.connect(url)
        # It has operators of its own, called as PostgreSQL's, as extensions do.
        await owner.execute("CREATE EXTENSION citext")
        await owner.execute(f"CREATE TABLE secret AS SELECT '{KEY}' AS password")
        await owner.execute(
            "INSERT INTO metrics (id, parts_flagged) SELECT 'total', n FROM generate_series(1, 20) AS n"
        )
        heard: list[object] = []
        await owner.add_listener("metrics_api", lambda *message: heard.append(message))
        guests = [await asyncpg.connect(url, user="metrics_guest")]
        async with httpx.AsyncClient(base_url=service.url, timeout=30, verify=False) as client:
            probe = (await client.post("/metrics", json={"query": SESSION})).json()["id"]
            session = (await client.get(f"/metrics/{probe}")).json()["records"][0]
            yield Sandbox(client, owner, guests, heard, probe, session)
        for session_of_guest in guests:
            session_of_guest.terminate()
        await owner.close()
        service.stop()


async def check_no_trace(sandbox: Sandbox, before: asyncpg.Record) -> None:
    """Nothing written, no setting left, no session ended, the next query on the same connections right."""
    for guest in sandbox.sessions:
        assert await guest.fetchval("SELECT 1") == 1
    run = await sandbox.run(sandbox.probe)
    assert run.json().get("records") == [sandbox.session], run.text
    assert await sandbox.owner.fetchrow(DATABASE) == before


def in_groups(table: dict[str, Any]) -> pytest.MarkDecorator:
    """Ten statements at a time, for the traces of each are looked for behind all of them."""
    groups = [list(table.items())[start : start + 10] for start in range(0, len(table), 10)]
    return pytest.mark.parametrize("group", groups, ids=[f"{group[0][0]} to {group[-1][0]}" for group in groups])


@in_groups(REFUSED)
async def test_what_does_more_than_read_is_refused_with_a_reason(
    sandbox: Sandbox, group: list[tuple[str, str]]
) -> None:
    before = await sandbox.owner.fetchrow(DATABASE)
    sandbox.heard.clear()
    answers = {name: await sandbox.post(query) for name, query in group}
    statuses = {name: answer.status_code for name, answer in answers.items()}
    assert statuses == dict.fromkeys(answers, 422)
    for answer in answers.values():
        assert len(answer.json()["detail"]) < 500
        assert answer.json()["errors"][0]["detail"]
        assert KEY not in answer.text
    assert sandbox.heard == []
    await check_no_trace(sandbox, before)


@in_groups(HARMLESS)
async def test_what_is_taken_leaves_no_trace(
    sandbox: Sandbox, group: list[tuple[str, tuple[str, int, object]]]
) -> None:
    before = await sandbox.owner.fetchrow(DATABASE)
    found, expected = {}, {}
    for name, (query, status, records) in group:
        answer = await sandbox.post(query)
        assert answer.status_code == 201, (name, answer.text)
        run = await sandbox.run(answer.json()["id"])
        found[name] = (run.status_code, run.json().get("records"))
        expected[name] = (status, records)
        assert KEY not in run.text
    assert found == expected
    await check_no_trace(sandbox, before)


@pytest.mark.parametrize("query", BOMBS.values(), ids=BOMBS)
async def test_a_bomb_ends_at_a_limit(sandbox: Sandbox, query: str) -> None:
    before = await sandbox.owner.fetchrow(DATABASE)
    answer = await sandbox.post(query)
    assert answer.status_code == 201, answer.text
    started = time.monotonic()
    run = await sandbox.run(answer.json()["id"])
    assert time.monotonic() - started < 30
    assert run.status_code in (422, 503, 504), run.text
    await check_no_trace(sandbox, before)


@pytest.fixture
async def api(client: httpx.AsyncClient) -> httpx.AsyncClient:
    return client


async def test_both_logins_are_limited(service: Service, api: httpx.AsyncClient) -> None:
    limits = "CURRENT_SETTING('statement_timeout') AS b, CURRENT_SETTING('temp_file_limit') AS c"
    query = f"SELECT CURRENT_USER::text AS a, {limits}"
    (service.queries / "limits.sql").write_text(query)
    await eventually(lambda: succeeds(api, "/metrics/limits"))
    reviewed = (await api.get("/metrics/limits")).json()["records"]
    (service.queries / "limits.sql").unlink()
    metric_id = (await api.post("/metrics", json={"query": query})).json()["id"]
    unreviewed = (await api.get(f"/metrics/{metric_id}")).json()["records"]
    assert reviewed == [{"a": "metrics_reader", "b": "10s", "c": "1GB"}]
    assert unreviewed == [{"a": "metrics_guest", "b": "10s", "c": "1GB"}]


async def test_a_database_with_a_setting_of_old_does_not_move_the_ends_of_strings(
    start_service: Serve, owner: asyncpg.Connection
) -> None:
    database = f'"{await owner.fetchval("SELECT CURRENT_DATABASE()")}"'
    await owner.execute(f"ALTER DATABASE {database} SET standard_conforming_strings = off")
    try:
        old = start_service()
        query = f"SELECT '{BACKSLASH}'' AS a, pg_notify('x', 'y')::text AS b, '' AS c"
        answer = httpx.post(f"{old.url}/metrics?dry_run=true", json={"query": query})
        assert answer.status_code == 422, answer.text
        old.stop()
    finally:
        await owner.execute(f"ALTER DATABASE {database} RESET standard_conforming_strings")


async def test_values_of_parameters_are_never_sql(api: httpx.AsyncClient) -> None:
    answer = await api.post("/metrics", json={"query": "SELECT :t::text AS t, :n::int4 AS n"})
    path = f"/metrics/{answer.json()['id']}"
    for text in ("'; DROP TABLE metrics; --", "') AS t --", "$1", ":n", "\\", "pg_notify('a', 'b')", "${x}"):
        assert (await api.get(path, params={"t": text})).json()["records"] == [{"t": text, "n": None}]
    assert (await api.get(path, params={"n": "1); DROP TABLE metrics"})).status_code == 422


async def test_a_value_that_postgresql_does_not_take_for_its_type_is_the_callers_fault(api: httpx.AsyncClient) -> None:
    answer = await api.post("/metrics", json={"query": "SELECT :t::regclass::text AS t"})
    got = await api.get(f"/metrics/{answer.json()['id']}", params={"t": "no_such_table"})
    assert got.status_code == 422, got.text


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("SELECT DATE_TRUNC(:v, NOW()) AS a", "timezone"),
        ("SELECT :v::above_zero AS a", "-1"),
        ("SELECT CURRVAL(:v::regclass) AS a", "ticks"),
    ],
    ids=["feature", "domain", "state"],
)
async def test_whatever_the_query_fails_with_is_the_callers_fault_if_it_took_a_value(
    api: httpx.AsyncClient, owner: asyncpg.Connection, query: str, value: str
) -> None:
    await owner.execute("CREATE DOMAIN above_zero AS int CHECK (VALUE > 0); CREATE SEQUENCE ticks")
    await owner.execute("GRANT SELECT ON ticks TO metrics_guest")
    try:
        metric_id = (await api.post("/metrics", json={"query": query})).json()["id"]
        got = await api.get(f"/metrics/{metric_id}", params={"v": value})
        assert got.status_code == 422, got.text
        literal = (await api.post("/metrics", json={"query": query.replace(":v", f"'{value}'")})).json()["id"]
        assert (await api.get(f"/metrics/{literal}")).status_code == 500
    finally:
        await owner.execute("DROP DOMAIN above_zero; DROP SEQUENCE ticks")


async def test_json_of_any_depth_is_no_failure_as_csv(api: httpx.AsyncClient) -> None:
    query = "SELECT (REPEAT('[', 4000) || REPEAT(']', 4000))::json AS a"
    metric_id = (await api.post("/metrics", json={"query": query})).json()["id"]
    assert (await api.get(f"/metrics/{metric_id}.ndjson")).status_code == 200
    assert (await api.get(f"/metrics/{metric_id}.csv")).status_code in (200, 422)


async def slowest(api: httpx.AsyncClient, task: asyncio.Task[httpx.Response]) -> float:
    """The longest that /health/live took while a task ran, in seconds."""
    worst = 0.0
    while not task.done():
        started = time.monotonic()
        await api.get("/health/live")
        worst = max(worst, time.monotonic() - started)
        await asyncio.sleep(0.01)
    return worst


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1 AS a " + "".join(f"$t{i:x}$ " for i in range(13_000)),
        "SELECT 1 AS a " + "$$ " * 33_001,
        "SELECT 1 AS a " + "E'\\' " * 16_001,
        "SELECT 1 AS a " + '"' * 99_001,
        "SELECT 1 AS a " + "/* " * 33_001,
        "SELECT 1 AS a " + "E'a'\n" * 19_001,
        "SELECT 1 AS a " + "E'a' --\n" * 12_001,
        "SELECT 1 AS a " + "+1" * 49_000,
    ],
    ids=["tags", "dollars", "escapes", "quotes", "comments", "strings", "strings and comments", "tokens"],
)
async def test_reading_long_sql_does_not_stop_the_others(api: httpx.AsyncClient, query: str) -> None:
    posting = asyncio.create_task(api.post("/metrics", json={"query": query}))
    assert await slowest(api, posting) < 5
    assert (await posting).status_code == 422


async def test_an_error_that_quotes_a_large_value_does_not_stop_the_others(api: httpx.AsyncClient) -> None:
    query = "SELECT REPEAT('€', (RANDOM() * 0)::int + 20000000)::int AS a"
    metric_id = (await api.post("/metrics", json={"query": query})).json()["id"]
    running = asyncio.create_task(api.get(f"/metrics/{metric_id}"))
    assert await slowest(api, running) < 1
    assert (await running).status_code == 500
    assert (await api.post("/metrics", json={"query": "SELECT REPEAT('€', 20000000)::int AS a"})).status_code == 201


async def test_what_unreviewed_sql_raises_does_not_count_as_an_outage(
    api: httpx.AsyncClient, owner: asyncpg.Connection, triggers: None
) -> None:
    """Else changed results would be served to everybody while somebody asks for that metric."""
    await owner.execute("INSERT INTO metrics (id, obsolescence) VALUES ('total', 1)")
    assert (await api.get("/metrics/total")).json()["records"] == [{"total": 1, "records": 1}]
    query = "SELECT has_database_privilege(n, 'CONNECT') AS a FROM (VALUES ('no'::name)) AS v(n)"
    hostile = (await api.post("/metrics", json={"query": query})).json()["id"]
    await owner.execute("INSERT INTO metrics (id, obsolescence) VALUES ('total', 1)")
    await asyncio.sleep(0.5)
    assert (await api.get(f"/metrics/{hostile}")).status_code == 500
    assert (await api.get("/metrics/total")).json()["records"] == [{"total": 2, "records": 2}]


MONTH = "EXTRACT(MONTH FROM NOW())::int"
LATER = {
    "raises": "has_database_privilege('no', 'CONNECT')::int",
    "takes too long": f"LENGTH(({' + '.join(f'factorial({n} + {MONTH})' for n in range(30_000, 30_090))})::text)",
}


@pytest.mark.parametrize("bomb", LATER.values(), ids=LATER)
async def test_metrics_that_cannot_be_planned_any_more_hold_up_nothing_else(
    api: httpx.AsyncClient, start_service: Serve, bomb: str
) -> None:
    at = datetime.now(UTC) + timedelta(seconds=2)
    query = f"SELECT id FROM metrics WHERE parts_flagged = CASE WHEN NOW() > '{at.isoformat()}' THEN {bomb} ELSE 1 END"
    answers = [await api.post("/metrics", json={"query": query}) for _ in range(6)]
    assert {answer.status_code for answer in answers} == {201}
    await asyncio.sleep((at - datetime.now(UTC)).total_seconds() + 0.1)
    second = start_service(STATEMENT_TIMEOUT="2", ready=False)
    try:
        # Sooner than all of them have taken too long.
        wait_until(lambda: httpx.get(f"{second.url}/health/ready").status_code == 200, 11)
        async with httpx.AsyncClient(base_url=second.url) as client:
            assert (await client.get("/metrics/total")).status_code == 200
            (second.queries / "fresh.sql").write_text("SELECT 1 AS a")
            assert (await client.post("/metrics", json={"query": "SELECT 1 AS a"})).status_code == 201
            await eventually(lambda: succeeds(client, "/metrics/fresh"), 11)
            await eventually(lambda: some_fails(client, [answer.json()["id"] for answer in answers]))
    finally:
        second.stop()


async def stop(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def ask_for_ever(client: httpx.AsyncClient, method: str, path: str, **arguments: Any) -> None:
    while True:
        await client.request(method, path, headers={"Cache-Control": "no-cache"}, **arguments)


async def test_two_hostile_metrics_leave_others_their_answers(start_service: Serve, owner: asyncpg.Connection) -> None:
    limited = start_service(STATEMENT_TIMEOUT="1")
    sleep, spin = (
        "SELECT pg_sleep(60)::text AS a",
        "SELECT MAX(a * b) AS m FROM generate_series(1, 9000) AS a, generate_series(1, 9000) AS b",
    )
    async with httpx.AsyncClient(base_url=limited.url, timeout=30, verify=False) as client:
        hostile = [(await client.post("/metrics", json={"query": query})).json()["id"] for query in (sleep, spin)]
        tasks = [asyncio.create_task(ask_for_ever(client, "GET", f"/metrics/{metric_id}")) for metric_id in hostile]
        await asyncio.sleep(0.3)
        busy = await client.post("/metrics", json={"query": "SELECT 1 AS a"})
        third = await client.get(f"/metrics/{busy.json()['id']}")
        reviewed = [await client.get(f"/metrics/echo?n={n}") for n in range(100)]
        await stop(tasks)
    limited.stop()
    assert (third.status_code, third.headers.get("retry-after")) in ((503, "1"), (200, None))
    assert {answer.status_code for answer in reviewed} == {200}


async def succeeds(client: httpx.AsyncClient, path: str) -> bool:
    return (await client.get(path)).status_code == 200


async def test_sql_that_takes_long_to_parse_does_not_look_like_an_outage(start_service: Serve) -> None:
    """It is parsed bare, wrapped and planned, each of which may stay below the limit that they have together."""
    limited = start_service(STATEMENT_TIMEOUT="1", POOL_TIMEOUT="0.5")
    columns = ", ".join(f"1 AS c{i}" for i in range(1600))
    async with httpx.AsyncClient(base_url=limited.url, timeout=30, verify=False) as client:
        for depth in (20, 40, 80, 120, 160):
            query = f"SELECT c0 FROM {'(SELECT * FROM ' * depth}(SELECT {columns}) AS t{') AS t' * depth}"
            answer = await client.post("/metrics?dry_run=true", json={"query": query})
            assert answer.status_code in (200, 422, 504), (depth, answer.text)
    limited.stop()


async def some_fails(client: httpx.AsyncClient, ids: list[str]) -> bool:
    return 500 in [(await client.get(f"/metrics/{metric_id}")).status_code for metric_id in ids]


async def test_sql_that_takes_long_to_plan_keeps_no_file_from_being_picked_up(start_service: Serve) -> None:
    limited = start_service(STATEMENT_TIMEOUT="2")
    bomb = {"query": f"SELECT {' + '.join(f'factorial({n})' for n in range(30_000, 30_090))} AS a"}
    async with httpx.AsyncClient(base_url=limited.url, timeout=30, verify=False) as client:
        tasks = [asyncio.create_task(ask_for_ever(client, "POST", "/metrics", json=bomb)) for _ in range(4)]
        await asyncio.sleep(0.3)
        (limited.queries / "fresh.sql").write_text("SELECT 1 AS a")
        await eventually(lambda: succeeds(client, "/metrics/fresh"), 20)
        await stop(tasks)
    limited.stop()


def test_the_table_is_long_enough() -> None:
    assert len(REFUSED) + len(BOMBS) + len(HARMLESS) >= 70


LONG = "lent" * 15 + "end"  # 63 characters, and PostgreSQL reads no more of a name
LENT = f"""\
CREATE TABLE salaries AS SELECT 4711 AS salary;
REVOKE ALL ON salaries FROM PUBLIC;
CREATE FUNCTION lent_salary() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT salary FROM salaries';
CREATE FUNCTION "lent$""Salary" () RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT salary FROM salaries';
CREATE FUNCTION {LONG}() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT salary FROM salaries';
CREATE FUNCTION lent_to(a int, b int) RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT salary FROM salaries';
CREATE OPERATOR <=== (FUNCTION = lent_to, LEFTARG = int, RIGHTARG = int);
CREATE TYPE lent_type AS (n int);
CREATE FUNCTION lent_cast(t lent_type) RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT salary FROM salaries';
CREATE CAST (lent_type AS int) WITH FUNCTION lent_cast;
CREATE DOMAIN lent_domain AS int CHECK (lent_to(VALUE, 1) < VALUE);
CREATE FUNCTION doubled(n int) RETURNS int LANGUAGE sql AS 'SELECT 2 * n';
CREATE FUNCTION tells_salary() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT Lent_Salary()); END $$;
CREATE FUNCTION tells_in_turn() RETURNS int LANGUAGE sql AS 'SELECT tells_salary()';
CREATE FUNCTION tells_by_name() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT "lent$""Salary"(); END;
CREATE EXTENSION dblink;
"""
TAKEN_BACK = f"""\
DROP EXTENSION dblink;
DROP DOMAIN lent_domain;
DROP CAST (lent_type AS int);
DROP OPERATOR <=== (int, int);
DROP FUNCTION tells_salary(), tells_in_turn(), tells_by_name();
DROP FUNCTION lent_salary(), "lent$""Salary" (), doubled(int), lent_to, lent_cast, {LONG};
DROP TYPE lent_type;
DROP TABLE salaries;
"""


LENT_CALLS = (
    "lent_salary()",
    '"lent$""Salary" ()',
    "LENT_salary()",
    "dblink('', 'SELECT 1')::text",
    f"{LONG}_and_more()",
    "1 <===-2",
    "1 OPERATOR(public.<===) 2",
    "ROW(1)::lent_type::int",
    "5::lent_domain",
    "tells_salary()",
    "tells_in_turn()",
    "tells_by_name()",
)


async def test_a_function_with_other_rights_is_called_by_whom_it_was_granted_to(sandbox: Sandbox) -> None:
    await sandbox.owner.execute(LENT)
    try:
        for name in LENT_CALLS:
            answer = await sandbox.post(f"SELECT {name} AS salary")
            assert answer.status_code == 422, answer.text
            assert "TO metrics_guest lets it be called" in answer.json()["detail"]
        assert (await sandbox.post("SELECT doubled(2) AS four")).status_code == 201
        for name in ("tells_in_turn", "lent_salary"):
            await sandbox.owner.execute(f"GRANT EXECUTE ON FUNCTION {name}() TO metrics_guest")
            made = await sandbox.post(f"SELECT {name}() AS salary")
            assert (await sandbox.run(made.json()["id"])).json()["records"] == [{"salary": 4711}]
    finally:
        await sandbox.owner.execute(TAKEN_BACK)
