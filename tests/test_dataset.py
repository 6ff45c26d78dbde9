"""The data set loader, on a real PostgreSQL: dirty directories, and what of them is in the database afterwards."""

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from helpers import another_database, run_app

import app
from seed.dataset import Accept, Report, load, with_parameters

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def database(cluster: str) -> AsyncIterator[str]:
    """A database of the loader's own, migrated and otherwise empty."""
    with another_database(cluster, "dataset_test") as url:
        await asyncio.to_thread(app.migrate, app.Database(app.Settings(database_url=url)))
        yield url


@pytest.fixture
async def conn(database: str) -> AsyncIterator[Any]:
    conn = await asyncpg.connect(database, server_settings={"timezone": "UTC"})
    await conn.execute("TRUNCATE queries, metric_configurations, layout_items, metrics")
    yield conn
    await conn.close()


def numbered(sql: str) -> str:
    names = list(dict.fromkeys(re.findall(r"(?<!:):([a-z_]+)", sql)))
    return re.sub(r"(?<!:):([a-z_]+)", lambda found: f"${names.index(found[1]) + 1}", sql)


@pytest.fixture
def accept(conn: Any) -> Accept:
    async def accept(sql: str) -> str | None:
        try:
            await conn.prepare(numbered(sql))
        except asyncpg.PostgresError as error:
            return str(error)
        return None

    return accept


QUERY = "SELECT COUNT(*) AS records FROM metrics WHERE id = 'q1'"


def write(directory: Path, **files: Any) -> Path:
    names = {"metrics": "metrics.json", "queries": "queries.csv", "csv": "metric_records.csv"}
    for name, content in files.items():
        content = content if isinstance(content, str | bytes) else json.dumps(content)
        content = content if isinstance(content, bytes) else content.encode()
        (directory / names.get(name, "metric_records.json")).write_bytes(content)
    return directory


def sql_csv(*queries: str) -> str:
    cells = ('q{},"{}"\n'.format(number, sql.replace('"', '""')) for number, sql in enumerate(queries, 1))
    return "id,query\n" + "".join(cells)


def lines(report: Report, kind: str = "") -> list[str]:
    return [line for line in list(report.lines())[:-1] if f": {kind}" in line]


async def rows(conn: Any, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await conn.fetch(sql)]


async def everything(conn: Any) -> list[Any]:
    tables = ("queries", "metric_configurations", "layout_items", "metrics")
    return [sorted(map(str, await rows(conn, f"SELECT * FROM {table}"))) for table in tables]


HEADER = "id,date,obsolescence_val,obsolescence,parts_flagged,alert_type,alert_category\n"


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        (
            "d BETWEEN '2025-06-01' AND '2025-06-30'",
            "d BETWEEN COALESCE(:start_date, DATE '2025-06-01') AND COALESCE(:end_date, DATE '2025-06-30')",
        ),
        (
            "d between date '2025-06-01'\n and /* ' */ DATE'2025-06-30'",
            "d between COALESCE(:start_date, DATE '2025-06-01')\n and /* ' */ COALESCE(:end_date, DATE '2025-06-30')",
        ),
        (
            "d BETWEEN '2025-06-01'::timestamp AND '2025-06-30'::date",
            "d BETWEEN COALESCE(:start_date, DATE '2025-06-01')::timestamp"
            " AND COALESCE(:end_date, DATE '2025-06-30')::date",
        ),
        ("now() - INTERVAL '7' DAY", "now() - make_interval(days => COALESCE(:day_range, 7))"),
        ("now() - interval'1 day'", "now() - make_interval(days => COALESCE(:day_range, 1))"),
        ("now()-INTERVAL '07 DAYS'", "now()-make_interval(days => COALESCE(:day_range, 7))"),
        (
            "INTERVAL '7' DAY + INTERVAL '7 days'",
            "make_interval(days => COALESCE(:day_range, 7)) + make_interval(days => COALESCE(:day_range, 7))",
        ),
        (
            "d BETWEEN :start_date AND now() AND e > now() - INTERVAL '7' DAY",
            "d BETWEEN :start_date AND now() AND e > now() - make_interval(days => COALESCE(:day_range, 7))",
        ),
    ],
)
def test_literal_periods_become_parameters_that_keep_their_default(sql: str, expected: str) -> None:
    assert with_parameters(sql) == (expected, [])


