"""Loads a data set directory: metrics.json, queries.csv, metric_records.json and metric_records.csv.

Real data sets are dirty: what can be repaired is, what cannot is rejected row by row, and the rest loads,
in one transaction. In this order: findings, values, files, SQL, queries, metrics and layouts, records, load.
"""

import asyncio
import hashlib
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from decimal import Context, Decimal
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any, Literal, NamedTuple

import asyncpg
import msgspec

from seed.records import (
    BOM,
    DATASET,
    INSERT_STAGED,
    SLICE_BYTES,
    TEXT,
    TOLERANT,
    UNSTAGE,
    Flaw,
    Record,
    Row,
    Schema,
    ShortRow,
    Slice,
    check_header,
    csv_records,
    json_records,
    shown,
    stage,
    text,
    whole_number,
)
from seed.statements import tokens
from seed.values import printable

Accept = Callable[[str], Awaitable[str | None]]  # SQL with :named parameters -> PostgreSQL's objection, if any
Kind = Literal["repaired", "rejected", "suspected duplicate", "kept"]
Metrics = dict[str, Any]  # rows of metric_configurations by id

FILES = ("metrics.json", "queries.csv", "metric_records.json", "metric_records.csv")


# --- Findings


class DatasetError(Exception):
    """The directory holds no data set."""


class Place(NamedTuple):
    """Where something stands: the first physical line in a CSV (the header is line 1), the index in a JSON array."""

    file: str
    line: int
    array: str | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.array is None else f"{self.file}: {self.array}[{self.line}]"


class Finding(msgspec.Struct, frozen=True):
    place: Place
    column: str
    kind: Kind
    reason: str

    def __str__(self) -> str:
        line = ": ".join(part for part in (str(self.place), self.column, self.kind, self.reason) if part)
        return printable(line)


class Report(msgspec.Struct):
    queries: int = 0
    metrics: int = 0
    layouts: int = 0
    records_inserted: int = 0
    records_there: int = 0
    findings: list[Finding] = msgspec.field(default_factory=list)

    def add(self, place: Place, column: str, kind: Kind, reason: str) -> None:
        self.findings.append(Finding(place, column, kind, reason))

    @contextmanager
    def rejecting(self, place: Place) -> Iterator[None]:
        try:
            yield
        except Flaw as flaw:
            self.add(place, flaw.column, "rejected", flaw.reason)

    def count(self, kind: Kind) -> int:
        return sum(finding.kind == kind for finding in self.findings)

    def lines(self) -> Iterator[str]:
        yield from map(str, self.findings)
        yield (
            f"{self.queries} queries, {self.metrics} metrics, {self.layouts} layout items, "
            f"{self.records_inserted} records inserted, {self.records_there} already there; "
            f"{self.count('repaired')} repaired, {self.count('rejected')} rejected, "
            f"{self.count('suspected duplicate')} suspected duplicates, {self.count('kept')} kept as they were"
        )


# --- Values

METRIC_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def key(row: Record, column: str) -> str:
    if is_blank(row.get(column)):
        raise Flaw(column, "is missing")
    return text(row[column], column).strip()


def short_key(row: Record, column: str) -> str:
    """A key that an index has room for, whatever its characters."""
    name = key(row, column)
    if len(name) > 255:
        raise Flaw(column, f"{shown(name)} is longer than 255 characters")
    return name


def boolean(value: object, column: str) -> bool:
    if not isinstance(value, bool):
        raise Flaw(column, f"{shown(value)} is neither true nor false")
    return value


# --- Files


def read_file(path: Path, report: Report) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Flaw("", f"cannot be read: {error.strerror}") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Flaw("", "is UTF-16: save it as UTF-8; nothing of this file was loaded")
    if content.startswith(BOM):
        report.add(Place(path.name, 1), "", "repaired", "byte order mark left out")
    if path.suffix == ".csv" and b"\r" in content:
        report.add(Place(path.name, 1), "", "repaired", "CRLF line ends read as LF")
    return content


