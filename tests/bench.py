"""What the service costs beside the least that does the same: one line a figure, with its bound.

    python tests/bench.py               all figures but growth, in some minutes
    python tests/bench.py miss hit      some of them
    python tests/bench.py --short       one round of each
    TEST_DATABASE_URL=… python tests/bench.py    on that database, whose records go
    python tests/bench.py growth        what grows up to ten million records, or --rows; wants 5 GB and some minutes

CPU is that of the server's process: neither the client nor the database counts. What is compared takes turns in many
short rounds, and the median counts, so that other load on the machine strikes both. Bounds beside nginx want it
installed, and figures of CPU are steadiest with wrk.
"""

import argparse
import asyncio
import base64
import csv
import io
import json
import shutil
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import asyncpg
import msgspec
from helpers import CHROMIUM, FENCE, FLAGS, ROOT
from rig import (
    COLUMNS,
    NGINX,
    QUERIES,
    REFERENCE,
    WRITE,
    Bench,
    Server,
    answered,
    cost,
    database,
    get,
    load,
    make_records,
    prepared,
    seconds_of,
    send,
    serving,
    slowest,
    usual,
)

from seed import embedded

# ---- figures


class Figure(NamedTuple):
    """What was measured, or None where what it takes is not installed."""

    name: str
    value: float | None
    bound: float
    unit: str
    detail: str = ""
    at_least: bool = False

    @property
    def good(self) -> bool:
        if self.value is None:
            return True
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def line(self) -> str:
        if self.value is None:
            return f"{self.name:<22}not installed"
        bound = f"{'at least' if self.at_least else 'at most'} {self.bound:g}"
        verdict = "ok" if self.good else "under" if self.at_least else "over"
        return f"{self.name:<22}{self.value:>8.2f} {self.unit:<7}{bound:<14}{verdict:<6}{self.detail}"


def beside(name: str, ours: float, theirs: float | None, bound: float) -> Figure:
    if theirs is None:
        return Figure(name, None, bound, "times")
    return Figure(name, ours / theirs, bound, "times", f"{ours:.1f} µs beside {theirs:.1f}")


