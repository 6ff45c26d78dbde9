"""One socket for a whole dashboard: what it is told, when, by how many queries, and how it ends."""

import asyncio
import base64
import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import httpx
import pytest
from conftest import Serve
from helpers import Service, eventually, wait_until
from issuer import Issuer
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as connect_sync

from seed import embedded

pytestmark = pytest.mark.anyio

READ, WRITE = "api/backend_access", "api/backend_write"
LEEWAY = 30  # seconds that the service allows for clocks that differ
AddQuery = Callable[[str, str], None]

COUNT = "SELECT COUNT(*) AS records FROM metrics"
# More than the kernel keeps for a socket that nobody reads.
WIDE = """SELECT
  n,
  REPEAT('x', 400) AS padding,
  (SELECT COUNT(*) FROM metrics) AS records
FROM GENERATE_SERIES(1, 8000) AS n"""


def live_url(service: Service) -> str:
    return service.url.replace("http", "ws", 1) + "/live"


class Dashboard(NamedTuple):
    """A client of /live."""

    socket: ClientConnection

    async def send(self, kind: str, metric_id: Any = None, **params: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, "id": metric_id, "params": params}))

    async def receive(self, seconds: float = 5) -> Any:
        return json.loads(await asyncio.wait_for(self.socket.recv(), seconds))

    async def subscribe(self, metric_id: str, **params: Any) -> Any:
        """What comes next."""
        await self.send("subscribe", metric_id, **params)
        return await self.receive()

    async def show(self, token: str) -> None:
        await self.socket.send(json.dumps({"type": "auth", "token": token}))

    async def collect(self, seconds: float) -> list[Any]:
        """All that comes meanwhile."""
        messages = []
        try:
            async with asyncio.timeout(seconds):
                while True:
                    messages.append(json.loads(await self.socket.recv()))
        except TimeoutError:
            return messages

    async def closing(self, seconds: float = 5) -> tuple[int, str]:
        """Code and reason, whatever comes before."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    await self.socket.recv()
        except ConnectionClosed as exc:
            return (exc.rcvd.code, exc.rcvd.reason) if exc.rcvd else (1006, "")


@asynccontextmanager
async def dashboard(service: Service, token: str | None = None, **options: Any) -> AsyncIterator[Dashboard]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    options = {"additional_headers": headers, "proxy": None, "max_size": None, "compression": None} | options
    async with connect(live_url(service), **options) as opened:
        yield Dashboard(opened)


@pytest.fixture
async def board(service: Service, owner: asyncpg.Connection) -> AsyncIterator[Dashboard]:
    async with dashboard(service) as board:
        yield board


@pytest.fixture
def add_query(service: Service) -> Iterator[AddQuery]:
    """Put an SQL file into the service's directory until the test is over."""
    added: list[str] = []

    def add(metric_id: str, sql: str) -> None:
        (service.queries / f"{metric_id}.sql").write_text(sql)
        added.append(metric_id)
        wait_until(lambda: httpx.head(f"{service.url}/metrics/{metric_id}").status_code == 200)

    yield add
    for metric_id in added:
        (service.queries / f"{metric_id}.sql").unlink(missing_ok=True)


async def write(conn: asyncpg.Connection, series: str = "total", value: int = 1) -> None:
    await conn.execute("INSERT INTO metrics (id, obsolescence) VALUES ($1, $2)", series, value)