def read_files(directory: Path, report: Report) -> dict[str, bytes]:
    if not directory.is_dir():
        raise DatasetError(f"{directory} is not a directory: name one that holds a data set.")
    names = [name for name in FILES if (directory / name).is_file()]
    if not names:
        raise DatasetError(f"{directory} holds no data set: expected at least one of {', '.join(FILES)}.")
    files = {}
    for name in names:
        with report.rejecting(Place(name, 1)):
            files[name] = read_file(directory / name, report)
    return files


async def in_chunks(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), SLICE_BYTES):
        yield content[start : start + SLICE_BYTES]


async def rows_of(
    name: str, content: bytes, required: set[str], schema: Schema, report: Report
) -> AsyncIterator[Iterable[tuple[Place, Row]]]:
    """A few rows at a time, repaired as they are wanted; what cannot be is reported."""
    is_csv, known, chunks = name.endswith(".csv"), set(schema.columns), in_chunks(content)

    def check(header: Sequence[str]) -> None:
        check_header(header, required)
        report_unknown(header, known, Place(name, 1), report)

    def repaired_rows(found: Slice) -> Iterator[tuple[Place, Row]]:
        for line, row in found:
            place = Place(name, line) if is_csv else Place(name, line - 1, "")
            if isinstance(row, Flaw):
                with report.rejecting(place):
                    yield place, repaired(row, known, place, schema, report)
            else:
                yield place, row

    async for found in csv_records(chunks, schema, check) if is_csv else json_records(chunks, schema):
        yield repaired_rows(found)
        await asyncio.sleep(0)


def report_unknown(columns: Iterable[str], known: set[str], place: Place, report: Report) -> None:
    for column in columns:
        if column not in known:
            report.add(place, shown(column), "repaired", "unknown column ignored, here and below")
            known.add(column)


def repaired(flaw: Flaw, known: set[str], place: Place, schema: Schema, report: Report) -> Row:
    """What is left of a record without its flaw; raises Flaw."""
    if flaw.record is None:
        raise flaw
    if isinstance(flaw, ShortRow):
        report.add(place, "", "repaired", f"short row: no value for {', '.join(flaw.missing)}")
    report_unknown(flaw.record, known, place, report)
    record = {column: flaw.record.get(column) for column in schema.columns}
    for column, kind in schema.columns.items():
        if kind is not TEXT and str(record[column]).strip() in ("NaN", "nan"):
            report.add(place, column, "repaired", "NaN read as no value")
            record[column] = None
    return schema.parse(record)


# --- SQL

DAY = re.compile(r"'(\d{4}-\d\d-\d\d)'", re.ASCII).fullmatch
DAYS = re.compile(r"'\s*(\d{1,9})\s*(days?\s*)?'", re.ASCII | re.IGNORECASE).fullmatch
# What makes INTERVAL '7' DAY another interval.
UNITS = {"TO", "YEAR", "MONTH", "DAY", "HOUR", "MINUTE", "SECOND"}


class Word(NamedTuple):
    """A token that is no comment, or a literal with the keywords that belong to it and what it says."""

    start: int
    end: int
    text: str


Edits = list[tuple[Word, str]]


def day_at(words: Sequence[Word], i: int) -> tuple[Word, int] | None:
    """A literal day, and which word follows it."""
    first = i
    if words[i].text.upper() == "DATE":
        i += 1
    found = DAY(words[i].text)
    try:
        if not found or words[i + 1].text.startswith("'"):
            return None
        return Word(words[first].start, words[i].end, date.fromisoformat(found[1]).isoformat()), i + 1
    except ValueError:
        return None


def period_at(words: Sequence[Word], i: int) -> tuple[Word, Word] | None:
    """The edges of a literal period; one that is excluded is no filter."""
    if words[i].text.upper() != "BETWEEN" or words[i - 1].text.upper() == "NOT" or not (found := day_at(words, i + 1)):
        return None
    first, i = found
    if words[i].text == "::":
        i += 2
    last = day_at(words, i + 1) if words[i].text.upper() == "AND" else None
    return (first, last[0]) if last else None


