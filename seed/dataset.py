"""Loads a data set directory: metrics.json, queries.csv, metric_records.json and metric_records.csv.

Real data sets are dirty: what can be repaired is, what cannot is rejected row by row, and the rest loads,
in one transaction. In this order: findings, values, files, SQL, queries, metrics and layouts, records, load.
"""

import asyncio
import csv
import io
import itertools
import json
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

import asyncpg
import msgspec

Accept = Callable[[str], Awaitable[str | None]]  # SQL with :named parameters -> PostgreSQL's objection, if any
Kind = Literal["repaired", "rejected", "suspected duplicate", "kept"]
Metrics = dict[str, Any]  # rows of metric_configurations by id

FILES = ("metrics.json", "queries.csv", "metric_records.json", "metric_records.csv")
SLICE = 250  # records between two turns of the event loop


# --- Findings


class DatasetError(Exception):
    """The directory holds no data set."""


class Rejected(Exception):
    """What a row is not loaded for: a column, empty for the whole row, and the reason."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column, self.reason = column, reason


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
        return line.encode(errors="backslashreplace").decode()  # half a surrogate pair could not be printed


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
        except Rejected as rejected:
            self.add(place, rejected.column, "rejected", rejected.reason)

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


class Number(str):
    """A JSON number as it was written, so that no digit is lost; NaN and Infinity too, which are no JSON."""


DECODER = json.JSONDecoder(parse_float=Number, parse_int=Number, parse_constant=Number)
INFINITIES = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))  # to asyncpg
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
MARK = re.compile(r"\s*([\[,\]])\s*", re.ASCII)
DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,6})?", re.ASCII)
ISO_8601 = re.compile(r"\d{4}-?(?:\d\d-?\d\d|W\d\d(?:-?\d)?)(?:[T ][\d:.,]+(?:Z|[+-][\d:]+)?)?", re.ASCII)
METRIC_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def shown(value: object) -> str:
    if isinstance(value, list):
        return "an array"
    if isinstance(value, dict):
        return "an object"
    written = str(value) if isinstance(value, Number) else repr(value)
    return written if len(written) <= 80 else f"{written[:77]}..."


def is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def text(value: object, column: str) -> str:
    if not isinstance(value, str) or isinstance(value, Number):
        raise Rejected(column, f"{shown(value)} is not text")
    if UNSTORABLE.search(value):
        raise Rejected(column, f"{shown(value)} holds a NUL or bytes that are not UTF-8")
    return value


def key(row: dict[str, Any], column: str) -> str:
    if is_blank(row.get(column)):
        raise Rejected(column, "is missing")
    return text(row[column], column).strip()


def short_key(row: dict[str, Any], column: str) -> str:
    """A key that an index has room for, whatever its characters."""
    name = key(row, column)
    if len(name) > 255:
        raise Rejected(column, f"{shown(name)} is longer than 255 characters")
    return name


def decimal(value: object, column: str) -> Decimal:
    if not isinstance(value, str) or not DECIMAL.fullmatch(value.strip()):
        raise Rejected(column, f"{shown(value)} is not a number")
    number = Decimal(value.strip())
    if number.adjusted() >= 131072 or int(number.as_tuple().exponent) < -16383:
        raise Rejected(column, f"{shown(value)} is out of range for PostgreSQL's numeric")
    return number


def integer(value: object, column: str) -> int:
    number = decimal(value, column)
    if not -(2**31) <= number < 2**31 or number != int(number):
        raise Rejected(column, f"{shown(value)} is not a whole number between -2147483648 and 2147483647")
    return int(number)


def boolean(value: object, column: str) -> bool:
    if not isinstance(value, bool):
        raise Rejected(column, f"{shown(value)} is neither true nor false")
    return value


def moment(value: object, column: str) -> datetime:
    written = text(value, column).strip().upper()
    try:
        # fromisoformat takes any character between date and time.
        if not ISO_8601.fullmatch(written):
            raise ValueError
        parsed = datetime.fromisoformat(written)
        utc = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).astimezone(UTC)
    except ValueError:
        raise Rejected(column, f"{shown(value)} is not an ISO 8601 date") from None
    except OverflowError:
        utc = INFINITIES[0]
    if utc in INFINITIES:
        raise Rejected(column, f"{shown(value)} is out of range")
    return utc


# --- Files

Rows = Iterator[tuple[Place, dict[str, Any]]]


def read_file(path: Path, report: Report) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Rejected("", f"cannot be read: {error.strerror}") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Rejected("", "is UTF-16: save it as UTF-8; nothing of this file was loaded")
    if content.startswith(b"\xef\xbb\xbf"):
        report.add(Place(path.name, 1), "", "repaired", "byte order mark left out")
    # Bytes that are not UTF-8 become surrogates, so that they cost their own row and not the file.
    decoded = content.decode("utf-8-sig", "surrogateescape")
    if path.suffix == ".csv" and "\r" in decoded:
        report.add(Place(path.name, 1), "", "repaired", "CRLF line ends read as LF")
        decoded = decoded.replace("\r\n", "\n").replace("\r", "\n")
    return decoded


def read_files(directory: Path, report: Report) -> dict[str, str]:
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


def csv_lines(name: str, content: str, report: Report) -> Iterator[tuple[Place, list[str]]]:
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    while True:
        place = Place(name, reader.line_num + 1)
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = f"lines {place.line} to {reader.line_num} cannot be read ({error}): check the quotes"
            report.add(place, "", "rejected", reason)
            continue
        if cells:
            yield place, cells


def csv_rows(name: str, content: str, required: set[str], report: Report) -> Rows:
    lines = csv_lines(name, content, report)
    place, cells = next(lines, (Place(name, 1), []))
    header = [cell.strip() for cell in cells]
    named = [column for column in header if column]
    if len(set(named)) < len(named) or not required <= set(named):
        rule = f"the header must name {' and '.join(sorted(required))}, and no column twice"
        reason = f"{rule}; it is {shown(','.join(header))}; nothing of this file was loaded"
        report.add(place, "", "rejected", reason)
        return
    for place, cells in lines:
        if len(cells) > len(header):
            report.add(place, "", "rejected", f"{len(cells)} cells, but the header has {len(header)}")
            continue
        if len(cells) < len(header):
            missing = ", ".join(header[len(cells) :])
            report.add(place, "", "repaired", f"short row: no value for {missing}")
        yield place, dict(zip(header, cells, strict=False))


def json_elements(content: str) -> Iterator[Any]:
    """The array's elements one by one: decoding a large file in one go would stall the event loop."""
    mark = MARK.match(content)
    if not mark or mark[1] != "[":
        raise Rejected("", "this is no JSON array of records: it does not begin with [")
    if content.startswith("]", mark.end()):
        mark = MARK.match(content, mark.end())
    while mark and mark[1] != "]":
        try:
            element, position = DECODER.raw_decode(content, mark.end())
        except (ValueError, RecursionError) as error:
            raise Rejected("", f"this is no JSON: {error}") from None
        yield element
        mark = MARK.match(content, position)
        if not mark or mark[1] == "[":
            raise Rejected("", f"a comma or the closing ] is missing at character {position}")
    if mark and mark.end() < len(content):
        raise Rejected("", f"something follows the array at character {mark.end()}")