async def told(service: Service, name: str, labels: str = "") -> float:
    """A number of /prometheus; what was never counted is 0."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{service.url}/prometheus")).text
    found = re.search(rf"^{re.escape(name + labels)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0


async def runs(service: Service, metric_id: str) -> float:
    return await told(service, "metric_run_seconds_count", f'{{metric_id="{metric_id}"}}')


async def nobody_is_left(service: Service) -> bool:
    return await told(service, "live_subscribers") == 0


# ---- results


@pytest.mark.usefixtures("triggers")
async def test_a_result_comes_at_once_and_again_when_a_write_changes_it(
    board: Dashboard, owner: asyncpg.Connection, client: httpx.AsyncClient
) -> None:
    first = await board.subscribe("total")
    assert first.keys() == {"type", "id", "params", "etag", "result"}
    assert (first["type"], first["id"], first["params"]) == ("result", "total", {})
    assert first["result"]["records"] == [{"total": 0, "records": 0}]

    await write(owner, value=7)
    second = await board.receive()
    assert second["result"]["records"] == [{"total": 7, "records": 1}]
    answer = await client.get("/metrics/total")
    assert (second["etag"], second["result"]) == (answer.headers["etag"], answer.json())
    assert second["etag"] != first["etag"]


@pytest.mark.parametrize(
    ("params", "record"),
    [
        ({"n": 7, "t": "seven", "d": "2025-06-01"}, {"n": 7, "t": "seven", "d": "2025-06-01"}),
        ({"n": "7"}, {"n": 7, "t": None, "d": None}),
        ({"t": 1.5}, {"n": None, "t": "1.5", "d": None}),
        ({"t": 9007199254740993}, {"n": None, "t": "9007199254740993", "d": None}),
        ({"t": "ü\u0000 \U0001f4c8"[:1], "start_date": "2025-06-01"}, {"n": None, "t": "ü", "d": None}),
        ({"n": [7]}, {"n": 7, "t": None, "d": None}),
    ],
    ids=str,
)
async def test_params_are_texts_or_numbers_and_echoed_as_sent(
    board: Dashboard, params: dict[str, Any], record: dict[str, Any]
) -> None:
    message = await board.subscribe("echo", **params)
    assert message["params"] == params
    assert [type(value) for value in message["params"].values()] == [type(value) for value in params.values()]
    assert message["result"]["records"] == [record]


async def test_a_number_keeps_all_its_digits(board: Dashboard) -> None:
    for number in ("1.10", "0.12345678901234567890123", "1E+400"):
        await board.socket.send('{"type": "subscribe", "id": "echo", "params": {"t": ' + number + "}}")
        text = await asyncio.wait_for(board.socket.recv(), 5)
        assert f'"params":{{"t":{number}}}' in str(text)
        assert json.loads(text)["result"]["records"] == [{"n": None, "t": number, "d": None}]


async def test_an_array_is_a_list_of_texts_or_numbers(board: Dashboard) -> None:
    params = {"ints": [1, "2", 3], "texts": ["a,b", ""]}
    message = await board.subscribe("types", **params)
    assert message["params"] == params
    assert message["result"]["records"][0]["ints"] == [1, 2, 3]
    assert message["result"]["records"][0]["texts"] == ["a,b", ""]


@pytest.mark.usefixtures("triggers")
async def test_nothing_comes_when_the_bytes_are_the_same(
    board: Dashboard, service: Service, owner: asyncpg.Connection
) -> None:
    """A record of another series makes the query run, and the result is what it was."""
    await board.subscribe("records", series="total")
    before = await runs(service, "records")
    await write(owner, "echo")

    async def ran() -> bool:
        return await runs(service, "records") > before

    await eventually(ran)
    assert await board.collect(0.3) == []


async def test_a_write_that_is_rolled_back_sends_nothing(board: Dashboard, owner: asyncpg.Connection) -> None:
    await board.subscribe("total")
    transaction = owner.transaction()
    await transaction.start()
    await write(owner)
    await transaction.rollback()
    assert await board.collect(0.4) == []


async def test_a_trailing_slash_makes_no_difference(service: Service, owner: asyncpg.Connection) -> None:
    async with connect(f"{live_url(service)}/", proxy=None) as opened:
        board = Dashboard(opened)
        assert (await board.subscribe("total"))["type"] == "result"


@pytest.mark.usefixtures("triggers")
async def test_what_is_not_watched_any_more_is_silent(board: Dashboard, owner: asyncpg.Connection) -> None:
    await board.subscribe("total")
    await board.subscribe("records", series="total")
    await board.send("unsubscribe", "total")
    await write(owner)
    assert [message["id"] for message in await board.collect(0.5)] == ["records"]


async def test_a_query_that_nobody_waits_for_any_more_is_cancelled(board: Dashboard, owner: asyncpg.Connection) -> None:
    async def is_running() -> bool:
        return bool(
            await owner.fetchval(
                "SELECT COUNT(*) FROM pg_stat_activity WHERE state = 'active' AND wait_event = 'PgSleep'"
            )
        )

    async def is_over() -> bool:
        return not await is_running()

    await board.send("subscribe", "sleep", seconds=8)
    await eventually(is_running)
    await board.send("unsubscribe", "sleep", seconds=8)
    await eventually(is_over, 5)  # and not because it has come to its end
    assert await board.collect(0.2) == []


@pytest.mark.usefixtures("triggers")
async def test_to_subscribe_again_answers_again_and_changes_still_come_once(
    board: Dashboard, owner: asyncpg.Connection
) -> None:
    first = await board.subscribe("records", series="total", start_date="2025-01-01")
    again = await board.subscribe("records", start_date="2025-01-01", series="total")
    assert again == first
    await write(owner)
    assert len(await board.collect(0.5)) == 1


@pytest.mark.usefixtures("triggers")
async def test_one_metric_may_be_watched_with_several_params(board: Dashboard, owner: asyncpg.Connection) -> None:
    await board.subscribe("records", series="total")
    await board.subscribe("records", series="echo")
    await board.collect(
        0.5
    )  # A result of the tests before may be told first, until their records are known to be gone.
    await write(owner, "echo")
    assert [message["params"] for message in await board.collect(0.5)] == [{"series": "echo"}]


# ---- problems

INVALID = [
    ({"type": "subscribe", "id": "nothing", "params": {}}, 404, "nothing", {}),
    ({"type": "subscribe", "id": "to tal", "params": {}}, 422, "to tal", {}),
    ({"type": "subscribe", "id": "t" * 65, "params": {}}, 422, "t" * 65, {}),
    ({"type": "subscribe", "id": "broken"}, 500, "broken", {}),
    ({"type": "subscribe", "id": "echo", "params": {"n": "x"}}, 422, "echo", {"n": "x"}),
    ({"type": "subscribe", "id": "echo", "params": {"n": 1.5}}, 422, "echo", {"n": 1.5}),
    ({"type": "subscribe", "id": "echo", "params": {"n": [1, 2]}}, 422, "echo", {"n": [1, 2]}),
    ({"type": "subscribe", "id": "echo", "params": {"n": True}}, 422, "echo", {"n": True}),
    ({"type": "subscribe", "id": "echo", "params": {"n": {}}}, 422, "echo", {"n": {}}),
    ({"type": "subscribe", "id": "echo", "params": {"other": 1}}, 422, "echo", {"other": 1}),
    ({"type": "subscribe", "id": "records", "params": {}}, 422, "records", {}),
    ({"type": "subscribe", "id": "divide", "params": {"by": 0}}, 422, "divide", {"by": 0}),
    ({"type": "subscribe", "id": "divide-by-zero"}, 500, "divide-by-zero", {}),
    ({"type": "subscribe", "id": "echo", "params": [1]}, 422, "echo", None),
    ({"type": "subscribe", "id": 7}, 422, None, None),
    ({"type": "subscribe"}, 422, None, None),
    ({"type": "auth", "token": 7}, 422, None, None),
    ({"type": "hello", "id": "echo"}, 422, "echo", None),
    ({}, 422, None, None),
    ([], 422, None, None),
    (5, 422, None, None),
]


@pytest.mark.parametrize(("message", "status", "metric_id", "params"), INVALID, ids=str)
async def test_what_cannot_be_is_a_problem_and_the_socket_goes_on(
    board: Dashboard, message: Any, status: int, metric_id: str | None, params: Any
) -> None:
    await board.socket.send(json.dumps(message))
    problem = await board.receive()
    assert problem.keys() == {"type", "id", "params", "status", "title", "detail"}
    assert problem["type"] == "problem"
    assert problem["status"] == status
    assert (problem["id"], problem["params"]) == (metric_id, params)
    assert problem["detail"]
    assert (await board.subscribe("echo", n=1))["type"] == "result"


FAR_TOO_LARGE = '{"n": 1e99999999999999999999}'
NOT_JSON = ["", "subscribe", "{", '{"type": "subscribe", "id": "total"} {}', '{"n": NaN}', "[" * 60_000, b"\x00\xff"]


@pytest.mark.parametrize("text", [*NOT_JSON, FAR_TOO_LARGE], ids=lambda text: repr(text[:20]))
async def test_what_is_no_json_is_a_problem_400(board: Dashboard, text: str | bytes) -> None:
    await board.socket.send(text)
    problem = await board.receive()
    assert (problem["type"], problem["status"], problem["id"], problem["params"]) == ("problem", 400, None, None)
    assert (await board.subscribe("echo", n=1))["type"] == "result"


async def test_json_may_come_as_a_binary_message(board: Dashboard) -> None:
    await board.socket.send(json.dumps({"type": "subscribe", "id": "echo", "params": {"n": 1}}).encode())
    assert (await board.receive())["result"]["records"][0]["n"] == 1


async def test_a_problem_names_no_sql_and_no_driver(board: Dashboard) -> None:
    problems = [await board.subscribe(metric_id) for metric_id in ("broken", "divide-by-zero")]
    assert not re.search("SELECT|no_such_column|asyncpg|psycopg", json.dumps(problems))


async def test_200_subscriptions_are_had_and_the_next_is_a_problem(board: Dashboard) -> None:
    for n in range(200):
        await board.send("subscribe", "echo", n=n)
    results = [await board.receive() for _ in range(200)]
    assert sorted(message["result"]["records"][0]["n"] for message in results) == list(range(200))

    problem = await board.subscribe("echo", n=200)
    assert (problem["type"], problem["status"], problem["params"]) == ("problem", 422, {"n": 200})
    assert "200" in problem["detail"]
    assert (await board.subscribe("echo", n=5))["type"] == "result", "what is there may be asked for again"
    await board.send("unsubscribe", "echo", n=5)
    assert (await board.subscribe("echo", n=200))["type"] == "result", "one that went made room"


async def test_subscriptions_have_so_many_bytes_in_all(board: Dashboard) -> None:
    for n in range(4):
        assert (await board.subscribe("echo", n=n, t="x" * 60_000))["type"] == "result"
    problem = await board.subscribe("echo", n=4, t="x" * 60_000)
    assert (problem["status"], problem["detail"]) == (422, "200 subscriptions of 262144 bytes in all are allowed.")
    assert (await board.subscribe("echo", n=4))["type"] == "result"


@pytest.mark.usefixtures("triggers")
async def test_a_result_that_fails_later_is_a_problem_and_comes_back(
    board: Dashboard, owner: asyncpg.Connection, add_query: AddQuery
) -> None:
    add_query("inverse", "SELECT 12 / SUM(parts_flagged) AS inverse FROM metrics")
    await board.subscribe("inverse")
    await owner.execute("INSERT INTO metrics (id, parts_flagged) VALUES ('total', 0)")
    problem = await board.receive()
    assert (problem["type"], problem["id"], problem["params"], problem["status"]) == ("problem", "inverse", {}, 500)
    await owner.execute("INSERT INTO metrics (id, parts_flagged) VALUES ('total', 4)")
    assert (await board.receive())["result"]["records"] == [{"inverse": 3}]


@pytest.mark.usefixtures("triggers")
async def test_what_fails_is_asked_for_less_and_less_often_logged_rarely_and_told_at_once_when_a_change_mends_it(
    board: Dashboard, service: Service, owner: asyncpg.Connection, add_query: AddQuery
) -> None:
    """After 1, 2, 4 and 8 s; the second line is that of the fifth attempt and says how many went before."""

    def lines() -> list[Any]:
        told = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in told if line.get("metric_id") == "reciprocal" and line["level"] == "warning"]

    add_query("reciprocal", "SELECT (CASE SUM(parts_flagged) WHEN 0 THEN 'none' ELSE '3' END)::int4 AS n FROM metrics")
    await board.subscribe("reciprocal")
    await owner.execute("INSERT INTO metrics (id, parts_flagged) VALUES ('total', 0)")
    assert (await board.receive())["status"] == 500
    await asyncio.to_thread(wait_until, lambda: len(lines()) == 2, 20)
    assert [line.get("repeated") for line in lines()] == [None, 3]
    assert all("invalid input syntax" in line["reason"] for line in lines())
    await owner.execute("INSERT INTO metrics (id, parts_flagged) VALUES ('total', 4)")
    assert (await board.receive())["result"]["records"] == [{"n": 3}]


# ---- how often, and at what cost


@pytest.mark.usefixtures("triggers")
async def test_two_who_watch_the_same_cost_one_query_a_change(
    board: Dashboard, service: Service, owner: asyncpg.Connection
) -> None:
    async with dashboard(service) as other:
        await board.subscribe("total")
        await other.subscribe("total", day_range="30")
        before = await runs(service, "total")
        for n in range(1, 4):
            await write(owner)
            seen = await asyncio.gather(board.receive(), other.receive())
            assert [message["result"]["records"][0]["records"] for message in seen] == [n, n]
            assert await runs(service, "total") == before + n


async def test_what_fails_on_its_data_is_one_line_of_the_log_with_the_reason(start_service: Serve) -> None:
    """In ten seconds, however many dashboards ask for it, and for each metric."""
    service = start_service()
    async with dashboard(service) as one, dashboard(service) as two:
        for board in (one, two):
            assert (await board.subscribe("divide-by-zero"))["status"] == 500
            assert (await board.subscribe("divide", by=0))["status"] == 422
        await asyncio.sleep(3)
    service.stop()
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if "cannot be had" in line]
    assert sorted(line["metric_id"] for line in lines) == ["divide", "divide-by-zero"]
    assert all("division by zero" in line["reason"] for line in lines)
    assert any('["0"]' in line["key"] for line in lines)


@pytest.mark.usefixtures("triggers")
async def test_under_200_writes_a_second_ten_messages_come_at_most_and_the_last_is_the_last_state(
    board: Dashboard, service: Service, owner: asyncpg.Connection
) -> None:
    await board.subscribe("total")
    before, began, counts = await runs(service, "total"), time.monotonic(), [0]

    async def write_400() -> None:
        for n in range(400):
            await write(owner)
            await asyncio.sleep(began + (n + 1) / 200 - time.monotonic())

    writing = asyncio.create_task(write_400())
    while counts[-1] < 400:
        counts.append((await board.receive())["result"]["records"][0]["records"])
    await writing
    seconds = time.monotonic() - began + 0.3
    assert counts == sorted(counts)
    assert 2 < len(counts) <= 11 * seconds
    assert await runs(service, "total") - before <= 11 * seconds


class Watcher(asyncio.Protocol):
    """A subscriber that only notes what came, so that five hundred of them are cheap."""

    def __init__(self, host: str, metric_id: str) -> None:
        self.host, self.metric_id = host, metric_id
        self.said = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        key = base64.b64encode(os.urandom(16)).decode()
        head = f"GET /live HTTP/1.1\r\nHost: {self.host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        transport.write(f"{head}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.said = data
        if data.startswith(b"HTTP/1.1 101"):
            text = json.dumps({"type": "subscribe", "id": self.metric_id}).encode()
            # A client masks what it sends; zeros are a mask.
            self.transport.write(struct.pack("!BB4x", 0x81, 0x80 | len(text)) + text)


@pytest.mark.usefixtures("triggers")
async def test_500_subscribers_have_a_change_by_at_most_two_queries(
    service: Service, owner: asyncpg.Connection
) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    opened = [await loop.create_connection(lambda: Watcher(host, "total"), host, int(port)) for _ in range(500)]
    watchers = [watcher for _, watcher in opened]

    async def all_have(total: int) -> bool:
        return all(f'"total":{total},'.encode() in watcher.said for watcher in watchers)

    await eventually(functools.partial(all_have, 0), 60)
    for n in range(1, 4):
        before = await runs(service, "total")
        await write(owner)
        await eventually(functools.partial(all_have, n))
        assert await runs(service, "total") - before <= 2
    for transport, _ in opened:
        transport.abort()
    await eventually(functools.partial(nobody_is_left, service))


async def test_runs_for_sockets_leave_half_of_the_pool_to_requests(start_service: Serve) -> None:
    service = start_service(POOL_SIZE="2")
    async with dashboard(service) as board, httpx.AsyncClient(base_url=service.url) as client:
        for n in range(8):
            await board.send("subscribe", "sleep", seconds=2 + n / 100)
        for n in range(20):
            assert (await client.get("/metrics/echo", params={"n": n})).status_code == 200
            await asyncio.sleep(0.1)
        assert (await board.receive())["result"]["records"] == [{"slept": ""}]
    service.stop()


async def raw_socket(service: Service) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """After the handshake."""
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    key = base64.b64encode(os.urandom(16)).decode()
    head = f"GET /live HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    writer.write(f"{head}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


# Masked, as a client's are, and without content but for the first of a message in parts.
FRAMES = {
    "pong": (b"", b"\x8a\x80\0\0\0\0"),
    "ping": (b"", b"\x89\x80\0\0\0\0"),
    "continuation": (b"\x01\x81\0\0\0\0{", b"\x00\x80\0\0\0\0"),
    "text": (b"", b"\x81\x80\0\0\0\0"),
}


@pytest.mark.parametrize(("first", "frame"), FRAMES.values(), ids=FRAMES)
async def test_a_flood_of_frames_closes_1008_with_a_reason(service: Service, first: bytes, frame: bytes) -> None:
    reader, writer = await raw_socket(service)
    writer.write(first + frame * 40_000)
    with contextlib.suppress(ConnectionError):  # what was not read any more
        said = await asyncio.wait_for(reader.read(), 5)
        assert struct.pack("!H", 1008) + b"more than 1000 frames a second" in said
    writer.close()
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{service.url}/health/live")).status_code == 200


async def test_a_dashboard_may_change_all_of_its_tiles_at_once(board: Dashboard) -> None:
    for kind in ("subscribe", "unsubscribe", "subscribe"):
        for n in range(200):
            await board.send(kind, "echo", n=n)
    seen = {message["params"]["n"] for message in await board.collect(3)}
    assert seen == set(range(200))


# ---- readers that are slow, and readers that are gone


@pytest.mark.usefixtures("triggers")
async def test_a_client_that_vanishes_leaves_nothing_behind(service: Service, owner: asyncpg.Connection) -> None:
    async with AsyncExitStack() as stack:
        boards = [await stack.enter_async_context(dashboard(service)) for _ in range(5)]
        for board in boards:
            await board.subscribe("total")
        assert await told(service, "live_subscribers") == 5
        for board in boards:
            board.socket.transport.abort()
        await eventually(functools.partial(nobody_is_left, service))
    before = await runs(service, "total")
    await write(owner)
    await asyncio.sleep(0.4)
    assert await runs(service, "total") == before


def resident(service: Service) -> float:
    """MiB."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024