@pytest.mark.parametrize(
    "sql",
    [
        "-- BETWEEN '2025-06-01' AND '2025-06-30' and INTERVAL '7' DAY",
        "/* a /* nested */ BETWEEN '2025-06-01' AND '2025-06-30' */",
        "SELECT 'it''s INTERVAL ''7'' DAY'",
        """SELECT "INTERVAL '7' DAY" """,
        r"SELECT E'\' INTERVAL ', '7 days'",
        "SELECT $a$ $$ INTERVAL '7' DAY $a$, $$ INTERVAL '7' DAY $$",
        "d BETWEEN '2025-06-01' AND '2025-06-31'",
        "d BETWEEN '2025-06-01' AND '2025-06-30 23:59:59'",
        "d BETWEEN '2025-06-01' AND '2025-06-30'''",
        "d NOT BETWEEN '2025-06-01' AND '2025-06-30'",
        "d BETWEEN '2025-06-01' AND '2025-06-30' OR d = :end_date",
        "INTERVAL '7' DAY TO SECOND",
        "INTERVAL '7' HOUR",
        "INTERVAL '7 days 3 hours'",
        "an_interval '7' day",
        "generate_series(a, b, INTERVAL '1' DAY)",
        "INTERVAL '7' DAY > :day_range::interval",
    ],
)
def test_what_is_no_literal_period_stays_as_it_is(sql: str) -> None:
    assert with_parameters(sql) == (sql, [])


async def test_different_literals_for_one_parameter_stay_and_are_reported(
    tmp_path: Path, conn: Any, accept: Accept
) -> None:
    sql = (
        "SELECT 1 AS n FROM metrics WHERE date > now() - INTERVAL '7' DAY OR date < now() - INTERVAL '30 days' "
        "OR date BETWEEN '2025-06-01' AND '2025-06-30' OR date BETWEEN '2025-06-01' AND '2025-07-31'"
    )
    report = await load(write(tmp_path, queries=sql_csv(sql)), conn, accept)
    assert await rows(conn, "SELECT query FROM queries") == [(sql,)]
    assert lines(report) == [
        "queries.csv:2: query: kept: several periods (2025-06-01 to 2025-06-30, 2025-06-01 to 2025-07-31) "
        "cannot be one start_date and end_date: they stay literals",
        "queries.csv:2: query: kept: several intervals (7, 30 days) cannot be one day_range: they stay literals",
    ]


async def test_a_query_that_cannot_take_parameters_is_stored_as_it_was_written(
    tmp_path: Path, conn: Any, accept: Accept
) -> None:
    sql = "SELECT 1 AS n FROM metrics WHERE alert_type BETWEEN '2025-06-01' AND '2025-06-30'"
    report = await load(write(tmp_path, queries=sql_csv(sql)), conn, accept)
    assert await rows(conn, "SELECT query FROM queries") == [(sql,)]
    assert len(lines(report, "kept: its periods stay literals")) == 1


async def test_parameters_change_nothing_until_they_are_sent(tmp_path: Path, conn: Any, accept: Accept) -> None:
    authors = "SELECT COUNT(*) AS n FROM metrics WHERE date BETWEEN '2025-06-02' AND '2025-06-25'"
    records = HEADER + "".join(f"q1,2025-{month:02}-25,,,,,\n" for month in range(1, 13)) + "q1,2025-06-25T00:01,,,,,\n"
    await load(write(tmp_path, queries=sql_csv(authors), csv=records), conn, accept)
    stored = numbered(await conn.fetchval("SELECT query FROM queries"))
    assert await conn.fetchval(stored, None, None) == await conn.fetchval(authors) == 1
    assert await conn.fetchval(stored, date(2025, 1, 1), date(2025, 12, 31)) == 13


