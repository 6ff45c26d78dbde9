"""What Citus asks of the schema, and what the service does itself where tables have no triggers and nodes fail."""

import asyncio
import json
import re
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from conftest import Serve
from helpers import ROOT, another_database, eventually, run_app

from seed import records as seed_records

pytestmark = pytest.mark.anyio

TIME_OUT = 20  # seconds for every instance to know of a write

# They refuse what Citus refuses: triggers, keys without the distribution column, foreign keys to what is not whole, and
# plans for any values; while the table cluster says so, a worker does not let somebody in, or is down.
STAND_INS = """\
CREATE TABLE cluster (worker text DEFAULT 'up', shuts_out name, fails_to_place regclass);
INSERT INTO cluster DEFAULT VALUES;
GRANT SELECT ON cluster TO PUBLIC;
CREATE TABLE pg_dist_partition (logicalrelid regclass PRIMARY KEY, partmethod "char", repmodel "char", key text);
GRANT SELECT ON pg_dist_partition TO PUBLIC;

CREATE FUNCTION run_command_on_workers(command text)
RETURNS TABLE (nodename text, nodeport int, success bool, result text)
LANGUAGE sql AS $$ SELECT 'worker', 5432, CURRENT_USER IS DISTINCT FROM shuts_out, '' FROM cluster $$;
CREATE FUNCTION citus_get_active_worker_nodes() RETURNS TABLE (nodename text, nodeport int)
LANGUAGE sql AS $$ SELECT 'worker', 5432 $$;
CREATE FUNCTION truncate_local_data_after_distributing_table(table_name regclass) RETURNS void
LANGUAGE sql AS $$ SELECT $$;

CREATE FUNCTION place(table_name regclass, key_column text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = table_name AND NOT tgisinternal) THEN
        RAISE EXCEPTION '% has triggers', table_name;
    END IF;
    IF EXISTS (SELECT FROM cluster WHERE fails_to_place = table_name) THEN
        RAISE EXCEPTION '% cannot be placed now', table_name;
    END IF;
    IF EXISTS (
        SELECT FROM pg_index AS i
        WHERE i.indrelid = table_name AND i.indisunique AND key_column IS NOT NULL AND NOT EXISTS (
            SELECT FROM pg_attribute AS a
            WHERE a.attrelid = table_name AND a.attname = key_column AND a.attnum = ANY (i.indkey)
        )
    ) THEN
        RAISE EXCEPTION '% has a unique key without %', table_name, key_column;
    END IF;
    IF EXISTS (
        SELECT FROM pg_constraint AS c
        WHERE c.conrelid = table_name AND c.contype = 'f'
        AND c.confrelid NOT IN (SELECT p.logicalrelid FROM pg_dist_partition AS p WHERE p.key IS NULL)
    ) THEN
        RAISE EXCEPTION '% refers to a table that is no reference table', table_name;
    END IF;
    INSERT INTO pg_dist_partition
    VALUES (table_name, CASE WHEN key_column IS NULL THEN 'n' ELSE 'h' END, 't', key_column);
END $$;

CREATE FUNCTION create_reference_table(table_name regclass) RETURNS void
LANGUAGE sql AS $$ SELECT place(table_name, NULL) $$;
CREATE FUNCTION create_distributed_table(table_name regclass, key_column text) RETURNS void
LANGUAGE sql AS $$ SELECT place(table_name, key_column) $$;

CREATE FUNCTION asks_workers() RETURNS boolean
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    CASE worker FROM cluster
        WHEN 'down' THEN RAISE EXCEPTION 'connection to the remote node failed' USING ERRCODE = '08006';
        WHEN 'lost' THEN RAISE EXCEPTION 'failure on connection marked as essential' USING ERRCODE = 'XX000';
        WHEN 'frozen' THEN PERFORM pg_sleep(60);
        ELSE NULL;
    END CASE;
    RETURN true;
END $$;
-- The planner itself asks those that return the same for ever.
CREATE FUNCTION plans() RETURNS boolean
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    IF current_setting('plan_cache_mode') = 'force_generic_plan' THEN
        RAISE EXCEPTION 'could not create distributed plan' USING ERRCODE = 'feature_not_supported';
    END IF;
    RETURN asks_workers();
END $$;
CREATE FUNCTION writes_to_workers() RETURNS trigger
LANGUAGE plpgsql AS $$ BEGIN PERFORM asks_workers(); RETURN NULL; END $$;

ALTER TABLE metrics ENABLE ROW LEVEL SECURITY;
CREATE POLICY everybody ON metrics USING (true);
CREATE POLICY workers ON metrics AS RESTRICTIVE USING (plans() AND asks_workers());
"""
WRITES = """\
CREATE TRIGGER workers BEFORE INSERT ON metrics FOR EACH STATEMENT EXECUTE FUNCTION writes_to_workers()
"""
PLACED = "SELECT logicalrelid::text AS name, key FROM pg_dist_partition"
DEFINITIONS = "metric_configurations"
COUNT = "SELECT COUNT(*) AS n FROM metrics"
TRIGGERS = "SELECT COUNT(*) FROM pg_trigger WHERE tgname = 'metrics_api_watch'"
SQL_FUNCTIONS = """\
SELECT proname
FROM pg_proc
JOIN pg_language AS l ON l.oid = prolang
WHERE pronamespace = 'public'::regnamespace
AND lanname = 'sql'
AND pronargs > 0
AND prosrc ~ $1
"""
OURS = """\
SELECT relname::text
FROM pg_class
WHERE relkind = 'r'
AND relnamespace = 'public'::regnamespace
AND relname !~ 'yoyo'
AND relname NOT IN ('cluster', 'pg_dist_partition')
"""


