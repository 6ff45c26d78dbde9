"""Agents: metrics as tools of the Model Context Protocol, for the official clients and for whatever else is sent."""

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import httpx2
import pytest
from conftest import Serve
from helpers import Service, wait_until
from issuer import BOTH_SCOPES, Issuer
from jsonschema import Draft202012Validator

FILES = {
    "secret-sales": "-- roles: finance\nSELECT 'a secret value' AS secret",
    "my-tenant": "-- claim tenant: custom:tenant\nSELECT :tenant::text AS tenant",
    "by-region": "-- unit: alerts\n-- description: By region.\n"
    "-- param region (required): Sales region\nSELECT :region::text AS region, :on::bool AS on_sale, 1.50 AS price",
}
PACKAGE = "@modelcontextprotocol/sdk@1.32.2"
USE_TYPESCRIPT = """\
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [url, token] = process.argv.slice(2);
const headers = token ? { Authorization: `Bearer ${token}` } : {};
const client = new Client({ name: "test", version: "1" });
await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } }));
const { tools } = await client.listTools();
const result = await client.callTool({ name: "echo", arguments: { n: 7, t: "a b", d: "2025-06-30" } });
console.log(JSON.stringify({ names: tools.map(tool => tool.name), records: result.structuredContent.records }));
await client.close();
"""


@pytest.fixture(scope="module")
def secured(start_service: Serve, issuer: Issuer) -> Service:
    service = start_service(JWT_ISSUER=issuer.url)
    for metric_id, sql in FILES.items():
        (service.queries / f"{metric_id}.sql").write_text(sql)
    token = for_role(issuer, "finance")
    wait_until(lambda: "secret-sales" in json.dumps(call(service, "tools/list", token=token)))
    return service


def token_of(issuer: Issuer, scope: str = "api/backend_access", **claims: Any) -> str:
    return issuer.token(scope=scope, **claims)


def for_role(issuer: Issuer, role: str) -> str:
    claims: dict[str, Any] = {"cognito:groups": [role]}
    return token_of(issuer, **claims)


def post(service: Service, message: Any, *, token: str = "", **headers: str) -> httpx.Response:
    given = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"} | headers
    if token:
        given["Authorization"] = f"Bearer {token}"
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return httpx.post(f"{service.url}/mcp", content=body, headers=given, timeout=30)


def call(service: Service, method: str, params: Any = None, *, token: str = "", **headers: str) -> Any:
    """What a request comes to: its result, or its error."""
    message = {"jsonrpc": "2.0", "id": 1, "method": method} | ({} if params is None else {"params": params})
    answer = post(service, message, token=token, **headers).json()
    assert (answer["jsonrpc"], answer["id"]) == ("2.0", 1)
    return answer.get("result", answer.get("error"))


def use(service: Service, tool: str, *, token: str = "", **arguments: Any) -> Any:
    return call(service, "tools/call", {"name": tool, "arguments": arguments}, token=token)


def refusal(service: Service, tool: str, *, token: str = "", **arguments: Any) -> str:
    result = use(service, tool, token=token, **arguments)
    assert result["isError"] is True, result
    return str(result["content"][0]["text"])


def tools_of(service: Service, token: str = "") -> dict[str, Any]:
    return {tool["name"]: tool for tool in call(service, "tools/list", token=token)["tools"]}


