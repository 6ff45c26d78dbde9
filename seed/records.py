"""Reads records: from bytes in JSON, NDJSON or CSV to rows of metrics, or to what is wrong with them and where.

Uploads and data sets are read by the same rules and refused in the same words; uploads are refused as a whole, data
sets are repaired and loaded but for what is wrong. In this order: flaws, values, slices, JSON, CSV,
rows.
"""

import csv
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import asyncpg
import msgspec

SLICE = 500  # records that are read at a time: a few milliseconds in which nobody else has a turn
SLICE_BYTES = 2**16
MAX_RECORD = 2**17  # bytes of one record as it is written, which is what csv takes for one cell
MAX_DEPTH = 64

UNREAD = "; nothing is read from here on"

Record = dict[str, Any]  # what is written in each column
Row = Sequence[Any]  # the values of STAGED


# --- Flaws


class Flaw(Exception):
    """Why a record is not taken: a column, empty for the whole record, and the reason.

    Malformed is what is no JSON, CSV or UTF-8 at all, whatever it was meant to say.
    """

    def __init__(self, column: str, reason: str, malformed: bool = False) -> None:
        super().__init__(reason)
        self.column, self.reason, self.malformed = column, reason, malformed


class ShortRow(Flaw):
    """A row of CSV with fewer cells than the header, and what they say."""

    def __init__(self, header: Sequence[str], cells: Sequence[str]) -> None:
        super().__init__("", f"{len(cells)} cells, but the header has {len(header)}")
        self.record, self.missing = dict(zip(header, cells, strict=False)), header[len(cells) :]


# The place of each record, its line or its number in the array from 1 on, and what it says or why it cannot be read.
Slice = list[tuple[int, Record | Flaw]]


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
DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,6})?").fullmatch
ISO_8601 = re.compile(r"\d{4}-?(?:\d\d-?\d\d|W\d\d(?:-?\d)?)(?:[T ].+)?", re.ASCII).fullmatch
UUID = re.compile(r"[0-9a-fA-F]{8}(-?)(?:[0-9a-fA-F]{4}\1){3}[0-9a-fA-F]{12}").fullmatch
SURROGATE = re.compile("[\ud800-\udfff]")
EXTREMES = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))  # infinities to the driver
Parse = Callable[[Any, str], Any]


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


def moment(value: object, column: str) -> datetime:
    """In UTC, as it is meant unless it says otherwise; raises Flaw."""
    written = value.upper() if type(value) is str else ""
    try:
        parsed = datetime.fromisoformat(written)
        # fromisoformat takes any character between date and time.
        if not (written[4] == written[7] == "-" and written[10:11] in ("", "T", " ")) and not ISO_8601(written):
            raise ValueError
        utc = parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
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


VALUES: dict[str, Parse] = {
    "obsolescence_val": number,
    "obsolescence": number,
    "parts_flagged": whole_number,
    "alert_type": text,
    "alert_category": text,
}
# What an upload may have; its series is that of the metric.
UPLOADED: dict[str, Parse] = {"metric_id": identity, "date": moment, **VALUES}


def parse_record(record: Record, columns: Mapping[str, Parse]) -> list[Any]:
    """The values of the columns, None for what is missing or blank; raises Flaw."""
    values = []
    for column, parse in columns.items():
        value = record.get(column)
        if type(value) is str:
            value = value.strip()
        values.append(None if value is None or value == "" else parse(value, column))
    return values


def parse_upload(record: Record | Flaw) -> list[Any]:
    """Raises Flaw, for a column that records do not have, too."""
    if isinstance(record, Flaw):
        raise record
    if not record.keys() <= UPLOADED.keys():
        refuse_unknown(record)
    return parse_record(record, UPLOADED)


def refuse_unknown(columns: Iterable[str]) -> None:
    """Raises Flaw for a column that uploads do not have."""
    for column in columns:
        if column not in UPLOADED:
            raise Flaw(shown(column), f"is no column of records, which are {', '.join(UPLOADED)}")


def check_header(header: Sequence[str], required: Set[str] = frozenset()) -> None:
    """Raises Flaw for a column that is there twice or not at all."""
    named = [column for column in header if column]
    if len(set(named)) < len(named) or not required <= set(named):
        rule = " and ".join([*sorted(required), "no column twice"])
        raise Flaw("", f"the header must name {rule}; it is {shown(','.join(header))}{UNREAD}")


def check_uploaded(header: Sequence[str]) -> None:
    """Raises Flaw."""
    check_header(header)
    refuse_unknown(header)


# --- Slices

BOM = b"\xef\xbb\xbf"
# What one record is written in, a line or an element; a flaw is the last, for nothing can be read behind it.
Piece = bytes | Flaw