def json_rows(name: str, content: str, report: Report) -> Rows:
    index = -1
    try:
        for index, element in enumerate(json_elements(content)):
            place = Place(name, index, "")
            if isinstance(element, dict):
                yield place, element
            else:
                report.add(place, "", "rejected", f"{shown(element)} is not an object")
    except Rejected as rejected:
        reason = f"{rejected.reason}; nothing of this file was loaded from here on"
        report.add(Place(name, index + 1, ""), "", "rejected", reason)


def known_columns(rows: Rows, columns: set[str], report: Report) -> Rows:
    noted = set(columns)
    for place, row in rows:
        for column in sorted(row.keys() - noted):
            report.add(place, shown(column), "repaired", "unknown column ignored, here and below")
            noted.add(column)
        yield place, row


# --- SQL


def sql_token() -> re.Pattern[str]:
    block = r"/\*(?:(?!/\*|\*/).)*+\*/"
    for _ in range(3):  # PostgreSQL's block comments nest
        block = rf"/\*(?:(?!/\*|\*/).|{block})*+\*/"
    comment = rf"(?:--[^\n]*|{block})"
    gap = rf"(?:\s|{comment})*+"
    space = rf"(?:\s|{comment})++"
    # A period that is excluded, and an INTERVAL that is an argument (the step of generate_series), are no filters.
    return re.compile(
        rf"""{comment}
        | \$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$
        | E'(?:[^'\\]|\\.|'')*+'
        | "(?:[^"]|"")*+"
        | NOT{space}BETWEEN\b
        | ,{gap}INTERVAL\b
        | (?P<between>BETWEEN{space})(?:DATE{gap})?'(?P<start>\d{{4}}-\d\d-\d\d)'(?!')
          (?P<and>(?:::\w+)?{gap}AND{space})(?:DATE{gap})?'(?P<end>\d{{4}}-\d\d-\d\d)'(?!')
        | INTERVAL{gap}'\s*(?P<days>\d{{1,9}})\s*(?:(?P<unit>days?)\s*)?'(?!')
          (?(unit)|{gap}DAY\b)(?!{gap}(?:TO|YEAR|MONTH|DAY|HOUR|MINUTE|SECOND)\b)
        | '(?:[^']|'')*+'
        | :: | :=
        | :(?P<name>[^\W\d]\w*)
        | \w[\w$]*""",
        re.IGNORECASE | re.DOTALL | re.VERBOSE,
    )