@asynccontextmanager
async def connected(service: Service, token: str, mode: str) -> AsyncIterator[Any]:
    # A second of every process of the suite that only this one has a use for.
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        httpx2.AsyncClient(headers=headers) as http,
        Client(streamable_http_client(f"{service.url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_official_python_client_lists_and_calls_tools(service: Service, mode: str) -> None:
    async with connected(service, "", mode) as client:
        assert {"list_metrics", "preview_metric", "create_metric", "echo"} <= {
            tool.name for tool in (await client.list_tools()).tools
        }
        result = await client.call_tool("echo", {"n": 7, "t": "a b", "d": "2025-06-30"})
        assert result.structured_content["records"] == [{"n": 7, "t": "a b", "d": "2025-06-30"}]
        assert json.loads(result.content[0].text) == result.structured_content
        from mcp import MCPError

        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool("no-such-metric", {})


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_token_decides_what_the_official_python_client_sees(
    secured: Service, issuer: Issuer, mode: str
) -> None:
    seen = {}
    for role in ("finance", "sales"):
        async with connected(secured, for_role(issuer, role), mode) as client:
            seen[role] = {tool.name for tool in (await client.list_tools()).tools}
    assert seen["finance"] - seen["sales"] == {"secret-sales"}
    assert "create_metric" not in seen["finance"]


@pytest.fixture(scope="module")
def typescript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    npm = shutil.which("npm")
    if not npm:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("typescript")
    env = os.environ | {"npm_config_fetch_retries": "0", "npm_config_fetch_timeout": "20000"}
    install = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), PACKAGE]
    done = subprocess.run(install, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install {PACKAGE}: {done.stderr.strip()[-200:]}")
    (folder / "use.mjs").write_text(USE_TYPESCRIPT)
    return folder


def run_typescript(folder: Path, service: Service, token: str) -> Any:
    command = ["node", "use.mjs", f"{service.url}/mcp", token]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_official_typescript_client_lists_and_calls_tools(
    typescript: Path, service: Service, secured: Service, issuer: Issuer
) -> None:
    opened = run_typescript(typescript, service, "")
    assert opened["records"] == [{"n": 7, "t": "a b", "d": "2025-06-30"}]
    assert {"echo", "create_metric"} <= set(opened["names"])
    for role, sees in (("finance", True), ("sales", False)):
        seen = run_typescript(typescript, secured, for_role(issuer, role))
        assert ("secret-sales" in seen["names"], "create_metric" in seen["names"]) == (sees, False)


def test_a_tool_says_what_it_takes_and_gives(secured: Service, issuer: Issuer) -> None:
    tool = tools_of(secured, token_of(issuer))["by-region"]
    assert tool["title"] == "By region"
    assert tool["description"] == "By region. Unit: alerts. Columns: region text, on_sale bool, price numeric."
    assert tool["annotations"]["readOnlyHint"] is True
    assert tool["inputSchema"] == {
        "type": "object",
        "properties": {
            "region": {"type": "string", "description": "Sales region"},
            "on": {"type": "boolean", "description": "bool"},
        },
        "required": ["region"],
        "additionalProperties": False,
    }


def test_results_fit_the_output_schemas(service: Service) -> None:
    tried: dict[str, dict[str, Any]] = {
        "echo": {"n": 1},
        "numbers": {"count": 3},
        "records": {"series": "x"},
        "types": {},
        "rare-types": {},
    }
    tried |= {"total": {}, "values": {}, "zone": {}, "typed": {"n": 1}}
    tried["types"] |= {"i8": 9007199254740993, "num": "12345678901234567890.5", "b": True, "ints": [1, 2], "d": None}
    tools = tools_of(service)
    for name, arguments in tried.items():
        schema = tools[name]["outputSchema"]
        Draft202012Validator.check_schema(schema)
        Draft202012Validator.check_schema(tools[name]["inputSchema"])
        Draft202012Validator(schema).validate(use(service, name, **arguments)["structuredContent"])


def test_what_is_sent_arrives_with_all_digits(service: Service) -> None:
    body = b'{"jsonrpc":"2.0","id":"x","method":"tools/call","params":{"name":"types","arguments":%s}}'
    answer = post(service, body % b'{"i8": 9007199254740993, "num": 12345678901234567890.12345678901234567890}')
    assert b'"i8":9007199254740993,' in answer.content
    assert b'"num":12345678901234567890.12345678901234567890,' in answer.content
    assert answer.json()["id"] == "x"


def test_a_tool_answers_from_the_cache_of_http(service: Service) -> None:
    assert httpx.get(f"{service.url}/metrics/echo?n=4711").headers["Cache-Status"] == "metrics; fwd=miss"
    use(service, "echo", n=4711)
    line = '"method":"POST","path":"/mcp","metric_id":"echo","status":200,'
    wait_until(
        lambda: [text for text in service.log.read_text().splitlines() if line in text and '"cache":"hit"' in text]
    )
    assert 'route="/mcp",status="200"' in httpx.get(f"{service.url}/prometheus").text


def test_a_large_result_is_cut_and_says_so(service: Service) -> None:
    result = use(service, "numbers", count=10_000)["structuredContent"]
    assert [record["n"] for record in result["records"]] == list(range(1, 201))
    assert result["truncated"] is True
    assert result["note"].startswith("These are the first 200 of 10000 rows: ask for")
    whole = use(service, "numbers", count=200)["structuredContent"]
    assert (len(whole["records"]), whole["truncated"], "note" in whole) == (200, False, False)


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("echo", {"n": "seven"}, "n must be "),
        ("echo", {"n": {"a": 1}}, "n must be a text or a number"),
        ("echo", {"d": "today"}, "d must be "),
        ("echo", {"nothing": 1}, "nothing is no parameter of echo, which has d, n, t"),
        ("list_metrics", {"words": "of " * 100}, "words must be `str` of length <= 200"),
        ("echo", {"t": "x" * 100_000, "n": 2**31}, "n must be "),
        ("records", {}, "series is required"),
        ("broken", {}, "broken.sql does not compile"),
        ("divide", {"by": 0}, "The query fails on its data"),
        ("list_metrics", {"words": 5}, "words must be `str`, not `int`"),
        ("list_metrics", {"nothing": 5}, "has the unknown field `nothing`"),
        ("preview_metric", {}, "query_generation_prompt must be sent"),
        ("preview_metric", {"query": "SELECT 1 AS a, no_such AS b"}, 'column "no_such" does not exist'),
        ("preview_metric", {"query": "SELECT 1 / 0 AS quotient"}, "division by zero"),
        ("create_metric", {"query": "DELETE FROM metrics"}, "The SQL is refused"),
    ],
)
def test_a_bad_argument_is_an_error_that_says_what_to_send(
    service: Service, tool: str, arguments: dict[str, Any], said: str
) -> None:
    assert said in refusal(service, tool, **arguments)


