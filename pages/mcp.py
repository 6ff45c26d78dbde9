"""The Model Context Protocol over HTTP, without sessions: what a message must be, what a tool is, what never changes.

https://modelcontextprotocol.io/specification, its transport "streamable HTTP", and JSON-RPC 2.0 below it.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from pages.schemas import Schema

# Four that begin with a handshake, and one in which each request says everything anew.
PROTOCOLS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28")
HANDSHAKE, STATELESS = PROTOCOLS[-2:]
BAD_JSON, BAD_REQUEST, NO_METHOD, BAD_PARAMS = -32700, -32600, -32601, -32602
HEADERS_DIFFER, UNKNOWN_PROTOCOL = -32020, -32022
METHODS = ("initialize", "server/discover", "ping", "tools/list", "tools/call")
MAX_TEXT = 400  # characters of what is quoted
MAX_ROWS = 200
MAX_MESSAGE, MAX_PARTS = 2**20, 20_000  # bytes; arrays and objects, of which a few bytes make one

encode = msgspec.json.Encoder(decimal_format="number").encode
decode = msgspec.json.Decoder(float_hook=Decimal).decode


class RpcError(Exception):
    """What answers a message instead of a result."""

    def __init__(self, code: int, message: str, **data: Any) -> None:
        super().__init__(message)
        self.code, self.error = code, {"code": code, "message": message, **({"data": data} if data else {})}


class Call(NamedTuple):
    """A request; id is None for what wants no answer: a notification, or an answer of the client's."""

    id: str | int | Decimal | None
    method: str
    params: dict[str, Any]


def read_call(body: bytes) -> Call:
    """Raises RpcError."""
    if len(body) > MAX_MESSAGE or body.count(b"[") + body.count(b"{") > MAX_PARTS:
        raise RpcError(BAD_REQUEST, f"A message may have {MAX_MESSAGE} bytes, and {MAX_PARTS} arrays and objects.")
    try:
        message = decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ArithmeticError):
        raise RpcError(BAD_JSON, "The body is not JSON.") from None
    if not isinstance(message, dict):
        raise RpcError(BAD_REQUEST, "The body must be one JSON object; batches are not taken.")
    is_answer = "result" in message or "error" in message
    number, method = message.get("id", 0), message.get("method", "" if is_answer else None)
    if message.get("jsonrpc") != "2.0" or not isinstance(method, str):
        raise RpcError(BAD_REQUEST, 'Send a JSON-RPC message: {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}.')
    if isinstance(number, bool) or not isinstance(number, str | int | Decimal):
        raise RpcError(BAD_REQUEST, "The id must be a text or a number.")
    return Call(number if method and "id" in message else None, method, message.get("params", {}))


def check_call(call: Call, version: str, said: Mapping[str, str]) -> None:
    """Whether a request can be answered; what a proxy may have routed by must be what it says. Raises RpcError."""
    if version and version not in PROTOCOLS:
        words = f"Send an MCP-Protocol-Version of {', '.join(PROTOCOLS)}."
        raise RpcError(UNKNOWN_PROTOCOL, words, supported=PROTOCOLS, requested=version[:MAX_TEXT])
    if not isinstance(call.params, dict):
        raise RpcError(BAD_PARAMS, "params must be an object.")
    wanted = {"mcp-method": call.method} | (
        {"mcp-name": call.params.get("name")} if call.method == "tools/call" else {}
    )
    if version == STATELESS and any(said[name] != value for name, value in wanted.items()):
        raise RpcError(HEADERS_DIFFER, "Mcp-Method and Mcp-Name must be the message's method and its tool's name.")
    if call.method not in METHODS:
        raise RpcError(NO_METHOD, f"There is no method {call.method[:MAX_TEXT]}; there are {', '.join(METHODS)}.")


def answer(call: Call, result: bytes) -> bytes:
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (encode(call.id), result)


def refuse(call: Call | None, exc: RpcError, version: str) -> tuple[bytes, int]:
    """The answer and its status: a client that shook hands takes an error for an answer like any other."""
    body = encode({"jsonrpc": "2.0", "id": call and call.id, "error": exc.error})
    if call and version in ("", *PROTOCOLS[:-1]):
        return body, 200
    return body, 404 if exc.code == NO_METHOD else 400