@pytest.mark.usefixtures("triggers")
async def test_a_reader_that_takes_nothing_is_told_and_closed(
    board: Dashboard, service: Service, owner: asyncpg.Connection, add_query: AddQuery
) -> None:
    """3 MiB a result, ten results a second: only the newest waits, and others do not wait with it."""
    add_query("wide", WIDE)
    async with dashboard(service, max_queue=1) as slow:
        await slow.subscribe("wide")
        await board.subscribe("total")
        before, began = resident(service), time.monotonic()
        while await told(service, "live_subscribers") == 2:
            await write(owner)
            assert (await board.receive())["type"] == "result"
            assert resident(service) - before < 60
            assert time.monotonic() - began < 60
        assert time.monotonic() - began > 4
        await asyncio.sleep(2)
        code, reason = await slow.closing()
        assert code == 1013
        assert "5 s" in reason


@pytest.mark.usefixtures("triggers")
async def test_a_reader_that_comes_back_in_time_has_the_newest_result_next(
    service: Service, owner: asyncpg.Connection, add_query: AddQuery
) -> None:
    add_query("wide", WIDE)
    async with dashboard(service, max_queue=1) as slow:
        await slow.subscribe("wide")
        for _ in range(20):
            await write(owner)
            await asyncio.sleep(0.12)
        counts = [message["result"]["records"][0]["records"] for message in await slow.collect(1.5)]
        assert counts == sorted(counts)
        assert counts[-1] == 20
        assert len(counts) < 15


