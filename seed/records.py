"""Reads records: from bytes in JSON, NDJSON or CSV to rows of metrics, or to what is wrong with them and where.

Uploads and data sets are read by the same rules and refused in the same words; uploads are refused as a whole, data
sets are repaired and loaded but for what is wrong. In this order: flaws, values, many values at once, schemas, slices,
JSON, CSV, rows, uploads.
"""

import asyncio
import csv
import io
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import asyncpg
import msgspec

SLICE = 250  # records that are read at a time: a millisecond or two in which nobody else has a turn
SLICE_BYTES = 2**15
MAX_RECORD = 2**17  # bytes of one record as it is written, which is what csv takes for one cell
MAX_DEPTH = 64

UNREAD = "; nothing is read from here on"

Record = dict[str, Any]  # what is written in each column
Row = Sequence[Any]  # the values of a schema's columns


# --- Flaws


class Flaw(Exception):
    """Why a record is not taken: a column, empty for the whole record, and the reason.

    Malformed is what is no JSON, CSV or UTF-8 at all; record is what could be read of it nevertheless.
    """

    def __init__(self, column: str, reason: str, malformed: bool = False, record: Record | None = None) -> None:
        super().__init__(reason)
        self.column, self.reason, self.malformed, self.record = column, reason, malformed, record


class ShortRow(Flaw):
    """A row of CSV with fewer cells than the header."""

    def __init__(self, header: Sequence[str], cells: Sequence[str]) -> None:
        reason = f"{len(cells)} cells, but the header has {len(header)}"
        super().__init__("", reason, record=dict(zip(header, cells, strict=False)))
        self.missing = header[len(cells) :]


# The place of each record, its line or its number in the array from 1 on, with its values or what is wrong with it.
Slice = list[tuple[int, Row | Flaw]]


class Number(str):
    """A JSON number as it was written, so that no digit is lost."""


class Constant(Number):
    """NaN or an infinity, which are no JSON."""


def shown(value: object) -> str:
    if isinstance(value, list):
        return "an array"
    if isinstance(value, dict):
        return "an object"
    written = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    written = str(value) if isinstance(value, Number) else written
    return written if len(written) <= 80 else f"{written[:77]}..."


def unlike(value: object, column: str, kind: str) -> Flaw:
    return Flaw(column, f"{shown(value)} is not {kind}", isinstance(value, Constant) or is_too_deep(value))


def is_too_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH - 1):  # the record is the first of them
        level = [
            item
            for parent in level
            if isinstance(parent, list | dict)
            for item in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return any(isinstance(item, list | dict) for item in level)


# --- Values

PLAIN_NUMBER = re.compile(r"[+-]?[0-9]{1,100}(?:\.[0-9]{1,100})?").fullmatch
DECIMAL = re.compile(r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]{1,6})?").fullmatch
ISO_8601 = re.compile(r"\d{4}-?(?:\d\d-?\d\d|W\d\d(?:-?\d)?)(?:[T ].+)?", re.ASCII).fullmatch
UUID = re.compile(r"[0-9a-fA-F]{8}(-?)(?:[0-9a-fA-F]{4}\1){3}[0-9a-fA-F]{12}").fullmatch
SURROGATE = re.compile("[\ud800-\udfff]")
EXTREMES = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))  # infinities to the driver


def number(value: object, column: str) -> str:
    """The number as PostgreSQL reads it; raises Flaw."""
    written = str(value) if type(value) is int else value if isinstance(value, str) else ""
    if PLAIN_NUMBER(written):
        return written
    if not DECIMAL(written):
        raise unlike(value, column, "a number")
    exact = Decimal(written)
    if exact.adjusted() >= 131072 or int(exact.as_tuple().exponent) < -16383:
        raise Flaw(column, f"{shown(value)} is out of range for PostgreSQL's numeric")
    return written


def whole_number(value: object, column: str) -> int:
    """Raises Flaw."""
    if isinstance(value, str) and len(value) < 10 and value.isascii() and value.isdigit():
        return int(value)
    exact = value if type(value) is int else Decimal(number(value, column))
    if not -(2**31) <= exact < 2**31 or exact != int(exact):
        raise unlike(value, column, f"a whole number between {-(2**31)} and {2**31 - 1}")
    return int(exact)