TOKEN = sql_token()


def period(token: re.Match[str]) -> tuple[str, str] | None:
    try:
        return date.fromisoformat(token["start"]).isoformat(), date.fromisoformat(token["end"]).isoformat()
    except (TypeError, ValueError):
        return None


def with_parameters(sql: str) -> tuple[str, list[str]]:
    """The SQL with its literal periods as parameters that default to them, and why any had to stay."""
    tokens = list(TOKEN.finditer(sql))
    names = {token["name"] for token in tokens}
    periods = {found for token in tokens if (found := period(token))}
    ranges = {int(token["days"]) for token in tokens if token["days"]}

    def replaced(token: re.Match[str]) -> str:
        if (found := period(token)) and len(periods) == 1 and not names & {"start_date", "end_date"}:
            start, end = found
            start, end = f"COALESCE(:start_date, DATE '{start}')", f"COALESCE(:end_date, DATE '{end}')"
            return f"{token['between']}{start}{token['and']}{end}"
        if token["days"] and len(ranges) == 1 and "day_range" not in names:
            return f"make_interval(days => COALESCE(:day_range, {int(token['days'])}))"
        return token[0]

    stayed = []
    if len(periods) > 1:
        several = ", ".join(sorted(f"{start} to {end}" for start, end in periods))
        stayed.append(f"several periods ({several}) cannot be one start_date and end_date: they stay literals")
    if len(ranges) > 1:
        several = ", ".join(map(str, sorted(ranges)))
        stayed.append(f"several intervals ({several} days) cannot be one day_range: they stay literals")
    return TOKEN.sub(replaced, sql), stayed


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
        raise Rejected("query", f"PostgreSQL does not accept it: {objection}")
    for reason in stayed:
        report.add(place, "query", "kept", reason)
    return rewritten


async def read_queries(rows: Rows, accept: Accept, report: Report) -> dict[str, Query | None]:
    """The queries by id; None for an id whose query was rejected."""
    queries: dict[str, Query | None] = {}
    for place, row in rows:
        with report.rejecting(place):
            query_id = short_key(row, "id")
            if taken := queries.get(query_id):
                raise Rejected("id", f"{shown(query_id)} is taken by {taken.place}")
            queries[query_id] = None
            queries[query_id] = Query(place, await accepted_sql(key(row, "query"), place, accept, report))
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


def parse_metrics(content: str) -> tuple[Any, dict[str, Any]]:
    try:
        found = DECODER.decode(content)
    except (ValueError, RecursionError) as error:
        raise Rejected("", f"this is no JSON: {error}; nothing of this file was loaded") from None
    layouts = (found.get("layouts") or {}) if isinstance(found, dict) else None
    if not isinstance(layouts, dict):
        form = '{"items": [...], "layouts": {"lg": [...]}}'
        raise Rejected("", f"this is not of the form {form}; nothing of this file was loaded")
    return found.get("items"), layouts


