"""Metrics API: one SELECT per file in, dashboard JSON out.

    python app.py             migrate and serve on http://127.0.0.1:8000
    python app.py --help      the other commands
    uvicorn app:app           the same application under a server of your choice

It reads downwards: each section uses only what stands above it, in the order in which a request meets them, but for
the server's end of a connection and the commands, which stand last.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import difflib
import functools
import gc
import gzip
import hashlib
import io
import ipaddress
import itertools
import logging
import multiprocessing
import os
import re
import shlex
import signal
import socket
import sys
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from http import HTTPMethod, HTTPStatus
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from random import getrandbits
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypedDict, TypeVar, cast
from urllib.parse import SplitResult, unquote, unquote_plus, urlsplit

import asyncpg
import msgspec
import uvicorn
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException, WebSocketException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Match, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.supervisors import Multiprocess

from migrations import connections
from pages import mcp
from pages.schemas import Schema, client_names, parameter_schema, record_schema, type_schemas
from seed import model, records
from seed.fetch import Published, http_client
from seed.statements import CHARTS, BadStatement, Statement, first_line, parse_statement, read_header
from seed.values import parse_items, printable, sent, split_names

if TYPE_CHECKING:
    import jwt

VERSION = "1.0.0"  # as CHANGELOG.md has it
HERE = Path(__file__).resolve().parent
log = logging.getLogger("metrics_api")
audit_log = logging.getLogger("metrics_api.audit")
encode = msgspec.json.Encoder(decimal_format="number").encode
encode_sorted = msgspec.json.Encoder(decimal_format="number", order="sorted").encode
# A number beyond a float's range is JSON, too.
decode_any = msgspec.json.Decoder(float_hook=Decimal).decode


# ------------------------------------------------------------------------------------------------ settings

Seconds = Annotated[float, msgspec.Meta(ge=0, le=31_536_000, description="a number of seconds, not below 0")]
Timeout = Annotated[float, msgspec.Meta(ge=0.001, le=86_400, description="a number of seconds from 0.001 to 86400")]
Count = Annotated[int, msgspec.Meta(ge=1, le=1000, description="a whole number from 1 to 1000")]
Bytes = Annotated[int, msgspec.Meta(ge=1024, le=2**40, description="a number of bytes, 1024 at least")]
Rows = Annotated[int, msgspec.Meta(ge=1, le=10_000_000, description="a whole number from 1 to 10000000")]
Switch = Annotated[Literal["on", "off"], msgspec.Meta(description="on or off")]
Names = Annotated[frozenset[str], msgspec.Meta(description="names separated by commas")]
Level = Annotated[
    Literal["debug", "info", "warning", "error"], msgspec.Meta(description="debug, info, warning or error")
]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the environment says: each field is the variable of its name in upper case."""

    database_url: str | None = None
    reader_database_url: str | None = None
    guest_database_url: str | None = None
    harden_database: Switch = "off"
    demo_data: Switch = "on"
    data_dir: Path = HERE / ".data"
    queries_dir: Path = HERE / "queries"
    cache_url: str = "memory://"
    cache_ttl: Seconds = 60
    cache_stale: Seconds = 3600
    cache_max_bytes: Bytes = 64 * 2**20
    jwt_issuer: str | None = None
    jwks_url: str | None = None
    jwt_client_ids: Names = frozenset()
    jwt_read_scope: str = "api/backend_access"
    jwt_write_scope: str = "api/backend_write"
    browser_client_id: str | None = None
    auth: Switch = "on"
    statement_timeout: Timeout = 10
    pool_size: Count = 10
    pool_timeout: Timeout = 1
    max_rows: Rows = 10_000
    max_result_bytes: Bytes = 16 * 2**20
    max_body: Bytes = 10 * 2**20
    cors_origins: Names = frozenset()
    max_upload: Bytes = 256 * 2**20
    sql_model_url: str | None = None
    sql_model: str | None = None
    sql_model_key: str | None = None
    sql_model_timeout: Timeout = 20
    log_level: Level = "info"

    @property
    def scopes(self) -> tuple[str, str]:
        """What reading wants, and what writing wants as well."""
        return self.jwt_read_scope, self.jwt_write_scope


class CommandError(Exception):
    """What a person at a terminal is told before the process exits with 1."""


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Read the environment, in which an empty variable counts as unset; raises CommandError that names all bad ones."""
    values: dict[str, Any] = {}
    faults: list[str] = []
    for field in msgspec.structs.fields(Settings):
        text = environ.get(field.name.upper(), "").strip()
        if not text:
            continue
        try:
            value = split_names(text) if field.type == Names else text
            values[field.name] = msgspec.convert(value, field.type, strict=False, dec_hook=lambda kind, raw: kind(raw))
        except msgspec.ValidationError:
            (meta,) = field.type.__metadata__
            faults.append(f"{field.name.upper()} must be {meta.description}, not {text!r}")
    settings = Settings(**values)
    if faults := [*faults, *contradictions(settings)]:
        raise CommandError("; ".join(faults))
    return settings


def misspelt(environ: Mapping[str, str]) -> Iterator[str]:
    """What to say of variables that are nearly one of the service's that is not set."""
    names = {field.name.upper() for field in msgspec.structs.fields(Settings)}
    for name in environ.keys() - names:
        near = difflib.get_close_matches(name.upper(), names - environ.keys(), n=1, cutoff=0.88)
        # Somebody else's differ where they begin, such as TEST_DATABASE_URL from GUEST_DATABASE_URL.
        if near and near[0][0] == name[0].upper():
            yield f"{name} is not a variable of the service; is {near[0]} meant?"


@functools.lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def split_url(url: str | None) -> SplitResult:
    """A URL in parts, empty ones where it cannot be taken apart."""
    try:
        parts = urlsplit(url or "")
        _ = parts.port if "," not in parts.netloc else None
    except ValueError:
        return urlsplit("")
    return parts


def is_secure(url: str | None) -> bool:
    """Whether nobody on the way there can listen in or answer in its place."""
    scheme, host = split_url(url).scheme, split_url(url).hostname
    return bool(host) and scheme in (("https", "http") if is_loopback(host) else ("https",))


def contradictions(settings: Settings) -> Iterator[str]:
    """What is wrong with values that are each of the right type; URLs may hold passwords and are not repeated."""
    for name in ("database_url", "reader_database_url", "guest_database_url"):
        try:
            if url := getattr(settings, name):
                connections.Target(name.upper(), url)
        except ValueError as exc:
            yield f"{name.upper()} {exc}"
    if settings.sql_model_url and split_url(settings.sql_model_url).scheme not in ("http", "https"):
        yield "SQL_MODEL_URL must be the base URL of an OpenAI-compatible server, such as https://host/v1"
    # The issuer is compared with, not fetched from, where JWKS_URL says what is and nobody signs in on the dashboard.
    named = settings.jwks_url and not settings.browser_client_id
    for name in ("jwks_url",) if named else ("jwks_url", "jwt_issuer"):
        if (url := getattr(settings, name)) and not is_secure(url):
            yield f"{name.upper()} must be an https URL (http on loopback only)"
    if settings.browser_client_id and not settings.jwt_issuer:
        yield "BROWSER_CLIENT_ID is a client of JWT_ISSUER; set JWT_ISSUER too, or neither"
    in_form = re.fullmatch(r"memory://|redis://[^/?#]+(/\d*)?", settings.cache_url)
    if not (in_form and split_url(settings.cache_url).scheme):
        yield "CACHE_URL must be memory:// or a URL such as redis://host:6379/0"
    # Unlike pathlib's, these say no of a place that nobody may look at.
    if not os.path.isdir(settings.queries_dir):
        yield f"QUERIES_DIR must be a directory of .sql files; {str(settings.queries_dir)!r} is none"
    if os.path.exists(settings.data_dir) and not os.path.isdir(settings.data_dir):
        yield f"DATA_DIR must be a directory; {str(settings.data_dir)!r} is none"


# ------------------------------------------------------------------------------------------------ messages

Title = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Prompt = Annotated[str, msgspec.Meta(min_length=1, max_length=10_000)]
MAX_SQL = 100_000
SQL = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_SQL)]


class Column(msgspec.Struct, frozen=True):
    name: str
    type: str


class Parameter(msgspec.Struct, frozen=True):
    name: str
    type: str
    required: bool
    description: str


class Layout(msgspec.Struct, frozen=True, gc=False):
    """A tile's place on the grid of one breakpoint, as react-grid-layout stores it."""

    breakpoint: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    x: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
    y: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
    w: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    h: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    static: bool = False


Layouts = Annotated[list[Layout], msgspec.Meta(max_length=20)]


class MetricSummary(msgspec.Struct, frozen=True):
    id: str
    title: str
    description: str
    unit: str
    chart: Annotated[str, msgspec.Meta(extra_json_schema={"enum": CHARTS})]
    is_editable: bool
    version: int
    live: bool
    parameters: list[Parameter]
    columns: list[Column]
    layouts: list[Layout]


class MetricResult(msgspec.Struct, frozen=True):
    id: str
    title: str
    is_editable: bool
    columns: list[Column]
    records: msgspec.Raw
    layouts: list[Layout]
    truncated: bool