def in_utc(when: datetime) -> datetime:
    return when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)


def moment(value: object, column: str) -> datetime:
    """In UTC, as it is meant unless it says otherwise; raises Flaw."""
    written = value.upper() if type(value) is str else ""
    try:
        parsed = datetime.fromisoformat(written)
        # fromisoformat takes any character between date and time.
        if not (written[4] == written[7] == "-" and written[10:11] in ("", "T", " ")) and not ISO_8601(written):
            raise ValueError
        utc = in_utc(parsed)
    except ValueError:
        raise unlike(value, column, "an ISO 8601 date such as 2026-03-01 or 2026-03-01T12:00:00Z") from None
    except OverflowError:
        utc = EXTREMES[0]
    if utc in EXTREMES:
        raise Flaw(column, f"{shown(value)} is out of range")
    return utc


def text(value: object, column: str) -> str:
    """Raises Flaw."""
    if type(value) is not str:
        raise unlike(value, column, "text")
    if "\0" in value:
        raise Flaw(column, f"{shown(value)} holds a NUL character")
    if not value.isascii() and SURROGATE.search(value):
        raise Flaw(column, f"{shown(value)} holds what is not UTF-8", malformed=True)
    return value


def identity(value: object, column: str) -> str:
    """A UUID; raises Flaw."""
    if not isinstance(value, str) or not UUID(value):
        raise unlike(value, column, "a UUID")
    return value


# --- Many values at once

# Each takes what nearly all records have and raises ValueError or TypeError when one must be looked at by itself.


def plain_numbers(values: list[Any]) -> list[str]:
    written = [str(value) if type(value) is int else value for value in values]
    if not all(map(PLAIN_NUMBER, written)):
        raise ValueError
    return written


def plain_whole_numbers(values: list[Any]) -> list[int]:
    if set(map(type, values)) == {str}:
        digits = "".join(values).replace("-", "")
        if not (digits.isascii() and digits.isdigit()):
            raise ValueError
        values = list(map(int, values))
    if set(map(type, values)) != {int} or min(values) < -(2**31) or max(values) >= 2**31:
        raise ValueError
    return values


def plain_moments(values: list[Any]) -> list[datetime]:
    dashes, marks = {value[4:8:3] for value in values}, {value[10:11] for value in values}
    if dashes != {"--"} or not marks <= {"", "T", " "} or min(values) < "0002" or max(values) > "9999":
        raise ValueError
    moments = map(datetime.fromisoformat, values)
    return [when if when.tzinfo is UTC else in_utc(when) for when in moments]


def plain_texts(values: list[Any]) -> list[str]:
    if set(map(type, values)) != {str}:
        raise ValueError
    joined = "".join(values)
    if "\0" in joined or (not joined.isascii() and SURROGATE.search(joined)):
        raise ValueError
    return values


def plain_identities(values: list[Any]) -> list[str]:
    if not all(map(UUID, values)):
        raise ValueError
    return values


# --- Schemas


class Column(NamedTuple):
    """What reads one value, and what reads many."""

    parse: Callable[[Any, str], Any]
    parse_all: Callable[[list[Any]], list[Any]]


NUMBER, WHOLE_NUMBER = Column(number, plain_numbers), Column(whole_number, plain_whole_numbers)
MOMENT, TEXT, IDENTITY = Column(moment, plain_moments), Column(text, plain_texts), Column(identity, plain_identities)