def days_at(words: Sequence[Word], i: int) -> Word | None:
    """A literal number of days; an INTERVAL that is an argument, the step of generate_series, is no filter."""
    found = DAYS(words[i + 1].text)
    if words[i].text.upper() != "INTERVAL" or words[i - 1].text == "," or not found:
        return None
    last = i + 1 if found[2] else i + 2
    if words[i + 2].text.startswith("'") or (not found[2] and words[last].text.upper() != "DAY"):
        return None
    return None if words[last + 1].text.upper() in UNITS else Word(words[i].start, words[last].end, str(int(found[1])))


def edited(sql: str, edits: Edits) -> str:
    parts, position = [], 0
    for word, replacement in sorted(edits):
        parts += [sql[position : word.start], replacement]
        position = word.end
    return "".join(parts) + sql[position:]


def with_parameters(sql: str) -> tuple[str, list[str]]:
    """The SQL with its literal periods as parameters that default to them, and why any had to stay."""
    found = list(tokens(sql))
    names = {token["name"] for token, _ in found}
    words = [Word(token.start(), end, sql[token.start() : end]) for token, end in found]
    words = [word for word in words if not word.text.startswith(("--", "/*"))]
    count = len(words)
    words += [Word(len(sql), len(sql), "")] * 9  # so that all have some that follow
    edges = [period for i in range(count) if (period := period_at(words, i))]
    intervals = [days for i in range(count) if (days := days_at(words, i))]
    periods = {(first.text, last.text) for first, last in edges}
    ranges = {int(days.text) for days in intervals}
    edits: Edits = []
    stayed = []
    if len(periods) == 1 and not names & {"start_date", "end_date"}:
        for first, last in edges:
            edits.append((first, f"COALESCE(:start_date, DATE '{first.text}')"))
            edits.append((last, f"COALESCE(:end_date, DATE '{last.text}')"))
    if len(ranges) == 1 and "day_range" not in names:
        edits += [(days, f"make_interval(days => COALESCE(:day_range, {days.text}))") for days in intervals]
    if len(periods) > 1:
        several = ", ".join(sorted(f"{start} to {end}" for start, end in periods))
        stayed.append(f"several periods ({several}) cannot be one start_date and end_date: they stay literals")
    if len(ranges) > 1:
        several = ", ".join(map(str, sorted(ranges)))
        stayed.append(f"several intervals ({several} days) cannot be one day_range: they stay literals")
    return edited(sql, edits), stayed


def first_comment(sql: str) -> str | None:
    line = sql.lstrip().partition("\n")[0]
    return line.lstrip("-").strip() or None if line.startswith("--") else None


# --- Queries

KEPT = "is kept as stored, for it was edited (version {}): delete the metric to replace it"
STORE_QUERY = """
INSERT INTO queries (id, query)
VALUES ($1, $2)
ON CONFLICT (id) DO UPDATE
SET query = excluded.query
"""


QUERIES = Schema(id=TEXT, query=TEXT)


class Query(NamedTuple):
    place: Place
    sql: str


async def accepted_sql(sql: str, place: Place, accept: Accept, report: Report) -> str:
    """The SQL to store: with parameters if PostgreSQL accepts that, else as it was written."""
    rewritten, stayed = with_parameters(sql)
    objection = await accept(rewritten)
    if objection and rewritten != sql:
        stayed = [f"its periods stay literals, as PostgreSQL does not take parameters there: {objection}"]
        rewritten, objection = sql, await accept(sql)
    if objection:
        raise Flaw("query", f"PostgreSQL does not accept it: {objection}")
    for reason in stayed:
        report.add(place, "query", "kept", reason)
    return rewritten


async def read_queries(content: bytes, accept: Accept, report: Report) -> dict[str, Query | None]:
    """The queries by id; None for an id whose query was rejected."""
    queries: dict[str, Query | None] = {}
    async for rows in rows_of("queries.csv", content, {"id", "query"}, QUERIES, report):
        for place, (query_id, sql) in rows:
            with report.rejecting(place):
                short_key({"id": query_id}, "id")
                if taken := queries.get(query_id):
                    raise Flaw("id", f"{shown(query_id)} is taken by {taken.place}")
                queries[query_id] = None
                sql = key({"query": sql}, "query")
                queries[query_id] = Query(place, await accepted_sql(sql, place, accept, report))
    return queries


