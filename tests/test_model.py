"""A model of one's own: what it is told, what is made of its answers, and how little it can do when it fails."""

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import httpx
import pytest
from conftest import Serve
from helpers import Service, eventually

pytestmark = pytest.mark.anyio

KEY = "sk-a-key-that-nobody-logs"
GOOD = "SELECT alert_type, COUNT(*) AS alerts FROM metrics GROUP BY alert_type"
PROMPT = "What did the zebra-company do?"
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Model:
    """Speaks /chat/completions on loopback; answers is what it does next, the last of them for ever."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.server: asyncio.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1"

    def will(self, *answers: Answer | str) -> None:
        self.answers = [says(answer) if isinstance(answer, str) else answer for answer in answers]
        self.requests.clear()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.requests.append((head.split()[1], headers, json.loads(body or b"null")))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        try:
            await answer(writer)
        except ConnectionError:
            return
        finally:
            writer.close()

    def messages(self, request: int) -> list[dict[str, str]]:
        found: list[dict[str, str]] = self.requests[request][2]["messages"]
        return found


def replies(body: bytes, status: str = "200 OK", *headers: str) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
        writer.write("\r\n".join([*head, "", ""]).encode() + body)
        await writer.drain()

    return answer


def says(content: Any) -> Answer:
    return replies(json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode())


async def hang(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def drip(writer: asyncio.StreamWriter) -> None:
    """Always something within any read time-out, never the whole."""
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    for _ in range(300):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.1)


async def flood(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    for _ in range(10_000):
        writer.write(b" " * 65_536)
        await writer.drain()


async def break_off(writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"choices"')


async def say_nothing(writer: asyncio.StreamWriter) -> None:
    """The connection closes without an answer."""


@pytest.fixture(scope="module")
async def model() -> AsyncIterator[Model]:
    model = Model()
    model.server = await asyncio.start_server(model.handle, "127.0.0.1", 0)
    yield model
    model.server.close()


@pytest.fixture(scope="module")
def configured(model: Model, start_service: Serve) -> Service:
    return start_service(SQL_MODEL_URL=model.url, SQL_MODEL="scribe", SQL_MODEL_KEY=KEY, SQL_MODEL_TIMEOUT="2")


@pytest.fixture
async def api(configured: Service, owner: asyncpg.Connection) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=configured.url, timeout=30, verify=False) as client:
        yield client


async def ask(api: httpx.AsyncClient) -> httpx.Response:
    return await api.post("/metrics", json={"query_generation_prompt": PROMPT})


WRAPPINGS = {
    "bare": GOOD,
    "semicolon": f"{GOOD};\n",
    "fence": f"```sql\n{GOOD}\n```",
    "fence without a language": f"```\n{GOOD}\n```",
    "fence of carriage returns": f"```SQL\r\n{GOOD}\r\n```\r\n",
    "fence that stays open": f"Here you are:\n```sql\n{GOOD}",
    "prose around a fence": f"Sure! I SELECT the alerts:\n\n```sql\n{GOOD}\n```\nThis counts them. With best regards",
    "a language on the same line": f"```sql {GOOD}```",
    "a comment in the fence": f"```sql\n-- alerts by type\n{GOOD}\n```\nThat is all.",
    "parentheses in the fence": f"Here:\n```sql\n(\n{GOOD}\n)\nUNION ALL (\n{GOOD}\n)\n```",
    "other fences": f"```bash\npsql\n```\nand\n```sql\n{GOOD}\n```\n```text\nA 1\n```",
    "prose in front": f"Here is the query you asked for:\n\n{GOOD}",
    "prose around": f"Here is the query you asked for:\n\n{GOOD};\n\nWith it you see how many there are.",
    "lower case": f"\n  {GOOD.lower()}",
    "WITH": f"```postgresql\nWITH x AS ({GOOD})\nSELECT alert_type, alerts FROM x\n```",
}


@pytest.mark.parametrize("content", WRAPPINGS.values(), ids=WRAPPINGS)
async def test_sql_is_taken_out_of_prose_and_fences(api: httpx.AsyncClient, model: Model, content: str) -> None:
    model.will(content)
    answer = await ask(api)
    assert answer.status_code == 201, answer.text
    assert [column["name"] for column in answer.json()["columns"]] == ["alert_type", "alerts"]
    assert (await api.get(f"/metrics/{answer.json()['id']}")).json()["records"] == []
    assert len(model.requests) == 1


async def test_the_model_is_told_what_the_guest_may_read_and_what_exists(
    api: httpx.AsyncClient, owner: asyncpg.Connection, model: Model
) -> None:
    await owner.execute("INSERT INTO metrics (id, alert_type) VALUES ('total', 'Critical'), ('total', 'It''s late')")
    await owner.execute('CREATE TABLE regions (id int, "Zone" text, "order" text, code text)')
    await owner.execute("INSERT INTO regions SELECT n, 'North', 'first', 'c' || n FROM generate_series(1, 50) AS n")
    await owner.execute("CREATE TABLE salaries (name text, pay int)")
    await owner.execute("GRANT SELECT ON regions TO metrics_guest")
    model.will(GOOD)
    try:
        assert (await ask(api)).status_code == 201
    finally:
        await owner.execute("DROP TABLE regions, salaries")
    path, headers, body = model.requests[0]
    system, user = model.messages(0)
    assert (path, headers["authorization"], body["model"]) == ("/v1/chat/completions", f"Bearer {KEY}", "scribe")
    assert (system["role"], user) == ("system", {"role": "user", "content": PROMPT})
    for told in ("metrics(", "parts_flagged integer", "alert_type text", "Critical", "obsolescence numeric"):
        assert told in system["content"]
    assert "regions(id integer" in system["content"]
    assert "\"Zone\" text (one of 'North')" in system["content"]
    assert "\"order\" text (one of 'first')" in system["content"]
    assert "c49" not in system["content"]
    assert "salaries" not in system["content"]
    assert "prompt" not in system["content"]


async def test_the_model_is_told_the_nearest_metrics_with_their_ids_and_titles(
    api: httpx.AsyncClient, configured: Service, model: Model
) -> None:
    padding = "x" * 3000
    for n in range(6):
        body = {"query": f"SELECT {n} AS n -- {padding}", "title": f"Unrelated {n}"}
        assert (await api.post("/metrics", json=body)).status_code == 201
    near = {"query": "SELECT 'mammals' AS kind", "title": "Zebra counts"}
    metric_id = (await api.post("/metrics", json=near)).json()["id"]
    model.will(GOOD)
    assert (await ask(api)).json()["notes"] == []
    examples = model.messages(0)[0]["content"].partition("Metrics that exist:")[2]
    assert examples.strip().startswith(f"-- {metric_id}: Zebra counts\nSELECT 'mammals' AS kind")
    assert len(examples) < 10_000
    assert examples.count(padding) < 3


async def test_the_model_is_not_told_what_only_some_may_see(
    api: httpx.AsyncClient, configured: Service, model: Model
) -> None:
    path = configured.queries / "zebra-payroll.sql"
    path.write_text("-- roles: finance\nSELECT 1 AS salary")

    async def there() -> bool:
        return (await api.get("/metrics/zebra-payroll")).status_code == 200

    await eventually(there)
    model.will(GOOD)
    await ask(api)
    path.unlink()
    assert "salary" not in model.messages(0)[0]["content"]


async def test_a_fence_is_taken_off_whatever_is_in_it(api: httpx.AsyncClient, model: Model) -> None:
    model.will("```sql\nDROP TABLE metrics\n```", GOOD)
    assert (await ask(api)).status_code == 201
    assert "```" not in model.messages(1)[-1]["content"]
    assert "one SELECT" in model.messages(1)[-1]["content"] or "DROP" in model.messages(1)[-1]["content"]


async def test_postgresqls_objection_goes_back_to_the_model(api: httpx.AsyncClient, model: Model) -> None:
    model.will("SELECT no_such FROM metrics", "DROP TABLE metrics", GOOD)
    answer = await ask(api)
    assert (answer.status_code, len(model.requests)) == (201, 3)
    roles = [message["role"] for message in model.messages(2)]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert 'column "no_such" does not exist' in model.messages(1)[-1]["content"]
    assert "one SELECT" in model.messages(2)[-1]["content"]


@pytest.mark.parametrize(
    "content",
    ["", "I cannot.", "SELECT no_such FROM metrics", "DROP TABLE metrics", "SELECT pg_notify('a', 'b')"],
)
async def test_after_two_objections_the_prompt_gave_no_metric(
    api: httpx.AsyncClient, owner: asyncpg.Connection, model: Model, content: str
) -> None:
    model.will(content)
    answer = await ask(api)
    assert (answer.status_code, len(model.requests)) == (422, 3)
    assert answer.json()["errors"][0]["name"] == "query_generation_prompt"
    assert await owner.fetchval("SELECT COUNT(*) FROM metric_configurations WHERE source = 'api'") == 0


FAILURES: dict[str, tuple[Answer, str]] = {
    "hangs": (hang, "SQL_MODEL_TIMEOUT"),
    "drips": (drip, "SQL_MODEL_TIMEOUT"),
    "floods": (flood, "larger"),
    "is compressed a thousandfold": (
        replies(gzip.compress(b" " * 2**26, 1), "200 OK", "Content-Encoding: gzip"),
        "compressed",
    ),
    "is compressed twice": (
        replies(gzip.compress(gzip.compress(b" " * 2**28, 1)), "200 OK", "Content-Encoding: gzip, gzip"),
        "compressed",
    ),
    "says nothing": (say_nothing, "reached"),
    "breaks off": (break_off, ""),
    "500": (replies(b"{}", "500 Internal Server Error"), "500"),
    "401": (replies(b'{"error": "bad key"}', "401 Unauthorized"), "401"),
    "429": (replies(b"{}", "429 Too Many Requests"), "429"),
    "redirects": (replies(b"", "302 Found", "Location: http://127.0.0.1:1/"), "302"),
    "HTML": (replies(b"<!doctype html><title>Sign in</title>"), "chat completion"),
    "no UTF-8": (replies(b'{"choices": [{"message": {"content": "\xff"}}]}'), "chat completion"),
    "deep": (replies(b'{"choices": ' + b"[" * 100_000), "chat completion"),
    "null": (replies(b"null"), "chat completion"),
    "no choices": (replies(b'{"choices": []}'), "chat completion"),
    "no text": (says(None), "text"),
    "parts": (says([{"type": "text", "text": GOOD}]), "text"),
}


@pytest.mark.parametrize(("failure", "reason"), FAILURES.values(), ids=FAILURES)
async def test_a_failing_server_is_502_with_a_reason_in_bounded_time(
    api: httpx.AsyncClient, model: Model, failure: Answer, reason: str
) -> None:
    model.will(failure)
    started = time.monotonic()
    answer = await ask(api)
    assert (answer.status_code, time.monotonic() - started < 15) == (502, True), answer.text
    assert reason in answer.json()["detail"]
    assert KEY not in answer.text
    assert "bad key" not in answer.text


async def test_the_time_is_for_all_attempts_together(api: httpx.AsyncClient, model: Model) -> None:
    async def slowly(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.7)
        await says("SELECT no_such FROM metrics")(writer)

    model.will(slowly)
    assert (await ask(api)).status_code == 502


TALK = {
    "empty lines": "\n" * 300_000,
    "empty lines in a fence": "```" + "\n" * 300_000,
    "blank lines": " \n" * 300_000,
    "spaces": " " * 600_000,
    "fences": "```\n" * 150_000,
    "words": "select " * 100_000,
    "letters in a fence": "```" + "a" * 900_000,
    "tags": " ".join(f"$t{i:x}$" for i in range(90_000)),
}


@pytest.mark.parametrize("content", TALK.values(), ids=TALK)
async def test_a_talkative_server_stops_nobody(api: httpx.AsyncClient, model: Model, content: str) -> None:
    model.will(content)
    posting = asyncio.create_task(ask(api))
    started, worst = time.monotonic(), 0.0
    while not posting.done() and time.monotonic() - started < 6:
        before = time.monotonic()
        await api.get("/health/live")
        worst = max(worst, time.monotonic() - before)
        await asyncio.sleep(0.02)
    assert (await posting).status_code in (422, 502)
    assert worst < 5


async def test_a_patch_leaves_alone_what_was_changed_while_the_model_was_thinking(
    api: httpx.AsyncClient, model: Model
) -> None:
    thinking = asyncio.Event()

    async def think(writer: asyncio.StreamWriter) -> None:
        thinking.set()
        await asyncio.sleep(0.6)
        await says(GOOD)(writer)

    model.will(think)
    tile = {"breakpoint": "lg", "x": 0, "y": 0, "w": 1, "h": 1, "static": False}
    path = f"/metrics/{(await api.post('/metrics', json={'query': 'SELECT 1 AS a', 'title': 'Old'})).json()['id']}"
    patching = asyncio.create_task(api.patch(path, json={"query_generation_prompt": PROMPT}))
    await thinking.wait()
    assert (await api.patch(path, json={"title": "New", "layouts": [tile]})).status_code == 200
    assert (await patching).status_code == 200

    async def merged() -> bool:
        result = (await api.get(path)).json()
        return (result["title"], result["layouts"], result["columns"][0]["name"]) == ("New", [tile], "alert_type")

    await eventually(merged)


async def test_neither_key_nor_prompt_is_logged(configured: Service, api: httpx.AsyncClient, model: Model) -> None:
    for answer in (GOOD, "SELECT zebra", replies(b"{}", "500 Internal Server Error"), hang):
        model.will(answer)
        await ask(api)
    await asyncio.sleep(0.3)
    log = configured.log.read_text()
    assert "The SQL model failed" in log or "ModelFailed" in log
    assert KEY not in log
    assert "zebra-company" not in log


async def test_no_key_is_no_header(start_service: Serve, model: Model, owner: asyncpg.Connection) -> None:
    service = start_service(SQL_MODEL_URL=f"{model.url}/", SQL_MODEL="scribe")
    model.will(GOOD)
    async with httpx.AsyncClient(base_url=service.url) as client:
        assert (await ask(client)).status_code == 201
    service.stop()
    path, headers, _ = model.requests[0]
    assert (path, "authorization" in headers) == ("/v1/chat/completions", False)
    assert headers["accept-encoding"] == "identity"