class Schema:
    """The columns that records may have, and the order of their values."""

    def __init__(self, **columns: Column) -> None:
        self.columns = columns
        fields = [(name, Any, None) for name in columns]
        kind = msgspec.defstruct("Fields", fields, forbid_unknown_fields=True, gc=False)
        self.decode = msgspec.json.Decoder(list[kind], float_hook=Number).decode  # type: ignore[valid-type]

    def check_header(self, header: Sequence[str]) -> None:
        """Raises Flaw."""
        check_header(header)
        self.refuse_unknown(header)

    def refuse_unknown(self, columns: Iterable[str]) -> None:
        """Raises Flaw."""
        for column in columns:
            if column not in self.columns:
                raise Flaw(shown(column), f"is no column of records, which are {', '.join(self.columns)}")

    def parse(self, record: Record) -> Row:
        """Without blanks around texts, and None for what is missing or blank; raises Flaw."""
        self.refuse_unknown(record)
        values = []
        for column, (parse, _) in self.columns.items():
            value = record.get(column)
            if type(value) is str:
                value = value.strip()
            values.append(None if value is None or value == "" else parse(value, column))
        return values

    def parse_all(self, names: Sequence[str], rows: Sequence[Row]) -> list[Row]:
        """Raises ValueError, TypeError or OverflowError when one must be looked at by itself."""
        given = dict(zip(names, zip(*rows, strict=True), strict=True))
        columns: list[Iterable[Any]] = []
        for column, (_, parse_all) in self.columns.items():
            values = [
                value.strip() or None if type(value) is str else value
                for value in given.get(column, [None] * len(rows))
            ]
            some = [value for value in values if value is not None]
            parsed = iter(parse_all(some) if some else [])
            full = len(some) == len(values)
            columns.append(parsed if full else [None if value is None else next(parsed) for value in values])
        return list(zip(*columns, strict=True))

    def read(self, record: Record | Flaw) -> Row | Flaw:
        if isinstance(record, Flaw):
            return record
        try:
            return self.parse(record)
        except Flaw as flaw:
            flaw.record = record
            return flaw

    def read_all(self, names: Sequence[str], rows: Sequence[Row]) -> list[Row | Flaw]:
        """What rows of the same columns say: all in one go, and one by one where that fails."""
        try:
            return [*self.parse_all(names, rows)]
        except (ValueError, TypeError, OverflowError):
            return [self.read(dict(zip(names, row, strict=True))) for row in rows]


VALUES = {
    "obsolescence_val": NUMBER,
    "obsolescence": NUMBER,
    "parts_flagged": WHOLE_NUMBER,
    "alert_type": TEXT,
    "alert_category": TEXT,
}
# The series of an upload is its metric's; a record of a data set is identified by what it says.
UPLOAD = Schema(metric_id=IDENTITY, date=MOMENT, **VALUES)
DATASET = Schema(id=TEXT, date=MOMENT, **VALUES)


def check_header(header: Sequence[str], required: Set[str] = frozenset()) -> None:
    """Raises Flaw for a column that is there twice or not at all."""
    named = [column for column in header if column]
    if len(set(named)) < len(named) or not required <= set(named):
        rule = " and ".join([*sorted(required), "no column twice"])
        raise Flaw("", f"the header must name {rule}; it is {shown(','.join(header))}{UNREAD}")


# --- Slices

BOM = b"\xef\xbb\xbf"
# What one record is written in, a line or an element; a flaw is the last, for nothing can be read behind it.
Piece = bytes | Flaw


def too_long() -> Flaw:
    return Flaw("", f"the record is longer than {MAX_RECORD} bytes{UNREAD}", malformed=True)