async def store_queries(
    conn: asyncpg.Connection, queries: dict[str, Query | None], metrics: Metrics, report: Report
) -> dict[str, str]:
    """Returns the SQL of every series that metrics and records may refer to."""
    stored = dict(await conn.fetch("SELECT id, query FROM queries"))
    series = {query_id: sql for query_id, sql in stored.items() if query_id not in queries}
    for query_id, query in queries.items():
        if query is None:
            continue
        users = [metric for metric in metrics.values() if metric["query_id"] == query_id]
        edited = [metric["version"] for metric in users if metric["is_edited"]]
        if any(metric["source"] != "dataset" for metric in users):
            reason = f"{shown(query_id)} is the series of a metric that is of no data set: choose another id"
            report.add(query.place, "id", "rejected", reason)
            continue
        series[query_id] = query.sql
        report.queries += 1
        if query.sql == stored.get(query_id):
            continue
        if edited:
            report.add(query.place, "query", "kept", f"{shown(query_id)} {KEPT.format(max(edited))}")
            continue
        await conn.execute(STORE_QUERY, query_id, query.sql)
        await conn.execute("UPDATE metric_configurations SET version = version + 1 WHERE query_id = $1", query_id)
    return series


# --- Metrics and layouts

INSERT_METRIC = """
INSERT INTO metric_configurations (id, query_id, title, is_editable, source)
VALUES ($1, $2, $3, $4, 'dataset')
"""
# Only what nobody has edited is ever updated.
UPDATE_METRIC = """
UPDATE metric_configurations
SET
    query_id = $2,
    title = $3,
    is_editable = $4,
    version = $5
WHERE id = $1
"""
# A tile that somebody has moved stays where it is.
INSERT_TILE = """
INSERT INTO layout_items (item_id, breakpoint, x, y, w, h, static)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT DO NOTHING
"""


class Item(msgspec.Struct):
    place: Place
    id: str
    query_id: str
    is_editable: bool


Tile = tuple[str, str, int, int, int, int, bool]  # a row of layout_items


