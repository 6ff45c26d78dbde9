"""One reader of records: each case through every way in, with the same verdict and the same words."""

import asyncio
import csv
import gzip
import io
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import httpx
import pytest
from conftest import Serve
from helpers import Service, eventually

from seed import dataset

pytestmark = pytest.mark.anyio

RECORDS = "/metrics/echo/metric-records"
ISO = "is not an ISO 8601 date such as 2026-03-01 or 2026-03-01T12:00:00Z"
WHOLE = "is not a whole number between -2147483648 and 2147483647"
MEDIA = {"json": "application/json", "ndjson": "application/x-ndjson", "csv": "text/csv"}
COLUMNS = "date, obsolescence::text, parts_flagged, alert_type"


class Verdict(NamedTuple):
    """What is stored, or why nothing is: column and reason."""

    values: Any = None
    column: str = ""
    reason: str = ""


@pytest.fixture(scope="module")
def service(start_service: Serve) -> Iterator[Service]:
    service = start_service(AUTH="off", MAX_BODY="500000")
    yield service
    service.stop()


async def upload(client: httpx.AsyncClient, kind: str, body: bytes | AsyncIterator[bytes]) -> httpx.Response:
    return await client.post(RECORDS, content=body, headers={"Content-Type": MEDIA[kind]})