def sliced(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """As many as take a millisecond or two to read."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece) if isinstance(piece, bytes) else 0
        if size >= SLICE_BYTES or len(batch) == SLICE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


async def unix_text(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Without a byte order mark, and with LF for CRLF and CR."""
    held, begun = b"", False
    async for chunk in chunks:
        chunk = held + chunk
        if not begun and len(chunk) < len(BOM) and BOM.startswith(chunk):
            held = chunk
            continue
        chunk, begun = chunk if begun else chunk.removeprefix(BOM), True
        held = b"\r" if chunk.endswith(b"\r") else b""
        chunk = chunk.removesuffix(held)
        yield chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in chunk else chunk
    yield held.replace(b"\r", b"\n")


async def line_slices(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[Piece]]:
    """Whole lines without their ends, as they arrive; a line that is too long to be held is a flaw."""
    held = bytearray()
    async for chunk in unix_text(chunks):
        whole, end, rest = chunk.rpartition(b"\n")
        if end:
            for batch in sliced((bytes(held) + whole).split(b"\n")):
                yield batch
            held.clear()
        held += rest
        if len(held) > MAX_RECORD:
            yield [too_long()]
            return
    if held:
        yield [bytes(held)]


# --- JSON

# Takes what is almost JSON, too, so that it costs no more than its own record.
TOLERANT = json.JSONDecoder(parse_float=Number, parse_int=Number, parse_constant=Constant)
FLAT_OBJECT = re.compile(rb"""\{(?:[^{}"]++|"(?:[^"\\]++|\\.)*+")*+\}""", re.DOTALL).match
MARK = re.compile(rb"[ \t\r\n]*+([\[,\]])[ \t\r\n]*+").match
BLANKS = b" \t\r\n"


def no_json(error: Exception, rest: str = "") -> Flaw:
    reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
    return Flaw("", f"this is no JSON: {reason}{rest}", malformed=True)


def as_record(value: object) -> Record | Flaw:
    return value if isinstance(value, dict) else unlike(value, "", "an object")


def read_object(piece: bytes) -> Record | Flaw:
    try:
        return as_record(TOLERANT.decode(piece.decode("utf-8", "surrogateescape")))
    except (ValueError, RecursionError) as error:
        return no_json(error)


def read_objects(batch: Sequence[Piece], schema: Schema) -> list[Row | Flaw]:
    """What each piece says: all in one go, and one by one where that fails."""
    pieces = [piece for piece in batch if isinstance(piece, bytes)]
    flaws = [piece for piece in batch if isinstance(piece, Flaw)]
    # Lines of which one has two objects and another breaks off do not all end with a brace.
    if all(piece.endswith(b"}") for piece in pieces):
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            fields = schema.decode(b"[" + b",".join(pieces) + b"]")
            if len(fields) == len(pieces):
                return [*schema.read_all([*schema.columns], list(map(msgspec.structs.astuple, fields))), *flaws]
    return [*(schema.read(read_object(piece)) for piece in pieces), *flaws]


async def ndjson_records(chunks: AsyncIterator[bytes], schema: Schema) -> AsyncIterator[Slice]:
    number = 1
    async for batch in line_slices(chunks):
        stripped = [piece.strip(BLANKS) if isinstance(piece, bytes) else piece for piece in batch]
        places = [place for place, piece in enumerate(stripped, number) if piece]
        yield list(zip(places, read_objects([piece for piece in stripped if piece], schema), strict=True))
        number += len(batch)


async def json_records(chunks: AsyncIterator[bytes], schema: Schema) -> AsyncIterator[Slice]:
    """One object, or an array, which is held as a whole."""
    content = b"".join([chunk async for chunk in chunks]).removeprefix(BOM).strip(BLANKS)
    number = 1
    for batch in sliced(array_elements(content) if content.startswith(b"[") else [content]):
        yield list(enumerate(read_objects(batch, schema), number))
        number += len(batch)


def array_elements(content: bytes) -> Iterator[Piece]:
    """Each element as it is written: an array of millions of small ones is never decoded as a whole."""
    mark = MARK(content)
    if mark and content.startswith(b"]", mark.end()):
        mark = MARK(content, mark.end())
    while mark and mark[1] != b"]":
        start = mark.end()
        try:
            end = element_end(content, start)
        except Flaw as flaw:
            yield flaw
            return
        yield content[start:end]
        mark = MARK(content, end)
        if not mark or mark[1] == b"[":
            yield Flaw("", f"a comma or the closing ] is missing at byte {end}{UNREAD}", malformed=True)
            return
    if mark and mark.end() < len(content):
        yield Flaw("", f"something follows the array at byte {mark.end()}{UNREAD}", malformed=True)


def element_end(content: bytes, start: int) -> int:
    """Raises Flaw."""
    if found := FLAT_OBJECT(content, start):
        end = found.end()
    else:
        window = content[start : start + MAX_RECORD + 1].decode("utf-8", "surrogateescape")
        try:
            end = TOLERANT.raw_decode(window)[1]
        except (ValueError, RecursionError) as error:
            raise (no_json(error, UNREAD) if len(window) <= MAX_RECORD else too_long()) from None
        end = start + len(window[:end].encode("utf-8", "surrogateescape"))
    if end - start > MAX_RECORD:
        raise too_long()
    return end


# --- CSV

CheckHeader = Callable[[Sequence[str]], None]  # raises Flaw
Line = tuple[int, list[str] | Flaw]
# What csv says of quotes that are still open.
BREAKS_OFF = ("unexpected end of data", "field larger than field limit")


async def csv_records(
    chunks: AsyncIterator[bytes], schema: Schema, check: CheckHeader | None = None
) -> AsyncIterator[Slice]:
    """RFC 4180 with a header; empty lines do not count."""
    header: list[str] | None = None
    async for lines in csv_lines(chunks):
        if header is None and lines:
            (place, cells), *lines = lines
            header = [] if isinstance(cells, Flaw) else [cell.strip() for cell in cells]
            if flaw := cells if isinstance(cells, Flaw) else header_flaw(header, check or schema.check_header):
                yield [(place, flaw)]
                return
        yield read_lines(header or [], lines, schema)
    if header is None and (flaw := header_flaw([], check or schema.check_header)):
        yield [(1, flaw)]


def header_flaw(header: Sequence[str], check: CheckHeader) -> Flaw | None:
    try:
        check(header)
    except Flaw as flaw:
        return flaw
    return None


def read_lines(header: Sequence[str], lines: Sequence[Line], schema: Schema) -> Slice:
    whole = [cells for _, cells in lines if isinstance(cells, list) and len(cells) == len(header)]
    if len(whole) == len(lines):
        return list(zip([place for place, _ in lines], schema.read_all(header, whole), strict=True))
    return [(place, schema.read(record)) for place, cells in lines for record in csv_record(header, cells)]


def csv_record(header: Sequence[str], cells: list[str] | Flaw) -> Iterator[Record | Flaw]:
    if isinstance(cells, Flaw):
        yield cells
    elif len(cells) == len(header):
        yield dict(zip(header, cells, strict=True))
    elif len(cells) > len(header):
        yield Flaw("", f"{len(cells)} cells, but the header has {len(header)}")
    elif any(map(str.strip, cells)):
        yield ShortRow(header, cells)


async def csv_lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[Line]]:
    """The cells of each record and the line that it begins on; none while one goes on."""
    begun, size, enough = 1, 0, 0
    held: list[bytes] = []
    async for batch in line_slices(chunks):
        lines = [piece + b"\n" for piece in batch if isinstance(piece, bytes)]
        held += lines
        size += sum(map(len, lines))
        found: list[Line] = []
        # What breaks off within quotes is read again when there is twice as much of it, not at each line.
        if size >= enough:
            found, ready = read_cells(held, begun)
            begun, held = begun + ready, held[ready:]
            size = sum(map(len, held))
            enough = min(2 * size, MAX_RECORD + 1)
        yield found
        if len(batch) > len(lines) or size > MAX_RECORD:
            yield [(begun, too_long())]
            return
    yield read_cells(held, begun, final=True)[0]


