"""A SQL model: what it is told of the database and its metrics, how it is asked, and the SQL in what it answers."""

from __future__ import annotations

import itertools
import re
from bisect import bisect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import asyncpg
import msgspec

from seed.fetch import UNCOMPRESSED, read_answer

if TYPE_CHECKING:
    import httpx

MAX_EXAMPLES = 8000  # characters
MAX_ANSWER = 2**20  # bytes
# A blank line after a semicolon ends it.
BARE_SQL = re.compile(
    r"^[ \t]*(?:WITH|SELECT|VALUES|TABLE)\b.*?(?=;\s*?\n\s*?\n|\Z)", re.DOTALL | re.IGNORECASE | re.MULTILINE
)
FENCE_LANGUAGE = re.compile(r"\A[ \t]*(?:\w*sql\b|\w*[ \t]*\r?\n)", re.IGNORECASE)
TASK = """\
Write one PostgreSQL SELECT that answers the request. Answer with the SQL alone.
Give every column a readable name. Let a dashboard choose the period: compare dates with
COALESCE(:start_date, <default>) and COALESCE(:end_date, <default>), both ends included.

Tables:
{tables}

Metrics that exist:
{examples}
"""


class Example(Protocol):
    """A metric that exists."""

    @property
    def id(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def sql(self) -> str: ...


class ModelFailed(Exception):
    """It gave no usable answer; the message is for the caller."""


class Settings(Protocol):
    """Where it is."""

    @property
    def sql_model_url(self) -> str | None: ...
    @property
    def sql_model(self) -> str | None: ...
    @property
    def sql_model_key(self) -> str | None: ...


async def known_values(conn: asyncpg.Connection, table: str, column: str, most: int) -> list[str]:
    """The values of a short text column; none when there are more than most, or too many rows to look through."""
    try:
        rows = await conn.fetch(
            f"SELECT DISTINCT {column} AS value FROM {table} WHERE LENGTH({column}) BETWEEN 1 AND 100 LIMIT {most + 1}",
            timeout=2,
        )
    except (TimeoutError, asyncpg.PostgresError):
        return []
    return sorted(row["value"] for row in rows) if len(rows) <= most else []


async def describe_tables(conn: asyncpg.Connection, schema: str) -> str:
    """What the guest may read, one table a line, with the values of its text columns."""
    tables: dict[str, list[str]] = {}
    for row in await conn.fetch(f"SELECT * FROM {schema}.readable_columns() LIMIT 500"):
        column = row["column"]
        values = await known_values(conn, row["table"], column, 20) if row["is_text"] else []
        known = f" (one of {', '.join(map(repr, values))})" if values else ""
        tables.setdefault(row["table"], []).append(f"{column} {row['type']}{known}")
    return "\n".join(f"{table}({', '.join(columns)})" for table, columns in tables.items())


def nearest(prompt: str, examples: Iterable[Example]) -> str:
    """The metrics that share most words with a prompt, as many as fit into MAX_EXAMPLES."""

    def long_words(text: str) -> set[str]:
        return set(re.findall(r"[^\W_]{4,}", text.lower()))

    def shared(example: Example) -> tuple[int, int]:
        texts = f"{example.id} {example.title}", example.description
        in_title, in_description = (len(long_words(text) & asked) for text in texts)
        return in_title, in_description

    asked = long_words(prompt)
    ranked = sorted(examples, key=shared, reverse=True)
    texts = [f"-- {example.id}: {example.title}\n{example.sql.strip()}" for example in ranked]
    fitting = bisect(list(itertools.accumulate(map(len, texts))), MAX_EXAMPLES)
    return "\n\n".join(texts[:fitting])


class Said(msgspec.Struct):
    content: str


class Choice(msgspec.Struct):
    message: Said


class Completion(msgspec.Struct):
    """What is read of a chat completion, as OpenAI's API reference has it."""

    choices: list[Choice]


async def complete(client: httpx.AsyncClient, settings: Settings, messages: list[dict[str, str]]) -> str:
    """One answer of an OpenAI-compatible server; raises ModelFailed."""
    import httpx

    url = f"{(settings.sql_model_url or '').rstrip('/')}/chat/completions"
    key = {"Authorization": f"Bearer {settings.sql_model_key}"} if settings.sql_model_key else {}
    payload = {**({"model": settings.sql_model} if settings.sql_model else {}), "messages": messages, "temperature": 0}
    try:
        async with client.stream("POST", url, json=payload, headers=UNCOMPRESSED | key) as response:
            body = await read_answer(response, MAX_ANSWER)
    except httpx.HTTPError as exc:
        raise ModelFailed(f"it cannot be reached ({type(exc).__name__})") from exc
    except ValueError as exc:
        raise ModelFailed(str(exc)) from exc
    try:
        return msgspec.json.decode(body, type=Completion).choices[0].message.content
    except (ValueError, LookupError, RecursionError) as exc:
        raise ModelFailed("its answer is no chat completion with a text") from exc


def extract_sql(answer: str) -> str:
    """The SQL in an answer with or without prose and fences around it."""
    fenced = [FENCE_LANGUAGE.sub("", text) for text in answer.split("```")[1::2]]
    bare = BARE_SQL.search(answer)
    texts = [*filter(BARE_SQL.search, fenced), *fenced, bare[0] if bare else answer]
    return texts[0].strip()