CACHED = get("/metrics/value?n=1")
# Always a run of its own.
UNCACHED = get("/metrics/rows?rows=25&n=0", cache_control="no-cache")
BROWSER = {
    "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "accept": "*/*",
    "accept_language": "en-GB,en;q=0.5",
    "accept_encoding": "gzip, deflate, br, zstd",
    "referer": "http://127.0.0.1/",
    "connection": "keep-alive",
    "sec_fetch_dest": "empty",
    "sec_fetch_mode": "cors",
    "sec_fetch_site": "same-origin",
    "priority": "u=4",
}
BALANCER = {
    "x_forwarded_for": "203.0.113.7, 2001:db8::{k}",
    "x_forwarded_proto": "https",
    "x_forwarded_port": "443",
    "x_amzn_trace_id": "Root=1-{n}-0123456789abcdef{n}",
    "x_request_id": "{n}",
    "traceparent": "00-0123456789abcdef01234567{n}-01234567{n}-01",
}
# Ours, what it is compared with, the bound.
HITS = (
    ("hit", "bare", 0.35),
    ("hit", "nginx", 1.0),
    ("304", "bare 304", 0.35),
    ("304", "nginx 304", 1.0),
    ("hit balanced", "bare balanced", 0.45),
    ("hit uvicorn", "bare", 2.5),
)


async def hit(bench: Bench) -> list[Figure]:
    """A known result for a known token, counted and logged, beside a bare application and nginx with the same bytes."""
    settings, bearer = await bench.issuer()
    ask = partial(get, "/metrics/rows?rows=50&n=0", authorization=bearer, **BROWSER)
    known = [await bench.serve(command, ask(), settings) for command in ("app.py", "-m uvicorn app:app")]
    found = await answered(known[0], ask())
    same = ask(if_none_match=dict(found.headers)["etag"])
    bare = await bench.bare(found)
    sides = {
        "hit": (known[0], ask()),
        "bare": (bare, ask()),
        "304": (known[0], same),
        "bare 304": (await bench.bare(await answered(known[0], same, 304)), same),
        "hit balanced": (known[0], ask(**BALANCER)),
        "bare balanced": (bare, ask(**BALANCER)),
        "hit uvicorn": (known[1], ask()),
    }
    if NGINX:
        nginx = await bench.nginx("metrics/rows", found.body)
        etag = dict((await answered(nginx, ask())).headers)["etag"]
        sides |= {"nginx": (nginx, ask()), "nginx 304": (nginx, ask(if_none_match=etag))}
    costs = await bench.medians(9, *[partial(cost, *side) for side in sides.values()])
    of = dict(zip(sides, costs, strict=True))
    return [beside(f"{ours} / {theirs.split()[0]}", of[ours], of.get(theirs), bound) for ours, theirs, bound in HITS]


async def miss(bench: Bench) -> list[Figure]:
    """25 rows from the database, other ones each time, beside the least endpoint with the same SQL."""
    request = get("/metrics/rows?rows=25&n={n}", cache_control="no-cache")
    ours = await bench.open()
    least = await bench.serve(f"{REFERENCE}least_app", get("/metrics/rows?rows=1&n=0"), {})
    costs = await bench.medians(15, partial(cost, ours, request), partial(cost, least, request))
    return [beside("miss / least", costs[0], costs[1], 1.6), await statements(bench, ours, request)]


CALLS = "SELECT SUM(calls)::int FROM pg_stat_statements"


async def statements(bench: Bench, server: Server, request: bytes) -> Figure:
    """What the database is asked for a miss; to one digit, for the service looks after itself meanwhile."""
    conn = await asyncpg.connect(bench.settings["DATABASE_URL"])
    try:
        before = await conn.fetchval(CALLS)
    except asyncpg.PostgresError:
        return Figure("miss, statements", None, 1, "")
    count = await load(server, request, seconds=1 if bench.short else 5)
    asked = await conn.fetchval(CALLS) - before
    await conn.close()
    return Figure("miss, statements", round(asked / count, 1), 1, "", f"{asked} for {count} misses")


MIX = (*[get("/metrics/rows?rows=25&n={k}")] * 9, get("/metrics/rows?rows=25&n={n}"))


async def replicas(bench: Bench) -> list[Figure]:
    """Two instances with a shared cache beside two without: known keys, new ones, a write now and then."""
    url = bench.valkey()
    shared = [await bench.open(CACHE_URL=url) for _ in range(2)]
    alone = [await bench.open() for _ in range(2)]
    conn = await asyncpg.connect(bench.settings["DATABASE_URL"])
    ours, theirs = await bench.medians(9, partial(throughput, shared, conn), partial(throughput, alone, conn))
    await conn.close()
    detail = f"{ours:.0f} answers a second beside {theirs:.0f}"
    return [Figure("shared / alone", ours / theirs, 1, "times", detail, at_least=True)]


async def throughput(servers: list[Server], conn: asyncpg.Connection) -> float:
    """Answers a second of all of them."""

    async def write() -> None:
        while True:
            await conn.execute(WRITE)
            await asyncio.sleep(1.5)

    began, writing = time.perf_counter(), asyncio.create_task(write())
    counts = await asyncio.gather(*[load(server, *MIX, seconds=3, connections=4) for server in servers])
    seconds = time.perf_counter() - began
    writing.cancel()
    return sum(counts) / seconds


async def stall(bench: Bench) -> list[Figure]:
    """A small result while a large one is fetched in a loop."""
    server = await bench.open()
    give_up = time.monotonic() + (2 if bench.short else 15)

    async def fetch_large() -> int:
        count = 0
        while time.monotonic() < give_up:
            path = "/metrics/rows?rows=10000&n=0"
            await asyncio.to_thread(send, server, "GET", path, cache_control="no-cache")
            count += 1
        return count

    large = asyncio.create_task(fetch_large())
    value = await slowest(server, UNCACHED, large.done)
    return [Figure("stall", value, 25, "ms", f"99 % of small results, beside {await large} of 10,000 rows")]


IMPORTS = "import starlette, uvicorn, asyncpg, httpx, jwt, msgspec"


async def start(bench: Bench) -> list[Figure]:
    """From nothing, and from the data of last time, to the first answer of `python app.py`."""

    async def service(home: Path) -> float:
        env = {"DATA_DIR": str(home)}
        async with serving("app.py", get("/metrics/alerts-per-day"), bench.home / "log", env) as (_, seconds):
            return seconds

    async def alone(home: Path) -> float:
        began = time.perf_counter()
        server = await embedded.start(home)
        seconds = time.perf_counter() - began
        await server.stop()
        return seconds

    taken = []
    for turn in range(1 if bench.short else 5):
        ours, theirs = bench.home / f"start-{turn}", bench.home / f"start-database-{turn}"
        imports = await asyncio.to_thread(seconds_of, ["-c", IMPORTS], {})
        taken.append((await service(ours), await service(ours), await alone(theirs), await alone(theirs), imports))
    cold, warm, database_cold, database_warm, imports = (
        statistics.median(values) for values in zip(*taken, strict=True)
    )
    detail = "beside {:.2f} of the database alone, {:.2f} of imports"
    return [
        Figure("start cold", cold, 2.5, "s", detail.format(database_cold, imports)),
        Figure("start warm", warm, 1, "s", detail.format(database_warm, imports)),
    ]


async def token(bench: Bench) -> list[Figure]:
    """What a known token adds to a known result."""
    settings, bearer = await bench.issuer()
    request = get("/metrics/rows?rows=50&n=0", authorization=bearer)
    guarded = await bench.serve("app.py", request, settings)
    known, none = partial(cost, guarded, request), partial(cost, await bench.open(), get("/metrics/rows?rows=50&n=0"))
    ours, theirs = await bench.medians(9, known, none)
    return [Figure("token", ours - theirs, 5, "µs", f"{ours:.1f} µs beside {theirs:.1f}")]


async def agents(bench: Bench) -> list[Figure]:
    """A known result for a tool of an agent's beside the same for a GET, under a server that knows no requests."""
    settings, bearer = await bench.issuer()
    ask = get("/metrics/rows?rows=50&n=0", authorization=bearer)
    call = {"name": "rows", "arguments": {"rows": 50, "n": 0}}
    body = JSON.encode({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call})
    tool = get("/mcp", authorization=bearer, content_type="application/json", content_length=str(len(body)))
    server = await bench.serve("-m uvicorn app:app", ask, settings)
    sides = partial(cost, server, tool.replace(b"GET", b"POST", 1) + body), partial(cost, server, ask)
    ours, theirs = await bench.medians(9, *sides)
    return [beside("tool / hit", ours, theirs, 3), Figure("agents, memory", server.memory(), 110, "MiB", "resident")]


async def memory(bench: Bench) -> list[Figure]:
    """Growth beyond the bound of the cache, when no request is like another."""
    server = await bench.open(CACHE_MAX_BYTES=str(16 * 2**20))
    request = get("/metrics/value?n={n}")
    await load(server, request)
    before = server.memory()
    count = await load(server, request, seconds=5 if bench.short else 60)
    return [Figure("memory", server.memory() - before - 16, 64, "MiB", f"above the cache's 16, after {count} values")]


Rows = list[dict[str, Any]]
JSON = msgspec.json.Encoder(decimal_format="number")


def as_csv(rows: Rows) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0])
    writer.writeheader()
    writer.writerows(msgspec.to_builtins(rows))
    return out.getvalue().encode()


# A media type, and the bodies that hold all rows.
FORMATS: dict[str, tuple[str, Callable[[Rows], list[bytes]]]] = {
    "ndjson": ("application/x-ndjson", lambda rows: [JSON.encode_lines(rows)]),
    "csv": ("text/csv", lambda rows: [as_csv(rows)]),
    "json": ("application/json", lambda rows: [JSON.encode(rows[n : n + 10_000]) for n in range(0, len(rows), 10_000)]),
}


async def bulk(bench: Bench) -> list[Figure]:
    """Records in each way, beside a bare COPY into the same table, and what other callers notice meanwhile."""
    server = await bench.open()
    conn = await asyncpg.connect(bench.settings["DATABASE_URL"])
    count = 10_000 if bench.short else 100_000
    taken: dict[str, list[float]] = {way: [] for way in (*FORMATS, "seed", "copy")}
    cached: dict[str, list[float]] = {way: [] for way in FORMATS}
    uncached: dict[str, list[float]] = {way: [] for way in FORMATS}
    for turn in range(1 if bench.short else 5):
        for way, (media, bodies) in FORMATS.items():
            posting = asyncio.create_task(asyncio.to_thread(post, server, media, bodies(make_rows(count, "id"))))
            both = [slowest(server, request, posting.done) for request in (CACHED, UNCACHED)]
            for noticed, value in zip((cached, uncached), await asyncio.gather(*both), strict=True):
                noticed[way].append(value)
            taken[way].append(await posting)
        # A data set's records have no id of their own: those of another year are others.
        rows = make_rows(count, "metric_id", year=2000 + turn)
        whole, itself = await seed(bench, rows), await seed(bench, rows[:1])
        # What the records add to the command, as an upload's time is without the service's start.
        taken["seed"].append(max(whole - itself, 0.001))
        taken["copy"].append(await copy(conn, make_records("value", count)))
        await conn.execute("DELETE FROM metrics WHERE id <> 'rows'")
        await conn.execute("VACUUM metrics")
    await conn.close()
    return [
        *[rate(way, taken, count) for way in (*FORMATS, "seed")],
        worst("bulk, cached", cached, 25),
        worst("bulk, uncached", uncached, 50),
    ]


def make_rows(count: int, without: str, year: int = 2026) -> Rows:
    records = [dict(zip(COLUMNS, record, strict=True)) for record in make_records("seeded", count, year)]
    return [{name: value for name, value in record.items() if name != without} for record in records]


def post(server: Server, media: str, bodies: list[bytes]) -> float:
    """Seconds for all, one after the other."""
    path = "/metrics/value/metric-records"
    return sum(send(server, "POST", path, body, content_type=media) for body in bodies)


async def seed(bench: Bench, rows: Rows) -> float:
    """Seconds of the whole command."""
    directory = bench.home / "seed"
    directory.mkdir(exist_ok=True)
    (directory / "queries.csv").write_text(f"id,query\nseeded,{QUERIES['count']}\n")
    (directory / "metric_records.csv").write_bytes(as_csv(rows))
    return await asyncio.to_thread(seconds_of, ["app.py", "seed", str(directory)], bench.settings)


async def copy(conn: asyncpg.Connection, records: list[tuple[Any, ...]]) -> float:
    began = time.perf_counter()
    await conn.copy_records_to_table("metrics", records=records, columns=COLUMNS)
    return time.perf_counter() - began


def rate(way: str, taken: dict[str, list[float]], count: int) -> Figure:
    ours, theirs = (count / statistics.median(taken[name]) for name in (way, "copy"))
    detail = f"{ours:.0f} records a second beside {theirs:.0f}"
    return Figure(f"{way} / copy", ours / theirs, 0.4 if way == "seed" else 0.5, "times", detail, at_least=True)


def worst(name: str, noticed: dict[str, list[float]], bound: float) -> Figure:
    medians = {way: statistics.median(values) for way, values in noticed.items()}
    along = ", ".join(f"{way} {value:.1f}" for way, value in medians.items())
    return Figure(name, max(medians.values()), bound, "ms", f"99 % of others' answers meanwhile: {along}")


class Watcher(asyncio.Protocol):
    """Subscribes to a metric and notes when something comes, and no more, so that five hundred of them are cheap."""

    def __init__(self, port: int, metric_id: str) -> None:
        self.port, self.metric_id = port, metric_id
        self.said, self.came = b"", 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(
            get("/live", upgrade="websocket", connection="Upgrade", sec_websocket_key=KEY, sec_websocket_version="13")
        )

    def data_received(self, data: bytes) -> None:
        self.said, self.came = data, time.monotonic()
        if data.startswith(b"HTTP/1.1 101"):
            text = json.dumps({"type": "subscribe", "id": self.metric_id}).encode()
            # A client masks what it sends; zeros are a mask.
            self.transport.write(struct.pack("!BB4x", 0x81, 0x80 | len(text)) + text)

    async def hears(self, value: bytes) -> float:
        """When it came."""
        while value not in self.said:  # noqa: ASYNC110 - an event would cost the client what it has to spare
            await asyncio.sleep(0.02)
        return self.came


KEY = base64.b64encode(bytes(16)).decode()


@asynccontextmanager
async def watching(port: int, metric_id: str, count: int) -> AsyncIterator[list[Watcher]]:
    loop, make = asyncio.get_running_loop(), partial(Watcher, port, metric_id)
    watchers = [(await loop.create_connection(make, "127.0.0.1", port))[1] for _ in range(count)]
    yield watchers
    for watcher in watchers:
        watcher.transport.abort()


async def runs(server: Server) -> float:
    """How many queries there were."""
    text = (await answered(server, get("/prometheus"))).body.decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("metric_run_seconds_count"))


async def live(bench: Bench) -> list[Figure]:
    """A commit, until the last of 500 subscribers has what it changed, and what it costs the database."""
    server = await bench.open()
    conn = await asyncpg.connect(bench.settings["DATABASE_URL"])
    late, queries = [], []
    async with watching(server.port, "count", 500) as watchers:
        await asyncio.gather(*[watcher.hears(b'"records":[') for watcher in watchers])
        for _ in range(5 if bench.short else 50):
            before = await runs(server)
            await conn.execute(WRITE)
            committed = time.monotonic()
            expected = f'"records":{await conn.fetchval(QUERIES["count"])}}}'.encode()
            late += [await watcher.hears(expected) - committed for watcher in watchers]
            queries.append(await runs(server) - before)
    await conn.close()
    value = statistics.quantiles(late, n=100)[98] * 1000
    detail = f"99 % of 500 subscribers after a commit, half {statistics.median(late) * 1000:.0f}"
    return [Figure("live", value, 300, "ms", detail), Figure("live queries", max(queries), 2, "", "for one commit")]


# ---- growth

# The seed's series, one a kind of record; the other thousand follow in turns.
KINDS = ["stock-at-risk", "approval-requests", "supplier-notices", "savings-by-week", "part-reviews", "stock-alerts"]
SERIES = """\
INSERT INTO queries (id, query)
SELECT
  'series-' || n,
  FORMAT('SELECT DATE(date) AS day, COUNT(*) AS records FROM metrics WHERE id = %L GROUP BY day', 'series-' || n)
FROM GENERATE_SERIES(1, 1000) AS n
"""
# The oldest first, as records come; the newest is of now.
FILL = """\
INSERT INTO metrics (id, date, obsolescence_val, obsolescence, parts_flagged, alert_type, alert_category)
SELECT
  ($5::text[])[1 + r.series],
  now() - ($3::int - r.n) * INTERVAL '1 day' / $4::int,
  CASE WHEN r.kind = 0 THEN ROUND((1500000 + RANDOM() * 500000)::numeric, 2)
    WHEN r.kind = 5 THEN ROUND((1000 + RANDOM() * 50000)::numeric, 2) END,
  CASE WHEN r.kind = 3 THEN ROUND((500 + RANDOM() * 9000)::numeric, 2) END,
  CASE WHEN r.kind = 4 THEN (RANDOM() * 40)::int END,
  CASE WHEN r.kind IN (1, 2, 5) THEN (ARRAY['Critical', 'Warning', 'Warning', 'Info'])[1 + r.turn % 4] END,
  CASE WHEN r.kind IN (1, 2, 5)
    THEN (ARRAY['Need approval', 'Supply risk', 'End of life', 'Compliance', 'Price'])[1 + r.turn % 5] END
FROM (
  SELECT n, n % $6::int AS series, n % $6::int % 6 AS kind, n / $6::int AS turn
  FROM GENERATE_SERIES($1::int, $2::int) AS n
) AS r
"""
BATCH = 500_000
SIZE = "SELECT PG_TABLE_SIZE('metrics') AS records, PG_INDEXES_SIZE('metrics') AS indexes"
READERS = """\
SELECT COUNT(*)
FROM pg_stat_activity
WHERE datname = CURRENT_DATABASE()
AND usename IN ('metrics_reader', 'metrics_guest')
"""
SCANS = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'metrics'"
MANY = """\
INSERT INTO metric_configurations (id, query_id, source)
SELECT id, id, 'api'
FROM queries
WHERE id LIKE 'series-%'
"""


class Grown(NamedTuple):
    """What a table of some size costs: bytes a record, records a second, seconds, MiB, µs, ms, ms by metric."""

    rows: int
    record: float
    indexes: float
    load: float
    start: float
    memory: float
    hit: float
    write: float
    scans: int
    runs: dict[str, float]


async def fill(conn: asyncpg.Connection, rows: int, daily: int) -> float:
    """Records over as many days as they take, instead of those that are there; how many a second were written."""
    names = [row["id"] for row in await conn.fetch("SELECT id FROM queries ORDER BY id")]
    series = [*KINDS, *(name for name in names if name not in KINDS)]
    await conn.execute("TRUNCATE metrics")
    began = time.perf_counter()
    for first in range(1, rows + 1, BATCH):
        await conn.execute(FILL, first, min(first + BATCH - 1, rows), rows, daily, series, len(series))
    seconds = time.perf_counter() - began
    await conn.execute("VACUUM ANALYZE metrics")
    return rows / seconds


async def scans(conn: asyncpg.Connection) -> int:
    """How often the records were read from end to end; a session tells when it ends."""
    while await conn.fetchval(READERS):  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0.02)
    return cast(int, await conn.fetchval(SCANS))


async def grow(bench: Bench, conn: asyncpg.Connection, rows: int) -> Grown:
    load = await fill(conn, rows, daily=max(bench.rows // 10_000, 100))
    size, before = await conn.fetchrow(SIZE), await scans(conn)
    count = 3 if bench.short else 21
    body = b'{"obsolescence": 1250.50}'
    head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    record = b"POST /metrics/cost-avoided/metric-records HTTP/1.1\r\nhost: 127.0.0.1\r\n" + head + body
    async with serving("app.py", get("/metrics/alerts-per-day"), bench.home / "log", bench.settings) as (server, start):
        metrics = json.loads((await answered(server, get("/metrics"))).body)["metrics"]
        ask = partial(get, cache_control="no-cache")
        runs = {m["id"]: await usual(server, ask(f"/metrics/{m['id']}"), count) for m in metrics}
        hit = await cost(server, get("/metrics/cost-avoided"))
        write = await usual(server, record, 10 * count, 201)
        memory = server.memory()
    figures = size["records"] / rows, size["indexes"] / rows, load, start, memory, hit, write
    return Grown(rows, *figures, await scans(conn) - before, runs)


def compact(rows: int) -> str:
    return f"{rows // 10**6}M" if rows >= 10**6 else f"{rows // 1000}k"


def growth_figures(grown: list[Grown]) -> Iterator[Figure]:
    """At the largest size, the smaller ones beside it."""

    def figure(name: str, of: Callable[[Grown], float], bound: float, unit: str, at_least: bool = False) -> Figure:
        along = ", ".join(f"{compact(size.rows)} {of(size):.4g}" for size in grown)
        return Figure(name, of(grown[-1]), bound, unit, along, at_least)

    yield figure("record", lambda size: size.record, 110, "bytes")
    yield figure("its indexes", lambda size: size.indexes, 190, "bytes")
    yield figure("load", lambda size: size.load, 5000, "/s", at_least=True)
    yield figure("start grown", lambda size: size.start, 1.5, "s")
    yield figure("memory grown", lambda size: size.memory, 160, "MiB")
    yield figure("hit grown", lambda size: size.hit, 500, "µs")
    yield figure("write grown", lambda size: size.write, 25, "ms")
    yield figure("whole scans", lambda size: size.scans, 0, "scans")
    for name in grown[-1].runs:
        yield figure(name, lambda size, name=name: size.runs[name], 100, "ms")  # type: ignore[misc]


async def many_metrics(bench: Bench, conn: asyncpg.Connection, grown: Grown) -> list[Figure]:
    """What a thousand more definitions add to the start and to the process."""
    await conn.execute(MANY)
    async with serving("app.py", get("/metrics/series-1000"), bench.home / "log", bench.settings) as (server, start):
        each = (start - grown.start, server.memory() - grown.memory)
    return [
        Figure("metrics, start", each[0], 10, "s", "for a thousand more, beside a table of that size"),
        Figure("metrics, memory", each[1], 64, "MiB"),
    ]


WIDE = {"month": 30, "year": 365, "decade": 3650}
SUMS = {"alerts-per-day": "daily-alerts", "alerts-by-type": "alert-types"}


async def kept_sums(bench: Bench, conn: asyncpg.Connection) -> list[Figure]:
    """Wide periods over everything from the sums that docs/scaling.md keeps, beside the same from the records."""
    blocks = {block[2]: block[3] for block in FENCE.finditer((ROOT / "docs" / "scaling.md").read_text())}
    queries = shutil.copytree(ROOT / "queries", bench.home / "sums")
    settings = bench.settings | {"QUERIES_DIR": str(queries), "STATEMENT_TIMEOUT": "120"}
    lines = b'{"alert_type": "Warning"}\n' * 10_000
    head = f"content-type: application/x-ndjson\r\ncontent-length: {len(lines)}\r\n\r\n".encode()
    upload = b"POST /metrics/stock-alerts/metric-records HTTP/1.1\r\nhost: 127.0.0.1\r\n" + head + lines
    count, figures = 1 if bench.short else 5, []
    async with serving("app.py", get("/metrics/alerts-per-day"), bench.home / "log", settings) as (server, _):
        without = await usual(server, upload, count, 201)
        began = time.perf_counter()
        await conn.execute(blocks["daily_alerts.sql"])
        detail = f"of 10,000 records, to be added up, too; the sums of all took {time.perf_counter() - began:.1f} s"
        figures.append(Figure("sums, upload", await usual(server, upload, count, 201) / without, 3, "times", detail))
        for plain, kept in SUMS.items():
            (queries / f"{kept}.sql").write_text(blocks[f"queries/{kept}.sql"])
            await answered(server, get(f"/metrics/{kept}"))
            for period, days in WIDE.items():
                since = f"?start_date={datetime.now(UTC).date() - timedelta(days)}"
                ask = [get(f"/metrics/{name}{since}", cache_control="no-cache") for name in (kept, plain)]
                ours, theirs = [await usual(server, request, count) for request in ask]
                figures.append(Figure(f"{plain}, {period}", ours, 100, "ms", f"from sums, {theirs:.4g} from records"))
    return figures


async def grow_through(bench: Bench, conn: asyncpg.Connection, sizes: Iterable[int]) -> list[Grown]:
    """The seed's metrics and the files' on tables of these sizes, of a thousand series."""
    await asyncio.to_thread(seconds_of, ["app.py", "seed"], bench.settings)
    await conn.execute(SERIES)
    return [await grow(bench, conn, rows) for rows in sizes]


async def growth(bench: Bench) -> list[Figure]:
    """The records of as many years as they take, a tenth of them before, and a tenth of that."""
    async with database(bench.home / "growth", embedded.start) as url:
        bench = bench._replace(settings={"DATABASE_URL": url, "QUERIES_DIR": str(ROOT / "queries")})
        conn = await asyncpg.connect(url)
        sizes = [bench.rows // 10**n for n in range(1 if bench.short else 3, -1, -1)]
        grown = await grow_through(bench, conn, sizes)
        figures = [*growth_figures(grown), *await kept_sums(bench, conn)]
        figures += await many_metrics(bench, conn, grown[-1])
        await conn.close()
        return figures


# ---- page

WALL = {
    "number": "-- title: Records {n}\nSELECT COUNT(*) AS records, {n} AS n FROM metrics WHERE id = 'value'",
    "line": """-- title: A year {n}
SELECT day::date AS day, COUNT(m.id) + {n} AS records
FROM GENERATE_SERIES(CURRENT_DATE - 365, CURRENT_DATE, INTERVAL '1 day') AS day
LEFT JOIN metrics AS m ON m.id = 'value' AND m.date >= day AND m.date < day + INTERVAL '1 day'
GROUP BY day ORDER BY day""",
    "bar": "-- title: Kinds {n}\nSELECT 'kind ' || k AS kind, k * {n} AS many FROM GENERATE_SERIES(1, 12) AS k",
    "table": "-- title: Rows {n}\nSELECT 'row ' || k AS name, 'kind {n}' AS kind, k FROM GENERATE_SERIES(1, 50) AS k",
}
DRAWN = "() => document.querySelectorAll('.cell[data-state=ready] .drawn > *').length >= 100"


async def heap(devtools: Any) -> float:
    """MiB of scripts, without what nothing refers to any more."""
    await devtools.send("HeapProfiler.collectGarbage")
    used = await devtools.send("Runtime.getHeapUsage")
    return float(used["usedSize"]) / 2**20


async def wall(bench: Bench) -> list[Figure]:
    """A hundred tiles: until the browser paints, until all are drawn, and what an hour's writes leave in its memory."""
    try:
        from playwright.async_api import async_playwright
    except ImportError:
        return [Figure("wall", None, 0, "")]
    if not CHROMIUM:
        return [Figure("wall", None, 0, "")]
    queries = bench.home / "wall"
    queries.mkdir()
    for n in range(100):
        kind = list(WALL)[n % 4]
        (queries / f"{kind}-{n}.sql").write_text(WALL[kind].format(n=n))
    server = await bench.serve("app.py", get("/metrics/number-0"), {"AUTH": "off", "QUERIES_DIR": str(queries)})
    conn = await asyncpg.connect(bench.settings["DATABASE_URL"])
    writes = 20 if bench.short else 3600
    sockets: list[Any] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = await browser.new_page(viewport={"width": 1440, "height": 900})
        page.on("websocket", lambda socket: sockets.append(socket))
        await page.goto(f"http://127.0.0.1:{server.port}/")
        await page.wait_for_function(DRAWN)
        drawn = await page.evaluate("performance.now()")
        paint = await page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        devtools = await page.context.new_cdp_session(page)
        before = await heap(devtools)
        for _ in range(writes):
            await conn.execute(WRITE)
            await asyncio.sleep(0.1)
        grown = await heap(devtools) - before
        await browser.close()
    await conn.close()
    return [
        Figure("wall, paint", paint, 1000, "ms", "a hundred tiles at first"),
        Figure("wall, drawn", drawn, 3000, "ms", "until every one has its numbers"),
        Figure("wall, sockets", len(sockets), 1, "", "that they share"),
        Figure("wall, heap", grown, 8, "MiB", f"after {writes} writes, ten a second"),
    ]


# ---- command

FIGURES = {
    figure.__name__: figure
    for figure in (hit, miss, replicas, start, bulk, token, agents, memory, live, stall, wall, growth)
}


async def measure(home: Path, names: list[str], short: bool, rows: int) -> bool:
    """Print each figure as soon as it is there; say whether all keep their bounds."""
    good = True
    async with prepared(home, short, rows) as bench:
        for name in names:
            async with AsyncExitStack() as servers:
                figures = await FIGURES[name](bench._replace(servers=servers))
            print(*(figure.line() for figure in figures), sep="\n", flush=True)
            good = good and all(figure.good for figure in figures)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description="What the service costs beside the least that does the same.")
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(FIGURES))
    parser.add_argument("--short", action="store_true", help="one round of each")
    parser.add_argument("--rows", type=int, help="of growth; 10000000, or 50000 for a short run")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in FIGURES]:
        parser.error(f"there is no figure {', '.join(unknown)}; choose from {', '.join(FIGURES)}")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        home = Path(name)
        home.chmod(0o755)  # as root, the database's user has to pass
        names = options.names or [name for name in FIGURES if name != "growth"]
        rows = options.rows or (50_000 if options.short else 10_000_000)
        return 0 if asyncio.run(measure(home, names, options.short, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
