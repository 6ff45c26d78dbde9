"""What the service costs beside the least that does the same: one line a figure, with its bound.

    python tests/bench.py               all figures but growth, in some minutes
    python tests/bench.py miss hit      some of them
    python tests/bench.py --short       fewer rounds
    python tests/bench.py growth        what grows up to ten million records, or --rows; wants 5 GB and some minutes

Every server is a process of its own, one worker on uvloop and httptools, on an embedded PostgreSQL made for the run.
CPU is that of the server's process: neither the client nor the database counts. What is compared takes turns in many
short rounds, and the median counts, so that other load on the machine strikes both.
"""

import argparse
import asyncio
import base64
import http.client
import itertools
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import asyncpg
import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from seed import embedded  # noqa: E402

ROWS = """\
SELECT
  DATE(date) AS day,
  alert_type,
  parts_flagged,
  obsolescence::float8 AS obsolescence,
  obsolescence::float8 * 2 AS twice
FROM metrics
WHERE id = 'rows'
ORDER BY date
LIMIT {rows}::int4
"""
VALUE = "SELECT :n::int4 AS n"
COUNT = "SELECT COUNT(*) AS records FROM metrics"
# Always a run of its own.
SMALL = {"path": "/metrics/rows?rows=25", "cache_control": "no-cache"}


# ---- references


def plain_app() -> ASGIApp:
    """The endpoint that somebody would write for one query."""
    query = ROWS.format(rows="$1")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with asyncpg.create_pool(os.environ["DATABASE_URL"]) as pool:
            yield {"pool": pool}

    async def rows(request: Request) -> JSONResponse:
        found = await request.state.pool.fetch(query, int(request.query_params["rows"]))
        return JSONResponse([dict(row) | {"day": row["day"].isoformat()} for row in found])

    return Starlette(routes=[Route("/metrics/rows", rows)], lifespan=lifespan)


def bare_app() -> ASGIApp:
    """Sends one recorded answer, whatever it is asked."""
    status, pairs, text = json.loads(os.environ["ANSWER"])
    headers, body = [(name.encode(), value.encode()) for name, value in pairs], text.encode()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


# ---- servers