# ---- metrics that change


async def test_an_edited_metric_sends_what_it_says_now_and_a_deleted_one_a_problem(
    board: Dashboard, client: httpx.AsyncClient
) -> None:
    metric_id = (await client.post("/metrics", json={"query": COUNT, "title": "Old"})).json()["id"]
    path = f"/metrics/{metric_id}"
    assert (await board.subscribe(metric_id))["result"]["title"] == "Old"

    await client.patch(path, json={"title": "New"})
    assert (await board.receive())["result"]["title"] == "New"
    await client.patch(path, json={"query": "SELECT 42 AS answer"})
    assert (await board.receive())["result"]["records"] == [{"answer": 42}]
    await client.put(f"{path}/layouts", json=[{"breakpoint": "lg", "x": 3, "y": 0, "w": 4, "h": 8}])
    assert (await board.receive())["result"]["layouts"][0]["x"] == 3

    await client.delete(path)
    problem = await board.receive()
    assert (problem["type"], problem["id"], problem["params"], problem["status"]) == ("problem", metric_id, {}, 404)
    assert (await board.subscribe(metric_id))["status"] == 404


@pytest.mark.usefixtures("triggers")
async def test_an_edited_file_sends_what_it_says_now_and_nothing_when_that_is_the_same(
    board: Dashboard, service: Service, owner: asyncpg.Connection, add_query: AddQuery
) -> None:
    add_query("edited", COUNT)
    await board.subscribe("edited")
    (service.queries / "edited.sql").write_text(f"-- description: Other bytes, same result.\n{COUNT}")

    def heard() -> bool:
        metrics = httpx.get(f"{service.url}/metrics").json()["metrics"]
        return any(metric["description"] == "Other bytes, same result." for metric in metrics)

    await asyncio.to_thread(wait_until, heard)
    assert await board.collect(0.3) == []
    await write(owner)
    assert (await board.receive())["result"]["records"] == [{"records": 1}]

    (service.queries / "edited.sql").write_text("SELECT 1 AS records, 2 AS more")
    assert (await board.receive())["result"]["records"] == [{"records": 1, "more": 2}]
    (service.queries / "edited.sql").unlink()
    assert (await board.receive())["status"] == 404