async def test_a_rejected_query_takes_its_items_and_records_with_it(tmp_path: Path, conn: Any, accept: Accept) -> None:
    directory = write(
        tmp_path,
        queries='id,query\r\nq1,"SELECT\r\n  1 AS n"\r\nq2,SELECT x FROM metrics\r\nq1,SELECT 2\r\n,SELECT 3\r\nq4\r\n',
        metrics={"items": [{"id": "b", "queryId": "q2", "isEditable": True}], "layouts": {"lg": [{"i": "b"}]}},
        json=[{"id": "q2", "date": "2025-06-01"}, {"id": "q1", "date": "2025-06-01"}],
    )
    report = await load(directory, conn, accept)
    assert lines(report) == [
        "queries.csv:1: repaired: CRLF line ends read as LF",
        'queries.csv:4: query: rejected: PostgreSQL does not accept it: column "x" does not exist',
        "queries.csv:5: id: rejected: 'q1' is taken by queries.csv:2",
        "queries.csv:6: id: rejected: is missing",
        "queries.csv:7: repaired: short row: no value for query",
        "queries.csv:7: query: rejected: is missing",
        "metrics.json: items[0]: queryId: rejected: there is no query 'q2'",
        "metrics.json: layouts.lg[0]: i: rejected: unknown metric 'b'",
        "metric_records.json: [0]: id: rejected: unknown series 'q2'",
    ]
    assert await rows(conn, "SELECT * FROM queries") == [("q1", "SELECT\n  1 AS n")]
    assert report.count("rejected") == 7
    assert report.records_inserted == 1


async def test_items_are_repaired_and_rejected_one_by_one(tmp_path: Path, conn: Any, accept: Accept) -> None:
    await conn.execute("INSERT INTO queries VALUES ('file', 'SELECT 1')")
    await conn.execute("INSERT INTO metric_configurations (id, query_id, source) VALUES ('file', 'file', 'file')")
    items = [
        {"id": "a", "query_id": "q1"},
        {"id": "a", "queryId": "q1", "isEditable": False},
        {"id": "a", "queryId": "q1", "isEditable": False},
        {"queryId": "q1"},
        {"id": "-", "queryId": "q1", "isEditable": True},
        {"id": "file", "queryId": "q1", "isEditable": True},
        {"id": "c", "queryId": "q1", "isEditable": "yes"},
        {"id": "d", "queryId": None, "isEditable": True},
        7,
    ]
    tile = {"x": 0, "y": 5.0, "w": 1, "h": 2, "static": None, "moved": False}
    tiles = [
        tile | {"i": "a"},
        tile | {"i": "b", "static": True},
        tile | {"i": "a", "x": 4},
        tile | {"i": "c"},
        tile | {"i": "file", "w": -1},
        tile | {"i": "b", "h": None},
    ]
    directory = write(
        tmp_path,
        queries=sql_csv(f"-- Records of one\n{QUERY}"),
        metrics={
            "items": items,
            "layouts": {"lg": tiles, "md": [tile | {"i": "a", "w": 0}, tile | {"i": "b", "x": 0.5}]},
        },
    )
    report = await load(directory, conn, accept)
    stored = "SELECT id, title, is_editable FROM metric_configurations WHERE source = 'dataset' ORDER BY id"
    assert await rows(conn, stored) == [("a", "Records of one", True), ("b", "Records of one", False)]
    assert await rows(conn, "SELECT * FROM layout_items ORDER BY item_id") == [
        ("a", "lg", 0, 5, 1, 2, False),
        ("b", "lg", 0, 5, 1, 2, True),
    ]
    assert lines(report) == [
        "metrics.json: items[0]: isEditable: repaired: is missing, taken as true",
        "metrics.json: items[1]: id: repaired: 'a' is taken by metrics.json: items[0]; it gets 'b', "
        "which only the layouts have",
        "metrics.json: items[2]: id: rejected: 'a' is taken by metrics.json: items[0], and the layouts have 0 ids "
        "without an item: give it its own",
        "metrics.json: items[3]: id: rejected: is missing",
        "metrics.json: items[4]: id: rejected: '-' is no metric id: 1 to 64 letters, digits, _ and -, no _ or - first",
        "metrics.json: items[5]: id: rejected: 'file' is taken by a metric of source file: choose another id",
        "metrics.json: items[6]: isEditable: rejected: 'yes' is neither true nor false",
        "metrics.json: items[7]: queryId: rejected: is missing",
        "metrics.json: items[8]: rejected: 7 is not an object",
        "metrics.json: layouts.lg[2]: i: rejected: 'a' has a place in this layout already",
        "metrics.json: layouts.lg[3]: i: rejected: unknown metric 'c'",
        "metrics.json: layouts.lg[4]: i: rejected: unknown metric 'file'",
        "metrics.json: layouts.lg[5]: h: rejected: is missing",
        "metrics.json: layouts.md[0]: w: rejected: 0 is less than 1",
        "metrics.json: layouts.md[1]: x: rejected: 0.5 is not a whole number between -2147483648 and 2147483647",
    ]


