"""What comes to a watched table later, and what leaves it: two instances know before long, and agree."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import httpx
import pytest
from conftest import Serve
from helpers import Service, another_database, run_app

pytestmark = pytest.mark.anyio

WITHIN = 2.0  # seconds after a commit in which an instance looks at its tables

TABLES = """\
CREATE TABLE events (day date NOT NULL, n int4) PARTITION BY RANGE (day);
CREATE TABLE events_2025 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE sites (name text);
CREATE TABLE sales (day date NOT NULL);
GRANT SELECT ON events, sites, sales TO metrics_reader;
"""
METRICS = {name: f"SELECT COUNT(*) AS n FROM {name}" for name in ("events", "sites", "sales")}


@pytest.fixture(scope="module")
def database(cluster: str) -> Iterator[str]:
    with another_database(cluster, "watching") as url:
        yield url


Clients = list[httpx.AsyncClient]


@pytest.fixture(scope="module")
def services(database: str, start_service: Serve) -> Iterator[list[Service]]:
    """Two instances whose results are fresh for an hour."""
    services = [start_service(DATABASE_URL=database, CACHE_TTL="3600") for _ in range(2)]
    for service in services:
        for name, sql in METRICS.items():
            (service.queries / f"{name}.sql").write_text(sql)
    yield services
    for service in services:
        service.stop()


@pytest.fixture(scope="module")
async def clients(services: list[Service]) -> AsyncIterator[Clients]:
    here, there = (httpx.AsyncClient(base_url=service.url, timeout=30) for service in services)
    async with here, there:
        yield [here, there]


@pytest.fixture
async def conn(database: str, clients: Clients) -> AsyncIterator[asyncpg.Connection]:
    """Somebody who knows nothing of the service, and empty tables under watch that both instances have read."""
    conn = await asyncpg.connect(database)
    await conn.execute(TABLES)
    await conn.execute("SELECT watch(name) FROM UNNEST($1::text[]) AS name", list(METRICS))
    for name in METRICS:
        await soon(clients, name, [(0, True)] * 2)
    yield conn
    await conn.execute("DROP TABLE events, sites, sales CASCADE; DROP TABLE IF EXISTS events_2026, yards")
    await conn.close()


async def run(database: str, *arguments: str) -> str:
    """What a command says, be it good or bad."""
    done = await asyncio.to_thread(run_app, *arguments, DATABASE_URL=database)
    return done.stdout + done.stderr


async def state(client: httpx.AsyncClient, metric: str) -> tuple[Any, Any]:
    """How many records an instance counts, and whether it says that it is live."""
    answer = (await client.get(f"/metrics/{metric}")).json()
    listed = {about["id"]: about["live"] for about in (await client.get("/metrics")).json()["metrics"]}
    return answer["records"][0]["n"] if "records" in answer else answer["title"], listed.get(metric)


async def soon(clients: Clients, metric: str, expected: list[tuple[int, bool]], seconds: float = 20) -> None:
    """What is asked for after a commit is before long what it left, at every instance."""
    since = time.monotonic()
    while True:
        asked = time.monotonic()
        states = [await state(client, metric) for client in clients]
        if states == expected:
            return
        assert asked < since + seconds, states
        await asyncio.sleep(0.1)


async def counts(clients: Clients, metric: str, n: int, live: bool = True) -> None:
    await soon(clients, metric, [(n, live)] * 2)


CREATED = "CREATE TABLE events_2026 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')"


async def test_a_partition_that_is_created_is_watched(conn: asyncpg.Connection, clients: Clients) -> None:
    """Also for who writes to it directly, at once or later."""
    await conn.execute(CREATED)
    await conn.execute("INSERT INTO events_2026 VALUES ('2026-05-01')")
    await counts(clients, "events", 1)
    await conn.execute("INSERT INTO events_2026 VALUES ('2026-05-02')")
    await counts(clients, "events", 2)
    await conn.execute("TRUNCATE events_2026")
    await counts(clients, "events", 0)


async def test_an_instance_that_starts_later_agrees(conn: asyncpg.Connection, clients: Clients, database: str) -> None:
    await conn.execute(CREATED)
    await counts(clients, "events", 0)
    assert "not watched" not in await run(database, "check")


async def test_partitions_of_partitions_are_watched(conn: asyncpg.Connection, clients: Clients) -> None:
    await conn.execute(f"{CREATED} PARTITION BY RANGE (day)")
    await conn.execute("CREATE TABLE may PARTITION OF events_2026 FOR VALUES FROM ('2026-05-01') TO ('2026-06-01')")
    await counts(clients, "events", 0)
    await conn.execute("INSERT INTO may VALUES ('2026-05-01')")
    await counts(clients, "events", 1)
    await conn.execute("CREATE TABLE june PARTITION OF events_2026 FOR VALUES FROM ('2026-06-01') TO ('2026-07-01')")
    await conn.execute("INSERT INTO june VALUES ('2026-06-01')")
    await counts(clients, "events", 2)
    await conn.execute("DROP TABLE may")
    await counts(clients, "events", 1)
    await conn.execute("ALTER TABLE events DETACH PARTITION events_2026; DROP TABLE events_2026")
    await counts(clients, "events", 0)


FILLED = """\
CREATE TABLE filling (day date NOT NULL, n int4);
INSERT INTO filling VALUES ('2026-05-01');
ALTER TABLE filling RENAME TO events_2026
"""
ATTACHED = "ALTER TABLE events ATTACH PARTITION events_2026 FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')"


async def test_attaching_detaching_and_dropping_are_changes(conn: asyncpg.Connection, clients: Clients) -> None:
    """Of a partition that was filled before, under a name that it no longer has."""
    await conn.execute(FILLED)
    await conn.execute(ATTACHED)
    await counts(clients, "events", 1)
    await conn.execute("INSERT INTO events_2026 VALUES ('2026-05-02')")
    await counts(clients, "events", 2)
    await conn.execute("ALTER TABLE events DETACH PARTITION events_2026")
    await counts(clients, "events", 0)
    await conn.execute("INSERT INTO events_2026 VALUES ('2026-05-03')")
    await conn.execute(ATTACHED)
    await counts(clients, "events", 3)
    await conn.execute("DROP TABLE events_2026")
    await counts(clients, "events", 0)


async def test_tables_that_come_to_inherit_are_watched(conn: asyncpg.Connection, clients: Clients) -> None:
    await conn.execute("CREATE TABLE depots (gates int4) INHERITS (sites)")
    await conn.execute("CREATE TABLE harbours () INHERITS (depots)")
    await counts(clients, "sites", 0)
    await conn.execute("INSERT INTO harbours VALUES ('Hamburg', 9)")
    await counts(clients, "sites", 1)
    await conn.execute("CREATE TABLE yards AS SELECT 'Kiel' AS name; ALTER TABLE yards INHERIT sites")
    await counts(clients, "sites", 2)
    await conn.execute("ALTER TABLE yards NO INHERIT sites")
    await counts(clients, "sites", 1)
    await conn.execute("ALTER TABLE yards INHERIT sites; UPDATE yards SET name = 'Bremen'; DROP TABLE harbours")
    await counts(clients, "sites", 1)


async def test_a_temporary_table_that_inherits_is_its_sessions_own(conn: asyncpg.Connection, clients: Clients) -> None:
    await conn.execute("CREATE TEMPORARY TABLE guesses () INHERITS (sites); INSERT INTO guesses VALUES ('Ys')")
    await asyncio.sleep(WITHIN)
    await counts(clients, "sites", 0)


SWAPPED = """\
BEGIN;
ALTER TABLE sales RENAME TO sales_default;
CREATE TABLE sales (LIKE sales_default) PARTITION BY RANGE (day);
ALTER TABLE sales ATTACH PARTITION sales_default DEFAULT;
CREATE TABLE sales_2026 PARTITION OF sales FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
GRANT SELECT ON sales TO metrics_reader;
COMMIT
"""


async def test_a_partitioned_table_takes_the_place_of_a_watched_one(
    conn: asyncpg.Connection, clients: Clients, database: str
) -> None:
    """As pg_partman's guide does it with a table that is in use: the old one becomes the default partition."""
    await conn.execute("INSERT INTO sales VALUES ('2024-05-01')")
    await counts(clients, "sales", 1)
    await conn.execute(SWAPPED)
    await counts(clients, "sales", 1)
    await conn.execute("INSERT INTO sales VALUES ('2026-05-01')")
    await counts(clients, "sales", 2)
    await conn.execute("INSERT INTO sales_default VALUES ('2024-05-02'); INSERT INTO sales_2026 VALUES ('2026-05-02')")
    await counts(clients, "sales", 4)
    assert await run(database, "unwatch", "sales") == "Not watched any more: sales\n"
    await asyncio.sleep(WITHIN)
    await counts(clients, "sales", 4, live=False)