def verdict_of(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, column and reason; the column is what the name says after the place."""
    if answer.status_code == 201:
        return 201, "", ""
    error = answer.json()["errors"][0]
    return answer.status_code, error["name"].partition(", ")[2], error["detail"]


async def accept(sql: str) -> str | None:
    return None


async def load(directory: Path, conn: asyncpg.Connection, name: str, body: bytes) -> list[str]:
    """What the loader says of one file of records."""
    directory.mkdir(exist_ok=True)
    for file in directory.iterdir():
        file.unlink()
    (directory / name).write_bytes(body)
    report = await dataset.load(directory, conn, accept)
    return [f"{finding.kind}: {finding.column}: {finding.reason}" for finding in report.findings]


async def stored(owner: asyncpg.Connection, column: str) -> list[Any]:
    rows = await owner.fetch(f"SELECT {COLUMNS} FROM metrics ORDER BY metric_id")
    await owner.execute("DELETE FROM metrics")
    return [str(row[column]) if row[column] is not None else None for row in rows]


# A cell: its column, what is written there as a text, and what is stored or why it is refused. As it stands in CSV,
# and as a text in JSON: the same.
CELLS = [
    ("parts_flagged", " 3 ", "3", ""),
    ("parts_flagged", "03", "3", ""),
    ("parts_flagged", "+3", "3", ""),
    ("parts_flagged", "3.0", "3", ""),
    ("parts_flagged", "3e2", "300", ""),
    ("parts_flagged", "-0", "0", ""),
    ("parts_flagged", "3.5", None, f"'3.5' {WHOLE}"),
    ("parts_flagged", "2147483648", None, f"'2147483648' {WHOLE}"),
    ("parts_flagged", "1e400", None, f"'1e400' {WHOLE}"),
    ("parts_flagged", "3_0", None, "'3_0' is not a number"),
    ("parts_flagged", "\u0663", None, "'\u0663' is not a number"),
    ("parts_flagged", "many", None, "'many' is not a number"),
    ("parts_flagged", "null", None, "'null' is not a number"),
    ("parts_flagged", "   ", "NULL", ""),
    ("obsolescence", " 03.50 ", "3.50", ""),
    ("obsolescence", ".5", "0.5", ""),
    ("obsolescence", "+3.", "3", ""),
    ("obsolescence", "1e400", "1" + "0" * 400, ""),
    ("obsolescence", "1e999999", None, "'1e999999' is out of range for PostgreSQL's numeric"),
    ("obsolescence", "1e-20000", None, "'1e-20000' is out of range for PostgreSQL's numeric"),
    ("obsolescence", "Infinity", None, "'Infinity' is not a number"),
    ("obsolescence", "1,000", None, "'1,000' is not a number"),
    ("obsolescence", "0x1F", None, "'0x1F' is not a number"),
    ("obsolescence", "1" * 99_999 + "x", None, f"'{'1' * 76}... is not a number"),
    ("date", " 2026-03-01", "2026-03-01 00:00:00+00:00", ""),
    ("date", "2026-03-01T12:00:00+02:00", "2026-03-01 10:00:00+00:00", ""),
    ("date", "2026-03-01 12:00", "2026-03-01 12:00:00+00:00", ""),
    ("date", "20260301t120000,25z", "2026-03-01 12:00:00.250000+00:00", ""),
    ("date", "2026-W09-7", "2026-03-01 00:00:00+00:00", ""),
    ("date", "2026-02-30", None, f"'2026-02-30' {ISO}"),
    ("date", "2026-03-01x12:00", None, f"'2026-03-01x12:00' {ISO}"),
    ("date", "2026-03-01-12", None, f"'2026-03-01-12' {ISO}"),
    ("date", "20260301012", None, f"'20260301012' {ISO}"),
    ("date", "2026W09X12", None, f"'2026W09X12' {ISO}"),
    ("date", "0000-01-01", None, f"'0000-01-01' {ISO}"),
    ("date", "10000-01-01", None, f"'10000-01-01' {ISO}"),
    ("date", "today", None, f"'today' {ISO}"),
    ("date", "0001-01-01T00:00:00+14:00", None, "'0001-01-01T00:00:00+14:00' is out of range"),
    ("date", "9999-12-31T23:59:59.999999", None, "'9999-12-31T23:59:59.999999' is out of range"),
    ("alert_type", " Critical, \n late ", "Critical, \n late", ""),
    ("alert_type", "5", "5", ""),
    ("alert_type", "null", "null", ""),
    ("alert_type", "", "NULL", ""),
    ("alert_type", "a\0", None, "'a\\x00' holds a NUL character"),
]


def in_csv(record: dict[str, str]) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([record.keys(), record.values()])
    return out.getvalue().encode()


@pytest.mark.parametrize(("column", "written", "value", "reason"), CELLS, ids=[f"{c[0]} {c[1][:30]!r}" for c in CELLS])
async def test_a_cell_is_the_same_in_every_way_in(
    client: httpx.AsyncClient,
    owner: asyncpg.Connection,
    tmp_path: Path,
    column: str,
    written: str,
    value: str | None,
    reason: str,
) -> None:
    record = {"date": "2026-03-01", column: written}
    text = json.dumps(record)
    expected = None if value == "NULL" else value
    for kind, body in (("json", text), ("json", f"[{text}]"), ("ndjson", text), ("csv", in_csv(record))):
        answer = await upload(client, kind, body if isinstance(body, bytes) else body.encode())
        assert verdict_of(answer) == ((422, column, reason) if reason else (201, "", ""))
        assert await stored(owner, column) == ([] if reason else [expected])
    record = {"id": "echo", **record}
    for name, body in (("metric_records.json", json.dumps([record]).encode()), ("metric_records.csv", in_csv(record))):
        findings = await load(tmp_path / "set", owner, name, body)
        assert [found for found in findings if "CRLF" not in found] == [f"rejected: {column}: {reason}"] * bool(reason)
        assert await stored(owner, column) == ([] if reason else [expected])


# What only JSON can say; where an upload is 400 it is no JSON at all.
VALUES = [
    ("parts_flagged", "3.0", "3", 201, ""),
    ("parts_flagged", "3e2", "300", 201, ""),
    ("parts_flagged", "3.5", None, 422, f"3.5 {WHOLE}"),
    ("parts_flagged", "true", None, 422, "true is not a number"),
    ("parts_flagged", "9" * 30, None, 422, f"{'9' * 30} {WHOLE}"),
    ("obsolescence", "1e400", "1" + "0" * 400, 201, ""),
    ("obsolescence", "9" * 5000, "9" * 5000, 201, ""),
    ("obsolescence", "0.1000000000000000000000000000000000000001", "0." + "1" + "0" * 38 + "1", 201, ""),
    ("obsolescence", "[1]", None, 422, "an array is not a number"),
    ("obsolescence", "Infinity", None, 400, "Infinity is not a number"),
    ("obsolescence", "-Infinity", None, 400, "-Infinity is not a number"),
    ("date", "20260301", None, 422, f"20260301 {ISO}"),
    ("alert_type", "5", None, 422, "5 is not text"),
    ("alert_type", "{}", None, 422, "an object is not text"),
    ("alert_type", "[" * 64 + "]" * 64, None, 400, "an array is not text"),
    ("alert_type", '"\\ud800"', None, 400, "'\\ud800' holds what is not UTF-8"),
    ("alert_type", '"caf\udce9"', None, 400, "'caf\\udce9' holds what is not UTF-8"),
]


@pytest.mark.parametrize(("column", "written", "value", "status", "reason"), VALUES, ids=[v[1][:20] for v in VALUES])
async def test_a_value_of_json_is_the_same_in_every_way_in(
    client: httpx.AsyncClient,
    owner: asyncpg.Connection,
    tmp_path: Path,
    column: str,
    written: str,
    value: str | None,
    status: int,
    reason: str,
) -> None:
    head = "" if column == "date" else '"date": "2026-03-01", '
    text = f'{{{head}"{column}": {written}}}'.encode("utf-8", "surrogateescape")
    for kind, body in (("json", text), ("json", b"[" + text + b"]"), ("ndjson", b"\n" + text)):
        assert verdict_of(await upload(client, kind, body)) == (status, "" if status == 201 else column, reason)
        assert await stored(owner, column) == [value] * (status == 201)
    body = b'[{"id": "echo", ' + text[1:] + b"]"
    findings = await load(tmp_path / "set", owner, "metric_records.json", body)
    assert findings == [f"rejected: {column}: {reason}"] * (status != 201)
    assert await stored(owner, column) == [value] * (status == 201)


async def test_a_nan_is_refused_by_uploads_and_repaired_in_data_sets(
    client: httpx.AsyncClient, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    expected = ("obsolescence", "'NaN' is not a number")
    assert verdict_of(await upload(client, "csv", b"obsolescence\nNaN\n")) == (422, *expected)
    assert verdict_of(await upload(client, "ndjson", b'{"obsolescence": "NaN"}')) == (422, *expected)
    assert verdict_of(await upload(client, "json", b'{"obsolescence": NaN}')) == (
        400,
        *expected[:1],
        expected[1].replace("'", ""),
    )
    for name, body in (
        ("metric_records.csv", b"id,date,obsolescence\necho,2026-03-01, NaN\n"),
        ("metric_records.json", b'[{"id": "echo", "date": "2026-03-01", "obsolescence": NaN}]'),
    ):
        assert await load(tmp_path / "set", owner, name, body) == ["repaired: obsolescence: NaN read as no value"]
        assert await stored(owner, "obsolescence") == [None]


# ------------------------------------------------------------------------------------------------ lines and shapes

UNKNOWN = (
    "is no column of records, which are metric_id, date, obsolescence_val, obsolescence, parts_flagged, alert_type, "
    "alert_category"
)
LONG = "is longer than 131072 bytes; nothing is read from here on"
LINES: list[tuple[str, bytes, int, str, list[str]]] = [
    ("csv", b"\xef\xbb\xbfalert_type\na\n", 201, "", ["a"]),
    ("ndjson", b'\xef\xbb\xbf{"alert_type": "a"}\n', 201, "", ["a"]),
    ("json", b'\xef\xbb\xbf{"alert_type": "a"}', 201, "", ["a"]),
    ("json", b'\xef\xbb\xbf [{"alert_type": "a"}]', 201, "", ["a"]),
    *[("csv", b"alert_type%ba%bb" % (end, end), 201, "", ["a", "b"]) for end in (b"\r", b"\n", b"\r\n", b"\n\n")],
    *[
        ("ndjson", b'{"alert_type": "a"}%b{"alert_type": "b"}' % end, 201, "", ["a", "b"])
        for end in (b"\r", b"\n", b"\r\n", b"\n \n")
    ],
    ("csv", b'alert_type\n"a\r\nb"\n', 201, "", ["a\nb"]),
    ("csv", b'parts_flagged, alert_type \n1,5" pipe\n  \n2,"b ""c"""\n', 201, "", ['5" pipe', 'b "c"']),
    ("csv", b"alert_type,alert_type\na,b\n", 422, "line 1: the header must name no column twice; it is "
     "'alert_type,alert_type'; nothing is read from here on", []),
    ("csv", b"alert_type,colour\na,b\n", 422, f"line 1, 'colour': {UNKNOWN}", []),
    ("ndjson", b'{"colour": 1}\n', 422, f"line 1, 'colour': {UNKNOWN}", []),
    ("csv", b"alert_type,parts_flagged\na,1\nb\n", 422, "line 3: 1 cells, but the header has 2", []),
    ("csv", b"alert_type,parts_flagged\na,1,2\n", 422, "line 2: 3 cells, but the header has 2", []),
    ("csv", b'alert_type,parts_flagged\n"a\n\nb",1\nc,x\n', 422, "line 5, parts_flagged: 'x' is not a number", []),
    ("csv", b'alert_type\n"a"b\n', 400, "line 2: lines 2 to 2 cannot be read (',' expected after '\"'): "
     "check the quotes", []),
    ("csv", b'alert_type\n"a\nb\n', 400, "line 2: lines 2 to 3 cannot be read (unexpected end of data): "
     "check the quotes", []),
    ("csv", b"alert_type\n\xff\n", 400, "line 2, alert_type: '\\udcff' holds what is not UTF-8", []),
    ("csv", b"alert_type\n" + b"x" * 2**21, 400, f"line 2: the record {LONG}", []),
    ("csv", b'alert_type\n"' + b"x\n" * 2**17 + b'"', 400, f"line 2: the record {LONG}", []),
    ("ndjson", b'{"alert_type": "' + b"x" * 2**21 + b'"}', 400, f"line 1: the record {LONG}", []),
    ("json", b'[{}, {"alert_type": "' + b"x" * 2**18 + b'"}]', 400, f"row 2: the record {LONG}", []),
    ("json", b'[{}, {"alert_type": ["' + b"x" * 2**18 + b'"]}]', 400, f"row 2: the record {LONG}", []),
    ("ndjson", b"{}\n5\n", 422, "line 2: 5 is not an object", []),
    ("json", b"[{}, null]", 422, "row 2: null is not an object", []),
    ("ndjson", b"{}{}\n", 400, "line 1: this is no JSON: Extra data: line 1 column 3 (char 2)", []),
    ("ndjson", b'{}\n{},{}\n{"a":\n1}', 400, "line 2: this is no JSON: Extra data: line 1 column 3 (char 2)", []),
    ("json", b"[{} {}]", 400, "row 2: a comma or the closing ] is missing at byte 3; nothing is read from here on", []),
    ("json", b"[{}] 5", 400, "row 2: something follows the array at byte 5; nothing is read from here on", []),
    ("json", b"", 400, "row 1: this is no JSON: Expecting value: line 1 column 1 (char 0)", []),
    ("json", b"[" * 100_000, 400, "row 1: this is no JSON: it is nested too deep; nothing is read from here on", []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "body", "status", "words", "values"), LINES, ids=[f"{x[0]} {x[1][:40]!r} {i}" for i, x in enumerate(LINES)]
)
@pytest.mark.parametrize("size", [2**16, 1], ids=["at once", "byte by byte"])
async def test_lines_and_shapes_are_read_however_they_arrive(
    client: httpx.AsyncClient,
    owner: asyncpg.Connection,
    kind: str,
    body: bytes,
    status: int,
    words: str,
    values: list[str],
    size: int,
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    if len(body) > 1000 and size == 1:
        return
    answer = await upload(client, kind, chunks())
    errors = answer.json().get("errors", [])
    assert (answer.status_code, [f"{error['name']}: {error['detail']}" for error in errors[:1]]) == (
        status,
        [words] * bool(words),
    )
    assert sorted(await stored(owner, "alert_type"), key=str) == values


# ------------------------------------------------------------------------------------------------ whole uploads


def with_ids(ids: list[str], number: int = 1) -> bytes:
    return b"".join(b'{"metric_id": "%b", "parts_flagged": %d}\n' % (name.encode(), number) for name in ids)


async def test_an_id_counts_once_in_a_body_and_in_the_table(
    client: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    ids = [str(uuid.uuid4()) for _ in range(600)]
    for body, counts in ((with_ids(ids + ids[:5]), (600, 5)), (with_ids([*ids[:10], str(uuid.uuid4())]), (1, 10))):
        answer = await upload(client, "ndjson", body)
        assert answer.json() == {"inserted": counts[0], "duplicates": counts[1]}
    assert await owner.fetchval("SELECT COUNT(*) FROM metrics") == 601


async def test_the_same_ids_in_opposite_order_get_along(client: httpx.AsyncClient, owner: asyncpg.Connection) -> None:
    ids = [str(uuid.uuid4()) for _ in range(20_000)]
    answers = await asyncio.gather(*[upload(client, "ndjson", with_ids(some)) for some in (ids, ids[::-1])])
    assert [answer.status_code for answer in answers] == [201, 201]
    assert sum(answer.json()["inserted"] for answer in answers) == len(ids)
    assert await owner.fetchval("SELECT COUNT(*) FROM metrics") == len(ids)


async def test_an_upload_that_goes_on_locks_nothing_and_is_written_at_its_end(
    client: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    ids, begun, goes_on = [str(uuid.uuid4()) for _ in range(3000)], asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield with_ids(ids)
        begun.set()
        await goes_on.wait()
        yield with_ids(ids[:1])

    uploading = asyncio.create_task(upload(client, "ndjson", slowly()))
    await begun.wait()
    await eventually(lambda: owner.fetchval("SELECT COUNT(*) FROM pg_class WHERE relname = 'staged_records'"))
    repeats = await asyncio.gather(*[upload(client, "ndjson", with_ids(ids[:10], 2)) for _ in range(12)])
    assert [answer.status_code for answer in repeats] == [201] * 12
    assert await owner.fetchval("SELECT COUNT(*) FROM metrics") == 10
    goes_on.set()
    assert (await uploading).json() == {"inserted": 2990, "duplicates": 11}
    await eventually(
        lambda: owner.fetchval("SELECT NOT EXISTS (SELECT FROM pg_class WHERE relname = 'staged_records')")
    )


@pytest.mark.parametrize("kind", MEDIA)
async def test_a_body_that_breaks_off_leaves_nothing(
    client: httpx.AsyncClient, owner: asyncpg.Connection, service: Service, kind: str
) -> None:
    body = b"alert_type\n" + b"a\n" * 5000 if kind == "csv" else b'{"alert_type": "a"}\n' * 5000

    async def breaking() -> AsyncIterator[bytes]:
        yield b"[" * (kind == "json") + body
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await upload(client, kind, breaking())
    line = '"path":"/metrics/echo/metric-records"'
    await eventually(lambda: asyncio.to_thread(lambda: '"status":499' in service.log.read_text() and line))
    assert await owner.fetchval("SELECT COUNT(*) FROM metrics") == 0


@pytest.mark.parametrize("kind", MEDIA)
async def test_a_body_that_is_compressed_is_told_to_come_as_it_is(client: httpx.AsyncClient, kind: str) -> None:
    headers = {"Content-Type": MEDIA[kind], "Content-Encoding": "gzip"}
    answer = await client.post(RECORDS, content=gzip.compress(b"{}"), headers=headers)
    assert (answer.status_code, answer.json()["detail"]) == (415, "Send the body without a Content-Encoding.")


async def test_a_long_array_is_told_what_may_be_longer(client: httpx.AsyncClient) -> None:
    answer = await upload(client, "json", b"[" + b"{}," * 170_000 + b"{}]")
    assert answer.status_code == 413
    assert answer.json()["detail"] == (
        "The body is larger than 500000 bytes: send NDJSON or CSV, which may have 268435456."
    )


async def test_the_first_hundred_errors_are_told_and_what_is_malformed_goes_before_them(
    client: httpx.AsyncClient,
) -> None:
    answer = await upload(client, "csv", b"parts_flagged\n" + b"x\n" * 1000)
    errors = answer.json()["errors"]
    assert [error["name"] for error in errors] == [f"line {n}, parts_flagged" for n in range(2, 102)]
    answer = await upload(client, "ndjson", b'{"parts_flagged": "x"}\n' * 99 + b"{")
    assert (answer.status_code, answer.json()["errors"][0]["name"]) == (400, "line 100")


async def test_quotes_that_stay_open_and_lines_that_never_end_stop_nobody(
    client: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    """However it is cut: what was looked at is not looked at again at each byte that comes."""

    async def endless() -> AsyncIterator[bytes]:
        yield b'alert_type\n"'
        for _ in range(1200):
            yield b"\n" * 100

    answers: list[httpx.Response] = []
    uploading = asyncio.create_task(upload(client, "csv", endless()))
    while not uploading.done():
        answers.append(await client.get("/health/live"))
        await asyncio.sleep(0.01)
    assert {answer.status_code for answer in answers} == {200}
    error = (await uploading).json()["errors"][0]
    assert error["detail"] == "lines 2 to 120001 cannot be read (unexpected end of data): check the quotes"