async def test_a_second_item_is_rejected_when_two_ids_could_be_its_own(
    tmp_path: Path, conn: Any, accept: Accept
) -> None:
    item = {"id": "a", "queryId": "q1", "isEditable": True}
    tiles = [{"i": name, "x": 0, "y": 0, "w": 1, "h": 1} for name in "abc"]
    metrics = {"items": [item, item], "layouts": {"lg": tiles}}
    report = await load(write(tmp_path, queries=sql_csv(QUERY), metrics=metrics), conn, accept)
    assert await rows(conn, "SELECT id FROM metric_configurations") == [("a",)]
    assert [line[:40] for line in lines(report, "rejected")] == [
        "metrics.json: items[1]: id: rejected: 'a",
        "metrics.json: layouts.lg[1]: i: rejected",
        "metrics.json: layouts.lg[2]: i: rejected",
    ]


async def test_arrays_that_are_none_and_names_that_no_index_holds_cost_nothing_else(
    tmp_path: Path, conn: Any, accept: Accept
) -> None:
    tile = {"i": "a", "x": 0, "y": 0, "w": 1, "h": 1}
    layouts = {"lg": [tile], "md": 7, "sm": None, "": [tile], "x" * 9000: [tile]}
    directory = write(
        tmp_path,
        queries=sql_csv(QUERY, f"SELECT 1 AS one -- {'y' * 9000}") + f"{'x' * 9000},SELECT 1 AS one\n",
        metrics={"items": [{"id": "a", "queryId": "q1", "isEditable": True}], "layouts": layouts},
    )
    report = await load(directory, conn, accept)
    assert (report.queries, report.metrics, report.layouts) == (2, 1, 1)
    found = [re.sub("x{9,}(?:[.]{3})?", "…", line) for line in lines(report)]
    assert found == [
        "queries.csv:4: id: rejected: '… is longer than 255 characters",
        "metrics.json:1: layouts.md: rejected: 7 is not an array",
        "metrics.json: layouts.[0]: breakpoint: rejected: is missing",
        "metrics.json: layouts.…[0]: breakpoint: rejected: '… is longer than 255 characters",
    ]


DIRTY = b"""\xef\xbb\xbfid, date,obsolescence_val,obsolescence,parts_flagged,alert_type,alert_category,note
q1,2025-06-01
q1,2025-06-01T10:00:00+02:00,120.50, NaN ,10.0,Critical,"Need
approval",x

q1,2025-13-01,,,,,,
q1,today,,,,,,
q1,2025-06-01 10:00,"1,000",,,,,
q1,2025-06-01,Infinity,,,,,
q1,2025-06-01,,1e999999,,,,
q1,2025-06-01,,,10.5,,,
q1,2025-06-01,,,2147483648,,,
q1,,1,,,,,
nobody,2025-06-01,1,,,,,
q1,2025-06-01,1,,,,,,too long
q1,2025-06-01,,,,caf\xe9,,
q1,2025-06-01,,,,a\0b,,
q1,0001-01-01T00:00+05:00,,,,,,
q1,2025-06-02T00:00Z, 7 ,  ,,caf\xc3\xa9,,
"q1"x,2025-06-02,,,,,,
q1,2025-06-03,,,-3,,,
q1,2025-06-01-10,,,,,,
q1,20250601012,,,,,,
"""


