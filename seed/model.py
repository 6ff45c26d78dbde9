"""What a SQL model is told of the database and its metrics, and the SQL in what it answers."""

import itertools
import re
from bisect import bisect
from collections.abc import Iterable
from typing import Protocol

import asyncpg

MAX_EXAMPLES = 8000  # characters
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


def extract_sql(answer: str) -> str:
    """The SQL in an answer with or without prose and fences around it."""
    fenced = [FENCE_LANGUAGE.sub("", text) for text in answer.split("```")[1::2]]
    bare = BARE_SQL.search(answer)
    texts = [*filter(BARE_SQL.search, fenced), *fenced, bare[0] if bare else answer]
    return texts[0].strip()