def read_cells(lines: Sequence[bytes], begun: int, final: bool = False) -> tuple[list[Line], int]:
    """What there is of whole records, and how many lines they take; what breaks off at the very end is a flaw."""
    found: list[Line] = []
    text = b"".join(lines).decode("utf-8", "surrogateescape")
    reader = csv.reader(io.StringIO(text, newline="\n"), strict=True)
    while True:
        ready = reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return found, len(lines)
        except csv.Error as error:
            if not final and str(error).startswith(BREAKS_OFF):
                return found, ready
            place = f"lines {begun + ready} to {begun + reader.line_num - 1}"
            reason = f"{place} cannot be read ({error}): check the quotes"
            found.append((begun + ready, Flaw("", reason, malformed=True)))
            continue
        if cells:
            found.append((begun + ready, cells))


# --- Rows

STAGED = ("id", "metric_id", "date", *VALUES)
STAGE = """\
DROP TABLE IF EXISTS pg_temp.staged_records;
CREATE TEMPORARY TABLE staged_records (
  id text,
  metric_id uuid,
  date timestamptz,
  obsolescence_val text,
  obsolescence text,
  parts_flagged int,
  alert_type text,
  alert_category text
)
"""
UNSTAGE = "DROP TABLE IF EXISTS pg_temp.staged_records"
# How many were not there yet: the command's own word counts on Citus those that were, too. Numbers come as texts, which
# the driver sends several times as fast as it does Decimals. In order, so that two who write the same records wait for
# each other one way; by date, so that a period stays together on the disk.
INSERT = """\
WITH inserted AS (
  INSERT INTO metrics (id, metric_id, date, obsolescence_val, obsolescence, parts_flagged, alert_type, alert_category)
  SELECT
    id,
    COALESCE(metric_id, GEN_RANDOM_UUID()),
    COALESCE(date, NOW()),
    obsolescence_val::numeric,
    obsolescence::numeric,
    parts_flagged,
    alert_type,
    alert_category
  FROM {}
  ORDER BY date, metric_id
  ON CONFLICT DO NOTHING
  RETURNING 1
)
SELECT COUNT(*)
FROM inserted
"""
INSERT_STAGED = INSERT.format("staged_records")
INSERT_GIVEN = INSERT.format(f"""UNNEST(
  $1::text[],
  $2::text[]::uuid[],
  $3::text[]::timestamptz[],
  $4::text[],
  $5::text[],
  $6::text[]::int[],
  $7::text[],
  $8::text[]
) AS given ({", ".join(STAGED)})""")