@pytest.fixture(scope="module")
async def distributed(cluster: str) -> AsyncIterator[str]:
    """A database without triggers, as the command leaves it."""
    with another_database(cluster, "distributed") as url:
        assert (await run(url, "migrate")).returncode == 0
        conn = await asyncpg.connect(url)
        await conn.execute(STAND_INS)
        done = await run(url, "distribute")
        assert done.returncode == 0, done.stderr
        await conn.execute(WRITES)
        await conn.close()
        yield url


Clients = tuple[httpx.AsyncClient, httpx.AsyncClient]


@pytest.fixture(scope="module")
async def clients(distributed: str, start_service: Serve) -> AsyncIterator[Clients]:
    """Of two instances that listen."""
    services = [start_service(DATABASE_URL=distributed, CACHE_TTL="3600") for _ in range(2)]
    here, there = (httpx.AsyncClient(base_url=service.url, timeout=30) for service in services)
    async with here, there:
        yield here, there
    for service in services:
        service.stop()


async def run(database: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(run_app, *arguments, DATABASE_URL=database, **env)


async def records(client: httpx.AsyncClient, metric: str) -> Any:
    response = await client.get(f"/metrics/{metric}")
    return response.json()["records"] if response.status_code == 200 else response.status_code


async def in_time(condition: Callable[[], Awaitable[bool]]) -> None:
    since = time.monotonic()
    while not await condition():
        assert time.monotonic() - since < TIME_OUT, "the other instance still shows what was before"
        await asyncio.sleep(0.02)


async def shows(client: httpx.AsyncClient, metric: str, expected: object) -> None:
    async def shown() -> bool:
        return bool(await records(client, metric) == expected)

    await in_time(shown)


async def test_distributing_says_what_is_missing_before_it_begins_and_goes_on_where_it_failed(cluster: str) -> None:
    with another_database(cluster, "spread") as url:
        missing = await run(url, "distribute")
        assert (missing.returncode, "The database spread has no extension citus" in missing.stderr) == (1, True)
        assert (await run(url, "migrate")).returncode == 0
        conn = await asyncpg.connect(url)
        await conn.execute(STAND_INS)
        for login in (await conn.fetchval("SELECT CURRENT_USER"), "metrics_reader", "metrics_guest"):
            await conn.execute("UPDATE cluster SET shuts_out = $1", login)
            refused = await run(url, "distribute")
            assert (refused.returncode, refused.stdout) == (1, "")
            assert f"worker:5432 does not let {login} in from here" in refused.stderr
            assert "Nothing has been changed" in refused.stderr
        assert await conn.fetchval(TRIGGERS) == 4
        await conn.execute("UPDATE cluster SET shuts_out = NULL, fails_to_place = 'metrics'")
        failed = await run(url, "distribute")
        assert (failed.returncode, "metrics cannot be placed now" in failed.stderr) == (1, True)
        assert await conn.fetchval(TRIGGERS) == 1
        await conn.execute("UPDATE cluster SET fails_to_place = NULL")
        again = await run(url, "distribute")
        assert (again.returncode, again.stdout.splitlines()[2:]) == (
            0,
            ["layout_items: is distributed already", "metrics: is distributed"],
        )
        placed = {row["name"]: row["key"] for row in await conn.fetch(PLACED)}
        assert placed.keys() == {row["relname"] for row in await conn.fetch(OURS)}
        assert {name: key for name, key in placed.items() if key} == {"metrics": "id"}
        await conn.close()


async def test_passwords_are_shown_to_whoever_asks_for_them(distributed: str) -> None:
    done = await run(distributed, "distribute", PGPASSWORD="hunter'2")
    assert (done.returncode, "hunter" in done.stdout + done.stderr) == (0, False)
    shown = await run(distributed, "distribute", "--passwords", PGPASSWORD="hunter'2")
    logins = re.findall(r"rolname = '(\w+)'", shown.stdout)
    assert logins[1:] == ["metrics_reader", "metrics_guest"]
    assert "E'password=hunter\\\\''2'" in shown.stdout


async def test_nothing_brings_the_triggers_back(distributed: str) -> None:
    assert (await run(distributed, "migrate")).returncode == 0
    conn = await asyncpg.connect(distributed)
    assert await conn.fetchval(TRIGGERS) == 0
    await conn.close()


async def test_metrics_with_parameters_compile_and_none_is_told_to_watch_what_cannot_be(distributed: str) -> None:
    checked = await run(distributed, "check", QUERIES_DIR=str(ROOT / "queries"))
    assert checked.returncode == 0, checked.stdout
    assert "parameters: start_date date" in checked.stdout
    assert "metrics cannot be watched" in checked.stdout
    assert "app.py watch" not in checked.stdout


async def test_functions_take_parameters_as_citus_does(distributed: str) -> None:
    """It plans no SQL function whose parameters meet a table on several nodes."""
    conn = await asyncpg.connect(distributed)
    refused = await conn.fetch(SQL_FUNCTIONS, r"\y(queries|metric_configurations|layout_items|metrics)\y")
    assert [row["proname"] for row in refused] == []
    await conn.close()


def test_a_first_write_has_no_types_to_ask_about() -> None:
    """The driver knows arrays of text; about others it asks each session, which takes Citus most of a second."""
    assert set(re.findall(r"\$\d+::(\S+?)(?:::|,|\n)", seed_records.INSERT_GIVEN)) == {"text[]"}


def test_the_service_has_no_statement_that_citus_refuses() -> None:
    """Records read where another table changes, or a subquery in an INSERT beside its SELECT."""
    texts = re.findall(r'= """\\\n(.*?)"""', (ROOT / "app.py").read_text(), re.DOTALL)
    for path in (ROOT / "migrations").glob("*what-the-service-writes.sql"):
        bodies = re.findall(r"AS \$\$\n(.*?)\$\$", path.read_text(), re.DOTALL)
        texts += [statement.strip() for body in bodies for statement in re.split(r";|\bBEGIN\b", body)]
    changing = [text for text in texts if re.match(r"(INSERT INTO|UPDATE|DELETE FROM) (?!metrics\b)", text)]
    assert len(changing) >= 5
    assert [text for text in changing if re.search(r"\b(FROM|JOIN|USING) metrics\b", text)] == []
    assert [text for text in texts if re.search(r"\bON CONFLICT\b.*\bSELECT\b", text, re.DOTALL)] == []


@pytest.mark.parametrize("count", [1, 2000])
async def test_records_are_seen_by_the_other_instance(clients: Clients, count: int) -> None:
    """A few are written on one login, many on another."""
    here, there = clients
    before = (await records(there, "total"))[0]["records"]
    assert (await there.get("/metrics/total")).headers["cache-status"] == "metrics; hit"
    lines = "".join('{"parts_flagged": 1}\n' for _ in range(count))
    headers = {"Content-Type": "application/x-ndjson"}
    written = await here.post("/metrics/total/metric-records", content=lines, headers=headers)
    assert written.json() == {"inserted": count, "duplicates": 0}
    await shows(there, "total", [{"total": 0, "records": before + count}])


async def test_a_metric_from_the_api_is_seen_changed_moved_and_deleted(clients: Clients) -> None:
    here, there = clients
    created = await here.post("/metrics", json={"query": "SELECT 1 AS n", "title": "One"})
    metric = created.json()["id"]
    await shows(there, metric, [{"n": 1}])
    await here.patch(f"/metrics/{metric}", json={"query": "SELECT 2 AS n", "title": "Two"})
    await shows(there, metric, [{"n": 2}])
    tile = {"breakpoint": "lg", "x": 1, "y": 2, "w": 3, "h": 4, "static": False}
    await here.put(f"/metrics/{metric}/layouts", json=[tile])

    async def placed() -> bool:
        return bool((await there.get(f"/metrics/{metric}")).json()["layouts"] == [tile])

    await in_time(placed)
    assert (await there.get(f"/metrics/{metric}")).json()["title"] == "Two"
    await here.post(f"/metrics/{metric}/metric-records", json={"parts_flagged": 1})
    assert (await here.delete(f"/metrics/{metric}")).status_code == 204
    await shows(there, metric, 404)


async def test_the_series_of_a_deleted_metric_stays_as_long_as_it_has_records(
    clients: Clients, distributed: str
) -> None:
    here, _ = clients
    ids = [(await here.post("/metrics", json={"query": "SELECT 1 AS n"})).json()["id"] for _ in range(2)]
    await here.post(f"/metrics/{ids[0]}/metric-records", json={"parts_flagged": 1})
    for metric in ids:
        assert (await here.delete(f"/metrics/{metric}")).status_code == 204
    conn = await asyncpg.connect(distributed)
    left = await conn.fetch("SELECT id FROM queries WHERE id = ANY ($1::text[])", ids)
    await conn.close()
    assert [row["id"] for row in left] == ids[:1]


async def test_a_data_set_is_seen_by_running_instances(clients: Clients, distributed: str, tmp_path: Path) -> None:
    """Its metrics, its records, and what a second load changes."""
    before = [(await records(client, "total"))[0]["records"] for client in clients]
    (tmp_path / "metrics.json").write_text(json.dumps({"items": [{"id": "count", "queryId": "count"}], "layouts": {}}))
    for number in (1, 2):
        query = f"SELECT COUNT(*) AS n, {number} AS version FROM metrics WHERE id = 'count'"
        (tmp_path / "queries.csv").write_text(f'id,query\ncount,"{query}"\n')
        (tmp_path / "metric_records.csv").write_text(f"id,date\ncount,2025-01-0{number}\n")
        assert "1 records inserted" in (await run(distributed, "seed", str(tmp_path))).stdout
        for client, records_before in zip(clients, before, strict=True):
            await shows(client, "count", [{"n": number, "version": number}])
            await shows(client, "total", [{"total": 0, "records": records_before + number}])


async def test_every_write_is_told_of_again_when_all_nodes_have_it(clients: Clients, distributed: str) -> None:
    """In a later transaction: what was seen at the first word may lack what a node had yet to commit."""
    here, _ = clients
    conn = await asyncpg.connect(distributed)
    heard: list[str] = []
    await conn.add_listener("metrics_api", lambda *message: heard.append(message[3]))
    oids = {name: await conn.fetchval("SELECT $1::text::regclass::oid", name) for name in ("metrics", DEFINITIONS)}

    async def told_twice(table: str) -> None:
        async def told() -> bool:
            return len({text.split()[0] for text in heard if text.split()[1] == str(oids[table])}) > 1

        await eventually(told)
        heard.clear()

    record, tile = {"parts_flagged": 1}, {"breakpoint": "lg", "x": 1, "y": 2, "w": 3, "h": 4}
    await here.post("/metrics/total/metric-records", json=record)
    await told_twice("metrics")
    await here.post("/metrics/total/metric-records", json=[record] * 2000)
    await told_twice("metrics")
    path = f"/metrics/{(await here.post('/metrics', json={'query': 'SELECT 1 AS n'})).json()['id']}"
    await told_twice(DEFINITIONS)
    await here.patch(path, json={"title": "Two"})
    await told_twice(DEFINITIONS)
    await here.put(f"{path}/layouts", json=[tile])
    await told_twice(DEFINITIONS)
    await here.delete(path)
    await told_twice(DEFINITIONS)
    await conn.close()


@pytest.fixture(scope="module")
async def impatient(distributed: str, start_service: Serve) -> AsyncIterator[httpx.AsyncClient]:
    service = start_service(DATABASE_URL=distributed, CACHE_TTL="0", STATEMENT_TIMEOUT="1")
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
        yield client
    service.stop()


async def is_ready(client: httpx.AsyncClient, status: int) -> bool:
    return (await client.get("/health/ready")).status_code == status


@pytest.mark.parametrize("worker", ["down", "lost", "frozen"])
async def test_a_worker_that_fails_is_a_database_that_cannot_be_reached(
    impatient: httpx.AsyncClient, distributed: str, worker: str
) -> None:
    conn = await asyncpg.connect(distributed)
    before = await records(impatient, "total")
    await conn.execute("UPDATE cluster SET worker = $1", worker)
    stale = await impatient.get("/metrics/total")
    assert (stale.status_code, stale.json()["records"]) == (200, before)
    assert (await impatient.get("/metrics/total", headers={"Cache-Control": "no-cache"})).status_code == 503
    assert (await impatient.post("/metrics/total/metric-records", json={"parts_flagged": 1})).status_code == 503
    assert (await impatient.post("/metrics?dry_run=true", json={"query": COUNT})).status_code == 503
    await eventually(lambda: is_ready(impatient, 503))
    await conn.execute("UPDATE cluster SET worker = 'up'")
    await eventually(lambda: is_ready(impatient, 200))
    assert await records(impatient, "total") == before
    assert (await impatient.post("/metrics/total/metric-records", json={"parts_flagged": 1})).status_code == 201
    await conn.close()