class Server(NamedTuple):
    port: int
    process: subprocess.Popen[bytes]

    def cpu(self) -> float:
        """Seconds, of all threads: Linux's clock_getcpuclockid(3), which Python lacks."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def memory(self) -> float:
        """Resident MiB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def running(command: str, log: Path, env: dict[str, str]) -> Iterator[Server]:
    """A server on a free port, its output in a file."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    arguments = [sys.executable, *command.split(), "--port", str(port)]
    with log.open("ab") as out:
        process = subprocess.Popen(arguments, env=inherited | env, cwd=ROOT, stdout=out, stderr=out)
    try:
        yield Server(port, process)
    finally:
        process.terminate()
        process.wait(20)


class Bench(NamedTuple):
    """A database with ten thousand records, the settings of a service on it, an issuer; a short one does less."""

    home: Path
    settings: dict[str, str]
    key: rsa.RSAPrivateKey
    short: bool
    rows: int
    servers: ExitStack

    async def open(self, **env: str) -> Server:
        """The service without tokens."""
        server = self.start("app.py", AUTH="off", **env)
        await answered(server, get("/metrics/rows?rows=1"))
        return server

    async def guarded(self) -> tuple[Server, str]:
        """The service with tokens, and an Authorization header for it."""
        public = jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        keys = json.dumps({"keys": [{**public, "kid": "bench", "alg": "RS256", "use": "sig"}]})
        jwks = await self.reference("bare_app", ANSWER=json.dumps([200, [["content-length", str(len(keys))]], keys]))
        issuer = f"http://127.0.0.1:{jwks.port}"
        claims = {"iss": issuer, "exp": time.time() + 86400, "sub": "bench", "scope": "api/backend_access"}
        bearer = f"Bearer {jwt.encode(claims, self.key, 'RS256', headers={'kid': 'bench'})}"
        server = self.start("app.py", JWT_ISSUER=issuer, JWKS_URL=f"{issuer}/jwks.json")
        await answered(server, get("/metrics/rows?rows=1", authorization=bearer))
        return server, bearer

    async def reference(self, factory: str, status: int = 200, **env: str) -> Server:
        flags = "--app-dir tests --log-level warning --no-access-log --no-server-header --no-proxy-headers"
        server = self.start(f"-m uvicorn --factory bench:{factory} {flags}", **env)
        await answered(server, get("/metrics/rows?rows=1"), status)
        return server

    def start(self, command: str, **env: str) -> Server:
        return self.servers.enter_context(running(command, self.home / "log", self.settings | env))

    async def compare(
        self, ours: Callable[[int], Awaitable[float]], theirs: Callable[[int], Awaitable[float]], count: int
    ) -> tuple[float, float]:
        """The medians of two costs that are taken in turns; the first round only warms up."""
        rounds, count = (4, count // 4) if self.short else (60, count // 2)
        pairs = [(await ours(count), await theirs(count)) for _ in range(rounds + 1)][1:]
        return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


COLUMNS = ("id", "metric_id", "date", "obsolescence", "parts_flagged", "alert_type")
TYPES = ("Critical", "Warning", "Info")


def make_records(series: str, count: int, year: int = 2026) -> list[tuple[Any, ...]]:
    dates = (datetime(year, 1, 1, tzinfo=UTC) + timedelta(minutes=n) for n in range(count))
    return [(series, uuid.uuid4(), day, Decimal(n) / 100, n % 90, TYPES[n % 3]) for n, day in enumerate(dates)]


@asynccontextmanager
async def prepared(home: Path, short: bool, rows: int) -> AsyncIterator[Bench]:
    """A bench without servers."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    database = await embedded.start(home / "data")
    settings = {"DATABASE_URL": database.dsn, "QUERIES_DIR": str(home / "queries")}
    try:
        with ExitStack() as servers:
            await Bench(home, settings, key, short, rows, servers).open()
        conn = await asyncpg.connect(database.dsn)
        await conn.copy_records_to_table("metrics", records=make_records("rows", 10_000, year=2025), columns=COLUMNS)
        await conn.execute("ANALYZE metrics")
        await conn.close()
        yield Bench(home, settings, key, short, rows, ExitStack())
    finally:
        await database.stop()


# ---- clients


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Callable[[bytes], Awaitable[Answer]]]:
    """A connection that does as little as will do, so that the client leaves the machine to the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)

    async def fetch(request: bytes) -> Answer:
        writer.write(request)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
        status = int(first.split()[1])
        length = 0 if status == 304 else int(dict(headers)["content-length"])
        return Answer(status, headers, await reader.readexactly(length))

    try:
        yield fetch
    finally:
        writer.close()
        await writer.wait_closed()


def get(path: str, **headers: str) -> bytes:
    """A request; in the names of headers an underscore stands for a hyphen."""
    fields = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{fields}\r\n".encode()


async def answered(server: Server, request: bytes, status: int = 200) -> Answer:
    """The first answer of that status, as soon as there is one."""
    answer = None
    give_up = time.monotonic() + 15
    while time.monotonic() < give_up and server.process.poll() is None:
        with suppress(OSError):
            async with connected(server) as fetch:
                answer = await fetch(request)
            if answer.status == status:
                return answer
        await asyncio.sleep(0.01)
    raise SystemExit(f"{server.process.args!r} does not answer {status}, but {answer}")


async def load(server: Server, requests: Iterable[bytes], status: int = 200) -> None:
    """Send the requests over four connections, each when the one before was answered."""
    queue = iter(requests)

    async def work() -> None:
        async with connected(server) as fetch:
            for request in queue:
                answer = await fetch(request)
                assert answer.status == status, answer

    await asyncio.gather(*[work() for _ in range(4)])


async def cost(server: Server, request: bytes, count: int, status: int = 200) -> float:
    """Microseconds of the server's CPU for one request."""
    before = server.cpu()
    await load(server, itertools.repeat(request, count), status)
    return (server.cpu() - before) / count * 1e6