async def test_a_partition_is_watched_with_its_table_or_not_at_all(
    conn: asyncpg.Connection, clients: Clients, database: str
) -> None:
    refused = await run(database, "unwatch", "events_2025")
    assert refused == "events_2025: it belongs to events, which is watched as a whole\n"
    await run(database, "unwatch", "events")
    await counts(clients, "events", 0, live=False)


async def test_who_switches_a_trigger_off_is_believed(
    conn: asyncpg.Connection, clients: Clients, database: str
) -> None:
    """By every instance, and by whoever checks."""
    await conn.execute("ALTER TABLE events_2025 DISABLE TRIGGER metrics_api_watch")
    await counts(clients, "events", 0, live=False)
    await conn.execute("ALTER TABLE events_2025 ENABLE TRIGGER metrics_api_watch")
    await counts(clients, "events", 0)


async def test_a_partition_that_is_being_filled_is_watched_afterwards(
    conn: asyncpg.Connection, clients: Clients, database: str
) -> None:
    """Nobody waits behind it meanwhile, and what was written before the trigger came is told with it."""
    await conn.execute(CREATED)
    other = await asyncpg.connect(database)
    async with conn.transaction():
        await conn.execute("INSERT INTO events_2026 VALUES ('2026-05-01')")
        await counts(clients, "events", 0, live=False)
        for _ in range(100):
            await other.execute("INSERT INTO events_2026 VALUES ('2026-05-02')", timeout=1)
            await asyncio.sleep(0.1)
    await counts(clients, "events", 101)
    await other.close()


async def test_partitions_by_the_hundred_come_at_once(conn: asyncpg.Connection, clients: Clients) -> None:
    await conn.execute("CREATE TABLE many PARTITION OF events DEFAULT PARTITION BY LIST (n)")
    for n in range(200):
        await conn.execute(f"CREATE TABLE many_{n} PARTITION OF many FOR VALUES IN ({n})")
    await counts(clients, "events", 0)
    await conn.execute("INSERT INTO many_77 VALUES ('2030-01-01', 77)")
    await counts(clients, "events", 1)


async def test_partitions_are_looked_for_while_a_metric_waits_for_a_lock(
    conn: asyncpg.Connection, clients: Clients, services: list[Service], database: str
) -> None:
    await conn.execute("CREATE TABLE locked AS SELECT 1 AS n; GRANT SELECT ON locked TO metrics_reader")
    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.execute("LOCK TABLE locked")
        for service in services:
            (service.queries / "locked.sql").write_text("SELECT n FROM locked")
        await asyncio.sleep(3)
        await conn.execute(FILLED + ";" + ATTACHED)
        await counts(clients, "events", 1)
    await other.close()
    for service in services:
        (service.queries / "locked.sql").unlink()
    await conn.execute("DROP TABLE locked")