class NewMetric(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exactly one of query_generation_prompt and query."""

    query_generation_prompt: Prompt = ""
    query: SQL = ""
    is_editable: bool = True
    layouts: Layouts = []
    title: Title | None = None


class MetricPatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON merge patch (RFC 7396); version, if sent, must be the current one."""

    query_generation_prompt: Prompt = ""
    query: SQL = ""
    layouts: Layouts | msgspec.UnsetType | None = msgspec.UNSET
    title: Title | msgspec.UnsetType | None = msgspec.UNSET
    version: int | msgspec.UnsetType = msgspec.UNSET


class Written(msgspec.Struct, frozen=True, kw_only=True):
    query: str
    version: int
    parameters: list[Parameter]
    columns: list[Column]


class DryRun(Written, frozen=True, kw_only=True):
    """What a metric would be, its first records, and what of the prompt was not understood."""

    notes: list[str]
    records: msgspec.Raw
    truncated: bool


class MetricDefinition(Written, frozen=True, kw_only=True):
    """What was stored, and what of the prompt was not understood."""

    id: str
    notes: list[str]


class MetricSource(Written, frozen=True, kw_only=True, omit_defaults=True):
    """What a metric is made of; one that does not compile has a fault and its place, line:column where it is known."""

    id: str
    title: str
    description: str
    source: Literal["file", "dataset", "api"]
    prompt: str | None
    created_by: str | None
    is_editable: bool
    tables: list[str]
    fault: str = ""
    place: str = ""


class Check(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One measured value of application/health+json (draft-inadarei-api-health-check)."""

    status: Literal["pass", "warn", "fail"]
    component_type: str = ""
    observed_value: Any = None
    observed_unit: str = ""
    output: str = ""
    component_id: str = ""


class InputError(msgspec.Struct, frozen=True):
    name: str
    detail: str


# ------------------------------------------------------------------------------------------------ errors

MAX_TEXT, MAX_ERRORS = 400, 100  # characters of any text that goes into an answer or a log line; errors of an answer


class Problem(Exception):
    """An answer that says what is wrong and what to do."""

    def __init__(
        self, status: int, detail: str, errors: Sequence[InputError] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors = status, detail, list(errors)
        self.headers = {"Retry-After": "1"} if status == 503 else dict(headers or {})


def shortened(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text)} characters)"


def input_problem(errors: Sequence[InputError]) -> Problem:
    return Problem(422, "; ".join(f"{error.name} {error.detail}" for error in errors[:MAX_ERRORS]), errors)


class InvalidToken(Exception):
    """Why a token is refused; the caller is told no more than that it is."""

    def __init__(self, reason: str, challenge: str = 'Bearer error="invalid_token"') -> None:
        super().__init__(reason)
        self.challenge = challenge


class PoolBusy(Exception):
    """No connection became free within POOL_TIMEOUT, or too many wait for one."""


# What a database that is down, starting, stopping or out of reach makes asyncpg raise.
DATABASE_DOWN = (
    OSError,
    *connections.SERVER_DOWN,
    *connections.NAMED_IN_VAIN,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.TooManyConnectionsError,
)
# A division by zero, a subquery with two rows, what a function raises or asserts, what a domain does not take.
FAILS_ON_DATA = (
    asyncpg.DataError,
    asyncpg.CardinalityViolationError,
    asyncpg.FeatureNotSupportedError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.InvalidSchemaNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.PLPGSQLError,
)
# Limits of the database's own that one result ran into: memory, temporary files, a gigabyte in one value.
RESULT_TOO_LARGE = (asyncpg.InsufficientResourcesError, asyncpg.ProgramLimitExceededError)
# The first that fits counts, for asyncpg has too many connections and a full disk among the insufficient resources.
PROBLEMS: tuple[tuple[Any, int, str], ...] = (
    (InvalidToken, 401, "Send a valid access token: Authorization: Bearer <JWT>."),
    (BadStatement, 422, "The SQL is refused: {}."),
    (model.ModelFailed, 502, "The SQL model failed: {}."),
    (asyncio.CancelledError, 503, "The service is stopping; try again."),
    (PoolBusy, 503, "All database connections are busy; try again."),
    (asyncpg.QueryCanceledError, 504, "The query ran into STATEMENT_TIMEOUT; ask for a shorter period."),
    (DATABASE_DOWN, 503, "The database cannot be reached; try again."),
    (asyncpg.DeadlockDetectedError, 503, "Others write the same records in another order; try again."),
    (asyncpg.DiskFullError, 503, "The database's disk is full; try again when there is room."),
    (RESULT_TOO_LARGE, 422, "The result is larger than the database may use for it; ask for a shorter period."),
    (asyncpg.IntegrityConstraintViolationError, 409, "The metric was changed or deleted meanwhile; read it again."),
    (FAILS_ON_DATA, 422, "The query fails on its data with these parameters."),
    (Exception, 500, "The service failed; its log has the reason under this request_id."),
)


def as_problem(exc: BaseException) -> Problem:
    """The only place that maps exceptions to a status; what the driver says stays in the log."""
    if isinstance(exc, Problem):
        return exc
    if isinstance(exc, HTTPException):
        return Problem(exc.status_code, exc.detail, headers=exc.headers)
    status, detail = next((status, detail) for kind, status, detail in PROBLEMS if isinstance(exc, kind))
    errors = [InputError("query", str(exc))] if isinstance(exc, BadStatement) else []
    headers = {"WWW-Authenticate": exc.challenge} if isinstance(exc, InvalidToken) else {}
    return Problem(status, detail.format(exc), errors, headers)


def problem_response(exc: BaseException, scope: Scope) -> Response:
    problem = as_problem(exc)
    errors = [InputError(shortened(error.name), shortened(error.detail)) for error in problem.errors[:MAX_ERRORS]]
    details = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": shortened(problem.detail),
        "instance": shortened(scope["path"]),
        "request_id": scope["request_id"],
        **({"errors": errors} if errors else {}),
    }
    return Response(encode(details), problem.status, problem.headers, "application/problem+json")


# ------------------------------------------------------------------------------------------------ logging

MAX_UNREAD = 16_384  # lines that wait for a reader of standard output


class LogStream(logging.Handler):
    """JSON lines for standard output, written by a thread of their own twenty times a second.

    A reader who is slow stops nobody: he loses the oldest. The library's QueueListener wakes its thread for each line,
    which costs as much as the rest of an answer from the cache.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[bytes] = deque(maxlen=MAX_UNREAD)
        self.second, self.second_text = 0, b""
        self.closed = threading.Event()
        self.writer = threading.Thread(target=self.run, name="log", daemon=True)
        self.writer.start()

    def clock(self) -> bytes:
        """The time in ISO 8601, most of which is made once a second."""
        second, millisecond = divmod(int(time.time() * 1000), 1000)
        if second != self.second:
            self.second, self.second_text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        return b"%b.%03d+00:00" % (self.second_text, millisecond)

    def emit(self, record: logging.LogRecord) -> None:
        fields = getattr(record, "fields", {})
        cut = {name: shortened(value) if isinstance(value, str) else value for name, value in fields.items()}
        if record.exc_info:
            cut["traceback"] = logging.Formatter().formatException(record.exc_info)[-16 * 1024 :]
        self.tell(record.levelname.lower(), record.name, record.getMessage(), cut)

    def tell(self, level: str, logger: str, message: str, fields: dict[str, Any]) -> None:
        line = {"time": self.clock().decode(), "level": level, "logger": logger, "message": message}
        self.put(encode(line | fields) + b"\n")

    def put(self, line: bytes) -> None:
        self.lines.append(line)
        if self.closed.is_set():
            self.write()

    def write(self) -> None:
        text = b"".join([self.lines.popleft() for _ in range(len(self.lines))]) if sys.stdout else b""
        # A closed pipe or a full disk costs lines, and Python's own buffer a thread that is stuck in it the exit.
        with suppress(OSError, ValueError):
            while text:
                text = text[os.write(sys.stdout.fileno(), text) :]

    def run(self) -> None:
        while not self.closed.wait(0.05):
            self.write()

    def close(self) -> None:
        """Write what is left; a reader who does not take it within a second loses it and what comes after."""
        self.closed.set()
        self.writer.join(1)
        if self.writer.is_alive():
            self.lines = deque(maxlen=0)
        self.write()
        super().close()


class Repeats(logging.Filter):
    """Lets one line for a fault through in ten seconds, however often it strikes, and says how often it did."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        fields = getattr(record, "fields", {})
        error = record.exc_info and record.exc_info[1]
        cause = repr(error.__cause__ or error) if error else f"{fields.get('metric_id')} {fields.get('reason')}"
        since, repeated = self.seen.get((record.msg, cause), (0.0, 0))
        if record.created - since < 10:
            self.seen[record.msg, cause] = since, repeated + 1
            return False
        if len(self.seen) > 1000:
            self.seen.clear()
        self.seen[record.msg, cause] = record.created, 0
        record.fields = fields | {"repeated": repeated} if repeated else fields
        return True


def configure_logging(level: str) -> LogStream:
    """Everything the process says becomes JSON lines on standard output, the server's own lines included."""
    stream = LogStream()
    stream.addFilter(Repeats())
    logging.basicConfig(handlers=[stream], level=level.upper(), force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"
    for name in ("httpx", "httpcore", "yoyo", "asyncio", "aiocache"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Who wrote what is told at every level.
    audit_log.setLevel(logging.INFO)
    # At debug it writes down what comes through a socket, tokens included.
    logging.getLogger("uvicorn.error").setLevel(max(logging.INFO, logging.getLogger().level))
    return stream


def warn(message: str, **fields: Any) -> None:
    log.warning(message, extra={"fields": fields})


# ------------------------------------------------------------------------------------------------ figures

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Instruments:
    """What /prometheus tells; the values of gauges are asked for when it is read."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        counter = functools.partial(Counter, registry=self.registry)
        histogram = functools.partial(Histogram, registry=self.registry, buckets=BUCKETS)
        self.requests = histogram("http_request_duration_seconds", "Requests", ["method", "route", "status"])
        self.results = counter("metric_results", "Results by where they came from", ["metric_id", "cache"])
        self.runs = histogram("metric_run_seconds", "Runs of metrics", ["metric_id"])
        self.rows = counter("metric_rows", "Rows that runs gave", ["metric_id"])
        self.gauges: dict[str, Gauge] = {}
        self.metric_ids: set[str] = set()
        # Looking one up by its labels takes longer than counting.
        self.request, self.result = functools.cache(self.request_of), functools.cache(self.result_of)
        self.run = functools.cache(lambda metric_id: (self.runs.labels(metric_id), self.rows.labels(metric_id)))

    def request_of(self, method: str, route: str, status: int) -> Histogram:
        return self.requests.labels(method if method in HTTPMethod.__members__ else "other", route, str(status))

    def result_of(self, metric_id: str, cache: str) -> Counter:
        """What counts the results of a metric that came from there, a Cache-Status without its details."""
        return self.results.labels(metric_id, cache.partition("; ")[0])

    def keep(self, metric_ids: Iterable[str]) -> None:
        """Forget the figures of metrics that there were and that are gone."""
        for metric_id in self.metric_ids.difference(metric_ids):
            for figures in (self.results, self.runs, self.rows):
                figures.remove_by_labels({"metric_id": metric_id})
        self.metric_ids = set(metric_ids)
        self.result.cache_clear()
        self.run.cache_clear()

    def hit_ratio(self) -> float:
        counts = [sample for sample in next(iter(self.results.collect())).samples if sample.name.endswith("_total")]
        hits = sum(count.value for count in counts if count.labels["cache"] == "hit")
        return round(hits / (sum(count.value for count in counts) or 1), 3)

    def gauge(self, name: str, text: str, read: Callable[[], float], **labels: str) -> None:
        """A value by label; the first call for a name names its labels."""
        gauge = self.gauges.get(name) or Gauge(name, text, list(labels), registry=self.registry)
        self.gauges[name] = gauge
        (gauge.labels(**labels) if labels else gauge).set_function(read)


# ------------------------------------------------------------------------------------------------ authentication


def header(scope: Scope, name: bytes) -> bytes:
    """What a request says under a name, of several lines joined (RFC 9110, 5.3); empty when it says nothing."""
    if (head := scope.get("head")) is None:
        head = scope["head"] = dict[bytes, list[bytes]]()
        for key, value in scope["headers"]:
            head.setdefault(key, []).append(value)
    return b", ".join(head.get(name, ()))


def header_text(scope: Scope, name: bytes) -> str:
    return header(scope, name).decode("latin-1")


class Caller(msgspec.Struct, frozen=True, eq=False):
    """Who asks, until expires (Unix seconds); roles None means every role."""

    subject: str | None = None
    scopes: frozenset[str] = frozenset()
    roles: frozenset[str] | None = None
    claims: dict[str, Any] = {}
    expires: float = float("inf")

    def lasting_claims(self) -> dict[str, Any]:
        return {name: value for name, value in self.claims.items() if name not in EACH_TOKENS_OWN}

    def has_any(self, roles: frozenset[str]) -> bool:
        return not roles or self.roles is None or not roles.isdisjoint(self.roles)


OPEN = Caller()
ALGORITHMS = ("RS256", "ES256")
EACH_TOKENS_OWN = frozenset({"exp", "iat", "nbf", "jti", "auth_time", "origin_jti", "event_id"})
LEEWAY = 30
MAX_REMEMBERED = 4096


def parse_keys(body: bytes) -> dict[str, jwt.PyJWK]:
    """The usable signing keys of a JWK set (RFC 7517) by kid; raises when there is none."""
    import jwt  # A tenth of a second of a start that only those with an issuer spend.

    signing = [key for key in jwt.PyJWKSet.from_json(body.decode()) if key.public_key_use in (None, "sig")]
    keys = {key.key_id: key for key in signing if key.key_id and key.algorithm_name in ALGORITHMS}
    if not keys:
        raise ValueError("no usable key")
    return keys


def parse_endpoints(issuer: str, body: bytes) -> dict[str, str]:
    """Where people sign in and out (OpenID Connect Discovery 1.0, 4.2); raises for another issuer's or unsafe ones."""
    document = decode_any(body)
    names = {"authorization_endpoint", "token_endpoint"} | ({"end_session_endpoint"} & document.keys())
    endpoints = {name: document[name] for name in names}
    # Nothing that would end a directive: one of them goes into the page's policy.
    safe = (is_secure(url) and re.fullmatch(r"[\w:/.?&=%~+\[\]-]+", url, re.ASCII) for url in endpoints.values())
    if document["issuer"] != issuer or not all(safe):
        raise ValueError("it is another issuer's, or an endpoint is no https URL")
    return endpoints


class Verifier:
    """Turns an Authorization header into a caller; without JWT_ISSUER, or with AUTH=off, everybody is let in."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.open = settings.auth == "off" or not settings.jwt_issuer
        self.remembered: dict[bytes, Caller] = {}
        issuer = settings.jwt_issuer or ""
        place = f"{issuer.rstrip('/')}/.well-known"
        self.endpoints = Published(f"{place}/openid-configuration", functools.partial(parse_endpoints, issuer))
        self.keys = Published(settings.jwks_url or f"{place}/jwks.json", parse_keys)
        self.keys.forgotten_by.append(self.remembered.clear)

    async def identify(self, header: bytes) -> Caller:
        """The caller whom an Authorization header (RFC 6750) names; raises InvalidToken, or Problem 503."""
        if self.open:
            return OPEN
        scheme, _, token = header.partition(b" ")
        token = token.strip()
        if scheme.lower() != b"bearer" or not token:
            raise InvalidToken("there is no bearer token", challenge="Bearer")
        caller = self.remembered.get(token)
        if caller is None or caller.expires <= time.time():
            caller = await self.verify(token)
            if len(self.remembered) >= MAX_REMEMBERED:
                del self.remembered[next(iter(self.remembered))]
            self.remembered[token] = caller
        return caller

    async def verify(self, token: bytes) -> Caller:
        import jwt

        if len(token) > 8 * 1024:
            raise InvalidToken("it is longer than 8 KB")
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in ALGORITHMS:
                raise InvalidToken("its algorithm is not RS256 or ES256")
            key = await self.find_key(header["kid"])
            options = {"require": ["exp", "iss"], "verify_aud": False, "enforce_minimum_key_length": True}
            issuer = self.settings.jwt_issuer
            claims = jwt.decode(token, key, [key.algorithm_name], options, leeway=LEEWAY, issuer=issuer)  # type: ignore[arg-type]
            encode(claims)  # refuses half a character (a lone surrogate), which neither log nor database could take
            return as_caller(claims, self.settings.jwt_client_ids)
        except (jwt.PyJWTError, KeyError, ValueError, TypeError, OverflowError, RecursionError) as exc:
            raise InvalidToken(f"{type(exc).__name__}: {exc}") from None

    async def find_key(self, kid: str) -> jwt.PyJWK:
        """Raises InvalidToken, or Problem 503 while there is no key at all."""
        if kid not in self.keys.known and (fetching := self.keys.fetch()):
            await asyncio.shield(fetching)
        if not self.keys.known:
            raise Problem(503, "The token issuer's keys cannot be fetched; try again.")
        if kid not in self.keys.known:
            raise InvalidToken("its key is not the issuer's")
        return self.keys.known[kid]


def as_caller(claims: dict[str, Any], client_ids: frozenset[str]) -> Caller:
    """Check what is Cognito's own: the kind of the token and the client. Raises InvalidToken."""
    if claims.get("token_use", "access") != "access":
        raise InvalidToken("it is no access token")
    named = next((name for name in ("client_id", "azp", "aud") if name in claims), "aud")
    clients = words(claims.get(named)) if named == "aud" or isinstance(claims[named], str) else []
    if client_ids and client_ids.isdisjoint(clients):
        raise InvalidToken("its client is not in JWT_CLIENT_IDS")
    if float(claims["exp"]) > 253_402_300_799:  # the last second of the year 9999
        raise InvalidToken("its exp is no date")
    scope = claims.get("scope")
    scopes = frozenset(scope.split() if isinstance(scope, str) else ())
    roles = scopes.union(words(claims.get("cognito:groups")))
    subject = claims.get("sub") or claims.get("client_id")
    return Caller(shortened(str(subject)) if subject else None, scopes, roles, claims, float(claims["exp"]) + LEEWAY)


def words(value: Any) -> list[str]:
    """A claim that is one text or a list of texts."""
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


async def authenticate(scope: Scope, header: bytes) -> Caller:
    """Who asks, with the read scope, and for changes the write scope too; raises InvalidToken, Problem 403 or 503."""
    verifier: Verifier = scope["state"]["verifier"]
    scope["caller"] = caller = await verifier.identify(header)
    # A tool that writes asks for itself.
    check_scopes(scope, scope.get("method", "GET") not in ("GET", "HEAD", "OPTIONS") and scope["path"] != "/mcp")
    return caller


def check_scopes(scope: Scope, writes: bool) -> None:
    """Raises Problem 403."""
    verifier, caller = scope["state"]["verifier"], scope["caller"]
    wanted = verifier.settings.scopes[: 2 if writes else 1]
    if not (verifier.open or caller.scopes.issuperset(wanted)):
        challenge = {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{" ".join(wanted)}"'}
        raise Problem(403, f"The token lacks a scope; it needs {' and '.join(wanted)}.", headers=challenge)


def check_loopback(scope: Scope, settings: Settings) -> None:
    """Keep the world, and the pages that a browser has open, out of a service that lets everybody in.

    Raises Problem 403 or 421.
    """
    if not (settings.jwt_issuer or settings.auth == "off"):
        said = (header_text(scope, name) for name in (b"host", b"origin", b"sec-fetch-site"))
        server = (scope.get("server") or ("localhost", 0))[0]
        if refused := foreign(settings.cors_origins, server, *said):
            raise Problem(*refused)


@functools.lru_cache(maxsize=256)
def foreign(origins: frozenset[str], server: str, host: str, origin: str, site: str) -> tuple[int, str] | None:
    """The status and the reason of a request from elsewhere, None for one from here.

    A page of another site could write with a request that needs no preflight, or read once a name of its own comes to
    mean this machine (DNS rebinding).
    """
    if not is_loopback(server) and not server.startswith("/"):
        return 403, "Without JWT_ISSUER the service answers on loopback only; set it, or AUTH=off."
    loopback = is_loopback(split_url(f"//{host}").hostname or "")
    if host and not loopback and host not in {split_url(url).netloc for url in origins}:
        return 421, "Without JWT_ISSUER the service answers to loopback names only; set it, or CORS_ORIGINS."
    other = origin and split_url(origin).netloc != host and origin not in origins
    if other or (site == "cross-site" and not origin):
        return 403, "The page comes from another origin; without JWT_ISSUER, CORS_ORIGINS names those let in."
    return None


# ------------------------------------------------------------------------------------------------ middleware

MAX_HEAD = 64 * 1024  # bytes
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
TRACEPARENT = re.compile(rb"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")
PROTECTED_RESOURCE = "/.well-known/oauth-protected-resource/mcp"
PUBLIC = re.compile(rf"/|/(docs|health|pages)(/.*)?|/openapi\.json|/prometheus|{re.escape(PROTECTED_RESOURCE)}")


def request_ids() -> Iterator[bytes]:
    prefix = uuid.uuid4().hex[:16].encode()
    return (b"%b-%x" % (prefix, number) for number in itertools.count(1))


def name_request(ids: Iterator[bytes], given: bytes, parent: bytes) -> tuple[bytes, bytes]:
    """A request's id, the client's or ours, and its traceparent (W3C Trace Context), if well-formed, with our span."""
    request_id = given if given and REQUEST_ID.fullmatch(given) else next(ids)
    trace = TRACEPARENT.fullmatch(parent) if parent else None
    return request_id, b"00-%b-%016x-%b" % (trace[1], getrandbits(63) + 1, trace[2]) if trace else b""


def finish(scope: Scope, started: float) -> None:
    """Count a request and write its line; 499 is one whose client left without an answer."""
    seconds, state = time.perf_counter() - started, scope["state"]
    metric_id, status, cache = scope.get("metric_id"), scope.get("status", 499), scope.get("cache")
    template = scope["route"].path if "route" in scope and status != 405 else "none"
    state["instruments"].request(scope["method"], template, status).observe(seconds)
    if metric_id and cache:
        state["instruments"].result(metric_id, cache).inc()
    if stream := state["log"]:
        fields = {
            "request_id": scope["request_id"],
            "method": scope["method"],
            "path": shortened(scope["path"]),
            "metric_id": metric_id,
            "status": status,
            "duration_ms": round(seconds * 1000, 3),
            "cache": cache,
            "subject": scope["caller"].subject if "caller" in scope else None,
        }
        fields |= {name: scope[name] for name in ("trace_id", "reason") if name in scope}
        stream.tell("info", "metrics_api", "request", fields)


class RequestLog:
    """Gives every request an id, notes its status as soon as there is one and writes one line about its answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = time.perf_counter()
        given = header(scope, b"x-request-id"), header(scope, b"traceparent")
        request_id, trace = name_request(scope["state"]["request_ids"], *given)
        scope["request_id"] = request_id.decode()
        said = [(b"x-request-id", request_id)]
        if trace:
            scope["trace_id"] = trace[3:35].decode()
            said.append((b"traceparent", trace))

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["status"], scope["answer_headers"] = message["status"], message["headers"]
                message["headers"] = [*message["headers"], *said]
            await send(message)

        try:
            await self.app(scope, receive, send_named)
        finally:
            finish(scope, started)


class Access:
    """Refuses a malformed head, and whoever may not ask, before any route is looked for, and answers what is raised."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            await check_access(scope)
            await self.app(scope, receive, send)
        except ClientDisconnect:
            pass  # Nobody is there to be told; the log line says 499, as nginx writes it.
        except (Exception, asyncio.CancelledError) as exc:
            # The server cancels what is still under way ten seconds after it was told to stop.
            if "status" in scope:
                raise
            await answer_early(answer_error(scope, exc), scope, receive, send)


async def answer_early(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """A close with bytes unread would take the answer back from who is still sending."""
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            while scope.get("unread") and (await receive()).get("more_body"):
                pass
    await send({"type": "http.response.body"})


async def check_access(scope: Scope) -> None:
    """Raises Problem or InvalidToken."""
    check_head(scope)
    check_loopback(scope, scope["state"]["settings"])
    if not PUBLIC.fullmatch(scope["path"]):
        await authenticate(scope, header(scope, b"authorization"))
    # The router would take an encoded slash for a plain one, and no route has one.
    if b"%2f" in scope["raw_path"].lower():
        raise Problem(404, "Not Found")


def check_head(scope: Scope) -> None:
    """Raises Problem 400, 414 or 431, and drops a trailing slash unless it is an encoded one and so part of an id."""
    if [name for name, _ in scope["headers"]].count(b"authorization") > 1:
        raise Problem(400, "There are two Authorization headers; send one.")
    try:
        unquote(scope["query_string"].decode(), errors="strict")
    except UnicodeDecodeError:
        raise Problem(400, "The query string is not UTF-8.") from None
    if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > MAX_HEAD:
        raise Problem(431, "The headers are larger than 64 KB.")
    if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_HEAD:
        raise Problem(414, "The URL is longer than 64 KB.")
    if scope["raw_path"].endswith(b"/"):
        scope["path"] = scope["path"].removesuffix("/") or "/"


def answer_error(scope: Scope, exc: BaseException) -> Response:
    """The problem that an exception comes to; the reason goes into the request's line, a 500 with its traceback."""
    scope["reason"] = shortened(f"{type(exc).__name__}: {exc}" + (f" ({exc.__cause__})" if exc.__cause__ else ""))
    if as_problem(exc).status == 500:
        log.error("a request failed", exc_info=exc, extra={"fields": {"request_id": scope["request_id"]}})
    response = problem_response(exc, scope)
    if scope["path"] == "/mcp" and (challenge := response.headers.get("www-authenticate")):
        where = f'resource_metadata="{base_url(scope)}{PROTECTED_RESOURCE}"'
        response.headers["www-authenticate"] = f"{challenge}{',' if ' ' in challenge else ''} {where}"
    return response


def base_url(scope: Scope) -> str:
    """Where a client finds this service, as far as it and the proxy before it say; to be told to that client alone."""
    scheme = header_text(scope, b"x-forwarded-proto") or scope["scheme"]
    url = f"{scheme}://{header_text(scope, b'host')}{header_text(scope, b'x-forwarded-prefix')}"
    return re.sub(r"[^\w:/.\[\]-]", "", url).rstrip("/")


async def answer_http(request: Request[Any], exc: HTTPException) -> Response:
    """A 405 with everything that the path allows, whichever route it came from."""
    if exc.status_code == 405:
        routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
        exc.headers = {"Allow": ", ".join(sorted(set().union(*(route.methods for route in routes))))}
    return answer_error(request.scope, exc)


EXCEPTION_HANDLERS: dict[Any, Any] = {HTTPException: answer_http}


# ------------------------------------------------------------------------------------------------ database


def database_logins(settings: Settings) -> dict[str, connections.Login]:
    """The gate and the catalog are the guest once more: they must not wait for bad queries, nor for each other."""
    owner = connections.Target("DATABASE_URL", settings.database_url or "")
    reads, guests = settings.reader_database_url, settings.guest_database_url
    replicas = connections.Target("READER_DATABASE_URL", reads) if reads else None
    reader = connections.derived_login(owner, replicas, owner, "metrics_reader")
    named = connections.Target("GUEST_DATABASE_URL", guests) if guests else None
    guest = connections.derived_login(owner, named, replicas or owner, "metrics_guest")
    logins = {"owner": connections.Login(owner), "upload": connections.Login(owner), "reader": reader}
    logins |= dict.fromkeys(("guest", "gate", "catalog"), guest)
    if replicas:
        logins |= {"reader on primary": reader, "guest on primary": guest}
    return logins


async def keep_session(conn: asyncpg.Connection) -> None:
    """Run nothing when a connection comes back: reviewed SQL needs nothing, a guest's run ends with what it needs."""


GUEST_POOL_SIZE = 2
MAX_WAITING = 1000  # for one pool, or for the answers before on one connection
# Uploads last as long as their senders like, and other writes must not wait for them.
WRITERS = ("owner", "upload")
MAX_UPLOAD_TIME = 600  # seconds for all of a body
STAND_IN, ANSWERS_WITHIN = 5, 0.25  # seconds
# No record, but every server that holds some is asked.
PROBE = "SELECT FROM metrics WHERE date = '-infinity'"
HOME = "SELECT pronamespace::regnamespace::text FROM pg_proc WHERE oid = 'relations_under_lock'::regproc"


class Loan:
    """A connection of one login, for as long as the block lasts. Raises PoolBusy, or one of DATABASE_DOWN."""

    def __init__(self, database: Database, name: str) -> None:
        self.database, self.name, self.pool = database, name, database.pools[name]

    async def __aenter__(self) -> asyncpg.Connection:
        settings, waiting, started = self.database.settings, self.database.waiting, time.monotonic()
        if waiting[self.name] >= MAX_WAITING:
            raise PoolBusy
        waiting[self.name] += 1
        try:
            # With a timeout of its own, acquire would make a task of it.
            async with asyncio.timeout(settings.pool_timeout):
                self.conn = await self.pool.acquire()
        except TimeoutError:
            if self.pool.get_idle_size() == 0 and self.pool.get_size() == self.pool.get_max_size():
                raise PoolBusy from None
            raise ConnectionError("no connection within POOL_TIMEOUT") from None
        finally:
            waiting[self.name] -= 1
        # A frozen server answers no cancellation. Whoever describes asks afterwards whether the server answers others.
        margin = ANSWERS_WITHIN + 0.05 if self.name in ("gate", "catalog") else 0.05
        left = settings.pool_timeout - (time.monotonic() - started) - margin
        limit = 2 * MAX_UPLOAD_TIME if self.name == "upload" else settings.statement_timeout + max(left, 0)
        self.ending = asyncio.get_running_loop().call_later(limit, self.conn.terminate)
        return self.conn

    async def __aexit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        try:
            await self.pool.release(self.conn)
        finally:
            self.ending.cancel()
        if meant := connections.meaning(exc):
            raise meant from exc
        if isinstance(exc, asyncpg.QueryCanceledError) and not await self.database.answers():
            raise ConnectionError("a server says nothing") from exc
        if isinstance(exc, DATABASE_DOWN):
            # What ended this session has likely ended the server's others.
            for other in self.database.pools.values():
                await other.expire_connections()


class Database:
    """A pool per login: the owner writes, the reader runs reviewed SQL, the guest runs everybody else's."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.logins = database_logins(settings)
        self.pools = {name: self.create_pool(name) for name in self.logins}
        self.probes: dict[str, asyncpg.Connection] = {}
        self.latencies: dict[str, asyncio.Task[float | None]] = {}
        self.waiting = dict.fromkeys(self.logins, 0)
        self.stand_in_until = dict.fromkeys(self.logins, 0.0)
        self.home: str | None = None

    def create_pool(self, name: str) -> asyncpg.Pool:
        guest = name.startswith(("guest", "gate", "catalog"))
        primary = {"target_session_attrs": "primary"} if name.endswith("on primary") else {}
        return asyncpg.create_pool(
            self.logins[name],  # as connections.connect() wants it
            **primary,
            min_size=0,
            max_size=GUEST_POOL_SIZE if guest else self.settings.pool_size,
            reset=keep_session if name.startswith(("reader", "guest")) else None,
            connection_class=connections.GuestSession if guest else connections.Session,
            server_settings=self.session(name),
            connect=functools.partial(connections.connect, patience=self.settings.pool_timeout / 2),
        )

    def session(self, name: str) -> dict[str, str]:
        session = {"application_name": f"metrics-api {name}", "timezone": "UTC"}
        milliseconds = str(int(self.settings.statement_timeout * 1000))
        if name in WRITERS:
            return session | {"lock_timeout": milliseconds}
        return session | {
            "statement_timeout": milliseconds,
            "idle_in_transaction_session_timeout": milliseconds,
            "default_transaction_read_only": "on",
            # Else a string might end elsewhere for PostgreSQL than for parse_statement.
            "standard_conforming_strings": "on",
            "jit": "off",
        }

    async def __aenter__(self) -> Database:
        for pool in self.pools.values():
            await pool
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Whoever still holds a connection is waited for, but not for long."""
        closing = asyncio.gather(*(pool.close() for pool in self.pools.values()), return_exceptions=True)
        with suppress(TimeoutError):
            await asyncio.wait_for(closing, 2)
        for conn in self.probes.values():
            conn.terminate()

    def connection(self, name: str) -> Loan:
        return Loan(self, name)

    async def schema(self) -> str:
        """Where the migrations' functions are: only the owner is sure to look there."""
        if self.home is None:
            async with self.connection("owner") as conn:
                self.home = await conn.fetchval(HOME)
        return cast(str, self.home)

    def has_others(self, name: str) -> bool:
        """Whether a login's pool may turn to another host."""
        return f"{name} on primary" in self.pools

    async def return_to_replica(self, name: str) -> None:
        """Let the primary's sessions go that stand in for a replica's: it may answer again."""
        if self.has_others(name) and time.monotonic() > self.stand_in_until[name]:
            self.stand_in_until[name] = time.monotonic() + STAND_IN
            await self.pools[name].expire_connections()

    async def latency(self, name: str) -> float | None:
        """Seconds that a login's database takes to answer, None for more than one; asked once a second at most."""
        if name not in self.latencies:
            asking = self.latencies[name] = asyncio.create_task(self.measure(name), name=f"latency of {name}")
            asking.add_done_callback(lambda _: asking.get_loop().call_later(1, self.latencies.pop, name))
        return await asyncio.shield(self.latencies[name])

    async def answers(self) -> bool:
        """Whether all servers that hold records say anything soon."""
        with suppress(TimeoutError):
            return await asyncio.wait_for(self.latency("reader"), ANSWERS_WITHIN) is not None
        return False

    async def measure(self, name: str) -> float | None:
        """On a connection of its own, for a busy pool is no fault."""
        try:
            async with asyncio.timeout(1):
                if name not in self.probes or self.probes[name].is_closed():
                    login, session = self.logins[name], self.session(name) | {"statement_timeout": "1000"}
                    self.probes[name] = await connections.connect(login, patience=0.4, server_settings=session)
                started = time.perf_counter()
                # Neither a table that is not there yet nor one that is not for this login is the server's fault.
                with suppress(asyncpg.SyntaxOrAccessError):
                    await self.probes[name].execute(PROBE)
                return time.perf_counter() - started
        except (TimeoutError, asyncpg.PostgresError, *DATABASE_DOWN):
            if name in self.probes:
                self.probes[name].terminate()
            return None


# ------------------------------------------------------------------------------------------------ SQL files

MAX_FILE = 2**20  # bytes
METRIC_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """A metric as its author wrote it; fault says why it cannot be read."""

    id: str
    source: Literal["file", "dataset", "api"]
    sql: str
    title: str = ""
    description: str = ""
    unit: str = ""
    chart: str = ""
    ttl: float | None = None
    roles: frozenset[str] = frozenset()
    claims: dict[str, str] = {}
    descriptions: dict[str, str] = {}
    required: frozenset[str] = frozenset()
    reads: tuple[str, ...] = ()
    series: str = ""
    is_editable: bool = False
    version: int = 1
    prompt: str | None = None
    created_by: str | None = None
    layouts: tuple[Layout, ...] = ()
    warnings: tuple[str, ...] = ()
    fault: str = ""


def title_of(metric_id: str) -> str:
    return re.sub(r"[-_]+", " ", metric_id).strip().capitalize()


def read_sql(path: Path) -> tuple[str, str]:
    """The text of a file, or else what is wrong with it."""
    try:
        # A pipe would be waited for, for ever.
        if not path.is_file():
            return "", "is no file"
        if path.stat().st_size > MAX_FILE:
            return "", f"is larger than {MAX_FILE} bytes"
        sql = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        return "", "is not UTF-8"
    except OSError as exc:
        return "", f"cannot be read: {exc.strerror}"
    if "\0" in sql:
        return "", "holds a NUL character"
    return (sql, "") if sql.strip() else ("", "is empty")


def read_file(path: Path) -> Definition:
    """A reviewed metric, as its header describes it."""
    sql, fault = read_sql(path)
    header, warnings = read_header(sql)
    about = {"title": title_of(path.stem), **header, "id": path.stem, "source": "file", "series": path.stem}
    return Definition(**about, sql=sql, fault=fault, warnings=tuple(warnings))


# ------------------------------------------------------------------------------------------------ descriptions


class Type(NamedTuple):
    """A type by PostgreSQL's short name, by the name a cast wants, and by the built-in type its values look like.

    category is the letter that pg_type has for it, or for the items of an array; labels are an enum's.
    """

    name: str
    sql: str
    base: str
    is_array: bool
    category: str
    labels: list[str]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What describe_statement() says of a statement.

    tables maps the oid of each table it reads to its name; shapes are fingerprints of these and of views, by oid.
    """

    types: tuple[Type, ...] = ()
    column_types: tuple[Type, ...] = ()
    tables: dict[int, str] = {}
    unwatchable: frozenset[str] = frozenset()
    large: dict[str, str] = {}
    shapes: dict[int, int] = {}


class Metric(Facts, frozen=True, kw_only=True):
    """A definition and what PostgreSQL says of it; with a fault the rest is empty."""

    about: Definition
    names: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    cost: float = 0
    scans: tuple[str, ...] = ()
    run: str = ""
    digest: str = ""
    fault: str = ""
    place: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return self.about.id

    @property
    def login(self) -> str:
        return "reader" if self.about.source == "file" else "guest"


async def describe(conn: asyncpg.Connection, definition: Definition, settings: Settings, schema: str) -> Metric:
    """Ask PostgreSQL what a statement takes, returns and reads, as the login that will run it; nothing is run.

    The statement is prepared bare, which keeps it from closing the wrapper's parenthesis, then wrapped, which lets
    nothing but a query pass, then planned, which checks the privileges. The schema is that of the functions that the
    migrations bring. Raises BadStatement.
    """
    statement = await asyncio.to_thread(parse_statement, definition.sql)
    async with conn.transaction(readonly=True):
        # Else the driver's questions about types take Citus a second each.
        await conn.execute("SET LOCAL citus.override_table_visibility = off")
        try:
            if definition.source != "file":
                await check_names(conn, statement, schema)
            prepared = await conn.prepare(statement.fill("${}".format))
            warnings = await check_header(conn, definition, statement.names)
            columns = prepared.get_attributes()
            if not (names := [column.name for column in columns]):
                raise BadStatement("a metric must be one SELECT that returns columns")
            if twice := sorted({repr(name) for name in names if names.count(name) > 1}):
                raise BadStatement(f"two columns are named {', '.join(twice)}; give each a name of its own with AS")
            oids = [kind.oid for kind in prepared.get_parameters()], [column.type.oid for column in columns]
            answer = await conn.fetchval(f"SELECT {schema}.describe_statement($1, $2)", *oids)
        except STATEMENT_REFUSED as exc:
            raise bad_statement(exc, statement) from exc
        facts = msgspec.json.decode(answer, type=Facts)
        # Values are sent as text and cast to the type that PostgreSQL inferred, so that every type has one way in.
        sql = statement.fill(lambda number: f"(${number}::text::{facts.types[number - 1].sql})")
        limit, max_bytes = settings.max_rows + 1, settings.max_result_bytes
        run = RUN.format(id=definition.id, sql=sql, max_bytes=max_bytes, limit=limit)
        plan = await explain(conn, run, len(facts.types))
    return Metric(
        **msgspec.structs.asdict(facts),
        about=definition,
        names=statement.names,
        columns=tuple(Column(c.name, kind.name) for c, kind in zip(columns, facts.column_types, strict=True)),
        cost=plan.get("Total Cost", 0),
        scans=tuple(sorted(facts.large[name] for name in facts.large.keys() & scanned(plan))),
        run=run,
        digest=hashlib.sha256(f"{sorted(facts.shapes.items())}{run}".encode()).hexdigest()[:16],
        warnings=(*definition.warnings, *warnings),
    )


async def check_header(conn: asyncpg.Connection, about: Definition, names: Sequence[str]) -> list[str]:
    """Lock the tables that a header says are read, as preparing does; return what is wrong with all that it names."""
    described = [("param", name) for name in about.descriptions] + [("claim", name) for name in about.claims]
    warnings = [
        f"{kind} {name} is described, but the SQL has no :{name}" for kind, name in described if name not in names
    ]
    for table in about.reads:
        try:
            async with conn.transaction():
                await conn.prepare(f"SELECT FROM {table}")
        except STATEMENT_REFUSED as exc:
            warnings.append(f"tables names {table}: {exc.message}")
    return warnings


# What says that the SQL is at fault, and not the database or the moment.
STATEMENT_REFUSED = (
    *FAILS_ON_DATA,
    *RESULT_TOO_LARGE,
    asyncpg.SyntaxOrAccessError,
    asyncpg.InvalidTransactionStateError,
    asyncpg.InternalServerError,
    asyncpg.UnsupportedClientFeatureError,
)


def bad_statement(exc: Exception, statement: Statement) -> BadStatement:
    """PostgreSQL's message in the author's terms."""
    message, position = getattr(exc, "message", None) or str(exc), getattr(exc, "position", None)
    place = statement.place(int(position) - 1) if position else (None, None)
    names, advice = {f"${number}": f":{name}" for number, name in enumerate(statement.names, 1)}, ""
    untyped = isinstance(exc, asyncpg.IndeterminateDatatypeError | asyncpg.AmbiguousParameterError)
    if untyped and (found := re.search(r"\$\d+", message)) and (name := names.get(found[0])):
        place, advice = statement.place_of(int(found[0][1:])), f"; write {name}::text or the like"
    message = re.sub(r'(?<=parameter )\$\d+|(?<=at or near ")\$\d+', lambda at: names.get(at[0], at[0]), message)
    return BadStatement(message + advice, *place)


# The result of one metric as JSON lines, made by the database: rows, records (NULL when there are none or too large).
# Raw line breaks in JSON are white space, which only columns of type json can hold.
RUN = """\
/* metric: {id} */
SELECT
  COUNT(*) AS rows,
  CASE
    WHEN SUM(OCTET_LENGTH(record) + 1) <= {max_bytes} THEN CONVERT_TO(STRING_AGG(record, E'\\n'), 'UTF8')
  END AS records,
  PG_CURRENT_SNAPSHOT()::text AS snapshot,
  EXTRACT(EPOCH FROM STATEMENT_TIMESTAMP())::float8 AS taken_at
FROM (
  SELECT TRANSLATE(ROW_TO_JSON(t.*)::text, E'\\n\\r', '  ') AS record
  FROM (
{sql}
  ) AS t
  LIMIT {limit}
) AS r
"""


async def explain(conn: asyncpg.Connection, run: str, parameters: int) -> dict[str, Any]:
    """The plan for any values, in PostgreSQL's JSON; planning checks the privileges.

    A statement whose constants alone make the planner fail has none: that is the run's business. Raises BadStatement.
    """
    try:
        prepared = await conn.prepare(run)
    except STATEMENT_REFUSED as exc:
        raise BadStatement("a metric must be one SELECT (or WITH … SELECT, VALUES, TABLE)") from exc
    arguments = f"({', '.join(['NULL'] * parameters)})" if parameters else ""
    # Not every engine plans for any values.
    for mode in ("force_generic_plan", "auto"):
        await conn.execute(f"SET LOCAL plan_cache_mode = {mode}")
        try:
            async with conn.transaction():
                text = await conn.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE {prepared.get_name()}{arguments}")
            return cast("dict[str, Any]", msgspec.json.decode(text)[0]["Plan"])
        except asyncpg.DataError:
            return {}
        except STATEMENT_REFUSED as exc:
            refused = exc
    raise BadStatement(refused.message) from refused


def scanned(node: dict[str, Any]) -> set[str]:
    """The tables that a plan reads from end to end."""
    below = set[str]().union(*map(scanned, node.get("Plans", ())))
    return below | {node["Relation Name"]} if node.get("Node Type") == "Seq Scan" else below


async def describe_with(database: Database, definition: Definition, guest: str, attempts: int = 2) -> Metric:
    """Raises BadStatement, PoolBusy or one of DATABASE_DOWN."""
    login, started = "reader" if definition.source == "file" else guest, time.monotonic()
    schema = await database.schema()
    try:
        async with database.connection(login) as conn:
            return await describe(conn, definition, database.settings, schema)
    except BadStatement as exc:
        raise connections.meaning(exc.__cause__) or exc from exc.__cause__
    except DATABASE_DOWN as exc:
        # It is parsed several times, each within the limit or heeding none.
        late = time.monotonic() - started > database.settings.statement_timeout
        if late and await database.answers():
            raise asyncpg.QueryCanceledError("the statement takes longer than STATEMENT_TIMEOUT") from exc
        if late or attempts == 1:
            raise
        return await describe_with(database, definition, guest, attempts - 1)


async def check_names(conn: asyncpg.Connection, statement: Statement, schema: str) -> None:
    """Refuse by name what is not for everybody's SQL, for it cannot always be revoked; raises BadStatement."""
    if any(text.lower().startswith('u&"') for text, _ in statement.parts):
        raise BadStatement("an identifier with Unicode escapes is not taken here; write it as it is")
    names = statement.words()
    reasons = f"SELECT name, reason FROM {schema}.why_not_said($1::text[]) LIMIT 1"
    if refused := await conn.fetchrow(reasons, list(names)):
        raise BadStatement(f"{names[refused['name']]} {refused['reason']}")


# In PostgreSQL's cost units, of which reading ten million records takes about 300,000; columns and parameters.
MAX_COST, MAX_SHOWN = 5_000_000, 250


async def pass_gate(database: Database, definition: Definition) -> Metric:
    """Describe SQL that nobody reviewed, and refuse what is plainly too much of it; raises as describe_with() does."""
    try:
        metric = await describe_with(database, definition, "gate")
    except asyncpg.QueryCanceledError:
        raise BadStatement("PostgreSQL cannot plan it within STATEMENT_TIMEOUT") from None
    except asyncpg.DataError as exc:
        raise BadStatement(str(exc)) from exc
    if (shown := len(metric.columns) + len(metric.names)) > MAX_SHOWN:
        raise BadStatement(f"it has {shown} columns and parameters, and {MAX_SHOWN} are allowed")
    if metric.cost > MAX_COST:
        raise BadStatement(f"PostgreSQL expects it to cost {metric.cost:.3g} units, and {MAX_COST:,} are allowed")
    return metric


# ------------------------------------------------------------------------------------------------ catalog


def compiled(metric: Metric) -> Metric:
    """Raises Problem 500 for a metric that PostgreSQL does not accept."""
    if not metric.fault:
        return metric
    subject = f"queries/{metric.id}.sql" if metric.about.source == "file" else f"The metric {metric.id}"
    raise Problem(500, f"{subject} does not compile; `python app.py check` says why.") from BadStatement(metric.fault)


UNREVOKED = "SELECT ARRAY(SELECT DISTINCT name FROM unrevoked_functions() ORDER BY name)"


class Catalog:
    """Every metric by id, the files' and the database's, as last described."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings, self.database = settings, database
        here, directory = Path.cwd(), settings.queries_dir
        self.directory = directory.relative_to(here) if directory.is_relative_to(here) else directory
        self.metrics: dict[str, Metric] = {}
        self.watched: frozenset[int] = frozenset()
        self.shapes: dict[int, int | None] = {}  # as last seen, by oid
        self.unrevoked: list[str] = []
        self.stray_files: tuple[str, ...] = ()
        self.broken: dict[str, Metric] = {}  # those that the log says do not compile
        # Instances with other files would overwrite each other for ever, if each did so on hearing of the other.
        self.mirrored: dict[str, Definition] = {}
        self.fault: str | None = "not read yet"
        self.outdated = asyncio.Event()
        self.reloaded_by: list[Callable[[], None]] = []
        self.lock = asyncio.Lock()

    def find(self, metric_id: str, caller: Caller, broken: bool = False) -> Metric:
        """Raises Problem 403, 404, 422, 500 unless it may be broken, or 503 while the database has not been asked."""
        if metric := self.metrics.get(metric_id):
            if not caller.has_any(metric.about.roles):
                raise Problem(403, f"The metric {metric_id} is for other roles than yours.")
            return metric if broken else compiled(metric)
        if not METRIC_ID.fullmatch(metric_id):
            raise Problem(422, "A metric id is a letter or digit, then up to 63 letters, digits, - and _.")
        if self.fault:
            raise Problem(503, "The database has not been reached yet; try again.")
        raise Problem(404, f"There is no metric {metric_id}; GET /metrics lists them.")

    def visible(self, caller: Caller) -> list[Metric]:
        return [m for m in self.metrics.values() if not m.fault and caller.has_any(m.about.roles)]

    def live(self, metric: Metric) -> bool:
        return self.watched.issuperset(metric.tables)

    def read_files(self) -> dict[str, Definition]:
        paths = sorted(self.settings.queries_dir.glob("*.sql"), key=lambda path: path.stem)
        strays = [path.name for path in paths if not METRIC_ID.fullmatch(path.stem)]
        self.stray_files = tuple(map(printable, strays))
        files = {path: read_file(path) for path in paths if path.name not in strays}
        # One that was taken away meanwhile is none, rather than one that cannot be read.
        return {path.stem: file for path, file in files.items() if os.path.lexists(path)}

    def file_stamps(self) -> dict[str, tuple[int, ...]]:
        """What tells that a file has been written to or opened to this user, without reading it."""
        stamps: dict[str, tuple[int, ...]] = {}
        for entry in os.scandir(self.settings.queries_dir):
            if entry.name.endswith(".sql"):
                with suppress(OSError):
                    stat = entry.stat()
                    stamps[entry.name] = stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size
        return stamps

    async def reload(self, patience: float | None = 1) -> None:
        """Read files and database again and describe what is new or has changed, for so many seconds each.

        What waits longer, such as for a lock on its tables, does not compile for now, lest it hold up the others; after
        each of these the next may wait half as long.
        """
        async with self.lock:
            self.outdated.clear()
            files = await asyncio.to_thread(self.read_files)
            async with self.database.connection("owner") as conn:
                stored = [read_definition(row[0]) for row in await conn.fetch(DEFINITIONS)]
                if files != self.mirrored:
                    known = {(about.id, about.sql, about.title) for about in stored if about.source == "file"}
                    rows = {(file.id, file.sql, file.title) for file in files.values() if not file.fault}
                    await conn.executemany("SELECT mirror_file($1, $2, $3)", sorted(rows - known))
                self.watched = frozenset(await conn.fetchval("SELECT keep_watch()"))
                self.unrevoked = await conn.fetchval(UNREVOKED)
            metrics: dict[str, Metric] = {}
            for about in merge(files, stored).values():
                metric, began = self.metrics.get(about.id), time.monotonic()
                if metric is None or metric.about != about:
                    metric = await self.described(about, patience)
                metrics[about.id] = metric
                if patience and time.monotonic() - began >= patience:
                    patience = max(patience / 2, 0.05)
            self.metrics, self.mirrored, self.fault = metrics, files, None
        self.tell()

    async def look(self) -> None:
        """Keep tables under watch, and tell all instances which relations are not what they were.

        A partition brings records and takes them along, and no trigger tells of it.
        """
        described = {oid: shape for metric in self.metrics.values() for oid, shape in metric.shapes.items()}
        async with self.database.connection("owner") as conn:
            watched = frozenset(await conn.fetchval("SELECT keep_watch()"))
            shapes = dict(await conn.fetch("SELECT * FROM relation_shapes($1)", list(described)))
            changed = [oid for oid, shape in described.items() if shapes.get(oid) != self.shapes.get(oid, shape)]
            if changed:
                await conn.execute("SELECT notify_changes($1)", changed)
        self.shapes = {oid: shapes.get(oid) for oid in described}
        if watched != self.watched:
            self.watched = watched
            self.tell()

    async def mend(self) -> None:
        """Describe again what does not compile, for what it lacks may have come, and what reads relations that changed.

        Neither tells anybody, and what a metric reads decides which changes it hears of.
        """
        for metric in list(self.metrics.values()):
            if metric.fault or any(self.shapes.get(oid, shape) != shape for oid, shape in metric.shapes.items()):
                with suppress(PoolBusy, asyncpg.PostgresError, *DATABASE_DOWN):
                    # A file may take its time, for somebody looked at it.
                    await asyncio.wait_for(self.refresh(metric), 1 if metric.login == "guest" else None)

    def path(self, name: str) -> str:
        """Where an editor finds a file."""
        return os.path.join(self.directory, name)

    def place(self, metric: Metric) -> str:
        """What names a metric in warnings: file, line and column of its fault."""
        if metric.about.source != "file":
            return f"metric {metric.id}"
        line = (metric.place or f":{first_line(metric.about.sql)}") if metric.fault else ""
        return self.path(f"{metric.id}.sql{line}")

    def report(self) -> None:
        """Log once a change what does not compile, and what does again."""
        known, self.broken = self.broken, {name: metric for name, metric in self.metrics.items() if metric.fault}
        for name, metric in self.broken.items():
            if metric != known.get(name):
                warn("a metric does not compile", metric_id=name, reason=f"{self.place(metric)}: {metric.fault}")
        for name in known.keys() & self.metrics.keys() - self.broken.keys():
            log.info("%s compiles again", self.place(self.metrics[name]), extra={"fields": {"metric_id": name}})

    def tell(self) -> None:
        for tell in self.reloaded_by:
            tell()

    async def adopt(self, metric: Metric) -> None:
        """Take up what was just written, before the notification of it comes."""
        async with self.lock:
            known = self.metrics.get(metric.id)
            if known is None or known.about.version <= metric.about.version:
                self.metrics[metric.id] = metric
        self.tell()

    async def forget(self, metric_id: str) -> None:
        async with self.lock:
            self.metrics.pop(metric_id, None)
        self.tell()

    async def described(self, definition: Definition, patience: float | None) -> Metric:
        """One metric that PostgreSQL cannot plan, be it for ever, does not take the others with it."""
        try:
            async with asyncio.timeout(patience) as limit:
                return await self.describe(definition)
        except (asyncpg.PostgresError, *DATABASE_DOWN) as exc:
            if definition.source == "file" and isinstance(exc, DATABASE_DOWN) and not limit.expired():
                raise
            async with self.database.connection("owner") as conn:
                await conn.execute("SELECT 1")
            return Metric(about=definition, fault=f"PostgreSQL does not plan it ({type(exc).__name__})")

    async def describe(self, definition: Definition) -> Metric:
        if definition.fault:
            return Metric(about=definition, fault=definition.fault)
        try:
            return await describe_with(self.database, definition, "catalog")
        except BadStatement as exc:
            place = f":{exc.line}:{exc.column}" if exc.line else ""
            return Metric(about=definition, fault=exc.message, place=place, warnings=definition.warnings)

    async def refresh(self, metric: Metric) -> Metric:
        """Describe one metric again, because its tables have changed."""
        fresh = await self.describe(metric.about)
        known = self.metrics.get(metric.id)
        if known and known.about == metric.about and known != fresh:
            self.metrics[metric.id] = fresh
            self.tell()
        return fresh


# The view's columns are a definition's fields.
DEFINITIONS = "SELECT JSON_STRIP_NULLS(ROW_TO_JSON(d))::text FROM metric_definitions AS d"


def read_definition(text: str) -> Definition:
    """A metric of the database's, or what it knows of a file's."""
    definition = msgspec.json.decode(text, type=Definition)
    return msgspec.structs.replace(definition, title=definition.title or title_of(definition.id))


def merge(files: Mapping[str, Definition], stored: Sequence[Definition]) -> dict[str, Definition]:
    """A file goes before a metric of the same id in the database, which knows where the file's tile stands."""
    layouts = {about.id: about.layouts for about in stored}
    placed = {name: msgspec.structs.replace(file, layouts=layouts.get(name, ())) for name, file in files.items()}
    return placed | {about.id: about for about in stored if about.source != "file" and about.id not in files}


async def watch_catalog(catalog: Catalog) -> None:
    """Reload within a second of a change to a file or to the definitions."""
    seen: object = None
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(catalog.outdated.wait(), 0.5)
        try:
            stamps = await asyncio.to_thread(catalog.file_stamps)
            if stamps != seen or catalog.outdated.is_set():
                await catalog.reload()
                seen = stamps
        except Exception as exc:
            warn("the metrics could not be read again", reason=repr(exc))
            await asyncio.sleep(1)


async def mend_catalog(catalog: Catalog) -> None:
    """Look at the tables every second, however long it takes to describe anew what reads them."""
    async with asyncio.TaskGroup() as group:
        mending = group.create_task(catalog.mend())
        while True:
            await asyncio.sleep(1)
            with suppress(PoolBusy, asyncpg.PostgresError, *DATABASE_DOWN):
                await catalog.look()
            if mending.done():
                mending = group.create_task(catalog.mend())


# ------------------------------------------------------------------------------------------------ parameters

# What a dashboard may send to every tile; a metric that does not use one ignores it.
DASHBOARD_FILTERS = frozenset({"start_date", "end_date", "day_range"})
MAX_PARAMETERS = 1000


def claimed(caller: Caller, path: str, kind: Type) -> str | None:
    """A value from a claim by its name, or by names with dots between them; raises ValueError."""
    value: Any = caller.claims
    for name in [path] if path in caller.claims else path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if value is None:
        return None
    items = value if kind.is_array and isinstance(value, list) else [value]
    if kind.base not in ("json", "jsonb") and any(isinstance(item, list | dict) for item in items):
        raise ValueError("must be a single value")
    texts = [item if item is None or isinstance(item, str) else encode(item).decode() for item in items]
    return parse_items(texts, kind)


def query_pairs(query: bytes) -> list[tuple[str, str]]:
    """Raises Problem 422."""
    pairs = [pair.partition("=") for pair in query.decode().split("&") if pair]
    if len(pairs) > MAX_PARAMETERS:
        raise Problem(422, f"The query string has more than {MAX_PARAMETERS} parameters.")
    return [(unquote_plus(name, errors="strict"), unquote_plus(value, errors="strict")) for name, _, value in pairs]


def bind(metric: Metric, pairs: Iterable[tuple[str, str]], caller: Caller) -> tuple[str | None, ...]:
    """The values of a metric's parameters, from a query string and the caller's claims, in the order of its names.

    Raises Problem 422 that names every bad parameter, or 403 for a claim of another type.
    """
    claims = metric.about.claims
    given: dict[str, list[str]] = {}
    for name, text in pairs:
        given.setdefault(name, []).append(text)
    errors, values = list[InputError](), list[str | None]()
    for name, kind in zip(metric.names, metric.types, strict=True):
        try:
            if name in claims:
                values.append(claimed(caller, claims[name], kind))
                continue
            values.append(sent(texts, kind) if (texts := given.pop(name, None)) else None)
            if values[-1] is None and name in metric.about.required:
                raise ValueError("is required")
        except ValueError as exc:
            if name in claims:
                raise ill_typed_claim(claims[name], kind) from None
            errors.append(InputError(name, str(exc)))
    if given:
        errors = unknown_parameters(metric, given) + errors
    if errors:
        raise input_problem(errors)
    return tuple(values)


def unknown_parameters(metric: Metric, given: Iterable[str]) -> list[InputError]:
    claims = metric.about.claims
    errors = [InputError(name, "is taken from the token and cannot be sent") for name in given if name in claims]
    unknown = set(given).difference(metric.names, DASHBOARD_FILTERS, claims)
    known = shortened(", ".join(sorted(set(metric.names).difference(claims)))) or "none"
    return errors + [InputError(name, f"is no parameter of {metric.id}, which has {known}") for name in sorted(unknown)]


def ill_typed_claim(claim: str, kind: Type) -> Problem:
    return Problem(403, f"The token's claim {claim} is no {kind.name}.")


# ------------------------------------------------------------------------------------------------ runs


class Result(NamedTuple):
    """What one run gave: the records as JSON lines, and the database's snapshot and clock (seconds) when it began.

    replayed is how far the replica that gave it had got in the write-ahead log (bytes), None for a primary.
    """

    rows: bytes
    row_count: int
    truncated: bool
    columns: tuple[Column, ...]
    snapshot: str
    taken_at: float
    replayed: int | None


async def run_once(database: Database, metric: Metric, values: Sequence[str | None], primary: bool) -> Result:
    """Run a metric, once it is known how far a replica has got."""
    async with database.connection(f"{metric.login} on primary" if primary else metric.login) as conn:
        replayed, replica = None, getattr(conn.get_settings(), "in_hot_standby", "off") == "on"
        if replica:
            patience = database.settings.pool_timeout / 2 if database.has_others(metric.login) else None
            try:
                replayed = await conn.fetchval("SELECT (PG_LAST_WAL_REPLAY_LSN() - '0/0')::int8", timeout=patience)
            except TimeoutError:
                conn.terminate()
                raise ConnectionError("the server says nothing") from None
        # What nobody reviewed runs in a transaction that is rolled back and cleared away in one statement.
        if metric.login == "guest":
            await conn.execute("BEGIN READ ONLY")
        try:
            row = await conn.fetchrow(metric.run, *values)
        finally:
            if metric.login == "guest" and not conn.is_closed():
                await conn.execute(f"ROLLBACK; {conn.get_reset_query()}")
    if not (replica or primary):
        await database.return_to_replica(metric.login)
    return as_result(metric, row, replayed, database.settings.max_rows)


async def written(database: Database) -> int | None:
    """The end of the write-ahead log, in bytes, None when the primary does not say."""
    with suppress(PoolBusy, asyncpg.PostgresError, *DATABASE_DOWN):
        async with database.connection("owner") as conn:
            return cast(int, await conn.fetchval("SELECT end_of_log()"))
    return None


async def run_metric(catalog: Catalog, metric: Metric, values: Sequence[str | None], primary: bool = False) -> Result:
    """Run a metric, anew when a connection turned out to be dead or its tables to have changed since it was described.

    Raises Problem, PoolBusy, asyncpg's errors or one of DATABASE_DOWN.
    """
    started = time.monotonic()
    for attempt in itertools.count():
        try:
            return await run_once(catalog.database, metric, values, primary)
        except (asyncpg.SyntaxOrAccessError, asyncpg.InvalidCachedStatementError) as exc:
            fresh = compiled(await catalog.refresh(metric))
            if attempt > 1 and fresh.shapes == metric.shapes:
                # A value may name what is not there, such as a regclass.
                raise await data_problem(catalog.database, metric, values) from exc
            if time.monotonic() - started > catalog.settings.statement_timeout:
                raise Problem(503, "The tables are being changed; try again.") from exc
            metric = fresh
        except (asyncpg.SerializationError, *DATABASE_DOWN):
            # A replica cancels what stands in the way of replaying, and may end while it takes the second attempt.
            if attempt > 1 or time.monotonic() - started > catalog.settings.pool_timeout:
                raise
        except FAILS_ON_DATA as exc:
            raise await data_problem(catalog.database, metric, values) from exc
    raise AssertionError


async def data_problem(database: Database, metric: Metric, values: Sequence[str | None]) -> Problem:
    """Why a run fails on its data: the values that PostgreSQL does not take for their types, or what the query does."""
    if not metric.names:
        return Problem(500, "The query fails on its data; the log has the reason.")
    errors = []
    async with database.connection(metric.login) as conn:
        for name, kind, value in zip(metric.names, metric.types, values, strict=True):
            with suppress(*FAILS_ON_DATA, asyncpg.SyntaxOrAccessError):
                await conn.fetchval(f"SELECT $1::text::{kind.sql} IS NULL", value)
                continue
            if name in metric.about.claims:
                return ill_typed_claim(metric.about.claims[name], kind)
            labels = f" ({', '.join(kind.labels)})" if kind.labels else ""
            errors.append(InputError(name, f"must be of PostgreSQL's type {kind.name}{labels}"))
    return input_problem(errors) if errors else Problem(422, "The query fails on its data with these parameters.")


def as_result(metric: Metric, row: asyncpg.Record, replayed: int | None, limit: int) -> Result:
    if row["records"] is None and row["rows"]:
        raise Problem(422, "The result is larger than MAX_RESULT_BYTES; ask for a shorter period.")
    rows, truncated = row["records"] or b"", row["rows"] > limit
    if truncated:
        rows = rows[: rows.rindex(b"\n")]
    return Result(rows, row["rows"] - truncated, truncated, metric.columns, row["snapshot"], row["taken_at"], replayed)


# ------------------------------------------------------------------------------------------------ changes


class Snapshot(NamedTuple):
    """What a statement sees (pg_snapshot): every transaction before xmax that was not running."""

    xmax: int
    running: frozenset[int]

    def sees(self, transaction: int) -> bool:
        return transaction < self.xmax and transaction not in self.running

    def includes(self, other: Snapshot) -> bool:
        """Whether everything that the other one sees is seen here."""
        return self.xmax >= other.xmax and all(x >= other.xmax or x in other.running for x in self.running)


def parse_snapshot(text: str, replayed: bool = False) -> Snapshot:
    """A replica's does not list what was running, so only what lies before all of that is sure to be seen."""
    xmin, xmax, running = text.split(":")
    if replayed:
        return Snapshot(int(xmin), frozenset())
    return Snapshot(int(xmax), frozenset(map(int, running.split(","))) if running else frozenset())


class Change(NamedTuple):
    """A transaction that changed a table, and the epoch at which it was heard of."""

    transaction: int
    epoch: int


class Changes:
    """What the listener has heard: which transaction changed which tables, since which moment.

    epoch grows with everything heard; since and since_at are the database's snapshot and clock when listening began.
    """

    def __init__(self) -> None:
        self.connected_since: float | None = None
        self.epoch = self.since_epoch = 0
        self.since = Snapshot(0, frozenset())
        self.since_at = 0.0
        self.database_id = ""
        # PostgreSQL notifies in the order of the commits: who sees a table's last change sees those before it, too.
        self.last: dict[int, Change] = {}
        self.heard_by: list[Callable[[Iterable[int] | None], None]] = []

    def hear(self, transaction: int, tables: set[int]) -> None:
        self.epoch += 1
        self.last |= dict.fromkeys(tables, Change(transaction, self.epoch))
        for tell in self.heard_by:
            tell(tables)

    def begin(self, since: Snapshot, since_at: float, database_id: str) -> None:
        """Start anew: what was missed while nobody listened could be anything."""
        self.epoch += 1
        self.since, self.since_at, self.since_epoch, self.database_id = since, since_at, self.epoch, database_id
        self.connected_since = time.time()
        for tell in self.heard_by:
            tell(None)

    def of(self, tables: Iterable[int]) -> list[Change]:
        return [self.last[oid] for oid in tables if oid in self.last]

    def last_epoch(self, tables: Iterable[int]) -> int:
        return max((change.epoch for change in self.of(tables)), default=self.since_epoch)

    def seen_by(self, result: Result, changes: Iterable[Change], began: int = -1) -> bool:
        """Whether a result was taken since listening began and saw these changes.

        began is the epoch when a run began that is known to have seen every change before.
        """
        snapshot = parse_snapshot(result.snapshot, result.replayed is not None)
        if began < self.since_epoch and (result.taken_at < self.since_at or not snapshot.includes(self.since)):
            return False
        return all(change.epoch <= began or snapshot.sees(change.transaction) for change in changes)


@asynccontextmanager
async def writing(database: Database, *tables: str, login: str = "owner") -> AsyncIterator[asyncpg.Connection]:
    """The owner's connection in a transaction that changes tables."""
    async with database.connection(login) as conn, connections.changing(conn, *tables):
        yield conn


HEARTBEAT = 3  # seconds


async def listen(database: Database, changes: Changes, outdated: asyncio.Event) -> None:
    """Listen for changes on a connection of its own, for ever; a dead one is noticed and replaced within seconds."""
    while True:
        try:
            await listen_once(database, changes, outdated)
        except Exception as exc:
            warn("the listener is not connected", reason=repr(exc))
        finally:
            changes.connected_since = None
        await asyncio.sleep(0.5)


async def listen_once(database: Database, changes: Changes, outdated: asyncio.Event) -> None:
    """Raises whatever ends the connection."""
    lost = asyncio.Event()
    definitions: set[int] = set()

    def on_change(conn: object, pid: int, channel: str, payload: str) -> None:
        transaction, _, tables = payload.partition(" ")
        oids = {int(oid) for oid in tables.split(",")}
        changes.hear(int(transaction), oids)
        if not definitions.isdisjoint(oids):
            outdated.set()

    login, session = database.logins["owner"], database.session("listener")
    conn = await connections.connect(login, patience=2, timeout=5, command_timeout=5, server_settings=session)
    try:
        conn.add_termination_listener(lambda _: lost.set())
        changes.last.clear()
        await conn.add_listener("metrics_api", on_change)
        row = await conn.fetchrow("SELECT * FROM begin_listening()")
        definitions.update(row["definitions"])
        changes.begin(parse_snapshot(row["snapshot"]), row["taken_at"], row["database_id"])
        outdated.set()
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(lost.wait(), HEARTBEAT)
            await conn.execute("SELECT 1", timeout=HEARTBEAT)
    finally:
        conn.terminate()


# ------------------------------------------------------------------------------------------------ cache


class Plan(NamedTuple):
    """What a request comes to: a metric, the values of its parameters, the key that both give, and a format."""

    metric: Metric
    values: tuple[str | None, ...]
    key: str
    media: str


def make_plan(metric: Metric, pairs: Iterable[tuple[str, str]], caller: Caller, media: str) -> Plan:
    values = bind(metric, pairs, caller)
    return Plan(metric, values, f"{metric.id}:{metric.digest}:{encode(values).decode()}", media)


class Answer(NamedTuple):
    """A body ready to be sent, with the headers that do not change between requests; a 304 goes without its own."""

    headers: list[tuple[bytes, bytes]]
    body_headers: list[tuple[bytes, bytes]]
    etag: bytes
    body: bytes


class Entry(msgspec.Struct, eq=False):
    """A result in the cache; made_at is the clock (time.monotonic) when its run began."""

    metric: Metric
    result: Result
    made_at: float
    ttl: float
    began: int = -1  # the epoch when its run began, -1 when that was in another instance
    checked: int = -1  # the last epoch at which nothing had changed
    milliseconds: float = 0
    answers: dict[tuple[str, bool], Answer] = {}
    size: int = 0

    @property
    def age(self) -> float:
        return time.monotonic() - self.made_at


class MemoryCache:
    """Entries by key, bounded in bytes; what was used longest ago goes first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self.entries: OrderedDict[str, Entry] = OrderedDict()

    def get(self, key: str) -> Entry | None:
        if entry := self.entries.get(key):
            self.entries.move_to_end(key)
        return entry

    def put(self, key: str, entry: Entry) -> None:
        """Keep an entry, counted as large as it now is, unless it is too large or a newer one is there; make room."""
        if (kept := self.entries.get(key)) and kept.made_at > entry.made_at:
            return
        self.drop(key)
        answers = sum(1024 + len(answer.body) for answer in entry.answers.values())
        entry.size = 1024 + len(key) + len(entry.result.rows) + answers
        if entry.size > self.max_bytes:
            return
        self.entries[key] = entry
        self.bytes += entry.size
        while self.bytes > self.max_bytes:
            self.drop(next(iter(self.entries)))

    def drop(self, key: str) -> None:
        if entry := self.entries.pop(key, None):
            self.bytes -= entry.size


MAX_SHARED = 2**20  # bytes of a result
# A value, and what is left of its TTL by Redis's clock (milliseconds), for instances' may differ.
LOOK_UP = "return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}"
encode_shared = msgspec.msgpack.Encoder().encode
decode_shared = msgspec.msgpack.Decoder(tuple[Result, float]).decode


class SharedCache:
    """Redis, which all instances share; slow or gone, it is left alone for a while and costs nothing but its hits."""

    def __init__(self, url: str) -> None:
        self.backend: Any = None
        self.retry_at = 0.0
        if url != "memory://":
            # A tenth of a second of every start that only those who have a Redis spend.
            from aiocache import Cache
            from aiocache.serializers import NullSerializer

            self.backend = Cache.from_url(url)
            self.backend.serializer = NullSerializer(encoding=None)  # bytes stay bytes
            self.backend.timeout = 0  # its own may swallow a cancellation

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self.backend is None or time.monotonic() < self.retry_at:
            return None
        try:
            async with asyncio.timeout(0.1):
                return await getattr(self.backend, method)(*args, **kwargs)
        except Exception as exc:  # whatever a client may raise: only hits are lost
            self.retry_at = time.monotonic() + 5
            warn("the shared cache is left alone for 5 s", reason=repr(exc))
            return None

    async def get(self, key: str) -> tuple[Result, float] | None:
        """A result and its age (seconds)."""
        value, left = await self.call("raw", "eval", LOOK_UP, 1, key) or (None, 0)
        with suppress(msgspec.MsgspecError):
            if value and left > 0:
                result, ttl = decode_shared(value)
                return result, max(0, ttl - left / 1000)
        return None

    async def close(self) -> None:
        if self.backend:
            with suppress(Exception):
                await self.backend.client.aclose()


# ------------------------------------------------------------------------------------------------ answers

MEDIA_TYPES = {"json": "application/json", "csv": "text/csv; charset=utf-8", "ndjson": "application/x-ndjson"}


def weights(header: str) -> Iterator[tuple[str, float]]:
    """What a header such as Accept names, and how much each is wanted (RFC 9110, 12.4.2)."""
    for part in header.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        yield name, float(quality) if re.fullmatch(r"0(\.\d{0,3})?|1(\.0{0,3})?", quality) else 0.0


@functools.lru_cache(maxsize=256)
def accepted_format(accept: str) -> str:
    """The best weight wins, then what is named first; of the ranges that cover a format the narrowest counts."""
    wanted = {name: (weight, -place) for place, (name, weight) in enumerate(weights(accept))}

    def rank(name: str) -> tuple[float, int]:
        kind = MEDIA_TYPES[name].partition(";")[0]
        covering = (kind, kind.partition("/")[0] + "/*", "*/*")
        return next((wanted[media_range] for media_range in covering if media_range in wanted), (0, 0))

    best = max(MEDIA_TYPES, key=rank)
    return best if rank(best)[0] else "json"


def render(about: Definition, result: Result, media: str) -> bytes:
    if media == "ndjson":
        return result.rows + b"\n" if result.rows else b""
    if media == "csv":
        return render_csv(result)
    if media == "mcp":
        return mcp.render(about, result)
    records = msgspec.Raw(b"[" + result.rows.replace(b"\n", b",") + b"]")
    columns, layouts = list(result.columns), list(about.layouts)
    return encode(MetricResult(about.id, about.title, about.is_editable, columns, records, layouts, result.truncated))


# An escape in JSON, without a group when it is half a surrogate pair, which columns of type json can hold.
ESCAPE = re.compile(rb"(\\[^u]|\\u(?![dD][89a-fA-F])|\\u[dD][89abAB]..\\u[dD][c-fC-F])|\\u[dD][89a-fA-F]..")


def render_csv(result: Result) -> bytes:
    """RFC 4180; numbers keep the digits that the database wrote, nested values stay JSON, NULL is an empty cell."""
    decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow([column.name for column in result.columns])
    rows = result.rows
    if rb"\u" in rows:
        rows = ESCAPE.sub(lambda escape: escape[1] or rb"\ufffd", rows)
    try:
        for line in rows.splitlines():
            writer.writerow([csv_cell(bytes(value)) for value in decode(line).values()])
    except RecursionError:
        raise Problem(422, "A value is nested too deep for CSV; ask for JSON.") from None
    return out.getvalue().encode()


def csv_cell(value: bytes) -> str:
    if value == b"null":
        return ""
    return msgspec.json.decode(value, type=str) if value.startswith(b'"') else value.decode()


MIN_GZIP = 1024  # bytes; below, the header costs more than it saves


def make_answer(about: Definition, entry: Entry, media: str, gzipped: bool, stale: float) -> Answer:
    body = render(about, entry.result, media)
    etag = hashlib.sha256(body).hexdigest()[:32]
    body_headers = [(b"content-type", MEDIA_TYPES.get(media, "application/json").encode())]
    if gzipped and len(body) >= MIN_GZIP:
        body, etag = gzip.compress(body, 5, mtime=0), f"{etag}-gzip"
        body_headers.append((b"content-encoding", b"gzip"))
    body_headers.append((b"content-length", b"%d" % len(body)))
    headers = [
        (b"etag", b'"%b"' % etag.encode()),
        (b"cache-control", b"private, max-age=%.0f, stale-while-revalidate=%.0f" % (entry.ttl, stale)),
        (b"vary", b"Accept, Accept-Encoding, Authorization"),
    ]
    if entry.result.truncated and media != "json":
        headers.append((b"x-truncated", b"true"))
    return Answer(headers, body_headers, headers[0][1], body)


@functools.lru_cache(maxsize=256)
def accepts_gzip(header: bytes) -> bool:
    """Whether gzip, or else anything, is accepted (RFC 9110, 12.5.3)."""
    wanted = dict(weights(header.decode("latin-1")))
    return wanted.get("gzip", wanted.get("*", 0)) > 0


def matches(header: bytes, etag: bytes) -> bool:
    """If-None-Match (RFC 9110, 13.1.2) compares weakly."""
    return header == etag or any(tag.strip().removeprefix(b"W/") in (etag, b"*") for tag in header.split(b","))


# ------------------------------------------------------------------------------------------------ results


class Directives(NamedTuple):
    """A request's Cache-Control (RFC 9111, 5.2.1), as far as it is honoured; no-cache is max-age=0."""

    max_age: float = float("inf")
    only_if_cached: bool = False


MAX_AGE = re.compile(r'max-age="?(\d{1,10})"?')


@functools.lru_cache(maxsize=256)
def parse_directives(header: str) -> Directives:
    directives = [directive.strip() for directive in header.lower().split(",")]
    ages = [float(age[1]) for directive in directives if (age := MAX_AGE.fullmatch(directive))]
    max_age = 0 if "no-cache" in directives else min(ages, default=float("inf"))
    return Directives(max_age, "only-if-cached" in directives)


LOOK_AFTER = 0.05  # seconds


async def disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Flight:
    """One run of a metric for all who wait for the same key; cancelled when the last has left, unless it refreshes."""

    def __init__(self, task: asyncio.Task[Entry], epoch: int) -> None:
        self.task, self.epoch = task, epoch
        self.began = time.monotonic()
        self.waiters = 0
        self.refreshes = False

    async def wait(self, receive: Receive | None) -> Entry:
        """Raises what the run raises, or ClientDisconnect when receive says so first."""
        self.waiters += 1
        leaving: list[asyncio.Task[None]] = []
        try:
            # Most runs end before it is worth a task to look whether the client is still there.
            await asyncio.wait([self.task], timeout=LOOK_AFTER if receive else None)
            if receive and not self.task.done():
                leaving.append(asyncio.create_task(disconnected(receive)))
                await asyncio.wait([self.task, *leaving], return_when=asyncio.FIRST_COMPLETED)
            if not self.task.done():
                raise ClientDisconnect
            return self.task.result()
        finally:
            self.waiters -= 1
            for task in leaving:
                task.cancel()
            if not self.waiters and not self.refreshes:
                self.task.cancel()


class Results:
    """Results by key: from memory, from the shared cache, or from one run for all who ask meanwhile."""

    def __init__(self, settings: Settings, catalog: Catalog, changes: Changes, instruments: Instruments) -> None:
        self.settings, self.catalog, self.changes, self.instruments = settings, catalog, changes, instruments
        self.memory = MemoryCache(settings.cache_max_bytes)
        self.shared = SharedCache(settings.cache_url)
        self.flights: dict[str, Flight] = {}
        self.tasks: set[asyncio.Task[Any]] = set()
        self.database_fails = False

    def is_current(self, entry: Entry) -> bool:
        """Whether nothing that an entry was made from has changed, as far as the listener has heard."""
        if entry.checked != self.changes.epoch:
            if not self.changes.seen_by(entry.result, self.changes.of(entry.metric.tables), entry.began):
                return False
            entry.checked = self.changes.epoch
        return True

    def fresh(self, key: str) -> Entry | None:
        """An entry that is a hit for whoever asks for no more than that."""
        entry = self.memory.get(key)
        return entry if entry and self.is_current(entry) and entry.age <= entry.ttl else None

    async def get(self, plan: Plan, wants: Directives, receive: Receive | None = None) -> tuple[Entry, str]:
        """A result and its Cache-Status (RFC 9211).

        Raises Problem 504 for only-if-cached, ClientDisconnect, or what the run raises when nothing stale may stand in.
        """
        entry = self.memory.get(plan.key)
        if entry and (wants.max_age <= 0 or entry.age > min(wants.max_age, entry.ttl + self.settings.cache_stale)):
            entry = None
        if entry:
            current = self.is_current(entry)
            if current and entry.age <= entry.ttl:
                return entry, "hit"
            # While nobody listens, only a failing database lets an older result stand in at once.
            if current if self.changes.connected_since else self.database_fails:
                self.board(plan)[0].refreshes = True
                return entry, "fwd=stale"
        if wants.only_if_cached:
            if (shared := await self.recall(plan)) and shared.age <= wants.max_age:
                return shared, "hit; detail=shared"
            raise Problem(504, "Nothing is cached for only-if-cached; ask without it.")
        flight, joined = self.board(plan, wants.max_age)
        try:
            made = await flight.wait(receive)
        except DATABASE_DOWN:
            if entry:
                return entry, "fwd=stale"
            raise
        if made.began < 0:
            return made, "hit; detail=shared"
        return made, "fwd=miss; collapsed" if joined else "fwd=miss"

    def board(self, plan: Plan, max_age: float = float("inf")) -> tuple[Flight, bool]:
        """The flight under way, if it is not too old, no change was heard of since and it goes on; else a new one."""
        flight = self.flights.get(plan.key)
        if (
            flight
            and flight.began >= time.monotonic() - max_age
            and flight.epoch >= self.changes.last_epoch(plan.metric.tables)
            and not flight.task.cancelling()
        ):
            return flight, True
        flight = Flight(self.create_task(self.fly(plan, max_age)), self.changes.epoch)
        flight.task.add_done_callback(functools.partial(self.land, plan.key, flight))
        self.flights[plan.key] = flight
        return flight, False

    def land(self, key: str, flight: Flight, task: asyncio.Task[Entry]) -> None:
        if self.flights.get(key) is flight:
            del self.flights[key]
        if not task.cancelled() and (exc := task.exception()) and flight.refreshes:
            warn("a run in the background failed", key=key, reason=repr(exc.__cause__ or exc))

    def create_task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """The event loop alone would not keep a task from being collected."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def fly(self, plan: Plan, max_age: float) -> Entry:
        """From the shared cache, when another instance has made it and it is young enough, or else from a run."""
        began, epoch, reviewed = time.monotonic(), self.changes.epoch, plan.metric.login == "reader"
        if max_age > 0 and (entry := await self.recall(plan)) and entry.age <= max_age:
            return entry
        try:
            result = await self.run_up_to_date(plan, began)
        except Exception as exc:
            # A connection of the guest's may well have been lost to its own query.
            self.database_fails = isinstance(exc, DATABASE_DOWN) if reviewed else self.database_fails
            raise
        self.database_fails = self.database_fails and not reviewed
        entry = self.make_entry(plan, result, began, epoch)
        entry.milliseconds = entry.age * 1000
        seconds, rows = self.instruments.run(plan.metric.id)
        seconds.observe(entry.age)
        rows.inc(result.row_count)
        if self.is_current(entry):
            self.memory.put(plan.key, entry)
            if self.shared.backend and self.changes.connected_since and len(result.rows) <= MAX_SHARED:
                # Redis counts the milliseconds that are left of the TTL.
                value, left = encode_shared((result, entry.ttl)), max(entry.ttl - entry.age, 0.001)
                self.create_task(self.shared.call("set", self.shared_key(plan), value, ttl=left))
        return entry

    async def run_up_to_date(self, plan: Plan, asked: float) -> Result:
        """Run a metric so that it sees all that had been heard of before; Problem 503 when no host is up to date.

        A replica may be behind: it has POOL_TIMEOUT since it was asked for to catch up, then the primary is taken.
        """
        heard = self.changes.of(plan.metric.tables)
        deadline, needed = asked + self.settings.pool_timeout, None
        while True:
            result = await run_metric(self.catalog, plan.metric, plan.values)
            if result.replayed is None or self.changes.seen_by(result, heard):
                return result
            needed = needed or await written(self.catalog.database)
            if needed and result.replayed >= needed:
                return result
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.02)
        try:
            return await run_metric(self.catalog, plan.metric, plan.values, primary=True)
        except asyncpg.TargetServerAttributeNotMatched:
            raise Problem(503, "The replicas are behind; try again.") from None

    def make_entry(self, plan: Plan, result: Result, made_at: float, began: int = -1) -> Entry:
        ttl = plan.metric.about.ttl
        return Entry(plan.metric, result, made_at, self.settings.cache_ttl if ttl is None else ttl, began)

    def shared_key(self, plan: Plan) -> str:
        digest = hashlib.sha256(f"{self.changes.database_id}:{plan.key}".encode()).hexdigest()
        return f"metrics-api:{digest}"

    async def recall(self, plan: Plan) -> Entry | None:
        """A fresh entry from the shared cache, if it was made since this instance listens and no change was heard."""
        listening = self.shared.backend and self.changes.connected_since
        if not (listening and (found := await self.shared.get(self.shared_key(plan)))):
            return None
        result, age = found
        entry = self.make_entry(plan, result, time.monotonic() - age)
        if entry.age > entry.ttl or not self.changes.connected_since or not self.is_current(entry):
            return None
        self.memory.put(plan.key, entry)
        return entry

    async def answer(self, plan: Plan, entry: Entry, gzipped: bool = False) -> Answer:
        """The body of an entry in the plan's format, made once; title and layouts are the metric's as they are now."""
        metric, media = plan.metric, plan.media
        if entry.metric is not metric:
            entry.answers.clear()
            entry.metric = metric
        if (answer := entry.answers.get((media, gzipped))) is None:
            large = len(entry.result.rows) > 64 * 1024
            make = functools.partial(make_answer, metric.about, entry, media, gzipped, self.settings.cache_stale)
            answer = await asyncio.to_thread(make) if large and (gzipped or media == "csv") else make()
            if entry.metric is metric:
                entry.answers[media, gzipped] = answer
                if self.memory.get(plan.key) is entry:
                    self.memory.put(plan.key, entry)
        return answer


# ------------------------------------------------------------------------------------------------ hits

MAX_SEEN, MAX_SEEN_BYTES, MAX_PIECE, MAX_MASKS = 8192, 16 * 2**20, 8 * 1024, 4
# What begins the lines that proxies add, which differ each time and change no answer.
VOLATILE = re.compile(
    rb"\r\n(?:(x-request-id)|(traceparent)|x-forwarded-[a-z]+|x-real-ip|x-amzn-trace-id|forwarded|via|cf-[a-z-]+"
    rb"|tracestate):",
    re.IGNORECASE,
)
CONTROLS = bytes(set(range(32)) - {ord("\t")}) + b"\x7f"  # what the parser takes in no line
# Whose answer depends on more than the request's words and the cache.
NOT_SEEN = frozenset({b"cache-control", b"content-length", b"expect", b"transfer-encoding", b"upgrade"})
HIT_LINE = (
    b'{"time":"%b","level":"info","logger":"metrics_api","message":"request","request_id":"%b",%b,"duration_ms":%.3f%b}'
    b"\n"
)


class Mask(NamedTuple):
    """The beginnings of a head's volatile lines in their order, and which of them are an id and a traceparent."""

    lines: tuple[bytes, ...] = ()
    request_id: int | None = None
    traceparent: int | None = None

    def cut(self, piece: bytes) -> tuple[bytes, bytes, bytes] | None:
        """A head without these lines, and the id and the traceparent in them; None for a head with other lines."""
        kept, values, start = [], [], 0
        if piece.find(b"\r\n\r\n") != len(piece) - 4:
            return None  # what stands behind the head's end is no line of it
        for line in self.lines:
            if (found := piece.find(line, start)) < 0:
                return None
            kept.append(piece[start:found])
            start = piece.find(b"\r\n", found + 2)
            values.append(piece[found + len(line) : start])
        cut = b"".join(values)
        if len(cut.translate(None, CONTROLS)) < len(cut):
            return None
        given = b"" if self.request_id is None else values[self.request_id].strip()
        parent = b"" if self.traceparent is None else values[self.traceparent].strip()
        return b"".join([*kept, piece[start:]]), given, parent


def mask_of(piece: bytes) -> Mask | None:
    """None for a head that says twice what is given back, or that has a line which goes on the one before."""
    found = list(VOLATILE.finditer(piece))
    ids, traces = ([i for i, line in enumerate(found) if line[group]] for group in (1, 2))
    if len(ids) > 1 or len(traces) > 1 or b"\r\n " in piece or b"\r\n\t" in piece:
        return None
    return Mask(tuple(line[0] for line in found), *(next(iter(each), None) for each in (ids, traces)))


class SeenRequest(msgspec.Struct, eq=False, frozen=True):
    """A request that a hit answered, and what is the same each time: of the head, of the log line, and what counts."""

    plan: Plan
    form: tuple[str, bool]
    etag: bytes
    caller: Caller
    head: bytes
    has_body: bool
    line: bytes
    seconds: Histogram
    results: Counter


class Seen:
    """Requests by their bytes: what comes again in the same ones is answered without being parsed.

    It comes to what the whole way through the application would, which does without it. Bounded in number and bytes,
    and forgotten when any metric changes or the issuer's keys do.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.requests: dict[bytes, SeenRequest] = {}
        self.bytes = 0
        self.masks: list[Mask] = []  # the last ones: requests come through a few proxies

    def forget(self) -> None:
        self.requests.clear()
        self.bytes = 0

    def remember(self, piece: bytes, scope: Scope) -> None:
        """Take in a request, whose head is the whole piece, that has just been answered."""
        if scope.get("cache") != "hit" or not NOT_SEEN.isdisjoint(name for name, _ in scope["headers"]):
            return
        if not ((mask := mask_of(piece)) and (cut := mask.cut(piece))):
            return
        state, status, (plan, form, etag) = scope["state"], scope["status"], scope["answered"]
        if state["catalog"].metrics.get(plan.metric.id) is not plan.metric:
            return
        about = {"metric_id": plan.metric.id, "status": status, "cache": "hit", "subject": scope["caller"].subject}
        line = encode({"method": scope["method"], "path": shortened(scope["path"]), **about})[1:-1]
        lines = [b"%b: %b\r\n" % pair for pair in scope["answer_headers"] if pair[0] != b"age"]
        head = b"HTTP/1.1 %d %b\r\n%b" % (status, HTTPStatus(status).phrase.encode(), b"".join(lines))
        self.masks, key = [mask, *(other for other in self.masks if other != mask)][:MAX_MASKS], cut[0]
        self.bytes += len(key) + len(head) + len(line) + 1024
        if len(self.requests) >= MAX_SEEN or self.bytes > MAX_SEEN_BYTES:
            self.forget()
        has_body, hits = status == 200 and scope["method"] == "GET", state["instruments"].result(plan.metric.id, "hit")
        seconds = state["instruments"].request(scope["method"], scope["route"].path, status)
        self.requests[key] = SeenRequest(plan, form, etag, scope["caller"], head, has_body, line, seconds, hits)

    def answer(self, piece: bytes, state: State, date: bytes) -> tuple[bytes, bytes] | None:
        """The head and body of the answer to a request that was seen before, while what it came to holds."""
        started = time.perf_counter()
        seen, given, parent = self.requests.get(piece), b"", b""
        if seen is None and len(piece) <= MAX_PIECE:
            for mask in self.masks:
                if (cut := mask.cut(piece)) and (seen := self.requests.get(cut[0])):
                    _, given, parent = cut
                    break
        if seen is None:
            return None
        entry = self.results.fresh(seen.plan.key)
        answer = entry and entry.metric is seen.plan.metric and entry.answers.get(seen.form)
        if not entry or not answer or answer.etag != seen.etag or seen.caller.expires <= time.time():
            return None
        request_id, trace = name_request(state["request_ids"], given, parent)
        trace_line = b"traceparent: %b\r\n" % trace if trace else b""
        head = b"%b%bage: %d\r\nx-request-id: %b\r\n%b\r\n" % (seen.head, date, entry.age, request_id, trace_line)
        seconds = time.perf_counter() - started
        seen.seconds.observe(seconds)
        seen.results.inc()
        if stream := state["log"]:
            trace_id = b',"trace_id":"%b"' % trace[3:35] if trace else b""
            stream.put(HIT_LINE % (stream.clock(), request_id, seen.line, seconds * 1000, trace_id))
        return head, answer.body if seen.has_body else b""


# ------------------------------------------------------------------------------------------------ bodies

MAX_DEPTH, MAX_PEELED = 64, 2**18  # bytes
SILENCE, MIN_TAKEN = 30, 64 * 1024  # seconds in which a client must go on; bytes of an answer that it must take in them
NO_BRACKETS = bytes(set(range(256)).difference(b"[]{}"))
T = TypeVar("T")
# msgspec's words, and what a caller is told to send.
FLAWS = {
    r"^Expected (.*), got (.*)$": r"must be \1, not \2",
    r"^Expected ": "must be ",
    r"^Object contains unknown field ": "has the unknown field ",
    r"^Object missing required field ": "lacks the field ",
}


async def read_chunks(request: Request[State], limit: int, hint: str = "") -> AsyncIterator[bytes]:
    """The body as it arrives; raises Problem 413 as soon as it is announced or has come, 408, or ClientDisconnect."""
    size, received, scope = int(request.headers.get("content-length", 0)), 0, request.scope
    scope["unread"] = True
    ends = time.monotonic() + MAX_UPLOAD_TIME
    while scope["unread"] and size <= limit:
        try:
            async with asyncio.timeout(min(SILENCE, ends - time.monotonic())):
                message = await request.receive()
        except TimeoutError:
            detail = f"Nothing of the body has come for {SILENCE} s, or not all of it in {MAX_UPLOAD_TIME} s."
            raise Problem(408, detail) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        scope["unread"], chunk = message.get("more_body", False), message.get("body", b"")
        received += len(chunk)
        size = max(size, received)
        if chunk and size <= limit:
            yield chunk
    if size > limit:
        raise Problem(413, f"The body is larger than {limit} bytes{hint}.")


def media_type(request: Request[State]) -> str:
    """Raises Problem 415 for a body that is compressed."""
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Problem(415, "Send the body without a Content-Encoding.", headers={"Accept-Encoding": "identity"})
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request[State]) -> bytes:
    """Raises Problem 408, 413 or 415."""
    if media_type(request) not in ("application/json", "application/merge-patch+json"):
        raise Problem(415, "Send Content-Type: application/json.")
    return b"".join([chunk async for chunk in read_chunks(request, request.state["settings"].max_body)])


async def read_json(request: Request[State], kind: type[T]) -> T:
    """Raises Problem 408, 413, 415, 400 for what is no JSON, 422 for what is not of the kind."""
    body = await read_body(request)
    try:
        if body.count(b"{") > MAX_SQL:  # no SQL has as many braces, and a list is made before it is too long
            raise msgspec.ValidationError(f"must not have more than {MAX_SQL} objects")
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        await asyncio.to_thread(check_json, body)
        raise flawed(exc, "body") from None


def flawed(exc: Exception, whole: str) -> Problem:
    """What msgspec finds wrong with a value, of which the whole has a name."""
    detail, _, path = str(exc).partition(" - at `$")
    path = path.strip("`").lstrip(".")
    for pattern, words in FLAWS.items():
        detail = re.sub(pattern, words, detail)
    return Problem(422, f"{path or f'The {whole}'} {detail}.", [InputError(path or whole, detail)])


def check_json(body: bytes) -> None:
    """Raises Problem 400, which goes before what is wrong with values; how deep a large body is may be anything."""
    try:
        body.decode()
        msgspec.json.decode(body, type=msgspec.Raw)
    except UnicodeDecodeError:
        raise Problem(400, "The body is not UTF-8.") from None
    except (msgspec.DecodeError, RecursionError) as exc:
        reason = "it is nested too deep" if isinstance(exc, RecursionError) else str(exc)
        raise Problem(400, f"The body is not JSON: {reason}.") from None
    if len(body) > MAX_PEELED:
        return
    # Without what is escaped, every second quote ends a string.
    outside_strings = body.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2]
    brackets = b"".join(outside_strings).translate(bytes.maketrans(b"{}", b"[]"), NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise Problem(400, f"The body is nested over {MAX_DEPTH} deep.")


def check_text(name: str, text: str | None) -> None:
    """Raises Problem 422 for what PostgreSQL cannot store."""
    if text and "\0" in text:
        raise Problem(422, f"{name} must not contain a NUL character.", [InputError(name, "contains a NUL character")])


def check_layouts(layouts: Sequence[Layout]) -> None:
    names = [layout.breakpoint for layout in layouts]
    check_text("breakpoint", "".join(names))
    if len(set(names)) < len(names):
        raise Problem(422, "A breakpoint has two layouts.", [InputError("layouts", "a breakpoint has two")])


# ------------------------------------------------------------------------------------------------ records

READERS: dict[str, Callable[[AsyncIterator[bytes], records.Schema], AsyncIterator[records.Slice]]] = {
    "application/json": records.json_records,
    "application/x-ndjson": records.ndjson_records,
    "application/ndjson": records.ndjson_records,
    "text/csv": records.csv_records,
}


async def read_records(request: Request[State], kind: str, series: str) -> AsyncIterator[list[records.Row]]:
    """Rows to insert, a batch at a time, the last may be none; raises Problem 400, 408, 413, or 422 with the errors."""
    settings, unit, hint = request.state["settings"], "line", ""
    limit = settings.max_upload
    if kind == "application/json":
        unit, hint, limit = "row", f": send NDJSON or CSV, which may have {limit}", settings.max_body
    slices = READERS[kind](read_chunks(request, limit, hint), records.UPLOAD)
    try:
        async for batch in records.batches(slices, series, unit):
            yield batch
    except records.BadRecords as exc:
        errors = [InputError(*flaw) for flaw in exc.flaws]
        raise Problem(400 if exc.malformed else 422, f"Nothing was written: {exc}.", errors) from None


async def insert_records(conn: asyncpg.Connection, statement: str, *columns: Sequence[Any]) -> int:
    """How many were not there yet, in a transaction that is as short as can be."""
    async with connections.changing(conn, "metrics"):
        return cast(int, await conn.fetchval(statement, *columns))


# ------------------------------------------------------------------------------------------------ model

MAX_VALUES = 1000  # that the mock looks for in a prompt


async def write_sql(state: State, prompt: str, about: Definition) -> tuple[Metric, list[str]]:
    """A metric for a prompt, by the model that is configured or else the built-in mock, and what that did not read.

    PostgreSQL's objections go back to the model, twice at most. Raises ModelFailed, or Problem 422.
    """
    settings, database = state["settings"], state["database"]
    if not settings.sql_model_url:
        from seed import mock_model

        async with database.connection("gate") as conn:
            types = await model.known_values(conn, "metrics", "alert_type", MAX_VALUES)
            categories = await model.known_values(conn, "metrics", "alert_category", MAX_VALUES)
        sql, notes = mock_model.mock_sql(prompt, about.id, types, categories)
        return await pass_gate(database, msgspec.structs.replace(about, sql=sql)), notes
    # What not everybody may see is not for the model, whose answer the caller sees.
    metrics = [m.about for m in state["catalog"].metrics.values() if not (m.fault or m.about.roles)]
    schema = await database.schema()
    async with database.connection("gate") as conn:
        tables = await model.describe_tables(conn, schema)
    task = model.TASK.format(tables=tables, examples=model.nearest(prompt, metrics))
    try:
        async with asyncio.timeout(settings.sql_model_timeout):
            return await converse(database, task, prompt, about), []
    except TimeoutError:
        raise model.ModelFailed(f"it took longer than SQL_MODEL_TIMEOUT, {settings.sql_model_timeout:g} s") from None


async def converse(database: Database, task: str, prompt: str, about: Definition) -> Metric:
    messages = [{"role": "system", "content": task}, {"role": "user", "content": prompt}]
    async with await http_client(timeout=None) as client:
        for _ in range(3):
            answer = await model.complete(client, database.settings, messages)
            sql = model.extract_sql(answer)
            if len(sql) > MAX_SQL:
                raise model.ModelFailed(f"its SQL is longer than {MAX_SQL} characters")
            try:
                return await pass_gate(database, msgspec.structs.replace(about, sql=sql))
            except BadStatement as exc:
                objection = f"PostgreSQL refuses that: {exc}. Answer with the corrected SQL alone."
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": objection}]
    detail = f"no SQL that PostgreSQL accepts came of it; last: {objection}"
    raise Problem(422, f"The prompt gave no metric: {detail}.", [InputError("query_generation_prompt", detail)])


# ------------------------------------------------------------------------------------------------ reading


class State(TypedDict):
    """What lives as long as the application does."""

    settings: Settings
    log: LogStream | None
    request_ids: Iterator[bytes]
    instruments: Instruments
    database: Database
    verifier: Verifier
    catalog: Catalog
    changes: Changes
    results: Results
    seen: Seen
    broadcast: Broadcast
    documents: dict[tuple[str, ...], asyncio.Task[bytes]]


def chart_of(metric: Metric) -> str:
    """The chart a metric asks for, or the one its columns suggest."""
    if metric.about.chart:
        return metric.about.chart
    types = [column.type for column in metric.columns]
    numeric = [kind in ("int2", "int4", "int8", "numeric", "float4", "float8") for kind in types]
    if all(numeric):
        return "number" if len(types) < 4 else "table"
    if len(types) > 1 and all(numeric[1:]):
        return "line" if types[0] in ("date", "timestamp", "timestamptz") else "bar"
    return "table"


def parameters_of(metric: Metric) -> list[Parameter]:
    about = metric.about
    return [
        Parameter(name, kind.name, name in about.required, about.descriptions.get(name, ""))
        for name, kind in zip(metric.names, metric.types, strict=True)
        if name not in about.claims
    ]


def show(metric: Metric, kind: type[T], **more: Any) -> T:
    """A metric as one of the Structs that show it, of what its author and PostgreSQL say, and of more."""
    known = {
        **msgspec.structs.asdict(metric.about),
        "query": metric.about.sql,
        "chart": chart_of(metric),
        "parameters": parameters_of(metric),
        "columns": metric.columns,
        "tables": sorted(metric.tables.values()),
        "fault": metric.fault,
        "place": metric.place.removeprefix(":"),
        **more,
    }
    return msgspec.convert(known, kind)


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode(value), status, headers, "application/json")


async def kept(state: State, name: str, metrics: Iterable[Metric], make: Callable[[], bytes]) -> bytes:
    """What shows metrics, made once for each set of them that callers see, beside the loop, until any changes."""
    documents, key = state["documents"], (name, *(metric.id for metric in metrics))
    if not (made := documents.get(key)) or (made.done() and made.exception()):
        if len(documents) >= 20:  # roles combine in any number of ways
            documents.clear()
        made = documents[key] = asyncio.create_task(asyncio.to_thread(make), name=name)
    return await asyncio.shield(made)


def summaries(catalog: Catalog, metrics: Iterable[Metric]) -> list[MetricSummary]:
    return [show(metric, MetricSummary, live=catalog.live(metric)) for metric in metrics]


async def list_metrics(request: Request[State]) -> Response:
    """The metrics that the caller may see."""
    catalog = request.state["catalog"]
    if catalog.fault:
        raise Problem(503, "The database has not been reached yet; try again.")
    metrics = catalog.visible(request.scope["caller"])
    listed = await kept(request.state, "list", metrics, lambda: encode({"metrics": summaries(catalog, metrics)}))
    return Response(listed, media_type="application/json")


async def read_metric(request: Request[State]) -> Response:
    """Run any metric; the query string binds its parameters."""
    scope, results = request.scope, request.state["results"]
    metric_id, _, media = request.path_params["id"].rpartition(".")
    if media not in ("csv", "ndjson"):
        metric_id, media = request.path_params["id"], accepted_format(header_text(scope, b"accept"))
    metric = request.state["catalog"].find(metric_id, scope["caller"])
    scope["metric_id"] = metric.id
    plan = make_plan(metric, query_pairs(scope["query_string"]), scope["caller"], media)
    wants = parse_directives(header_text(scope, b"cache-control"))
    entry, status = await results.get(plan, wants, request.receive)
    gzipped = accepts_gzip(header(scope, b"accept-encoding"))
    answer = await results.answer(plan, entry, gzipped)
    scope["cache"], scope["answered"] = status, (plan, (media, gzipped), answer.etag)
    timing = b"cache;desc=hit" if status.startswith("hit") else b"db;dur=%.1f" % entry.milliseconds
    said = [(b"age", b"%d" % entry.age), (b"cache-status", f"metrics; {status}".encode()), (b"server-timing", timing)]
    same = matches(header(scope, b"if-none-match"), answer.etag)
    response = Response(status_code=304) if same else Response(answer.body)
    response.raw_headers = [*answer.headers, *said, *([] if same else answer.body_headers)]
    return response


# ------------------------------------------------------------------------------------------------ writing


def audit(request: Request[State], action: str, **fields: Any) -> None:
    """One line for each write, with who did it."""
    scope = request.scope
    who = {"action": action, "subject": scope["caller"].subject, "request_id": scope["request_id"]}
    audit_log.info("audit", extra={"fields": {**who, "metric_id": scope.get("metric_id"), **fields}})


def refuse_parameters(request: Request[State], *known: str) -> None:
    """Raises Problem 422: a dry_run that is ignored would write."""
    if unknown := [InputError(name, "is no parameter here") for name in request.query_params if name not in known]:
        raise input_problem(unknown)


def single_parameter(request: Request[State], name: str, allowed: str, expected: str) -> str | None:
    """The one parameter that a route takes in its query string; raises Problem 422."""
    refuse_parameters(request, name)
    values = request.query_params.getlist(name)
    if len(values) > 1 or not all(re.fullmatch(allowed, value) for value in values):
        raise input_problem([InputError(name, expected)])
    return values[0] if values else None


async def write_metric(state: State, about: Definition, body: NewMetric | MetricPatch) -> tuple[Metric, list[str]]:
    """The metric that SQL or a prompt makes of a definition, and notes on the prompt; raises Problem 422."""
    if bool(body.query) == bool(body.query_generation_prompt):
        raise input_problem([InputError("query", "or query_generation_prompt must be sent, and not both")])
    check_text("query", body.query)
    check_text("query_generation_prompt", body.query_generation_prompt)
    if body.query_generation_prompt:
        return await write_sql(state, body.query_generation_prompt, about)
    return await pass_gate(state["database"], msgspec.structs.replace(about, sql=body.query)), []


PREVIEW, MAX_MADE = 100, 1000  # records of a dry run; metrics by the API, which all stand in each list and document


async def preview(state: State, metric: Metric, notes: list[str]) -> DryRun:
    """What a metric would be; raises as run_metric does, and BadStatement for what fails on the data."""
    try:
        result = await run_metric(state["catalog"], metric, (None,) * len(metric.names))
    except Problem as exc:
        if isinstance(exc.__cause__, asyncpg.PostgresError):
            raise BadStatement(exc.__cause__.message) from exc
        raise
    rows = result.rows.split(b"\n")[:PREVIEW]
    truncated = result.truncated or result.row_count > PREVIEW
    return show(metric, DryRun, notes=notes, records=msgspec.Raw(b"[%b]" % b",".join(rows)), truncated=truncated)


def default_title(metric_id: str, body: NewMetric) -> str:
    """The prompt, or the comment that the SQL opens with."""
    if prompt := " ".join(body.query_generation_prompt.split()):
        return prompt[:200]
    comment = re.match(r"\s*--\s*(.+)", body.query)
    return comment[1].strip()[:200] if comment else f"Metric {metric_id[:8]}"


async def create_metric(request: Request[State]) -> Response:
    """Make a metric of a prompt or of SQL; a dry run stores nothing."""
    body = await read_json(request, NewMetric)
    dry_run = single_parameter(request, "dry_run", "true|false", "must be true or false") == "true"
    made = await make_metric(request, body, dry_run)
    if isinstance(made, DryRun):
        return json_response(made)
    # Relative to what was asked for, for a proxy may strip a prefix.
    location = made.id if request.scope["raw_path"].endswith(b"/") else f"metrics/{made.id}"
    return json_response(made, 201, {"Location": location})


async def make_metric(request: Request[State], body: NewMetric, dry_run: bool) -> DryRun | MetricDefinition:
    """Raises Problem 409 or 422, ModelFailed, BadStatement, or what a run raises."""
    state, metric_id = request.state, str(uuid.uuid4())
    check_text("title", body.title)
    check_layouts(body.layouts)
    about = Definition(
        id=metric_id,
        source="api",
        sql="",
        title=body.title or default_title(metric_id, body),
        series=metric_id,
        is_editable=body.is_editable,
        prompt=body.query_generation_prompt or None,
        created_by=request.scope["caller"].subject,
        layouts=tuple(body.layouts),
    )
    metric, notes = await write_metric(state, about, body)
    if dry_run:
        return await preview(state, metric, notes)
    async with writing(state["database"], "metric_configurations") as conn:
        if await conn.fetchval("SELECT COUNT(*) FROM metric_configurations WHERE source = 'api'") >= MAX_MADE:
            raise Problem(409, f"There are {MAX_MADE} metrics by the API; delete one that is not needed any more.")
        values = (metric_id, metric.about.sql, about.title, about.is_editable, about.prompt, about.created_by)
        await conn.execute("SELECT create_metric($1, $2, $3, $4, $5, $6)", *values)
        await place(conn, metric_id, body.layouts)
    await state["catalog"].adopt(metric)
    request.scope["metric_id"] = metric_id
    audit(request, "create", version=1)
    log.debug("prompt", extra={"fields": {"metric_id": metric_id, "prompt": about.prompt}})
    return show(metric, MetricDefinition, notes=notes)


async def place(conn: asyncpg.Connection, metric_id: str, layouts: Sequence[Layout]) -> None:
    await conn.execute("SELECT place_metric($1, $2)", metric_id, encode(layouts).decode())


def find_metric(request: Request[State], editable: bool) -> Metric:
    """The metric that a write names, whether it compiles or not; raises Problem 404, 403 or 409."""
    metric = request.state["catalog"].find(request.path_params["id"], request.scope["caller"], broken=True)
    request.scope["metric_id"] = metric.id
    if editable and metric.about.source == "file":
        raise Problem(409, f"The metric {metric.id} comes from queries/{metric.id}.sql; edit the file.")
    if editable and not metric.about.is_editable:
        raise Problem(409, f"The metric {metric.id} is not editable.")
    return metric


async def lock_metric(conn: asyncpg.Connection, metric_id: str, wanted: int | None = None) -> None:
    """Raises Problem 404, or 409 when the version is not the one that is wanted."""
    current = await conn.fetchval("SELECT version FROM metric_configurations WHERE id = $1 FOR UPDATE", metric_id)
    if current is None:
        raise Problem(404, "The metric has been deleted meanwhile.")
    if wanted is not None and wanted != current:
        raise Problem(409, f"The version is {current} by now, not {wanted}; read it again.")


async def show_definition(request: Request[State]) -> Response:
    """What a metric is made of, whether it compiles or not."""
    return json_response(show(find_metric(request, editable=False), MetricSource))


async def change_metric(request: Request[State]) -> Response:
    """Change an editable metric."""
    state, metric = request.state, find_metric(request, editable=True)
    body = await read_json(request, MetricPatch)
    refuse_parameters(request)
    wanted = body.version if isinstance(body.version, int) else None
    if wanted is not None:
        # What this instance remembers may be older than what the caller has from another one.
        async with state["database"].connection("owner") as conn:
            await lock_metric(conn, metric.id, wanted)
    about = patched(metric.about, body)
    notes: list[str] = []
    if rewritten := bool(body.query or body.query_generation_prompt):
        metric, notes = await write_metric(state, about, body)
    async with writing(state["database"], "metric_configurations") as conn:
        await lock_metric(conn, metric.id, wanted)
        title = None if body.title is msgspec.UNSET else about.title
        written = (title, metric.about.sql if rewritten else None, body.query_generation_prompt or None)
        await conn.execute("SELECT change_metric($1, $2, $3, $4)", metric.id, *written)
        if body.layouts is not msgspec.UNSET:
            await place(conn, metric.id, about.layouts)
        about = read_definition(await conn.fetchval(f"{DEFINITIONS} WHERE id = $1", metric.id))
    if about.sql != metric.about.sql:
        metric = await state["catalog"].describe(about)
    metric = msgspec.structs.replace(metric, about=about)
    await state["catalog"].adopt(metric)
    audit(request, "change", version=about.version)
    return json_response(show(metric, MetricDefinition, notes=notes))


def patched(about: Definition, body: MetricPatch) -> Definition:
    """The definition with a patch's title and layouts; null takes them away."""
    if not isinstance(body.title, msgspec.UnsetType):
        check_text("title", body.title)
        about = msgspec.structs.replace(about, title=body.title or title_of(about.id))
    if not isinstance(body.layouts, msgspec.UnsetType):
        check_layouts(body.layouts or [])
        about = msgspec.structs.replace(about, layouts=tuple(body.layouts or ()))
    return about


async def delete_metric(request: Request[State]) -> Response:
    """Delete an editable metric; its records stay."""
    metric = find_metric(request, editable=True)
    text = single_parameter(request, "version", "[0-9]{1,9}", "must be a whole number")
    async with writing(request.state["database"], "metric_configurations") as conn:
        await lock_metric(conn, metric.id, int(text) if text else None)
        await conn.execute("SELECT delete_metric($1)", metric.id)
    await request.state["catalog"].forget(metric.id)
    audit(request, "delete", version=metric.about.version)
    return Response(status_code=204)


async def put_layouts(request: Request[State]) -> Response:
    """Place a metric's tile on the dashboard, for each breakpoint."""
    metric = find_metric(request, editable=False)
    layouts = await read_json(request, Layouts)
    refuse_parameters(request)
    check_layouts(layouts)
    async with writing(request.state["database"], "metric_configurations") as conn:
        await lock_metric(conn, metric.id)
        await place(conn, metric.id, layouts)
    about = msgspec.structs.replace(metric.about, layouts=tuple(layouts))
    await request.state["catalog"].adopt(msgspec.structs.replace(metric, about=about))
    audit(request, "layouts")
    return json_response(layouts)


async def create_records(request: Request[State]) -> Response:
    """Write records of a metric's series, all or nothing."""
    database, metric = request.state["database"], find_metric(request, editable=False)
    kind = media_type(request)
    if kind not in READERS:
        raise Problem(415, f"Send Content-Type: {', '.join(READERS)}.")
    batches = read_records(request, kind, metric.about.series)
    # Most bodies are all here before a connection is taken; what lasts longer keeps no other write from its own.
    rows, more = await anext(batches), await anext(batches, None)
    who = {"metric_id": metric.id, "request_id": request.scope["request_id"]}

    def tell(count: int, rate: float) -> None:
        log.info("an upload goes on", extra={"fields": {**who, "records": count, "per_second": round(rate)}})

    refuse_parameters(request)
    if not more:
        count = len(rows)
        async with database.connection("owner") as conn:
            inserted = await insert_records(conn, records.INSERT_GIVEN, *records.as_texts(rows))
    else:
        async with database.connection("upload") as conn:
            try:
                count = await records.stage(conn, records.rows_of((rows, more), batches, tell))
                inserted = await insert_records(conn, records.INSERT_STAGED)
            finally:
                await conn.execute(records.UNSTAGE)
    audit(request, "records", inserted=inserted, duplicates=count - inserted)
    return json_response({"inserted": inserted, "duplicates": count - inserted}, 201)


# ------------------------------------------------------------------------------------------------ pages and health

PAGES = StaticFiles(directory=HERE / "pages", check_dir=False)


def page_headers(tokens_from: str = "") -> dict[str, str]:
    """Lets a page load its own files alone, and ask the service and the one URL that its tokens come from."""
    policy = (
        f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' {tokens_from.partition('?')[0]};"
        " img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    own = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
    return own | {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


@functools.cache
def page_text(name: str) -> str:
    return (HERE / "pages" / name).read_text()


async def dashboard(request: Request[State]) -> Response:
    """The page, told how people are let in; without the endpoints where they sign in while the issuer is down."""
    settings, verifier = request.state["settings"], request.state["verifier"]
    access: dict[str, Any] = {"scopes": settings.scopes}
    if settings.browser_client_id and not verifier.open:
        endpoints = await verifier.endpoints.soon()
        access |= {"issuer": settings.jwt_issuer, "client_id": settings.browser_client_id, **endpoints}
    block = encode(None if verifier.open else access).replace(b"<", b"\\u003c").decode()
    text = page_text("dashboard.html").replace("{access}", block)
    return Response(text, headers=page_headers(access.get("token_endpoint", "")), media_type="text/html")


async def docs(request: Request[State]) -> Response:
    """The OpenAPI document, to read and to try out; what the page loads is beside docs or above docs/."""
    root = "../" if request.scope["raw_path"].endswith(b"/") else ""
    return Response(page_text("docs.html").replace("{root}", root), headers=page_headers(), media_type="text/html")


async def page(request: Request[State]) -> Response:
    """What a page loads."""
    if not request.path_params["name"].endswith((".css", ".js")):
        raise HTTPException(404)
    response = await PAGES.get_response(request.path_params["name"], request.scope)
    response.headers.update(page_headers())
    return response


async def health(request: Request[State]) -> Response:
    """Whether the database answers."""
    database = await request.state["database"].latency("reader") is not None
    return json_response({"application": True, "database": database}, 200 if database else 503)


async def health_live(request: Request[State]) -> Response:
    """Whether the process turns."""
    return Response(b'{"status":"pass"}', media_type="application/health+json")


async def health_ready(request: Request[State]) -> Response:
    """What requests depend on, part by part."""
    checks = await ready_checks(request.state)
    worst = max((check.status for group in checks.values() for check in group), key=("pass", "warn", "fail").index)
    body = encode({"status": worst, "version": VERSION, "releaseId": VERSION, "checks": checks})
    return Response(body, 503 if worst == "fail" else 200, media_type="application/health+json")


async def ready_checks(state: State) -> dict[str, list[Check]]:
    """What requests depend on; only what makes them fail is a failure, so a busy pool is none."""
    catalog, database, verifier = state["catalog"], state["database"], state["verifier"]
    reader, owner = await asyncio.gather(database.latency("reader"), database.latency("owner"))
    since, kind = state["changes"].connected_since, "configured" if state["settings"].sql_model_url else "built-in mock"
    checks = {
        "reader:responseTime": [latency_check(reader, "fail")],
        "owner:responseTime": [latency_check(owner, "warn")],
        "database:migrations": [Check("fail" if catalog.fault else "pass", "datastore", output=catalog.fault or "")],
        "database:privileges": [privileges_check(state)],
        "metrics:files": file_checks(catalog),
        "listener:connectedSince": [
            Check("pass", "component", f"{datetime.fromtimestamp(since, UTC):%FT%TZ}")
            if since
            else Check("warn", "component", output="not connected: results are kept for their ttl and no longer")
        ],
        "cache:bytes": [Check("pass", "component", state["results"].memory.bytes, "bytes")],
        "cache:hitRatio": [Check("pass", "component", state["instruments"].hit_ratio())],
        "model:kind": [Check("pass", "component", kind)],
    }
    for name, pool in database.pools.items():
        used = pool.get_size() - pool.get_idle_size()
        checks[f"{name}:connections"] = [Check("pass", "datastore", used, f"of {pool.get_max_size()}")]
        checks[f"{name}:waiting"] = [Check("pass", "datastore", database.waiting[name], "requests")]
    if not verifier.open:
        checks["keys:age"] = [await keys_check(verifier.keys)]
    return checks


def latency_check(seconds: float | None, without: Literal["warn", "fail"]) -> Check:
    if seconds is None:
        return Check(without, "datastore", output="the database does not answer")
    return Check("pass", "datastore", round(seconds * 1000, 3), "ms")


async def keys_check(keys: Published[jwt.PyJWK]) -> Check:
    """Without keys every token is 503, so they are fetched before the first one comes."""
    if not await keys.soon():
        return Check("fail", "system", output="the issuer's keys cannot be fetched")
    return Check("warn" if keys.failures else "pass", "system", round(time.monotonic() - keys.fetched_at), "s")


async def prometheus(request: Request[State]) -> Response:
    # A balancer that keeps the path from the world compares it as it is written.
    if request.scope["raw_path"].rstrip(b"/") != b"/prometheus":
        raise HTTPException(404)
    text = await asyncio.to_thread(generate_latest, request.state["instruments"].registry)
    return Response(text, media_type="text/plain; version=0.0.4")


def add_gauges(state: State) -> None:
    database, changes, keys = state["database"], state["changes"], state["verifier"].keys
    gauge = state["instruments"].gauge
    for name, pool in database.pools.items():
        gauge("database_connections", "Open connections", pool.get_size, login=name)
        gauge("database_connections_idle", "Idle connections", pool.get_idle_size, login=name)
        waiting = functools.partial(database.waiting.__getitem__, name)
        gauge("database_waiting", "Requests that wait", waiting, login=name)
    gauge("listener_connected", "Whether changes are heard of", lambda: bool(changes.connected_since))
    if state["settings"].jwt_issuer:
        gauge("keys_age_seconds", "Since the keys were fetched", lambda: time.monotonic() - keys.fetched_at)
    gauge("cache_bytes", "In-process cache", lambda: state["results"].memory.bytes)
    gauge("live_subscribers", "Open sockets", lambda: len(state["broadcast"].subscribers))


def privileges_check(state: State) -> Check:
    """A database that other applications may share is not hardened unless somebody says so, which is no fault."""
    if not (unrevoked := state["catalog"].unrevoked):
        return Check("pass", "datastore")
    hardened = state["settings"].harden_database == "on"
    reason = "could not be revoked" if hardened else "not revoked, as HARDEN_DATABASE is off"
    return Check("warn" if hardened else "pass", "datastore", output=f"{reason}: {', '.join(unrevoked)}")


def file_checks(catalog: Catalog) -> list[Check]:
    """One warning for each file or metric with a fault, or a pass."""
    warning = functools.partial(Check, "warn", "component")
    checks = [warning(output=f"{catalog.path(name)}: the file's name is no metric id") for name in catalog.stray_files]
    for metric in catalog.metrics.values():
        name = catalog.place(metric)
        checks += [warning(output=f"{name} does not compile", component_id=metric.id)] if metric.fault else []
        checks += [warning(output=f"{name}: {text}") for text in metric.warnings]
    return checks or [Check("pass", "component", len(catalog.metrics), "metrics")]


# ------------------------------------------------------------------------------------------------ live updates

DEBOUNCE, SOON, LATE = 0.1, 1.0, 60.0  # seconds between results, and until what failed is asked again, first and last
MAX_SOCKETS, MAX_SUBSCRIPTIONS = 20, 200  # of a caller, and of each socket
MAX_MESSAGE, MAX_WATCHED = 64 * 1024, 256 * 1024  # bytes of a message, of all subscriptions of a socket
AUTH_WITHIN, PATIENCE, FAREWELL = 10, 5, 30  # seconds to send the first token, to take a message, and the last one
CLOSING_CODES = {401: 4401, 403: 4403, 421: 4403, 503: 1013}  # by the status of what keeps a socket from being let in


class Subscription(msgspec.Struct, eq=False):
    """One metric with its parameters on one socket, echoed as they were sent; told is what it was told last."""

    subscriber: Subscriber
    metric_id: str
    params: dict[str, Any]
    plan: Plan | None = None
    told: bytes = b""

    def tell(self, news: Answer | Exception) -> None:
        """Send a result that is another than the last one, or say, once, what is the matter."""
        told = news.etag if isinstance(news, Answer) else b"problem %d" % as_problem(news).status
        if self.told != told:
            self.told = told
            self.subscriber.put(news, self.metric_id, self.params, key=self)


class Topic:
    """One metric with one set of values, asked for once on behalf of everybody who watches it."""

    def __init__(self, broadcast: Broadcast, plan: Plan) -> None:
        self.broadcast, self.plan = broadcast, plan
        self.subscriptions: set[Subscription] = set()
        self.outdated = asyncio.Event()
        self.delay = SOON
        self.task = asyncio.create_task(self.run(), name=f"topic {plan.metric.id}")

    async def run(self) -> None:
        """Publish whenever the result really changes; what nobody watches for changes is looked at when it is aged."""
        while True:
            self.outdated.clear()
            # Who comes while it runs is not given what a change before that may have overtaken.
            waiting = self.subscriptions.copy()
            news, seconds = await self.ask()
            for subscription in waiting & self.subscriptions:
                subscription.tell(news)
            await asyncio.sleep(DEBOUNCE)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.outdated.wait(), seconds)

    async def ask(self) -> tuple[Answer | Exception, float]:
        """A result, or what is the matter, and for how many seconds that will do."""
        results = self.broadcast.results
        try:
            async with self.broadcast.turns[self.plan.metric.login]:
                entry, _ = await results.get(self.plan, Directives())
            answer = await results.answer(self.plan, entry)
        except Exception as exc:
            reason = repr(exc.__cause__ or exc)
            warn("a live result cannot be had", metric_id=self.plan.metric.id, key=self.plan.key, reason=reason)
            delay, self.delay = self.delay, min(2 * self.delay, LATE)
            return exc, delay
        self.delay = SOON
        # What stands in while the database fails is looked at again, whatever its TTL.
        return answer, max(SOON, entry.ttl - entry.age) if results.is_current(entry) else SOON


class Broadcast:
    """The topics that somebody watches, by the key of their results; their runs leave half of each pool to requests."""

    def __init__(self, catalog: Catalog, changes: Changes, results: Results) -> None:
        self.catalog, self.results = catalog, results
        self.topics: dict[str, Topic] = {}
        self.subscribers: set[Subscriber] = set()
        sizes = {login: pool.get_max_size() for login, pool in catalog.database.pools.items()}
        self.turns = {login: asyncio.Semaphore(max(1, size // 2)) for login, size in sizes.items()}
        changes.heard_by.append(self.on_change)
        catalog.reloaded_by.append(self.on_reload)

    def on_change(self, tables: Iterable[int] | None) -> None:
        """Have asked again what reads a table, or everything when anything may have changed."""
        for topic in self.topics.values():
            if tables is None or not topic.plan.metric.tables.keys().isdisjoint(tables):
                topic.outdated.set()

    def on_reload(self) -> None:
        """Plan anew what watches a metric that is not what it was, or that could not be planned."""
        for subscriber in self.subscribers:
            for key, subscription in list(subscriber.subscriptions.items()):
                plan = subscription.plan
                if plan is None or self.catalog.metrics.get(plan.metric.id) is not plan.metric:
                    subscriber.renew(key)

    def on_keys(self) -> None:
        for subscriber in self.subscribers:
            subscriber.recheck.set()

    def subscribe(self, subscription: Subscription, plan: Plan) -> None:
        topic = self.topics.get(plan.key) or Topic(self, plan)
        self.topics[plan.key] = topic
        topic.plan = subscription.plan = plan
        topic.subscriptions.add(subscription)
        topic.outdated.set()

    def unsubscribe(self, subscription: Subscription) -> None:
        if subscription.plan:
            topic = self.topics[subscription.plan.key]
            topic.subscriptions.remove(subscription)
            subscription.plan = None
            if not topic.subscriptions:
                topic.task.cancel()
                del self.topics[topic.plan.key]


class Subscriber:
    """One socket: takes messages in, and lets only the newest result of each subscription wait to be sent."""

    def __init__(self, websocket: WebSocket) -> None:
        self.websocket = websocket
        self.broadcast: Broadcast = websocket.scope["state"]["broadcast"]
        self.caller: Caller | None = None
        self.given = b""
        self.subscriptions: dict[bytes, Subscription] = {}
        self.outbox: OrderedDict[object, Callable[[], bytes]] = OrderedDict()
        self.waiting, self.recheck = asyncio.Event(), asyncio.Event()

    def put(self, news: Answer | Exception, metric_id: str | None = None, params: Any = None, key: Any = None) -> None:
        """Let the newest of a key wait; it becomes a message when it is sent, so that slow readers cost no copies."""
        if key or len(self.outbox) < 2 * MAX_SUBSCRIPTIONS:
            self.outbox[key or object()] = functools.partial(live_message, news, metric_id, params)
            self.waiting.set()

    async def send(self) -> None:
        """Raises WebSocketException for a reader that takes nothing."""
        while True:
            while not self.outbox:
                self.waiting.clear()
                await self.waiting.wait()
            _, message = self.outbox.popitem(last=False)
            try:
                async with asyncio.timeout(PATIENCE):
                    await self.websocket.send_text(message().decode())
            except TimeoutError:
                raise WebSocketException(1013, f"nothing was read for {PATIENCE} s") from None

    async def authenticate(self, given: bytes) -> None:
        """Raises WebSocketException."""
        scope, known = self.websocket.scope, self.caller
        try:
            check_loopback(scope, scope["state"]["settings"])
            self.caller = caller = await authenticate(scope, given)
        except (InvalidToken, Problem) as exc:
            problem = as_problem(exc)
            raise WebSocketException(CLOSING_CODES[problem.status], problem.detail) from exc
        self.given = given
        if known and known.lasting_claims() == caller.lasting_claims():
            return
        others = [each.caller for each in self.broadcast.subscribers if each.caller and each is not self]
        # An open service cannot tell callers apart.
        if caller is not OPEN and sum(other.subject == caller.subject for other in others) >= MAX_SOCKETS:
            raise WebSocketException(1013, f"{MAX_SOCKETS} sockets of one caller are open; close one")
        for key in list(self.subscriptions):
            self.renew(key)

    async def expire(self) -> None:
        """Raises WebSocketException when there is no token in time, or the last one has expired or lost its key."""
        until = time.time() + AUTH_WITHIN
        while (left := (self.caller.expires if self.caller else until) - time.time()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.recheck.wait(), min(left, 3600))
            self.recheck.clear()
            if self.caller:
                await self.authenticate(self.given)
        raise WebSocketException(4401, "no valid token")

    async def receive(self) -> None:
        """Raises WebSocketException, or WebSocketDisconnect when the client leaves."""
        while (event := await self.websocket.receive())["type"] != "websocket.disconnect":
            try:
                await self.take(parse_message(event.get("text") or event.get("bytes") or ""))
            except Problem as exc:
                self.put(exc)
            await asyncio.sleep(0)  # messages that are here already would not let others have their turn
        raise WebSocketDisconnect

    async def take(self, message: dict[str, Any]) -> None:
        params = message.get("params")
        match {**message, "params": {} if params is None else params}:
            case {"type": "auth", "token": str(token)}:
                await self.authenticate(b"Bearer " + token.encode(errors="replace"))
                self.recheck.set()
            case _ if self.caller is None:
                raise WebSocketException(4401, "the first message must be the token")
            case {"type": "subscribe", "id": str(metric_id), "params": dict(params)}:
                self.subscribe(metric_id, params)
            case {"type": "unsubscribe", "id": str(metric_id), "params": dict(params)}:
                self.unsubscribe(encode_sorted([metric_id, params]))
            case _:
                detail = "Send subscribe or unsubscribe with an id and params, or auth with a token."
                given = message.get("id")
                self.put(Problem(422, detail), given if isinstance(given, str) else None)

    def subscribe(self, metric_id: str, params: dict[str, Any]) -> None:
        key = encode_sorted([metric_id, params])
        self.unsubscribe(key)
        if len(self.subscriptions) >= MAX_SUBSCRIPTIONS or sum(map(len, [*self.subscriptions, key])) > MAX_WATCHED:
            detail = f"{MAX_SUBSCRIPTIONS} subscriptions of {MAX_WATCHED} bytes in all are allowed."
            return self.put(Problem(422, detail), metric_id, params)
        self.subscriptions[key] = Subscription(self, metric_id, params)
        self.renew(key)

    def unsubscribe(self, key: bytes) -> None:
        if known := self.subscriptions.pop(key, None):
            self.broadcast.unsubscribe(known)
            self.outbox.pop(known, None)

    def renew(self, key: bytes) -> None:
        """Subscribe to what the metric is now and the caller may see.

        What cannot be had just now, or any more, comes as soon as it can; what never could ends the subscription.
        """
        subscription, caller = self.subscriptions[key], cast(Caller, self.caller)
        self.broadcast.unsubscribe(subscription)
        try:
            metric = self.broadcast.catalog.find(subscription.metric_id, caller)
            plan = make_plan(metric, text_pairs(subscription.params), caller, "json")
        except Exception as exc:
            if subscription.told or as_problem(exc).status >= 500:
                return subscription.tell(exc)
            del self.subscriptions[key]
            return self.put(exc, subscription.metric_id, subscription.params)
        self.broadcast.subscribe(subscription, plan)

    async def serve(self) -> None:
        """Raises a group of WebSocketException, or of WebSocketDisconnect when the client leaves."""
        self.broadcast.subscribers.add(self)
        try:
            async with asyncio.TaskGroup() as tasks:
                given = header(self.websocket.scope, b"authorization")
                if given or self.websocket.scope["state"]["verifier"].open:
                    await self.authenticate(given)
                for part in (self.receive, self.send, self.expire):
                    tasks.create_task(part())
        finally:
            self.broadcast.subscribers.discard(self)
            for key in list(self.subscriptions):
                self.unsubscribe(key)


def live_message(news: Answer | Exception, metric_id: str | None, params: dict[str, Any] | None) -> bytes:
    said = {"type": "result", "id": metric_id, "params": params}
    if isinstance(news, Answer):
        return encode(said | {"etag": news.etag.decode(), "result": msgspec.Raw(news.body)})
    problem = as_problem(news)
    title, detail = HTTPStatus(problem.status).phrase, shortened(problem.detail)
    return encode(said | {"type": "problem", "status": problem.status, "title": title, "detail": detail})


def parse_message(text: str | bytes) -> dict[str, Any]:
    """Raises Problem 413, 400 or 422."""
    if len(text) > MAX_MESSAGE:
        raise Problem(413, f"The message is larger than {MAX_MESSAGE} bytes.")
    try:
        message = decode_any(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ArithmeticError):
        raise Problem(400, "The message is not JSON.") from None
    if not isinstance(message, dict):
        raise Problem(422, "A message must be a JSON object.")
    return message


def text_pairs(params: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Parameters as a query string would hold them; raises Problem 422."""
    for name, value in params.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, bool) or not isinstance(item, str | int | Decimal):
                raise input_problem([InputError(name, "must be a text or a number")])
            yield name, item if isinstance(item, str) else encode(item).decode()


async def live(websocket: WebSocket) -> None:
    """One socket for a whole dashboard."""
    await websocket.accept()
    try:
        await Subscriber(websocket).serve()
    except* WebSocketDisconnect:
        pass
    except* WebSocketException as group:
        closing = cast(WebSocketException, group.exceptions[0])
        # A reader that takes nothing does not take this either, until it goes on.
        with suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            await asyncio.wait_for(websocket.close(closing.code, closing.reason), FAREWELL)


# ------------------------------------------------------------------------------------------------ OpenAPI

REF = "#/components/schemas/{name}"
# What pages/openapi.json refers to; what these hold comes with them.
STRUCTS = MetricSummary, MetricResult, MetricSource, MetricDefinition, DryRun, NewMetric, MetricPatch, Check, InputError
STRANGER = Caller(roles=frozenset())


def fixed_document(settings: Settings, secured: bool) -> Schema:
    """pages/openapi.json with the scopes that are wanted here, or without what an open service does not ask for."""
    text = (HERE / "pages" / "openapi.json").read_bytes()
    for name, scope in zip(("READ", "WRITE"), settings.scopes, strict=True):
        text = text.replace(f'"JWT_{name}_SCOPE"'.encode(), encode(scope))
    fixed: Schema = msgspec.json.decode(text)
    fixed["info"]["version"] = VERSION
    schemas = msgspec.json.schema_components(STRUCTS, ref_template=REF)[1]
    fixed["components"]["schemas"] |= schemas
    # Generators take a field that has a default for one that is always there.
    for schema in itertools.chain.from_iterable(schema["properties"].values() for schema in schemas.values()):
        schema.pop("default", None)
    if not secured:
        del fixed["components"]["securitySchemes"]
        for operation in itertools.chain.from_iterable(path.values() for path in fixed["paths"].values()):
            del operation["security"]
            operation["responses"].pop("401", None)
    return fixed


def metric_parameters(metric: Metric) -> Iterator[Schema]:
    types = dict(zip(metric.names, metric.types, strict=True))
    for parameter in parameters_of(metric):
        said = {"required": parameter.required, "description": parameter.description}
        yield {"name": parameter.name, "in": "query", **said, "schema": parameter_schema(types[parameter.name])}
    for name in sorted(DASHBOARD_FILTERS.difference(metric.names, metric.about.claims)):
        schema = type_schemas()["sent"]["int4" if name == "day_range" else "date"]
        yield {"name": name, "in": "query", "description": "Accepted and ignored.", "schema": schema}


def metric_operation(metric: Metric, name: str, read: Schema, result: Schema) -> Schema:
    """The operation that reads any metric, made exact for one."""
    about, ok = metric.about, read["responses"]["200"]
    unit = f"Unit: {about.unit}." if about.unit else ""
    content = ok["content"] | {"application/json": {"schema": result}}
    return read | {
        "operationId": f"read_{name}",
        "tags": ["metrics"],
        "summary": about.title,
        "description": f"{about.description} {unit}".strip(),
        "parameters": list(metric_parameters(metric)),
        "responses": read["responses"] | {"200": ok | {"content": content}},
    }


def document(state: State, metrics: Sequence[Metric]) -> Schema:
    """OpenAPI 3.1, for a caller who sees these metrics, any of which may have been taken away meanwhile."""
    fixed = fixed_document(state["settings"], secured=not state["verifier"].open)
    names = client_names({*state["catalog"].metrics, *(metric.id for metric in metrics)})
    paths, schemas = fixed["paths"], fixed["components"]["schemas"]
    for metric in metrics:
        name = names[metric.id]
        kind = "".join(word.capitalize() for word in name.split("_"))
        records = {"type": "array", "items": {"$ref": REF.format(name=f"{kind}Record")}}
        properties = schemas["MetricResult"]["properties"] | {"records": records}
        schemas[f"{kind}Record"] = record_schema(metric.columns, metric.column_types)
        schemas[f"{kind}Result"] = schemas["MetricResult"] | {"title": f"{kind}Result", "properties": properties}
        result = {"$ref": REF.format(name=f"{kind}Result")}
        paths[f"/metrics/{metric.id}"] = {"get": metric_operation(metric, name, paths["/metrics/{id}"]["get"], result)}
    return fixed


async def reader_or_stranger(request: Request[State]) -> Caller:
    """A good token without the read scope shows no more than none; raises InvalidToken, or Problem 503."""
    verifier, given = request.state["verifier"], header(request.scope, b"authorization")
    caller = await verifier.identify(given) if given or verifier.open else STRANGER
    return caller if verifier.open or verifier.settings.jwt_read_scope in caller.scopes else STRANGER


async def openapi(request: Request[State]) -> Response:
    """This document, made once for each set of metrics that callers see."""
    state = request.state
    metrics = sorted(state["catalog"].visible(await reader_or_stranger(request)), key=lambda metric: metric.id)
    text = await kept(state, "document", metrics, lambda: encode(document(state, metrics)))
    etag = f'"{hashlib.sha256(text).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Vary": "Authorization"}
    if matches(header(request.scope, b"if-none-match"), etag.encode()):
        return Response(status_code=304, headers=headers)
    return Response(text, headers=headers, media_type="application/json")


async def docs_file(request: Request[State]) -> Response:
    """A file of Swagger UI, from the wheel that ships it and whose code is not wanted."""
    if (name := request.path_params["name"]) not in ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png"):
        raise HTTPException(404)
    package = find_spec("swagger_ui_bundle")
    folder = next(Path(str(package and package.origin)).parent.glob("vendor/swagger-ui-*"))
    return FileResponse(folder / name, headers={"Cache-Control": "public, max-age=86400"})


# ------------------------------------------------------------------------------------------------ agents

MAX_FOUND = 50  # metrics


class Search(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    words: Annotated[str, msgspec.Meta(max_length=200)] = ""


class Found(msgspec.Struct, frozen=True):
    metrics: list[MetricSummary]
    truncated: bool


async def find_metrics(request: Request[State], search: Search) -> Found:
    """The metrics that hold any of the words, those with most of them first; all when there are no words."""
    catalog, words = request.state["catalog"], search.words.lower().split()

    def held(metric: Metric) -> int:
        about, names = metric.about, [column.name for column in metric.columns]
        text = " ".join([about.id, about.title, about.description, about.unit, *names]).lower()
        return sum(word in text for word in words)

    found = [metric for metric in catalog.visible(request.scope["caller"]) if held(metric) or not words]
    best = sorted(found, key=held, reverse=True)[:MAX_FOUND]
    return Found(summaries(catalog, best), len(found) > MAX_FOUND)


# The tools that are no metrics: what each takes, gives and does, and whether it wants the write scope.
TOOLS: dict[str, tuple[type, type, Callable[[Request[State], Any], Coroutine[Any, Any, Any]], bool]] = {
    "list_metrics": (Search, Found, find_metrics, False),
    "preview_metric": (NewMetric, DryRun, functools.partial(make_metric, dry_run=True), True),
    "create_metric": (NewMetric, MetricDefinition, functools.partial(make_metric, dry_run=False), True),
}


def metric_tool(metric: Metric) -> Schema:
    """A metric as a tool that a model can choose and call."""
    about, parameters, types = metric.about, parameters_of(metric), dict(zip(metric.names, metric.types, strict=True))
    columns = ", ".join(f"{column.name} {column.type}" for column in metric.columns)
    said = (about.description, f"Unit: {about.unit}." if about.unit else "", f"Columns: {columns}.")
    taken = {p.name: parameter_schema(types[p.name]) | {"description": p.description or p.type} for p in parameters}
    record = record_schema(metric.columns, metric.column_types)
    required = [parameter.name for parameter in parameters if parameter.required]
    return mcp.result_tool(metric.id, about.title, " ".join(filter(None, said)), taken, required, record)


async def list_tools(request: Request[State]) -> bytes:
    state, caller = request.state, request.scope["caller"]
    metrics = [metric for metric in state["catalog"].visible(caller) if metric.id not in TOOLS]
    writes = state["verifier"].open or state["settings"].jwt_write_scope in caller.scopes
    own = [name for name, tool in TOOLS.items() if writes or not tool[-1]]
    tools = itertools.chain((mcp.own_tool(name, *TOOLS[name][:2]) for name in own), map(metric_tool, metrics))
    return await kept(state, f"tools {own}", metrics, lambda: mcp.list_tools(tools))


async def call_tool(request: Request[State], params: dict[str, Any]) -> bytes:
    """A result, or an error that says what to send instead; raises RpcError, or Problem 403 for want of a scope."""
    name, arguments = params.get("name"), params.get("arguments") or {}
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise mcp.RpcError(mcp.BAD_PARAMS, "Send the name of a tool, and arguments, an object.")
    if name in TOOLS:
        check_scopes(request.scope, TOOLS[name][-1])
    try:
        return await (call_own if name in TOOLS else call_metric)(request, name, arguments)
    except (ClientDisconnect, mcp.RpcError):
        raise
    except Exception as exc:
        answer_error(request.scope, exc)
        return mcp.failure_of(shortened(as_problem(exc).detail))


async def call_own(request: Request[State], name: str, arguments: dict[str, Any]) -> bytes:
    kind, _, call, _ = TOOLS[name]
    try:
        taken: Any = msgspec.convert(arguments, kind)
    except msgspec.ValidationError as exc:
        raise flawed(exc, "object of arguments") from None
    return mcp.result_of(await call(request, taken))


async def call_metric(request: Request[State], name: str, arguments: dict[str, Any]) -> bytes:
    """The cache's answer, as for a GET; a switch is a text there, and what is null absent."""
    scope, results = request.scope, request.state["results"]
    try:
        metric = request.state["catalog"].find(name, scope["caller"])
    except Problem as exc:
        if exc.status >= 500:
            raise
        raise mcp.RpcError(mcp.BAD_PARAMS, f"Unknown tool: {exc.detail}") from None
    scope["metric_id"] = metric.id
    given = {key: encode(value).decode() if isinstance(value, bool) else value for key, value in arguments.items()}
    pairs = text_pairs({key: value for key, value in given.items() if value is not None})
    plan = make_plan(metric, pairs, scope["caller"], "mcp")
    entry, scope["cache"] = await results.get(plan, Directives(), request.receive)
    return (await results.answer(plan, entry)).body


async def answer_agent(request: Request[State]) -> Response:
    """One message of the Model Context Protocol: streamable HTTP without sessions, so that any instance answers."""
    body, call, scope = await read_body(request), None, request.scope
    version = header_text(scope, b"mcp-protocol-version")
    try:
        call = mcp.read_call(body)
        if call.id is None:
            return Response(status_code=202)
        mcp.check_call(call, version, {name: header_text(scope, name.encode()) for name in ("mcp-method", "mcp-name")})
        result = mcp.greet(call, VERSION) or (
            await list_tools(request) if call.method == "tools/list" else await call_tool(request, call.params)
        )
    except mcp.RpcError as exc:
        return Response(*mcp.refuse(call, exc, version), media_type="application/json")
    return Response(mcp.answer(call, result), media_type="application/json")


async def protected_resource(request: Request[State]) -> Response:
    """Who gives tokens for /mcp, and for which scopes (RFC 9728)."""
    settings = request.state["settings"]
    if request.state["verifier"].open:
        raise Problem(404, "Without JWT_ISSUER no token is needed.")
    about = {"resource": f"{base_url(request.scope)}/mcp", "authorization_servers": [settings.jwt_issuer]}
    about["scopes_supported"] = settings.scopes
    return json_response(about | {"bearer_methods_supported": ["header"]}, headers={"Cache-Control": "no-store"})


# ------------------------------------------------------------------------------------------------ routes

# What each takes, answers and who may call it: pages/openapi.json.
ROUTES = [
    Route("/metrics", list_metrics),
    Route("/metrics", create_metric, methods=["POST"]),
    Route("/metrics/{id}", read_metric),
    Route("/metrics/{id}/definition", show_definition),
    Route("/metrics/{id}", change_metric, methods=["PATCH"]),
    Route("/metrics/{id}", delete_metric, methods=["DELETE"]),
    Route("/metrics/{id}/layouts", put_layouts, methods=["PUT"]),
    Route("/metrics/{id}/metric-records", create_records, methods=["POST"]),
    Route("/", dashboard),
    Route("/pages/{name}", page, middleware=[Middleware(GZipMiddleware)]),
    Route("/docs", docs),
    Route("/docs/{name}", docs_file),
    Route("/openapi.json", openapi),
    Route("/health", health),
    Route("/health/live", health_live),
    Route("/health/ready", health_ready),
    Route("/prometheus", prometheus),
    Route("/mcp", answer_agent, methods=["POST"]),
    Route(PROTECTED_RESOURCE, protected_resource),
    WebSocketRoute("/live", live),
    WebSocketRoute("/live/", live),
]


# ------------------------------------------------------------------------------------------------ assembly


@asynccontextmanager
async def with_database(settings: Settings, tell: Callable[[str], None]) -> AsyncIterator[Settings]:
    """The settings with a DATABASE_URL, which is the embedded PostgreSQL's while the environment names none."""
    for warning in misspelt(os.environ):
        warn(warning)
    if settings.database_url:
        yield settings
        return
    # Only a laptop has it: the production image leaves it out.
    from seed import embedded

    try:
        # What will be wanted takes about as long to be loaded as the database to start.
        wanted = ("migrations.apply", *(() if settings.data_dir.exists() else ("yoyo", "seed.dataset")))
        loading = asyncio.to_thread(lambda: [import_module(name) for name in wanted])
        server, _ = await asyncio.gather(embedded.start(settings.data_dir), loading)
        connections.Target("DATABASE_URL", server.dsn)  # for which PGOPTIONS and its like count, too
    except (embedded.EmbeddedError, ValueError) as exc:
        raise CommandError(str(exc)) from exc
    log.info("To open the embedded database: %s", server.psql)
    if server.relocated:
        tell(f"Data: {server.directory}, because the database's user cannot reach {settings.data_dir}")
    watch = asyncio.create_task(server.watch(), name="embedded PostgreSQL")
    try:
        yield msgspec.structs.replace(settings, database_url=server.dsn, harden_database="on")
    finally:
        watch.cancel()
        await server.stop()


async def load_dataset(database: Database, directory: Path, newest: date | None = None) -> Any:
    """Load a data set; its queries must pass as the guest that will run them. Raises CommandError."""
    from seed import dataset

    def tell(count: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{count} records read", end="\r", file=sys.stderr, flush=True)

    async def accept(sql: str) -> str | None:
        try:
            await pass_gate(database, Definition(id="query", source="dataset", sql=sql, title=""))
        except BadStatement as exc:
            return str(exc)
        return None

    async with writing(database, "metrics", "metric_configurations", login="upload") as conn:
        try:
            return await dataset.load(directory, conn, accept, newest=newest, tell=tell)
        except (dataset.DatasetError, asyncpg.PostgresError) as exc:
            raise CommandError(f"Nothing was loaded: {exc}") from exc


def migrate(database: Database) -> list[str]:
    """Returns what could not be done, such as a login that cannot log in."""
    from migrations import apply

    hardened, logins = database.settings.harden_database == "on", database.logins
    return apply.migrate(logins["owner"], set(logins.values()), hardened=hardened)


async def start(state: State, embedded: bool) -> None:
    """Migrate, bring the demonstration data to an empty embedded database, read the metrics; try until it is done."""
    settings, database, catalog = state["settings"], state["database"], state["catalog"]
    for attempt in itertools.count():
        try:
            for fault in await asyncio.to_thread(migrate, database):
                warn("a login cannot be used", reason=fault)
            async with database.connection("owner") as conn:
                wanted = embedded and settings.demo_data == "on"
                empty = wanted and await conn.fetchval("SELECT holds_nothing()")
            if empty:
                await load_dataset(database, HERE / "seed", newest=datetime.now(UTC).date())
            await catalog.reload()
            return
        except Exception as exc:
            told = isinstance(exc, connections.TransactionPooling)
            catalog.fault = str(exc) if told else f"not applied yet ({type(exc).__name__}); the log has the reason"
            warn("the start has to wait for the database", reason=f"{type(exc).__name__}: {exc}")
        await asyncio.sleep(min(0.25 * 2**attempt, 2))


async def keep_up(state: State, embedded: bool) -> None:
    """Start, however long the database takes, and then keep up with its changes and those of the files."""
    await start(state, embedded)
    catalog = state["catalog"]
    listening = listen(state["database"], state["changes"], catalog.outdated)
    await asyncio.gather(watch_catalog(catalog), mend_catalog(catalog), listening)


def end_with_parent() -> None:
    """A worker whose parent was killed would hold the port for ever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def create_state(settings: Settings, database: Database, stream: LogStream) -> State:
    catalog, changes, instruments = Catalog(settings, database), Changes(), Instruments()
    results = Results(settings, catalog, changes, instruments)
    state = State(
        settings=settings,
        log=stream if log.isEnabledFor(logging.INFO) else None,
        request_ids=request_ids(),
        instruments=instruments,
        database=database,
        verifier=Verifier(settings),
        catalog=catalog,
        changes=changes,
        results=results,
        seen=Seen(results),
        broadcast=Broadcast(catalog, changes, results),
        documents={},
    )
    catalog.reloaded_by += [catalog.report, state["seen"].forget, state["documents"].clear]
    catalog.reloaded_by.append(lambda: instruments.keep(catalog.metrics))
    state["verifier"].keys.forgotten_by += [state["seen"].forget, state["broadcast"].on_keys]
    add_gauges(state)
    return state


@asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[State]:
    threading.Thread(target=end_with_parent, name="parent", daemon=True).start()
    async with AsyncExitStack() as stack:
        try:
            settings = load_settings(os.environ)
            embedded = not settings.database_url
            stream = configure_logging(settings.log_level)
            stack.callback(stream.close)
            settings = await stack.enter_async_context(with_database(settings, warn))
        except CommandError as exc:
            # Nothing is open yet, and the server would bury the one sentence that helps in a traceback.
            print(exc, file=sys.stderr, flush=True)
            os._exit(1)
        database = await stack.enter_async_context(Database(settings))
        state = create_state(settings, database, stream)
        stack.push_async_callback(state["results"].shared.close)
        started = asyncio.Event()
        state["changes"].heard_by.append(lambda _: started.set())
        fresh = [published.keep_fresh() for published in (state["verifier"].keys, state["verifier"].endpoints)]
        running = asyncio.gather(keep_up(state, embedded), *fresh)
        with suppress(TimeoutError):
            await asyncio.wait_for(started.wait(), 3)
        gc.freeze()  # what stays until the end is not looked through again and again, while nobody is answered
        try:
            # A second Ctrl-C cancels what waits for the end, which has come.
            with suppress(asyncio.CancelledError):
                yield state
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


ORIGINS = split_names(os.environ.get("CORS_ORIGINS", ""))
CORS = Middleware(
    CORSMiddleware,
    allow_origins=ORIGINS,
    allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
    allow_headers=["Authorization", "Cache-Control", "If-None-Match", "X-Request-ID", "traceparent"],
    expose_headers=["ETag", "Age", "Cache-Status", "Location", "X-Request-ID"],
)
app = Starlette(
    routes=ROUTES,
    middleware=[Middleware(RequestLog), *([CORS] if ORIGINS else []), Middleware(Access)],
    exception_handlers=EXCEPTION_HANDLERS,
    lifespan=cast(Any, lifespan),
)
app.router.redirect_slashes = False


# ------------------------------------------------------------------------------------------------ server

say = functools.partial(print, flush=True)
KEEP_ALIVE, TICK = 75, 5  # seconds; a connection is kept for longer than balancers keep theirs


class Connection(HttpToolsProtocol):
    """uvicorn's, with an end to what never ends, problems for what is no request, and a short way for hits."""

    begun = False  # whether a request has begun whose end has not come
    pending = 0  # bytes that have come and are neither a whole request nor part of a body
    piece = b""  # that was the request under way, and nothing else
    heard_at = taken_at = 0.0
    untaken = 0
    refused = False
    url = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.heard_at = self.loop.time()
        self.loop.call_later(TICK, self.tick)

    def on_message_begin(self) -> None:
        self.begun = True
        if len(self.pipeline) >= MAX_WAITING:
            raise ValueError("too many requests in one piece")  # the parser stops, and the connection is closed
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        self.pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.begun, self.pending = False, 0
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        self.heard_at = self.loop.time()
        cycle, idle = self.cycle, not self.begun and self.is_idle() and not self.parser.should_upgrade()
        if idle and not self.flow.write_paused and self.answer_seen(data):
            return
        self.pending += len(data)
        super().data_received(data)
        alone = idle and self.cycle is not cycle and not self.begun and not self.pipeline
        self.piece = data if alone and len(data) <= MAX_PIECE and data.endswith(b"\r\n\r\n") else b""
        if self.pending > 2 * MAX_HEAD and not self.refused:
            self.refuse(Problem(431, "The headers are larger than 64 KB."))

    def is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def answer_seen(self, piece: bytes) -> bool:
        date = b"%b: %b\r\n" % self.server_state.default_headers[0]
        if not (answer := self.app_state["seen"].answer(piece, self.app_state, date)):
            return False
        self.transport.write(b"".join(answer))
        return True

    def on_response_complete(self) -> None:
        if self.piece and self.cycle.keep_alive:
            self.app_state["seen"].remember(self.piece, self.cycle.scope)
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()  # until these are answered, or they would become more and more

    def timeout_keep_alive_handler(self) -> None:
        """Nothing: uvicorn's own timer knows nothing of what is answered without it."""

    def tick(self) -> None:
        """Close what has been idle or in the middle of a head for too long, and drop what a reader does not take."""
        if self.parser is None or self.transport.get_protocol() is not self:
            return
        now, untaken = self.loop.time(), self.transport.get_write_buffer_size()
        if not untaken or untaken > self.untaken or untaken <= self.untaken - MIN_TAKEN:
            self.taken_at, self.untaken = now, untaken
        if untaken and now - self.taken_at > SILENCE:
            self.transport.abort()
        limit = KEEP_ALIVE if self.cycle and not self.begun else SILENCE
        if not untaken and self.is_idle() and now - self.heard_at > limit:
            self.transport.close()
        self.loop.call_later(TICK, self.tick)

    def send_400_response(self, msg: str) -> None:
        self.refuse(Problem(400, "The request is not HTTP/1.1."))

    def refuse(self, problem: Problem) -> None:
        """Answer and stop reading; the close has to wait, for with bytes unread it would take the answer back."""
        if len(self.url) > MAX_HEAD:
            problem = Problem(414, "The URL is longer than 64 KB.")
        self.refused = True
        self.flow.pause_reading()
        self.loop.call_later(1, self.transport.close)
        if self.cycle and not self.cycle.response_complete:
            if self.pipeline or self.cycle.response_started or not self.cycle.more_body:
                return self.transport.close()
            # What is malformed is the body of the request under way, which is over.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        request_id = uuid.uuid4().hex
        response = problem_response(problem, {"path": "/", "request_id": request_id})
        headers = [*response.raw_headers, (b"x-request-id", request_id.encode()), (b"connection", b"close")]
        lines = [f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}".encode()]
        lines += [b"%b: %b" % header for header in headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(response.body)]))
        self.transport.write_eof()
        warn("a request was refused before its end", reason=problem.detail)

    def shutdown(self) -> None:
        """Close when idle, but what has been sent by now is served, though it has not been read yet."""
        self.loop.call_later(0.1, super().shutdown)


def serve(settings: Settings, options: argparse.Namespace) -> None:
    if not (settings.jwt_issuer or settings.auth == "off" or is_loopback(options.host)):
        raise CommandError(
            f"Without JWT_ISSUER everybody may read and write, so {options.host} is refused: set JWT_ISSUER, or"
            " AUTH=off where a proxy lets the right callers in, or serve on 127.0.0.1."
        )
    listener = bind_socket(options.host, options.port)
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    with suppress(OSError):  # as the log: nobody reads, or the disk is full
        say(f"Metrics API on {url}\nDashboard: {url}/  Documentation: {url}/docs")
        if not settings.jwt_issuer:
            say("Open: JWT_ISSUER is not set, so everybody who reaches this address may read and write.")
    config = uvicorn.Config(
        "app:app" if options.workers > 1 else app,
        workers=options.workers,
        http="app:Connection" if options.workers > 1 else Connection,
        ws="app:Socket" if options.workers > 1 else Socket,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=10,
        ws_max_size=MAX_MESSAGE + 1024,
        ws_per_message_deflate=False,
        # A worker that is busy for a while is not dead.
        timeout_worker_healthcheck=30,
    )
    configure_logging(settings.log_level)
    if options.workers > 1:
        asyncio.run(run_workers(settings, Workers(config, sockets=[listener])))
        listener.close()
    else:
        uvicorn.Server(config).run(sockets=[listener])


MAX_FRAMES = 1000


class Socket(WebSocketsSansIOProtocol):
    """uvicorn's, closed for more than MAX_FRAMES in a second: one without content costs as much as any other."""

    counted, counted_since = 0, 0.0

    def data_received(self, data: bytes) -> None:
        """A KB at a time, for what comes at once may be 40,000 frames."""
        for start in range(0, len(data), 1024):
            if not self.transport.is_closing():
                super().data_received(data[start : start + 1024])

    def handle_events(self) -> None:
        if (now := self.loop.time()) - self.counted_since > 1:
            self.counted, self.counted_since = 0, now
        self.counted += len(self.conn.events)
        # What waits for the end of its message is held.
        if self.counted + len(self.frames) > MAX_FRAMES:
            self.conn.fail(1008, f"more than {MAX_FRAMES} frames a second")
            self.transport.write(b"".join(self.conn.data_to_send()))
            return self.transport.close()
        super().handle_events()

    async def run_asgi(self) -> None:
        """What a reader has not taken for so long after the end, it never will."""
        await super().run_asgi()
        self.loop.call_later(SILENCE, self.transport.abort)


class Workers(Multiprocess):
    def keep_subprocess_alive(self) -> None:
        """Leave the workers' ends of the pipes to them alone, so that one that dies ends its health check at once."""
        for process in self.processes:
            process.child_conn.close()
        super().keep_subprocess_alive()


async def run_workers(settings: Settings, workers: Workers) -> None:
    """The embedded database is the parent's: a worker would stop it under the requests of the others."""
    async with with_database(settings, say):
        await asyncio.to_thread(workers.run)


def bind_socket(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as exc:
        listener.close()
        raise CommandError(f"Cannot serve on {host}:{port}: {exc.strerror}. Choose another --port or --host.") from exc
    return listener


# ------------------------------------------------------------------------------------------------ commands


async def run_command(settings: Settings, options: argparse.Namespace) -> int:
    """Run a command on a database that is up to date; what it returns is what the process exits with."""
    async with with_database(settings, say) as ready, Database(ready) as database:
        # It looks before it changes anything.
        for fault in () if options.run is distribute_command else await asyncio.to_thread(migrate, database):
            say(f"Warning: {fault}")
        return cast(int, await options.run(database, options))


async def migrate_command(database: Database, options: argparse.Namespace) -> int:
    say("The database is up to date.")
    return 0


async def seed_command(database: Database, options: argparse.Namespace) -> int:
    report = await load_dataset(database, options.directory)
    for line in report.lines():
        say(line)
    return 1 if report.count("rejected") else 0


async def check_command(database: Database, options: argparse.Namespace) -> int:
    catalog = Catalog(database.settings, database)
    await catalog.reload(patience=None)
    files = [metric for metric in catalog.metrics.values() if metric.about.source == "file"]
    for name in catalog.stray_files:
        say(f"{catalog.path(name)}: warning: the file's name is no metric id")
    for metric in files:
        say("\n".join(map(printable, check_lines(catalog, metric))))
    return 1 if any(metric.fault for metric in files) else 0


def check_lines(catalog: Catalog, metric: Metric) -> Iterator[str]:
    """What PostgreSQL says of a metric, or file:line:column: error, as compilers write it, or the statement's line."""
    if metric.fault:
        yield f"{catalog.place(metric)}: error: {metric.fault}"
        return
    yield catalog.place(metric)
    yield f"  parameters: {', '.join(f'{p.name} {p.type}' for p in parameters_of(metric)) or 'none'}"
    yield f"  columns: {', '.join(f'{c.name} {c.type}' for c in metric.columns)}"
    yield f"  tables: {', '.join(metric.tables.values()) or 'none'}"
    for warning in metric.warnings:
        yield f"  warning: {warning}"
    for table in metric.scans:
        yield f"  warning: it would read {table} from end to end; an index on what it filters by would help"
    for oid, table in metric.tables.items():
        if table in metric.unwatchable:
            yield f"  warning: {table} cannot be watched, so changes from outside show when a result's time is up"
        elif oid not in catalog.watched:
            command = f"python app.py watch {shlex.quote(table)}"
            yield f"  warning: {table} is not watched; `{command}` makes the metric exact"


async def watch_command(database: Database, options: argparse.Namespace) -> int:
    """Put tables under watch, or end that: all that are named, or none. Raises CommandError."""
    async with writing(database, "metric_configurations") as conn:
        for table in options.tables:
            try:
                await conn.execute(f"SELECT {options.command}($1)", table)
            except asyncpg.PostgresError as exc:
                raise CommandError(f"{table}: {exc.message}") from exc
    say(f"{'Watched' if options.command == 'watch' else 'Not watched any more'}: {', '.join(options.tables)}")
    return 0


async def distribute_command(database: Database, options: argparse.Namespace) -> int:
    from migrations import distribute

    owner, *others = (database.logins[name] for name in ("owner", "reader", "guest"))
    work = distribute.distribute(owner, others, functools.partial(migrate, database))
    for line in distribute.show_passwords(owner, others) if options.passwords else work:
        say(line)
    return 0


def whole_number(low: int, high: int, text: str) -> int:
    if not text.isdecimal() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"must be a number from {low} to {high}")
    return int(text)


def parse_options() -> argparse.Namespace:
    port, count = functools.partial(whole_number, 0, 65_535), functools.partial(whole_number, 1, 64)
    parser = argparse.ArgumentParser(prog="app.py", description="One SELECT per file in, dashboard JSON out.")
    parser.set_defaults(run=serve)
    parser.add_argument("--version", action="version", version=f"Metrics API {VERSION}")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=port, default=8000, help="0 for any that is free")
    parser.add_argument("--workers", type=count, default=1, help="processes that serve")
    commands = parser.add_subparsers(title="commands, instead of serving", dest="command")
    commands.add_parser("migrate", help="apply the migrations and exit").set_defaults(run=migrate_command)
    seed = commands.add_parser("seed", help="load a data set directory")
    seed.add_argument("directory", nargs="?", type=Path, default=HERE / "seed")
    seed.set_defaults(run=seed_command)
    commands.add_parser("check", help="compile every SQL file without running it").set_defaults(run=check_command)
    for name, aim in (
        ("watch", "put tables under watch, so that metrics that read them are exact"),
        ("unwatch", "end that: metrics that read the tables go by their TTL"),
    ):
        command = commands.add_parser(name, help=aim)
        command.add_argument("tables", nargs="+", metavar="TABLE")
        command.set_defaults(run=watch_command)
    spread = commands.add_parser("distribute", help="spread the records over the nodes of a Citus cluster")
    spread.add_argument("--passwords", action="store_true", help="show the SQL that lets the nodes into each other")
    spread.set_defaults(run=distribute_command)
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    try:
        settings = load_settings(os.environ)
        if options.run is serve:
            serve(settings, options)
            return 0
        return asyncio.run(run_command(settings, options))
    except (CommandError, *DATABASE_DOWN, asyncpg.PostgresError, connections.MigrationFailed) as exc:
        print(exc, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