async def test_csv_rows_are_repaired_and_rejected_one_by_one(tmp_path: Path, conn: Any, accept: Accept) -> None:
    directory = write(tmp_path, queries=sql_csv(QUERY), csv=DIRTY)
    report = await load(directory, conn, accept)
    assert [line.removeprefix("metric_records.csv:") for line in lines(report)] == [
        "1: repaired: byte order mark left out",
        "1: 'note': repaired: unknown column ignored, here and below",
        "2: repaired: short row: no value for obsolescence_val, obsolescence, parts_flagged, alert_type, "
        "alert_category, note",
        "3: obsolescence: repaired: NaN read as no value",
        "6: date: rejected: '2025-13-01' is not an ISO 8601 date such as 2026-03-01 or 2026-03-01T12:00:00Z",
        "7: date: rejected: 'today' is not an ISO 8601 date such as 2026-03-01 or 2026-03-01T12:00:00Z",
        "8: obsolescence_val: rejected: '1,000' is not a number",
        "9: obsolescence_val: rejected: 'Infinity' is not a number",
        "10: obsolescence: rejected: '1e999999' is out of range for PostgreSQL's numeric",
        "11: parts_flagged: rejected: '10.5' is not a whole number between -2147483648 and 2147483647",
        "12: parts_flagged: rejected: '2147483648' is not a whole number between -2147483648 and 2147483647",
        "13: date: rejected: is missing",
        "14: id: rejected: unknown series 'nobody'",
        "15: rejected: 9 cells, but the header has 8",
        r"16: alert_type: rejected: 'caf\udce9' holds what is not UTF-8",
        r"17: alert_type: rejected: 'a\x00b' holds a NUL character",
        "18: date: rejected: '0001-01-01T00:00+05:00' is out of range",
        "20: rejected: lines 20 to 20 cannot be read (',' expected after '\"'): check the quotes",
        "22: date: rejected: '2025-06-01-10' is not an ISO 8601 date such as 2026-03-01 or 2026-03-01T12:00:00Z",
        "23: date: rejected: '20250601012' is not an ISO 8601 date such as 2026-03-01 or 2026-03-01T12:00:00Z",
    ]
    stored = await rows(
        conn, "SELECT date, obsolescence_val::text, parts_flagged, alert_type, alert_category FROM metrics"
    )
    assert sorted(stored) == [
        (datetime(2025, 6, 1, tzinfo=UTC), None, None, None, None),
        (datetime(2025, 6, 1, 8, tzinfo=UTC), "120.50", 10, "Critical", "Need\napproval"),
        (datetime(2025, 6, 2, tzinfo=UTC), "7", None, "café", None),
        (datetime(2025, 6, 3, tzinfo=UTC), None, -3, None, None),
    ]


@pytest.mark.parametrize("header", ["", "id,dat\n", "id,date,date\n"])
async def test_a_csv_whose_header_is_wrong_is_rejected_as_a_whole(
    tmp_path: Path, conn: Any, accept: Accept, header: str
) -> None:
    directory = write(tmp_path, queries=sql_csv(QUERY), csv=header + "q1,2025-06-01,1\n" * bool(header))
    report = await load(directory, conn, accept)
    assert report.queries == 1
    assert report.count("rejected") == 1
    assert f"the header must name date and id and no column twice; it is {header.strip()!r}" in lines(report)[0]


async def test_an_open_quote_costs_the_rest_of_the_file(tmp_path: Path, conn: Any, accept: Accept) -> None:
    records = 'id,date\nq1,2025-06-01\n"q1,2025-06-02\nq1,2025-06-03\n'
    report = await load(write(tmp_path, queries=sql_csv(QUERY), csv=records), conn, accept)
    assert report.records_inserted == 1
    assert lines(report) == [
        "metric_records.csv:3: rejected: lines 3 to 4 cannot be read (unexpected end of data): check the quotes"
    ]


