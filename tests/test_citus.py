"""What Citus asks of the schema, and what the service must do itself where tables have no triggers."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from conftest import ROOT, Serve

from migrations import apply

pytestmark = pytest.mark.anyio

TIME_OUT = 20  # seconds for every instance to know of a write
SCRIPT = ROOT / "migrations" / "citus" / "distribute.sql"

# They refuse what Citus refuses: triggers, keys without the distribution column, foreign keys to what is not whole.
STAND_INS = """\
CREATE TABLE placed (name regclass PRIMARY KEY, key text);

CREATE FUNCTION place(table_name regclass, key_column text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = table_name AND NOT tgisinternal) THEN
        RAISE EXCEPTION '% has triggers', table_name;
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
        AND c.confrelid NOT IN (SELECT p.name FROM placed AS p WHERE p.key IS NULL)
    ) THEN
        RAISE EXCEPTION '% refers to a table that is no reference table', table_name;
    END IF;
    INSERT INTO placed VALUES (table_name, key_column);
END $$;

CREATE FUNCTION create_reference_table(table_name regclass) RETURNS void
LANGUAGE sql AS $$ SELECT place(table_name, NULL) $$;
CREATE FUNCTION create_distributed_table(table_name regclass, key_column text) RETURNS void
LANGUAGE sql AS $$ SELECT place(table_name, key_column) $$;
"""
PLACED = "SELECT name::text, key FROM placed"
OURS = """\
SELECT relname::text
FROM pg_class
WHERE relkind = 'r'
AND relnamespace = 'public'::regnamespace
AND relname !~ 'yoyo'
AND relname <> 'placed'
"""


@pytest.fixture(scope="module")
async def distributed(cluster: str) -> AsyncIterator[str]:
    """A database without triggers, as the script leaves it."""
    owner = await asyncpg.connect(cluster)
    await owner.execute("CREATE DATABASE distributed")
    url = cluster.replace("/metrics_test?", "/distributed?")
    assert (await run(url, "migrate")).returncode == 0
    conn = await asyncpg.connect(url)
    await conn.execute(STAND_INS)
    await conn.execute(SCRIPT.read_text())
    await conn.close()
    yield url
    await owner.execute("DROP DATABASE distributed WITH (FORCE)")
    await owner.close()


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


async def run(database: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "DATABASE_URL": database}
    command = [sys.executable, str(ROOT / "app.py"), *arguments]
    return await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True)


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


async def test_the_script_places_every_table_and_citus_could(distributed: str) -> None:
    conn = await asyncpg.connect(distributed)
    placed = {row["name"]: row["key"] for row in await conn.fetch(PLACED)}
    assert placed.keys() == {row["relname"] for row in await conn.fetch(OURS)}
    assert {name: key for name, key in placed.items() if key} == {"metrics": "id"}
    await conn.close()


async def test_migrate_leaves_the_script_alone(distributed: str) -> None:
    """It stands below the migrations, which are applied to a database of any kind, again and again."""
    assert {Path(migration.path).parent for migration in apply.read()} == {ROOT / "migrations"}
    assert (await run(distributed, "migrate")).returncode == 0
    conn = await asyncpg.connect(distributed)
    assert await conn.fetchval("SELECT COUNT(*) FROM pg_trigger WHERE tgname = 'metrics_api_watch'") == 0
    await conn.close()


def test_the_service_has_no_statement_that_citus_refuses() -> None:
    """Records read where another table changes, or a subquery in an INSERT beside its SELECT."""
    texts = re.findall(r'= """\\\n(.*?)"""', (ROOT / "app.py").read_text(), re.DOTALL)
    for path in (ROOT / "migrations").glob("*what-the-service-writes.sql"):
        bodies = re.findall(r"AS \$\$\n(.*?)\$\$", path.read_text(), re.DOTALL)
        texts += [statement.strip() for body in bodies for statement in body.split(";")]
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