async def test_a_file_that_is_broken_or_gone_for_a_while_comes_back_by_itself(
    board: Dashboard, service: Service, add_query: AddQuery
) -> None:
    add_query("wavering", "SELECT 1 AS n")
    await board.subscribe("wavering")
    path = service.queries / "wavering.sql"
    path.write_text("SELECT n")
    assert (await board.receive())["status"] == 500
    assert (await board.subscribe("wavering"))["status"] == 500
    path.unlink()
    assert (await board.receive())["status"] == 404
    path.write_text("SELECT 2 AS n")
    assert (await board.receive())["result"]["records"] == [{"n": 2}]


async def test_a_changed_table_sends_columns_that_agree_with_the_records(
    board: Dashboard, owner: asyncpg.Connection, add_query: AddQuery
) -> None:
    """Two seconds later; what is sent before may have the columns as they were."""
    await owner.execute("CREATE TABLE IF NOT EXISTS sales (amount int4); GRANT SELECT ON sales TO metrics_reader")
    try:
        add_query("sales", "SELECT * FROM sales, (SELECT COUNT(*) AS records FROM metrics) AS counted")
        result = (await board.subscribe("sales"))["result"]
        async with owner.transaction():
            await owner.execute("ALTER TABLE sales ALTER amount TYPE text, ADD region text")
            await owner.execute("INSERT INTO sales VALUES (5)")
            await write(owner)
        async with asyncio.timeout(2):
            while [column["name"] for column in result["columns"]] != ["amount", "region", "records"]:
                result = (await board.receive())["result"]
        assert result["records"] == [{"amount": "5", "region": None, "records": 1}]
    finally:
        await owner.execute("DROP TABLE sales")