async def test_json_records_keep_every_digit_and_lose_only_what_is_wrong(
    tmp_path: Path, conn: Any, accept: Accept
) -> None:
    records = """\ufeff[
        {"id": "q1", "date": "2025-06-01", "obsolescence": 0.10000000000000000000000000000000000000010},
        {"id": "q1", "date": "20250602", "obsolescence": NaN, "parts_flagged": 1e1, "alert_type": ""},
        {"id": "q1", "date": "2025-06-03", "obsolescence": -Infinity},
        {"id": "q1", "date": 20250603},
        {"id": "q1", "date": "2025-06-03", "parts_flagged": true},
        {"id": "q1", "date": "2025-06-03", "alert_type": 5},
        {"id": "q1", "date": "2025-06-03", "alert_type": "\\ud800"},
        [],
        {"id": {}, "date": "2025-06-03", "extra": 1},
        {"id": "q1", "date": "2025-06-03", "obsolescence": [1], "extra": 1}
    ] """
    report = await load(write(tmp_path, queries=sql_csv(QUERY), json=records), conn, accept)
    assert [line.removeprefix("metric_records.json") for line in lines(report)] == [
        ":1: repaired: byte order mark left out",
        ": [1]: obsolescence: repaired: NaN read as no value",
        ": [2]: obsolescence: rejected: -Infinity is not a number",
        ": [3]: date: rejected: 20250603 is not an ISO 8601 date such as 2026-03-01 or 2026-03-01T12:00:00Z",
        ": [4]: parts_flagged: rejected: true is not a number",
        ": [5]: alert_type: rejected: 5 is not text",
        r": [6]: alert_type: rejected: '\ud800' holds what is not UTF-8",
        ": [7]: rejected: an array is not an object",
        ": [8]: 'extra': repaired: unknown column ignored, here and below",
        ": [8]: id: rejected: an object is not text",
        ": [9]: obsolescence: rejected: an array is not a number",
    ]
    assert await rows(conn, "SELECT obsolescence::text, parts_flagged, alert_type FROM metrics ORDER BY date") == [
        ("0.10000000000000000000000000000000000000010", None, None),
        (None, 10, None),
    ]


async def test_the_largest_and_smallest_values_arrive(tmp_path: Path, conn: Any, accept: Accept) -> None:
    records = HEADER + (
        "q1,9999-12-31T23:59:59.999998Z,1e131071,,2147483647,,\nq1,0001-01-01T00:00:00.000001,1e-16383,-0,-2147483648,,\n"
    )
    report = await load(write(tmp_path, queries=sql_csv(QUERY), csv=records), conn, accept)
    assert lines(report) == []
    found = await rows(conn, "SELECT date::text, obsolescence_val, parts_flagged FROM metrics ORDER BY date")
    assert found == [
        ("0001-01-01 00:00:00.000001+00", Decimal("1e-16383"), -(2**31)),
        ("9999-12-31 23:59:59.999998+00", Decimal("1e131071"), 2**31 - 1),
    ]


async def test_equal_records_are_kept_and_reported(tmp_path: Path, conn: Any, accept: Accept) -> None:
    """Numbers and moments count, not how they are written; nor in which file."""
    directory = write(
        tmp_path,
        queries=sql_csv(QUERY),
        json=[{"id": "q1", "date": "2025-06-01", "obsolescence": 1.5}, {"id": "q1", "date": "2025-06-01"}],
        csv=HEADER + "q1,2025-06-01T02:00+02:00,,1.50,,,\nq1,2025-06-01,1.5,,,,\nq1,2025-06-01,,1.5,,,\n",
    )
    report = await load(directory, conn, accept)
    assert report.records_inserted == 5
    assert lines(report) == [
        f"metric_records.csv:{line}: suspected duplicate: equal to metric_records.json: [0]; "
        "kept, for it may be a second event"
        for line in (2, 4)
    ]


SMALL = {
    "queries": sql_csv(f"-- One\n{QUERY} AND date > now() - INTERVAL '7' DAY", f"-- Two\n{QUERY}"),
    "metrics": {
        "items": [{"id": "a", "queryId": "q1"}, {"id": "b", "queryId": "q2"}],
        "layouts": {"lg": [{"i": name, "x": 1, "y": 0, "w": 1, "h": 1} for name in "ab"]},
    },
    "csv": HEADER + "q1,2025-06-01,1,,,,\n" * 3 + "q2,2025-06-05T12:00,1,,,,\n",
}