def test_a_claim_comes_from_the_token_alone(secured: Service, issuer: Issuer) -> None:
    claims: dict[str, Any] = {"custom:tenant": "north"}
    token = token_of(issuer, **claims)
    assert use(secured, "my-tenant", token=token)["structuredContent"]["records"] == [{"tenant": "north"}]
    assert "cannot be sent" in refusal(secured, "my-tenant", token=token, tenant="south")


def test_metrics_are_found_by_words(service: Service) -> None:
    found = use(service, "list_metrics", words="newest SERIES nonsense")["structuredContent"]["metrics"]
    assert found[0]["id"] == "records"
    everything = use(service, "list_metrics")["structuredContent"]["metrics"]
    assert {"echo", "records", "total"} <= {metric["id"] for metric in everything}
    assert use(service, "list_metrics", words="xyzzy")["structuredContent"] == {"metrics": [], "truncated": False}


async def test_who_may_write_previews_and_creates_a_metric(
    secured: Service, issuer: Issuer, owner: asyncpg.Connection
) -> None:
    token = token_of(issuer, BOTH_SCOPES)
    preview = use(secured, "preview_metric", token=token, query_generation_prompt="alerts by type and flubber")
    assert preview["structuredContent"]["notes"] == ["Not used: flubber."]
    assert await owner.fetchval("SELECT COUNT(*) FROM metric_configurations WHERE source = 'api'") == 0
    made = use(secured, "create_metric", token=token, query="SELECT :n::int4 AS n", title="Made")["structuredContent"]
    tool = tools_of(secured, token)[made["id"]]
    assert (tool["title"], tool["inputSchema"]["properties"]["n"]["type"]) == ("Made", "integer")
    assert use(secured, made["id"], token=token, n=3)["structuredContent"]["records"] == [{"n": 3}]
    lines = [line for line in secured.log.read_text().splitlines() if '"action":"create"' in line]
    assert made["id"] in lines[-1]
    httpx.delete(f"{secured.url}/metrics/{made['id']}", headers={"Authorization": f"Bearer {token}"})
    assert "Unknown tool" in use(secured, made["id"], token=token, n=3)["message"]


@pytest.mark.parametrize("tool", ["preview_metric", "create_metric"])
def test_who_may_only_read_proposes_nothing(secured: Service, issuer: Issuer, tool: str) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": {}}}
    answer = post(secured, message, token=token_of(issuer))
    assert answer.status_code == 403
    assert 'error="insufficient_scope", scope="api/backend_access api/backend_write"' in challenge(answer)
    assert "resource_metadata=" in challenge(answer)


def challenge(answer: httpx.Response) -> str:
    return answer.headers["WWW-Authenticate"]