# ---- who is let in


@pytest.fixture(scope="module")
def guarded(start_service: Serve, issuer: Issuer) -> Service:
    """A service that wants tokens, with a metric for some roles and one of each tenant's own."""
    service = start_service(JWT_ISSUER=issuer.url)
    (service.queries / "payroll.sql").write_text("-- roles: finance\nSELECT 1 AS n")
    (service.queries / "tenant.sql").write_text(
        "-- claim series: custom:tenant\nSELECT COUNT(*) AS records FROM metrics WHERE id = :series"
    )
    headers = {"Authorization": f"Bearer {issuer.token(**claim('cognito:groups', ['finance']))}"}
    for metric_id in ("payroll", "tenant"):
        wait_until(lambda: httpx.get(f"{service.url}/metrics/{metric_id}", headers=headers).status_code == 200)  # noqa: B023
    return service


@pytest.fixture
def token(issuer: Issuer) -> str:
    return issuer.token(scope=READ)


def claim(name: str, value: Any) -> dict[str, Any]:
    return {name: value}


def expires_in(seconds: float) -> dict[str, Any]:
    """Seconds until the service does not take the token any more."""
    return claim("exp", time.time() - LEEWAY + seconds)


async def test_a_token_in_the_handshake_lets_in(guarded: Service, token: str) -> None:
    async with dashboard(guarded, token) as board:
        assert (await board.subscribe("echo", n=1))["type"] == "result"


async def test_a_token_in_the_first_message_lets_in_and_is_not_acknowledged(guarded: Service, token: str) -> None:
    async with dashboard(guarded) as board:
        await board.show(token)
        assert (await board.subscribe("echo", n=1))["type"] == "result"