async def test_loading_again_changes_nothing(tmp_path: Path, conn: Any, accept: Accept) -> None:
    first = await load(write(tmp_path, **SMALL), conn, accept)
    await conn.execute("UPDATE layout_items SET x = 7")
    before = await everything(conn)
    again = await load(tmp_path, conn, accept)
    assert await everything(conn) == before
    assert (first.records_inserted, first.records_there) == (4, 0)
    assert (again.records_inserted, again.records_there) == (0, 4)
    assert lines(again) == lines(first)
    assert list(again.lines())[-1] == (
        "2 queries, 2 metrics, 2 layout items, 0 records inserted, 4 already there; "
        "2 repaired, 0 rejected, 2 suspected duplicates, 0 kept as they were"
    )


async def test_a_changed_data_set_updates_what_nobody_has_edited(tmp_path: Path, conn: Any, accept: Accept) -> None:
    await load(write(tmp_path, **SMALL), conn, accept)
    await conn.execute("UPDATE metric_configurations SET title = 'Mine', version = 2, is_edited = true WHERE id = 'b'")
    for title, version in (("New", 2), ("New", 2), ("Newer", 3)):
        write(tmp_path, queries=sql_csv(f"-- {title}\nSELECT 1 AS n", f"-- {title}\nSELECT 2 AS n"))
        report = await load(tmp_path, conn, accept)
        assert await rows(conn, "SELECT id, title, version FROM metric_configurations ORDER BY id") == [
            ("a", title, version),
            ("b", "Mine", 2),
        ]
        assert [line.partition(" (")[0] for line in lines(report, "kept: 'b'") + lines(report, "kept: 'q")] == [
            f"{place}: kept: {name} is kept as stored, for it was edited"
            for place, name in (("metrics.json: items[1]", "'b'"), ("queries.csv:4: query", "'q2'"))
        ]
    assert await conn.fetchval("SELECT query FROM queries WHERE id = 'q1'") == "-- Newer\nSELECT 1 AS n"


async def test_a_query_does_not_replace_that_of_another_metric(tmp_path: Path, conn: Any, accept: Accept) -> None:
    await conn.execute("INSERT INTO queries VALUES ('q1', 'SELECT 1')")
    await conn.execute("INSERT INTO metric_configurations (id, query_id, source) VALUES ('q1', 'q1', 'file')")
    report = await load(write(tmp_path, **SMALL), conn, accept)
    assert await conn.fetchval("SELECT query FROM queries WHERE id = 'q1'") == "SELECT 1"
    assert lines(report, "rejected")[0].startswith("queries.csv:2: id: rejected: 'q1' is the series of a metric")


async def test_records_and_items_alone_find_what_was_loaded_before(tmp_path: Path, conn: Any, accept: Accept) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    await load(write(tmp_path / "one", queries=SMALL["queries"]), conn, accept)
    report = await load(write(tmp_path / "two", metrics=SMALL["metrics"], csv=SMALL["csv"]), conn, accept)
    assert (report.metrics, report.layouts, report.records_inserted) == (2, 2, 4)
    assert await rows(conn, "SELECT title FROM metric_configurations ORDER BY id") == [("One",), ("Two",)]


async def test_dates_move_together_so_that_the_newest_is_the_day_asked_for(
    tmp_path: Path, conn: Any, accept: Accept
) -> None:
    await load(write(tmp_path, **SMALL), conn, accept, newest=date(2026, 3, 1))
    assert await rows(conn, "SELECT DISTINCT date::text FROM metrics ORDER BY date") == [
        ("2026-02-25 00:00:00+00",),
        ("2026-03-01 12:00:00+00",),
    ]
    again = await load(tmp_path, conn, accept, newest=date(2026, 3, 2))
    assert (again.records_inserted, again.records_there) == (0, 4)