def test_without_a_token_the_protected_resource_is_named(secured: Service, issuer: Issuer) -> None:
    where = f"{secured.url}/.well-known/oauth-protected-resource/mcp"
    answer = post(secured, {"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    assert (answer.status_code, challenge(answer)) == (401, f'Bearer resource_metadata="{where}"')
    bad = post(secured, {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, token="nonsense")
    assert (bad.status_code, challenge(bad)) == (401, f'Bearer error="invalid_token", resource_metadata="{where}"')
    assert httpx.get(where).json() == {
        "resource": f"{secured.url}/mcp",
        "authorization_servers": [issuer.url],
        "scopes_supported": ["api/backend_access", "api/backend_write"],
        "bearer_methods_supported": ["header"],
    }
    proxied = {"X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/api", "Host": "metrics.example"}
    seen = httpx.get(where, headers=proxied).json()["resource"]
    assert seen == "https://metrics.example/api/mcp"


def test_an_open_service_has_no_protected_resource(service: Service) -> None:
    assert httpx.get(f"{service.url}/.well-known/oauth-protected-resource/mcp").status_code == 404


@pytest.mark.parametrize(
    ("message", "status", "code"),
    [
        (b"{", 400, -32700),
        (b"\xff", 400, -32700),
        (b"[" * 10_000, 400, -32700),
        (b"[" * 100_000, 400, -32600),
        (b'"%b"' % (b"x" * 2**20), 400, -32600),
        (b'{"jsonrpc": "2.0", "id": 1e99999999999999999999, "method": "ping"}', 400, -32700),
        (b"[]", 400, -32600),
        ([{"jsonrpc": "2.0", "id": 1, "method": "ping"}], 400, -32600),
        ({"id": 1, "method": "ping"}, 400, -32600),
        ({"jsonrpc": "2.0", "id": 1}, 400, -32600),
        ({"jsonrpc": "2.0", "id": None, "method": "ping"}, 400, -32600),
        ({"jsonrpc": "2.0", "id": True, "method": "ping"}, 400, -32600),
        ({"jsonrpc": "2.0", "id": {}, "method": "ping"}, 400, -32600),
        ({"jsonrpc": "2.0", "id": 1, "method": "no/such"}, 200, -32601),
        ({"jsonrpc": "2.0", "id": "a", "method": "ping", "params": []}, 200, -32602),
        ({"jsonrpc": "2.0", "id": 1.5, "method": "tools/call", "params": {"name": 5}}, 200, -32602),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo", "arguments": []}}, 200, None),
        (
            {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo", "arguments": [1]}},
            200,
            -32602,
        ),
    ],
)
def test_what_is_no_request_gets_an_error(service: Service, message: Any, status: int, code: int | None) -> None:
    answer = post(service, message)
    assert (answer.status_code, answer.json().get("error", {}).get("code")) == (status, code)
    known = isinstance(message, dict) and status == 200
    assert answer.json()["id"] == (message["id"] if known else None)


@pytest.mark.parametrize(
    "message",
    [
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 5}},
        {"jsonrpc": "2.0", "id": 5, "result": {}},
        {"jsonrpc": "2.0", "id": 5, "error": {"code": -1, "message": "no"}},
    ],
)
def test_notifications_and_answers_are_accepted_without_a_word(service: Service, message: Any) -> None:
    answer = post(service, message)
    assert (answer.status_code, answer.content) == (202, b"")


@pytest.mark.parametrize(
    ("asked", "given"),
    [("2024-11-05", "2024-11-05"), ("2025-06-18", "2025-06-18"), ("1999-01-01", "2025-11-25"), (None, "2025-11-25")],
)
def test_a_handshake_agrees_on_a_version(service: Service, asked: str | None, given: str) -> None:
    result = call(service, "initialize", {"protocolVersion": asked, "capabilities": {}})
    assert (result["protocolVersion"], result["capabilities"]) == (given, {"tools": {}})
    assert call(service, "ping", **{"MCP-Protocol-Version": given}) == {"resultType": "complete"}


def test_a_version_that_there_is_not_is_refused_with_those_that_there_are(service: Service) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    answer = post(service, message, **{"MCP-Protocol-Version": "1999-01-01"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32022)
    assert answer.json()["error"]["data"]["requested"] == "1999-01-01"
    assert "2026-07-28" in answer.json()["error"]["data"]["supported"]


def test_headers_that_contradict_the_message_are_refused(service: Service) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo", "arguments": {"n": 1}}}
    stateless = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "echo"}
    assert post(service, message, **stateless).json()["result"]["resultType"] == "complete"
    for name in ("Mcp-Method", "Mcp-Name"):
        answer = post(service, message, **stateless | {name: "another"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32020)
    unknown = {"jsonrpc": "2.0", "id": 1, "method": "no/such"}
    assert post(service, unknown, **stateless | {"Mcp-Method": "no/such"}).status_code == 404


def test_other_content_and_other_methods_are_http_problems(service: Service) -> None:
    assert post(service, b"a=1", **{"Content-Type": "text/plain"}).status_code == 415
    got = httpx.get(f"{service.url}/mcp", headers={"Accept": "text/event-stream"})
    assert (got.status_code, got.headers["Allow"]) == (405, "POST")
    assert httpx.delete(f"{service.url}/mcp").status_code == 405