def as_texts(rows: Sequence[Row]) -> list[list[str | None]]:
    """The columns for INSERT_GIVEN: arrays of other types the driver looks up in each session, which takes a while."""
    return [[None if row[i] is None else str(row[i]) for row in rows] for i in range(len(STAGED))]


async def stage(conn: asyncpg.Connection, rows: AsyncIterator[Row]) -> int:
    """How many there are; a table of the session's own has no lock that anybody waits for."""
    await conn.execute(STAGE)
    done = await conn.copy_records_to_table("staged_records", records=rows, columns=STAGED)
    return int(done.rpartition(" ")[2])


# --- Uploads

MAX_SLICES = 32  # of which each may hold one large record
MAX_FLAWS = 100
PROGRESS = 5  # seconds between two words about one upload


class BadRecords(Exception):
    """The first flaws of an upload, each with its place; malformed says that it is no NDJSON, CSV or JSON at all."""

    def __init__(self, flaws: Sequence[tuple[str, str]], malformed: bool = False) -> None:
        super().__init__("{}: {}".format(*flaws[0]))
        self.flaws, self.malformed = flaws[:MAX_FLAWS], malformed


def place_flaw(place: str, flaw: Flaw) -> tuple[str, str]:
    """Raises BadRecords for what is malformed, for nothing can be read behind it."""
    placed = f"{place}, {flaw.column}" if flaw.column else place, flaw.reason
    if flaw.malformed:
        raise BadRecords([placed], malformed=True)
    return placed


async def batches(slices: AsyncIterator[Slice], series: str, unit: str) -> AsyncIterator[list[Row]]:
    """Rows to insert, a batch at a time, the last may be none; gives way to others in between. Raises BadRecords."""
    rows, flaws, held = list[Row](), list[tuple[str, str]](), 0
    async for found in slices:
        held += 1
        for place, row in found:
            if isinstance(row, Flaw):
                flaws.append(place_flaw(f"{unit} {place}", row))
            else:
                rows.append((series, *row))
        if len(flaws) >= MAX_FLAWS:
            break
        await asyncio.sleep(0)
        if flaws:
            rows.clear()
        if len(rows) >= SLICE or (rows and held >= MAX_SLICES):
            yield rows
            rows, held = [], 0
            await asyncio.sleep(0)
    if flaws:
        raise BadRecords(flaws)
    yield rows


async def rows_of(
    begun: Sequence[list[Row]], rest: AsyncIterator[list[Row]], tell: Callable[[int, float], None]
) -> AsyncIterator[Row]:
    """One by one, as the driver wants them; tell is told now and then how many there were and how many a second."""
    count, started, told = 0, time.monotonic(), 0.0
    waiting = [*begun]
    while rows := waiting.pop(0) if waiting else await anext(rest, []):
        for row in rows:
            yield row
        count += len(rows)
        lasted = time.monotonic() - started
        if lasted > told + PROGRESS:
            told = lasted
            tell(count, count / lasted)