def elements(array: Any, name: str, report: Report) -> list[Any]:
    with report.rejecting(Place("metrics.json", 1)):
        if not isinstance(array, list | None):
            raise Rejected(name, f"{shown(array)} is not an array")
        return array or []
    return []


def parse_item(item: Any, place: Place, series: dict[str, str], report: Report) -> Item:
    if not isinstance(item, dict):
        raise Rejected("", f"{shown(item)} is not an object")
    item_id = key(item, "id")
    name = "query_id" if "query_id" in item and is_blank(item.get("queryId")) else "queryId"
    query_id = key(item, name)
    if query_id not in series:
        raise Rejected(name, f"there is no query {shown(query_id)}")
    is_editable = item.get("isEditable")
    if is_editable is None:
        report.add(place, "isEditable", "repaired", "is missing, taken as true")
    return Item(place, item_id, query_id, is_editable is None or boolean(is_editable, "isEditable"))


def claim_id(item: Item, taken: dict[str, Place], orphans: set[str], report: Report) -> None:
    """A second item with an id that is taken gets the one id that only the layouts know, if it is just one."""
    if item.id in taken:
        reason = f"{shown(item.id)} is taken by {taken[item.id]}"
        if len(orphans) != 1:
            raise Rejected("id", f"{reason}, and the layouts have {len(orphans)} ids without an item: give it its own")
        item.id = orphans.pop()
        report.add(item.place, "id", "repaired", f"{reason}; it gets {shown(item.id)}, which only the layouts have")
    taken[item.id] = item.place


async def store_item(conn: asyncpg.Connection, item: Item, title: str | None, stored: Any, report: Report) -> None:
    if not METRIC_ID.fullmatch(item.id):
        raise Rejected("id", f"{shown(item.id)} is no metric id: 1 to 64 letters, digits, _ and -, no _ or - first")
    row = {"query_id": item.query_id, "title": title, "is_editable": item.is_editable}
    if stored is None:
        await conn.execute(INSERT_METRIC, item.id, *row.values())
    elif stored["source"] != "dataset":
        raise Rejected("id", f"{shown(item.id)} is taken by a metric of source {stored['source']}: choose another id")
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
        raise Rejected(column, "is missing")
    if (number := integer(tile[column], column)) < least:
        raise Rejected(column, f"{number} is less than {least}")
    return number


def parse_tile(tile: Any, breakpoint: str, metrics: set[str]) -> Tile:
    if not isinstance(tile, dict):
        raise Rejected("", f"{shown(tile)} is not an object")
    item_id = key(tile, "i")
    if item_id not in metrics:
        raise Rejected("i", f"unknown metric {shown(item_id)}")
    sides = (side(tile, "x", 0), side(tile, "y", 0), side(tile, "w", 1), side(tile, "h", 1))
    static = tile.get("static") is not None and boolean(tile["static"], "static")
    return item_id, short_key({"breakpoint": breakpoint}, "breakpoint"), *sides, static


def texts_of(rows: Iterable[Any], column: str) -> set[str]:
    return {row[column].strip() for row in rows if isinstance(row, dict) and isinstance(row.get(column), str)}