@pytest.mark.parametrize(
    ("files", "finding"),
    [
        ({"metrics": "{"}, "metrics.json:1: rejected: this is no JSON"),
        ({"metrics": ""}, "metrics.json:1: rejected: this is no JSON"),
        ({"metrics": "[" * 100_000}, "metrics.json:1: rejected: this is no JSON"),
        ({"metrics": []}, "metrics.json:1: rejected: this is not of the form"),
        ({"metrics": {"layouts": [1]}}, "metrics.json:1: rejected: this is not of the form"),
        ({"metrics": {"items": {}}}, "metrics.json:1: items: rejected: an object is not an array"),
        ({"metrics": "{}".encode("utf-16")}, "metrics.json:1: rejected: is UTF-16: save it as UTF-8"),
        ({"json": {"records": []}}, "metric_records.json: [0]: id: rejected: is missing"),
        ({"json": ""}, "metric_records.json: [0]: rejected: this is no JSON: Expecting value"),
        ({"json": "["}, "metric_records.json: [0]: rejected: this is no JSON: Expecting value"),
        ({"json": "[" * 100_000}, "metric_records.json: [0]: rejected: this is no JSON: it is nested too deep"),
        ({"json": "[{} {}]"}, "metric_records.json: [1]: rejected: a comma or the closing ] is missing at byte 3"),
        ({"json": "[{}"}, "metric_records.json: [1]: rejected: a comma or the closing ] is missing at byte 3"),
        ({"json": "[{},]"}, "metric_records.json: [1]: rejected: this is no JSON: Expecting value"),
        ({"json": "[] []"}, "metric_records.json: [0]: rejected: something follows the array at byte 3"),
    ],
)
async def test_a_file_that_cannot_be_read_costs_no_other(
    tmp_path: Path, conn: Any, accept: Accept, files: dict[str, Any], finding: str
) -> None:
    write(tmp_path, queries=sql_csv(QUERY), csv=HEADER + "q1,2025-06-01,1,,,,\n", **files)
    report = await load(tmp_path, conn, accept)
    assert any(line.startswith(finding) for line in lines(report, "rejected"))
    assert (report.queries, report.records_inserted) == (1, 1)


async def test_an_array_that_breaks_off_loads_up_to_there(tmp_path: Path, conn: Any, accept: Accept) -> None:
    broken = '[{"id": "q1", "date": "2025-06-01"}, {"id": "q1", "da'
    report = await load(write(tmp_path, queries=sql_csv(QUERY), json=broken), conn, accept)
    assert (report.records_inserted, report.count("rejected")) == (1, 1)


def seed(database: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return run_app("seed", directory, DATABASE_URL=database)


@pytest.mark.parametrize(("name", "reason"), [("nowhere", "is not a directory"), (".", "holds no data set")])
def test_a_directory_without_a_data_set_is_named_in_one_line(
    tmp_path: Path, database: str, name: str, reason: str
) -> None:
    done = seed(database, tmp_path / name)
    assert done.returncode == 1
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


async def test_what_the_database_cannot_hold_is_told_in_one_line(tmp_path: Path, cluster: str) -> None:
    write(tmp_path, queries=sql_csv(QUERY), csv=HEADER + "q1,2025-06-01,,,,\N{SNOWMAN},\n")
    with another_database(cluster, "latin", "ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0") as url:
        done = seed(url, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Nothing was loaded: character with byte sequence")
    assert done.stderr.count("\n") == 1


async def test_findings_can_be_printed_whatever_the_files_hold(tmp_path: Path, conn: Any, accept: Accept) -> None:
    metrics = '{"layouts": {"\\ud800": [{"i": "\\udfff"}]}}'
    report = await load(write(tmp_path, metrics=metrics, csv=b"id,date,\xe9\nq1,2025-06-01\n"), conn, accept)
    assert report.count("rejected") == 2
    assert "\n".join(report.lines()).encode()


async def test_an_empty_array_of_records_is_fine(tmp_path: Path, conn: Any, accept: Accept) -> None:
    report = await load(write(tmp_path, json=" [ ] "), conn, accept, newest=date(2026, 3, 1))
    assert (report.records_inserted, lines(report)) == (0, [])