async def slowest(server: Server, done: Callable[[], bool]) -> float:
    """The 99th percentile, in milliseconds, of what a small run takes meanwhile."""
    taken = []
    async with connected(server) as fetch:
        while not done():
            began = time.perf_counter()
            answer = await fetch(get(**SMALL))
            taken.append((time.perf_counter() - began) * 1000)
            assert answer.status == 200, answer
            await asyncio.sleep(0.003)
    return statistics.quantiles(taken, n=100)[98]


async def milliseconds(server: Server, request: bytes, count: int, status: int = 200) -> float:
    """The median of what a request takes when it is the only one."""
    taken = []
    async with connected(server) as fetch:
        for _ in range(count):
            began = time.perf_counter()
            answer = await fetch(request)
            taken.append((time.perf_counter() - began) * 1000)
            assert answer.status == status, answer
    return statistics.median(taken)


def send(server: Server, method: str, path: str, body: bytes | None = None, **headers: str) -> float:
    """Seconds until all is answered; for a thread, so that large bodies do not hold up the loop's small requests."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status in (200, 201), text
    return time.perf_counter() - began


# ---- figures


class Figure(NamedTuple):
    name: str
    value: float
    bound: float
    unit: str
    detail: str = ""
    at_least: bool = False

    @property
    def good(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def line(self) -> str:
        bound = f"{'at least' if self.at_least else 'at most'} {self.bound:g}"
        verdict = "ok" if self.good else "over"
        return f"{self.name:<18}{self.value:>8.2f} {self.unit:<6}{bound:<14}{verdict:<5}{self.detail}"


def beside(name: str, ours: float, theirs: float) -> Figure:
    return Figure(name, ours / theirs, 1.6, "times", f"{ours:.0f} µs beside {theirs:.0f}")


async def miss(bench: Bench) -> list[Figure]:
    """25 rows from the database, beside a plain Starlette and asyncpg endpoint with the same SQL."""
    ours, plain = await bench.open(), await bench.reference("plain_app")
    costs = await bench.compare(partial(cost, ours, get(**SMALL)), partial(cost, plain, get(**SMALL)), 400)
    return [beside("miss", *costs)]


async def stall(bench: Bench) -> list[Figure]:
    """A small result while a large one is fetched in a loop."""
    server = await bench.open()
    give_up = time.monotonic() + (2 if bench.short else 15)

    async def fetch_large() -> int:
        count = 0
        while time.monotonic() < give_up:
            await asyncio.to_thread(send, server, "GET", "/metrics/rows?rows=10000", cache_control="no-cache")
            count += 1
        return count

    large = asyncio.create_task(fetch_large())
    value = await slowest(server, large.done)
    return [Figure("stall", value, 25, "ms", f"99 % of small results, beside {await large} of 10,000 rows")]


async def start(bench: Bench) -> list[Figure]:
    """From nothing, and from the data of last time, to the first answer of `python app.py`."""
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for turn, kind in itertools.product(range(1 if bench.short else 3), seconds):
        began = time.perf_counter()
        with running("app.py", bench.home / "log", {"DATA_DIR": str(bench.home / f"start-{turn}")}) as server:
            await answered(server, get("/metrics/alerts-per-day"))
            seconds[kind].append(time.perf_counter() - began)
    cold, warm = (statistics.median(taken) for taken in seconds.values())
    return [Figure("start cold", cold, 4, "s", "to the first answer"), Figure("start warm", warm, 1.5, "s")]


async def hit(bench: Bench) -> list[Figure]:
    """A known result for a known token, whole and as 304, beside an application that sends the same bytes."""
    server, bearer = await bench.guarded()
    ask = partial(get, "/metrics/rows?rows=10", authorization=bearer)
    etag = dict((await answered(server, ask())).headers)["etag"]
    figures = []
    for name, request, status in (("hit", ask(), 200), ("hit 304", ask(if_none_match=etag), 304)):
        answer = await answered(server, request, status)
        headers = [pair for pair in answer.headers if pair[0] != "date"]  # which uvicorn adds
        bare = await bench.reference("bare_app", status, ANSWER=json.dumps([status, headers, answer.body.decode()]))
        ours, theirs = (partial(cost, side, request, status=status) for side in (server, bare))
        figures.append(beside(name, *await bench.compare(ours, theirs, 2000)))
    return figures


async def token(bench: Bench) -> list[Figure]:
    """What a known token adds to a known result."""
    server, bearer = await bench.guarded()
    known = partial(cost, server, get("/metrics/rows?rows=10", authorization=bearer))
    none = partial(cost, await bench.open(), get("/metrics/rows?rows=10"))
    ours, theirs = await bench.compare(known, none, 2000)
    return [Figure("token", ours - theirs, 5, "µs", f"{ours:.0f} µs beside {theirs:.0f}")]


async def memory(bench: Bench) -> list[Figure]:
    """Growth beyond the bound of the cache, when no request is like another."""
    server = await bench.open(CACHE_MAX_BYTES=str(16 * 2**20))
    count = 20_000 if bench.short else 200_000
    await load(server, (get(f"/metrics/value?n={-n}") for n in range(1, 2000)))
    before = server.memory()
    await load(server, (get(f"/metrics/value?n={n}") for n in range(count)))
    return [Figure("memory", server.memory() - before - 16, 64, "MiB", f"above the cache's 16, after {count} values")]


async def bulk(bench: Bench) -> list[Figure]:
    """Records as NDJSON, beside a bare COPY into the same table, and what other callers notice."""
    server = await bench.open()
    conn = await asyncpg.connect(bench.settings["DATABASE_URL"])
    count = 20_000 if bench.short else 100_000
    uploads, copies, noticed = [], [], []
    for _ in range(1 if bench.short else 5):
        body = ndjson(make_records("value", count))
        path, media = "/metrics/value/metric-records", "application/x-ndjson"
        upload = asyncio.create_task(asyncio.to_thread(send, server, "POST", path, body, content_type=media))
        noticed.append(await slowest(server, upload.done))
        uploads.append(await upload)
        records = make_records("value", count)
        began = time.perf_counter()
        await conn.copy_records_to_table("metrics", records=records, columns=COLUMNS)
        copies.append(time.perf_counter() - began)
    await conn.close()
    ours, theirs = count / statistics.median(uploads), count / statistics.median(copies)
    rate = Figure("bulk", ours / theirs, 0.3, "times", f"{ours:.0f} records a second beside {theirs:.0f}", True)
    return [rate, Figure("bulk others", statistics.median(noticed), 100, "ms", "99 % of small results meanwhile")]


def ndjson(records: list[tuple[Any, ...]]) -> bytes:
    """Without the series, which the path names."""
    lines = [dict(zip(COLUMNS[1:], record[1:], strict=True)) for record in records]
    return msgspec.json.Encoder(decimal_format="number").encode_lines(lines)


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
            await conn.execute("INSERT INTO metrics (id) VALUES ('value')")
            committed = time.monotonic()
            expected = f'"records":{await conn.fetchval(COUNT)}}}'.encode()
            late += [await watcher.hears(expected) - committed for watcher in watchers]
            queries.append(await runs(server) - before)
    await conn.close()
    value = statistics.quantiles(late, n=100)[98] * 1000
    return [
        Figure(
            "live",
            value,
            300,
            "ms",
            f"99 % of 500 subscribers after a commit, half {statistics.median(late) * 1000:.0f}",
        ),
        Figure("live queries", max(queries), 2, "", "for one commit"),
    ]


# ---- growth

# The seed's series, one a kind of record; the other thousand follow in turns.
KINDS = (
    "stock-at-risk",
    "approval-requests",
    "supplier-notices",
    "savings-by-week",
    "part-reviews",
    "stock-alerts",
)
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


@asynccontextmanager
async def opened(bench: Bench, path: str) -> AsyncIterator[tuple[Server, float]]:
    """The service, and the seconds from nothing to its first answer."""
    began = time.perf_counter()
    with running("app.py", bench.home / "log", bench.settings) as server:
        await answered(server, get(path))
        yield server, time.perf_counter() - began


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
    async with opened(bench, "/metrics/alerts-per-day") as (server, start):
        metrics = json.loads((await answered(server, get("/metrics"))).body)["metrics"]
        ask = partial(get, cache_control="no-cache")
        runs = {m["id"]: await milliseconds(server, ask(f"/metrics/{m['id']}"), count) for m in metrics}
        hit = await cost(server, get("/metrics/cost-avoided"), 100 * count)
        write = await milliseconds(server, record, 10 * count, 201)
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
    async with opened(bench, "/metrics/series-1000") as (server, start):
        each = (start - grown.start, server.memory() - grown.memory)
    return [
        Figure("metrics, start", each[0], 10, "s", "for a thousand more, beside a table of that size"),
        Figure("metrics, memory", each[1], 64, "MiB"),
    ]


async def grow_through(bench: Bench, conn: asyncpg.Connection, sizes: Iterable[int]) -> list[Grown]:
    """The seed's metrics and the files' on tables of these sizes, of a thousand series."""
    seed = partial(subprocess.run, [sys.executable, "app.py", "seed"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    await asyncio.to_thread(seed, env={"PATH": os.environ["PATH"]} | bench.settings)
    await conn.execute(SERIES)
    return [await grow(bench, conn, rows) for rows in sizes]


async def growth(bench: Bench) -> list[Figure]:
    """The records of as many years as they take, a tenth of them before, and a tenth of that."""
    database = await embedded.start(bench.home / "growth")
    bench = bench._replace(settings={"DATABASE_URL": database.dsn, "QUERIES_DIR": str(ROOT / "queries")})
    try:
        conn = await asyncpg.connect(database.dsn)
        sizes = [bench.rows // 10**n for n in range(1 if bench.short else 3, -1, -1)]
        grown = await grow_through(bench, conn, sizes)
        figures = [*growth_figures(grown), *await many_metrics(bench, conn, grown[-1])]
        await conn.close()
        return figures
    finally:
        await database.stop()


# ---- command

FIGURES = {figure.__name__: figure for figure in (miss, stall, start, hit, token, memory, bulk, live, growth)}


async def measure(home: Path, names: list[str], short: bool, rows: int) -> bool:
    """Print each figure as soon as it is there; say whether all keep their bounds."""
    good = True
    async with prepared(home, short, rows) as bench:
        for name in names:
            with ExitStack() as servers:
                figures = await FIGURES[name](bench._replace(servers=servers))
            print(*(figure.line() for figure in figures), sep="\n", flush=True)
            good = good and all(figure.good for figure in figures)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description="What the service costs beside the least that does the same.")
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(FIGURES))
    parser.add_argument("--short", action="store_true", help="fewer rounds")
    parser.add_argument("--rows", type=int, help="of growth; 10000000, or 50000 for a short run")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in FIGURES]:
        parser.error(f"there is no figure {', '.join(unknown)}; choose from {', '.join(FIGURES)}")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        home = Path(name)
        home.chmod(0o755)  # as root, the database's user has to pass
        (home / "queries").mkdir()
        (home / "queries" / "rows.sql").write_text(ROWS.format(rows=":rows"))
        (home / "queries" / "value.sql").write_text(VALUE)
        (home / "queries" / "count.sql").write_text(COUNT)
        names = options.names or [name for name in FIGURES if name != "growth"]
        rows = options.rows or (50_000 if options.short else 10_000_000)
        return 0 if asyncio.run(measure(home, names, options.short, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