def too_long() -> Flaw:
    return Flaw("", f"the record is longer than {MAX_RECORD} bytes{UNREAD}", malformed=True)


def sliced(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """A few milliseconds' work at a time."""
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
        held = chunk[len(chunk.rstrip(b"\r")) :][-1:]
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

decode_values = msgspec.json.Decoder(list[Any], float_hook=Number).decode
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


def read_objects(batch: Sequence[Piece]) -> list[Record | Flaw]:
    """What each piece says: all in one go, and one by one where that fails."""
    pieces = [piece for piece in batch if isinstance(piece, bytes)]
    flaws = [piece for piece in batch if isinstance(piece, Flaw)]
    # Lines of which one has two objects and another breaks off do not all end with a brace.
    if all(piece.endswith(b"}") for piece in pieces):
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            values = decode_values(b"[" + b",".join(pieces) + b"]")
            if len(values) == len(pieces):
                return [*map(as_record, values), *flaws]
    return [*map(read_object, pieces), *flaws]


async def ndjson_records(chunks: AsyncIterator[bytes]) -> AsyncIterator[Slice]:
    number = 1
    async for batch in line_slices(chunks):
        stripped = [piece.strip(BLANKS) if isinstance(piece, bytes) else piece for piece in batch]
        places = [place for place, piece in enumerate(stripped, number) if piece]
        yield list(zip(places, read_objects([piece for piece in stripped if piece]), strict=True))
        number += len(batch)


async def json_records(chunks: AsyncIterator[bytes]) -> AsyncIterator[Slice]:
    """One object, or an array, which is held as a whole."""
    content = b"".join([chunk async for chunk in chunks]).removeprefix(BOM).strip(BLANKS)
    number = 1
    for batch in sliced(array_elements(content) if content.startswith(b"[") else [content]):
        yield list(enumerate(read_objects(batch), number))
        number += len(batch)


def array_elements(content: bytes) -> Iterator[Piece]:
    """Each element as it is written, so that many can be decoded at a time without all being held."""
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


async def csv_records(chunks: AsyncIterator[bytes], check_header: CheckHeader) -> AsyncIterator[Slice]:
    """RFC 4180 with a header; empty lines do not count."""
    header: list[str] | None = None
    async for lines in csv_lines(chunks):
        if header is None:
            (place, cells), *lines = lines or [(1, [])]
            header = [] if isinstance(cells, Flaw) else [cell.strip() for cell in cells]
            if flaw := cells if isinstance(cells, Flaw) else header_flaw(header, check_header):
                yield [(place, flaw)]
                return
        yield [(place, record) for place, cells in lines for record in csv_record(header, cells)]


def header_flaw(header: Sequence[str], check_header: CheckHeader) -> Flaw | None:
    try:
        check_header(header)
    except Flaw as flaw:
        return flaw
    return None


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
    """The cells of each record and the line that it begins on."""
    begun, size, enough = 1, 0, 0
    held: list[bytes] = []
    async for batch in line_slices(chunks):
        lines = [piece + b"\n" for piece in batch if isinstance(piece, bytes)]
        held += lines
        size += sum(map(len, lines))
        # What breaks off within quotes is read again when there is twice as much of it, not at each line.
        if size >= enough:
            found, ready = read_cells(held, begun)
            if found:
                yield found
            begun, held = begun + ready, held[ready:]
            size = sum(map(len, held))
            enough = min(2 * size, MAX_RECORD + 1)
        if len(batch) > len(lines) or size > MAX_RECORD:
            yield [(begun, too_long())]
            return
    yield read_cells(held, begun, final=True)[0]


def read_cells(lines: Sequence[bytes], begun: int, final: bool = False) -> tuple[list[Line], int]:
    """What there is of whole records, and how many lines they take; what breaks off at the very end is a flaw."""
    found: list[Line] = []
    reader = csv.reader((line.decode("utf-8", "surrogateescape") for line in lines), strict=True)
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
# Numbers come as texts, which the driver sends ten times as fast as it does Decimals.
INSERT = """\
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
ON CONFLICT DO NOTHING
"""
INSERT_STAGED = INSERT.format("staged_records")
INSERT_GIVEN = INSERT.format(
    "UNNEST($1::text[], $2::uuid[], $3::timestamptz[], $4::text[], $5::text[], $6::int[], $7::text[], $8::text[])"
    f" AS given ({', '.join(STAGED)})"
)


async def stage(conn: asyncpg.Connection, rows: AsyncIterator[Row]) -> int:
    """How many there are; a table of the session's own has no lock that anybody waits for."""
    await conn.execute(STAGE)
    done = await conn.copy_records_to_table("staged_records", records=rows, columns=STAGED)
    return int(done.rpartition(" ")[2])