@functools.cache
def fixed() -> dict[str, Any]:
    """mcp.json: what does not depend on the metrics."""
    answers: dict[str, Any] = decode(Path(__file__).with_name("mcp.json").read_bytes())
    return answers


def greet(call: Call, version: str) -> bytes | None:
    """The answers of this version of the service that are the same for everybody; None for another method."""
    info = fixed()["serverInfo"] | {"version": version}
    server = fixed()["server"] | {"serverInfo": info}
    match call.method:
        case "initialize":
            asked = call.params.get("protocolVersion")
            return encode(server | {"protocolVersion": asked if asked in PROTOCOLS[:-1] else HANDSHAKE})
        case "server/discover":
            about = {"_meta": {"io.modelcontextprotocol/serverInfo": info}}
            return encode(server | fixed()["cacheable"] | about | {"supportedVersions": [STATELESS]})
        case "ping":
            return b'{"resultType":"complete"}'
        case _:
            return None


def own_tool(name: str, takes: type, gives: type) -> Schema:
    """A tool that mcp.json describes, with the schemas of the Structs that it takes and gives."""
    tool: Schema = fixed()["tools"][name] | {"name": name}
    for side, kind in (("inputSchema", takes), ("outputSchema", gives)):
        definitions = msgspec.json.schema(kind)["$defs"]
        tool[side] = definitions.pop(kind.__name__) | {"$defs": definitions}
    return tool


def result_tool(
    name: str, title: str, description: str, arguments: Mapping[str, Schema], required: Sequence[str], record: Schema
) -> Schema:
    """A tool that answers records, from the schemas of its arguments and of a record."""
    result, records = fixed()["result"], {"records": {"type": "array", "items": record}}
    return {
        "name": name,
        "title": title,
        "description": description,
        "inputSchema": {
            "type": "object",
            "properties": arguments,
            "required": required,
            "additionalProperties": False,
        },
        "outputSchema": result | {"properties": result["properties"] | records},
        "annotations": {"readOnlyHint": True, "openWorldHint": False},
    }


def list_tools(tools: Iterable[Schema]) -> bytes:
    """As an answer; what the tools refer to in the OpenAPI document is in each one's own definitions."""
    text = encode(list(tools)).replace(b"#/components/schemas/", b"#/$defs/")
    return encode({"tools": msgspec.Raw(text), **fixed()["cacheable"]})


def result_of(value: Any) -> bytes:
    """What a tool answers: a value, and the same as text."""
    body = encode(value)
    content = [{"type": "text", "text": body.decode()}]
    return encode({"content": content, "structuredContent": msgspec.Raw(body), "resultType": "complete"})


class About(Protocol):
    """Whose result it is."""

    @property
    def id(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def unit(self) -> str: ...


class Result(Protocol):
    """Records as JSON lines."""

    @property
    def rows(self) -> bytes: ...
    @property
    def row_count(self) -> int: ...
    @property
    def truncated(self) -> bool: ...
    @property
    def columns(self) -> Sequence[Any]: ...


def render(about: About, result: Result) -> bytes:
    """What a metric's tool answers: as much as a model can use, and a note where that is not all."""
    rows = result.rows.split(b"\n", MAX_ROWS)[:MAX_ROWS]
    cut = result.row_count > MAX_ROWS
    count = f"{'more than ' * result.truncated}{result.row_count}"
    note = f"These are the first {MAX_ROWS} of {count} rows: ask for a shorter period or for less to see all."
    shown: dict[str, Any] = {"id": about.id, "title": about.title, "unit": about.unit, "columns": result.columns}
    shown |= {"records": msgspec.Raw(b"[%b]" % b",".join(rows)), "truncated": cut or result.truncated}
    return result_of(shown | ({"note": note} if cut else {}))


def failure_of(text: str) -> bytes:
    """What a tool answers that failed, for a model to do better."""
    return encode({"content": [{"type": "text", "text": text}], "isError": True, "resultType": "complete"})