async def store_metrics(
    conn: asyncpg.Connection, content: str, series: dict[str, str], metrics: Metrics, report: Report
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
                raise Rejected("i", f"{shown(tile[0])} has a place in this layout already")
            placed[tile[:2]] = tile
    report.layouts = len(placed)
    await conn.executemany(INSERT_TILE, placed.values())


# --- Records

RECORD_ID = uuid.UUID("5f0c7e0a-9a55-4b0f-8f3c-2d1b6f6f3a7e")
NUMERIC = Context(prec=150_000)  # any numeric of PostgreSQL fits, so nothing is rounded
VALUES: dict[str, Callable[[object, str], Any]] = {
    "obsolescence_val": decimal,
    "obsolescence": decimal,
    "parts_flagged": integer,
    "alert_type": text,
    "alert_category": text,
}

# All dates by the same number of days, so that the newest falls on $1.
SHIFT_STAGED = """
UPDATE staged_records
SET date = date + make_interval(days => $1::date - newest.day)
FROM (SELECT (MAX(date) AT TIME ZONE 'UTC')::date AS day FROM staged_records) AS newest
"""


def parse_value(row: dict[str, Any], column: str, place: Place, report: Report) -> Any:
    value = row.get(column)
    if isinstance(value, str) and value.strip() in ("NaN", "nan"):
        report.add(place, column, "repaired", "NaN read as no value")
        return None
    return None if is_blank(value) else VALUES[column](value, column)


def parse_record(row: dict[str, Any], place: Place, series: dict[str, str], report: Report) -> tuple[Any, ...]:
    record_id = key(row, "id")
    if record_id not in series:
        raise Rejected("id", f"unknown series {shown(record_id)}")
    key(row, "date")
    values = [parse_value(row, column, place, report) for column in VALUES]
    return record_id, moment(row["date"], "date"), *values


def canonical(value: object) -> str | None:
    if isinstance(value, Decimal):
        return str(NUMERIC.normalize(value)) if value else "0"
    return None if value is None else str(value)


def parse_records(rows: Rows, series: dict[str, str], report: Report) -> Iterator[tuple[Any, ...]]:
    """Rows of metrics: equal ones are numbered, so that loading the directory again gives each the same metric_id."""
    seen: dict[str, list[Place]] = {}
    for place, row in rows:
        with report.rejecting(place):
            record_id, *values = parse_record(row, place, series, report)
            content = json.dumps([canonical(value) for value in (record_id, *values)])
            places = seen.setdefault(content, [])
            if places:
                reason = f"equal to {places[0]}; kept, for it may be a second event"
                report.add(place, "", "suspected duplicate", reason)
            yield record_id, uuid.uuid5(RECORD_ID, f"{content}{len(places)}"), *values
            places.append(place)


async def store_records(
    conn: asyncpg.Connection, rows: Rows, series: dict[str, str], newest: date | None, report: Report
) -> None:
    columns = ("id", "metric_id", "date", *VALUES)
    await conn.execute("CREATE TEMPORARY TABLE staged_records (LIKE metrics) ON COMMIT DROP")
    records = parse_records(rows, series, report)
    while batch := list(itertools.islice(records, SLICE)):
        await conn.copy_records_to_table("staged_records", records=batch, columns=columns)
    if newest:
        await conn.execute(SHIFT_STAGED, newest)
    staged = await conn.fetchval("SELECT COUNT(*) FROM staged_records")
    inserted = await conn.execute("INSERT INTO metrics SELECT * FROM staged_records ON CONFLICT DO NOTHING")
    report.records_inserted = int(inserted.split()[-1])
    report.records_there = staged - report.records_inserted


# --- Load


def rows_of(stem: str, required: set[str], optional: set[str], files: dict[str, str], report: Report) -> Rows:
    for name, content in files.items():
        if name.startswith(stem):
            is_csv = name.endswith(".csv")
            rows = csv_rows(name, content, required, report) if is_csv else json_rows(name, content, report)
            yield from known_columns(rows, required | optional, report)


async def load(directory: Path, conn: asyncpg.Connection, accept: Accept, *, newest: date | None = None) -> Report:
    """Loads what the directory has in one transaction; with `newest`, dates are shifted to end on that day.

    Raises DatasetError when the directory holds none.
    """
    report = Report()
    files = await asyncio.to_thread(read_files, directory, report)
    # Before the transaction, for what PostgreSQL does not accept would abort it.
    query_rows = rows_of("queries", {"id", "query"}, set(), files, report)
    queries = await read_queries(query_rows, accept, report)
    async with conn.transaction():
        # Holds off other loads and edits, not readers.
        await conn.execute("LOCK TABLE queries, metric_configurations IN SHARE ROW EXCLUSIVE MODE")
        metrics = {row["id"]: row for row in await conn.fetch("SELECT * FROM metric_configurations")}
        series = await store_queries(conn, queries, metrics, report)
        if "metrics.json" in files:
            await store_metrics(conn, files["metrics.json"], series, metrics, report)
        records = rows_of("metric_records", {"id", "date"}, set(VALUES), files, report)
        await store_records(conn, records, series, newest, report)
    return report