REFUSED: dict[str, tuple[dict[str, Any], int]] = {
    "expired": ({"exp": 1}, 4401),
    "another issuer": ({"iss": "https://example.com"}, 4401),
    "id token": ({"token_use": "id"}, 4401),
    "no scope": ({"scope": "openid"}, 4403),
    "write scope alone": ({"scope": WRITE}, 4403),
}


BAD = [*REFUSED, "no JWT", "empty", "two words", "not ASCII"]


# The server itself takes no header line of 8 KB.
@pytest.mark.parametrize(("name", "first"), [("too long", False), *itertools.product(BAD, [True, False])])
async def test_a_bad_token_closes_4401_and_want_of_scope_4403(
    guarded: Service, issuer: Issuer, name: str, first: bool
) -> None:
    claims, code = REFUSED.get(name, ({}, 4401))
    texts = {"no JWT": "abc.def.ghi", "empty": "", "two words": "a b", "too long": "x" * 8193, "not ASCII": "ü"}
    bad = texts[name] if name in texts else issuer.token(**claims)
    headers = {"Authorization": f"Bearer {bad}".encode().decode("latin-1")} if first else {}
    async with dashboard(guarded, additional_headers=headers) as board:
        if not first:
            await board.show(bad)
        assert (await board.closing())[0] == code


async def test_a_scheme_that_is_not_bearer_closes_4401(guarded: Service) -> None:
    async with dashboard(guarded, additional_headers={"Authorization": "Basic YTpi"}) as board:
        assert (await board.closing())[0] == 4401


async def test_a_first_message_that_is_no_token_closes_4401(guarded: Service) -> None:
    async with dashboard(guarded) as board:
        await board.send("subscribe", "echo", n=1)
        code, reason = await board.closing()
        assert code == 4401
        assert reason


class Silence(NamedTuple):
    code: int
    seconds: float


@pytest.fixture(scope="module", autouse=True)
def silences(guarded: Service) -> Iterator[list[Future[Silence]]]:
    """Two sockets without a token wait beside the other tests: one says nothing, the other nothing of use."""

    def keep_open(babble: bool) -> Silence:
        began = time.monotonic()
        with connect_sync(live_url(guarded), proxy=None) as opened:
            with pytest.raises(ConnectionClosed) as closed:  # noqa: PT012
                while True:
                    if babble:
                        opened.send("not JSON")
                    opened.recv()
                    time.sleep(0.5)
            assert closed.value.rcvd
            return Silence(closed.value.rcvd.code, time.monotonic() - began)

    with ThreadPoolExecutor(2) as threads:
        yield [threads.submit(keep_open, babble) for babble in (False, True)]


async def test_roles_are_asked_for_each_metric(guarded: Service, issuer: Issuer, token: str) -> None:
    async with dashboard(guarded, token) as board:
        assert (await board.subscribe("payroll"))["status"] == 403
        assert (await board.subscribe("echo", n=1))["type"] == "result"
    async with dashboard(guarded, issuer.token(**claim("cognito:groups", ["finance"]))) as board:
        assert (await board.subscribe("payroll"))["result"]["records"] == [{"n": 1}]


@pytest.mark.usefixtures("triggers")
async def test_claims_are_bound_and_tenants_see_their_own_alone(
    guarded: Service, issuer: Issuer, owner: asyncpg.Connection
) -> None:
    mine, theirs = (issuer.token(**claim("custom:tenant", tenant)) for tenant in ("total", "echo"))
    async with dashboard(guarded, mine) as one, dashboard(guarded, theirs) as other:
        assert (await one.subscribe("tenant"))["result"]["records"] == [{"records": 0}]
        assert (await other.subscribe("tenant"))["result"]["records"] == [{"records": 0}]
        assert (await one.subscribe("tenant", series="echo"))["status"] == 422
        await write(owner, "echo")
        assert (await other.receive())["result"]["records"] == [{"records": 1}]
        assert await one.collect(0.3) == []


async def test_a_caller_may_have_twenty_sockets_and_others_theirs(guarded: Service, issuer: Issuer) -> None:
    carol, dave = (issuer.token(sub=subject) for subject in ("carol", "dave"))
    async with AsyncExitStack() as stack:
        boards = [await stack.enter_async_context(dashboard(guarded, carol)) for _ in range(20)]
        for board in boards:
            assert (await board.subscribe("echo", n=1))["type"] == "result"
        async with dashboard(guarded, carol) as more, dashboard(guarded) as late, dashboard(guarded, dave) as another:
            await late.show(carol)
            for code, reason in (await more.closing(), await late.closing()):
                assert code == 1013
                assert "20 sockets" in reason
            assert (await another.subscribe("echo", n=1))["type"] == "result"
        await boards[0].socket.close()

        async def let_in() -> bool:
            async with dashboard(guarded, carol) as next_one:
                await next_one.send("subscribe", "echo", n=1)
                try:
                    return bool((await next_one.receive())["type"] == "result")
                except ConnectionClosed:
                    return False

        await eventually(let_in)