def parse_metrics(content: bytes) -> tuple[Any, dict[str, Any]]:
    try:
        found = TOLERANT.decode(content.decode("utf-8-sig", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise Flaw("", f"this is no JSON: {error}; nothing of this file was loaded") from None
    layouts = (found.get("layouts") or {}) if isinstance(found, dict) else None
    if not isinstance(layouts, dict):
        form = '{"items": [...], "layouts": {"lg": [...]}}'
        raise Flaw("", f"this is not of the form {form}; nothing of this file was loaded")
    return found.get("items"), layouts


def elements(array: Any, name: str, report: Report) -> list[Any]:
    with report.rejecting(Place("metrics.json", 1)):
        if not isinstance(array, list | None):
            raise Flaw(name, f"{shown(array)} is not an array")
        return array or []
    return []


def parse_item(item: Any, place: Place, series: dict[str, str], report: Report) -> Item:
    if not isinstance(item, dict):
        raise Flaw("", f"{shown(item)} is not an object")
    item_id = key(item, "id")
    name = "query_id" if "query_id" in item and is_blank(item.get("queryId")) else "queryId"
    query_id = key(item, name)
    if query_id not in series:
        raise Flaw(name, f"there is no query {shown(query_id)}")
    is_editable = item.get("isEditable")
    if is_editable is None:
        report.add(place, "isEditable", "repaired", "is missing, taken as true")
    return Item(place, item_id, query_id, is_editable is None or boolean(is_editable, "isEditable"))


def claim_id(item: Item, taken: dict[str, Place], orphans: set[str], report: Report) -> None:
    """A second item with an id that is taken gets the one id that only the layouts know, if it is just one."""
    if item.id in taken:
        reason = f"{shown(item.id)} is taken by {taken[item.id]}"
        if len(orphans) != 1:
            raise Flaw("id", f"{reason}, and the layouts have {len(orphans)} ids without an item: give it its own")
        item.id = orphans.pop()
        report.add(item.place, "id", "repaired", f"{reason}; it gets {shown(item.id)}, which only the layouts have")
    taken[item.id] = item.place


async def store_item(conn: asyncpg.Connection, item: Item, title: str | None, stored: Any, report: Report) -> None:
    if not METRIC_ID.fullmatch(item.id):
        raise Flaw("id", f"{shown(item.id)} is no metric id: 1 to 64 letters, digits, _ and -, no _ or - first")
    row = {"query_id": item.query_id, "title": title, "is_editable": item.is_editable}
    if stored is None:
        await conn.execute(INSERT_METRIC, item.id, *row.values())
    elif stored["source"] != "dataset":
        raise Flaw("id", f"{shown(item.id)} is taken by a metric of source {stored['source']}: choose another id")
    elif row.items() <= dict(stored).items():
        pass
    elif stored["is_edited"]:
        report.add(item.place, "", "kept", f"{shown(item.id)} {KEPT.format(stored['version'])}")
    else:
        # One load is one version, whether its query has changed, too, or not.
        await conn.execute(UPDATE_METRIC, item.id, *row.values(), stored["version"] + 1)
    report.metrics += 1


def side(tile: dict[str, Any], column: str, least: int) -> int:
    if tile.get(column) is None:
        raise Flaw(column, "is missing")
    if (length := whole_number(tile[column], column)) < least:
        raise Flaw(column, f"{length} is less than {least}")
    return length


def parse_tile(tile: Any, breakpoint: str, metrics: set[str]) -> Tile:
    if not isinstance(tile, dict):
        raise Flaw("", f"{shown(tile)} is not an object")
    item_id = key(tile, "i")
    if item_id not in metrics:
        raise Flaw("i", f"unknown metric {shown(item_id)}")
    sides = (side(tile, "x", 0), side(tile, "y", 0), side(tile, "w", 1), side(tile, "h", 1))
    static = tile.get("static") is not None and boolean(tile["static"], "static")
    return item_id, short_key({"breakpoint": breakpoint}, "breakpoint"), *sides, static


def texts_of(rows: Iterable[Any], column: str) -> set[str]:
    return {row[column].strip() for row in rows if isinstance(row, dict) and isinstance(row.get(column), str)}


async def store_metrics(
    conn: asyncpg.Connection, content: bytes, series: dict[str, str], metrics: Metrics, report: Report
) -> None:
    array: Any = None
    layouts: dict[str, Any] = {}
    with report.rejecting(Place("metrics.json", 1)):
        array, layouts = parse_metrics(content)
    items = elements(array, "items", report)
    tiles = [
        (name, index, tile)
        for name, array in layouts.items()
        for index, tile in enumerate(elements(array, f"layouts.{name}", report))
    ]
    ids = texts_of(items, "id")
    orphans = texts_of((tile for *_, tile in tiles), "i") - ids
    taken: dict[str, Place] = {}
    known = metrics.keys() - ids
    for index, element in enumerate(items):
        place = Place("metrics.json", index, "items")
        with report.rejecting(place):
            item = parse_item(element, place, series, report)
            claim_id(item, taken, orphans, report)
            await store_item(conn, item, first_comment(series[item.query_id]), metrics.get(item.id), report)
            known.add(item.id)
    placed: dict[tuple[str, str], Tile] = {}
    for name, index, element in tiles:
        with report.rejecting(Place("metrics.json", index, f"layouts.{name}")):
            tile = parse_tile(element, name, known)
            if tile[:2] in placed:
                raise Flaw("i", f"{shown(tile[0])} has a place in this layout already")
            placed[tile[:2]] = tile
    report.layouts = len(placed)
    await conn.executemany(INSERT_TILE, placed.values())


# --- Records

RECORD_ID = uuid.UUID("5f0c7e0a-9a55-4b0f-8f3c-2d1b6f6f3a7e").bytes
NUMERIC = Context(prec=150_000)  # any numeric of PostgreSQL fits, so nothing is rounded

# All dates by the same number of days, so that the newest falls on $1.
SHIFT_STAGED = """
UPDATE staged_records
SET date = date + make_interval(days => $1::date - newest.day)
FROM (SELECT (MAX(date) AT TIME ZONE 'UTC')::date AS day FROM staged_records) AS newest
"""


def check_keys(row: Row, series: dict[str, str]) -> None:
    """Raises Flaw."""
    for column, value in zip(("id", "date"), row, strict=False):
        if value is None:
            raise Flaw(column, "is missing")
    if row[0] not in series:
        raise Flaw("id", f"unknown series {shown(row[0])}")


def canonical(written: str | None) -> str | None:
    """A number without what does not count, such as zeros at its end."""
    if written is None:
        return None
    exact = Decimal(written)
    return str(NUMERIC.normalize(exact)) if exact else "0"


def content_of(values: Sequence[Any]) -> str:
    """What makes a record the same as another, however it is written; a JSON array."""
    record_id, when, obsolescence_val, obsolescence, parts_flagged, *texts = values
    counted = None if parts_flagged is None else str(parts_flagged)
    parts = (record_id, str(when), canonical(obsolescence_val), canonical(obsolescence), counted, *texts)
    return f"[{', '.join('null' if part is None else encode_basestring_ascii(part) for part in parts)}]"


def uuid5(namespace: bytes, name: str) -> str:
    """As the standard library's (RFC 9562), in hexadecimal digits and in a third of its time."""
    digest = bytearray(hashlib.sha1(namespace + name.encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    return digest.hex()


class Occurrences:
    """Numbers equal records, so that loading the directory again gives each the same metric_id."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.seen: dict[str, tuple[Place, int]] = {}

    def identify(self, values: Sequence[Any], place: Place) -> str:
        content = content_of(values)
        first, count = self.seen.get(content, (place, 0))
        if count:
            self.report.add(place, "", "suspected duplicate", f"equal to {first}; kept, for it may be a second event")
        self.seen[content] = first, count + 1
        return uuid5(RECORD_ID, f"{content}{count}")


async def parse_records(
    files: dict[str, bytes], series: dict[str, str], report: Report, tell: Callable[[int], None]
) -> AsyncIterator[Row]:
    """Rows of metrics."""
    occurrences, count = Occurrences(report), 0
    for name in filter(files.__contains__, FILES[2:]):
        async for rows in rows_of(name, files[name], {"id", "date"}, DATASET, report):
            for place, row in rows:
                count += 1
                if row[0] in series and row[1] is not None:
                    yield row[0], occurrences.identify(row, place), *row[1:]
                else:
                    with report.rejecting(place):
                        check_keys(row, series)
            tell(count)


async def store_records(
    conn: asyncpg.Connection, rows: AsyncIterator[Row], newest: date | None, report: Report
) -> None:
    staged = await stage(conn, rows)
    if newest:
        await conn.execute(SHIFT_STAGED, newest)
    report.records_inserted = await conn.fetchval(INSERT_STAGED)
    await conn.execute(UNSTAGE)
    report.records_there = staged - report.records_inserted


# --- Load


async def load(
    directory: Path,
    conn: asyncpg.Connection,
    accept: Accept,
    *,
    newest: date | None = None,
    tell: Callable[[int], None] = lambda count: None,
) -> Report:
    """Loads what the directory has in one transaction; with `newest`, dates are shifted to end on that day.

    Tells how many records have been read now and then. Raises DatasetError when the directory holds none.
    """
    report = Report()
    files = await asyncio.to_thread(read_files, directory, report)
    # Before the transaction, for what PostgreSQL does not accept would abort it.
    queries: dict[str, Query | None] = {}
    if "queries.csv" in files:
        queries = await read_queries(files["queries.csv"], accept, report)
    async with conn.transaction():
        # Holds off other loads and edits, not readers.
        await conn.execute("LOCK TABLE queries, metric_configurations IN SHARE ROW EXCLUSIVE MODE")
        metrics = {row["id"]: row for row in await conn.fetch("SELECT * FROM metric_configurations")}
        series = await store_queries(conn, queries, metrics, report)
        if "metrics.json" in files:
            await store_metrics(conn, files["metrics.json"], series, metrics, report)
        await store_records(conn, parse_records(files, series, report, tell), newest, report)
    return report