async def test_an_expired_token_closes_4401(guarded: Service, issuer: Issuer) -> None:
    """Whether it came in the handshake or in the first message."""
    bad = issuer.token(**expires_in(1.5))
    async with dashboard(guarded, bad) as one, dashboard(guarded) as other:
        await other.show(bad)
        assert [(await board.subscribe("echo", n=1))["type"] for board in (one, other)] == ["result"] * 2
        assert [(await board.closing())[0] for board in (one, other)] == [4401, 4401]


@pytest.mark.usefixtures("triggers")
async def test_a_renewed_token_keeps_the_socket_open_and_sends_nothing(
    guarded: Service, issuer: Issuer, token: str, owner: asyncpg.Connection
) -> None:
    async with dashboard(guarded, issuer.token(**expires_in(1.5))) as board:
        await board.subscribe("total")
        await board.show(token)
        assert await board.collect(2) == []
        await write(owner)
        assert (await board.receive())["result"]["records"][0]["records"] == 1


async def test_a_renewal_may_shorten_a_life(guarded: Service, issuer: Issuer, token: str) -> None:
    async with dashboard(guarded, token) as board:
        await board.show(issuer.token(**expires_in(1)))
        assert (await board.closing())[0] == 4401


async def test_a_bad_renewal_closes_4401(guarded: Service, issuer: Issuer, token: str) -> None:
    async with dashboard(guarded, token) as board:
        await board.subscribe("echo", n=1)
        await board.show(issuer.token(exp=1))
        assert (await board.closing())[0] == 4401


@pytest.mark.usefixtures("triggers")
async def test_a_renewal_with_other_roles_and_claims_is_what_counts(
    guarded: Service, issuer: Issuer, owner: asyncpg.Connection
) -> None:
    await write(owner, "echo")
    before = issuer.token(**claim("cognito:groups", ["finance"]), **claim("custom:tenant", "total"))
    async with dashboard(guarded, before) as board:
        await board.subscribe("payroll")
        await board.subscribe("tenant")
        await board.show(issuer.token(**claim("custom:tenant", "echo")))
        messages = {message["id"]: message for message in await board.collect(0.4)}
        assert messages["payroll"]["status"] == 403
        assert messages["tenant"]["result"]["records"] == [{"records": 1}]


async def test_no_token_within_10_s_closes_4401(silences: list[Future[Silence]]) -> None:
    for silence in [await asyncio.wrap_future(future) for future in silences]:
        assert silence.code == 4401
        assert 9 < silence.seconds < 30


async def test_only_pages_of_this_origin_may_watch_an_open_service(start_service: Serve, service: Service) -> None:
    listed = start_service(CORS_ORIGINS="https://dashboard.example")
    for origin, kept in ((service.url, True), ("https://example.com", False), ("null", False)):
        async with dashboard(service, additional_headers={"Origin": origin}) as board:
            if kept:
                assert (await board.subscribe("echo", n=1))["type"] == "result"
            else:
                assert (await board.closing())[0] == 4403
    async with dashboard(listed, additional_headers={"Origin": "https://dashboard.example"}) as board:
        assert (await board.subscribe("echo", n=1))["type"] == "result"


async def test_pages_of_any_origin_may_watch_with_a_token(guarded: Service, token: str) -> None:
    async with dashboard(guarded) as board:
        await board.show(token)
        assert (await board.subscribe("echo", n=1))["type"] == "result"


# ---- stops


async def test_shutdown_closes_1012(start_service: Serve) -> None:
    service = start_service()
    async with dashboard(service) as board, dashboard(service) as idle:
        await board.subscribe("total")
        await board.send("subscribe", "sleep", seconds=5)
        service.process.terminate()
        assert [(await each.closing())[0] for each in (board, idle)] == [1012, 1012]
        assert await asyncio.to_thread(service.process.wait, 15) is not None
    assert "Traceback" not in service.log.read_text()


async def test_a_database_that_comes_back_brings_what_changed_meanwhile(start_service: Serve) -> None:
    data = Path(tempfile.mkdtemp(prefix="metrics-api-test-"))
    data.chmod(0o755)  # as root, the database's user must reach it
    server = await embedded.start(data)
    service = start_service(DATABASE_URL=server.dsn)
    async with dashboard(service) as board:
        assert (await board.subscribe("total"))["result"]["records"] == [{"total": 0, "records": 0}]
        await server.stop()
        assert (await board.subscribe("total"))["type"] == "result", "what there is"
        assert (await board.subscribe("numbers", count=3))["status"] == 503
        assert (await board.collect(1)) == []

        server = await embedded.start(data)
        conn = await asyncpg.connect(server.dsn)
        await write(conn, value=9)
        await conn.close()
        messages = [await board.receive(15) for _ in range(2)]
        results = {message["id"]: message["result"]["records"] for message in messages}
        assert results == {"total": [{"total": 9, "records": 1}], "numbers": [{"n": 1}, {"n": 2}, {"n": 3}]}
    service.stop()
    await server.stop()
    shutil.rmtree(data)
