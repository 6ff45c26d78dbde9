"""Running metrics: parameters of every type, formats, limits, and values as the database writes them."""

import csv
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import httpx
import psycopg
import pytest
from conftest import Serve
from helpers import Service, wait_until

Query = list[tuple[str, str | int | float | bool | None]]


@pytest.fixture(scope="module")
def narrow(start_service: Serve) -> Iterator[Service]:
    """A service with narrow limits."""
    limits = {"MAX_ROWS": "5", "MAX_RESULT_BYTES": "2048", "STATEMENT_TIMEOUT": "1", "POOL_SIZE": "4"}
    service = start_service(**limits)
    yield service
    service.stop()


@pytest.fixture(scope="module")
def http(narrow: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=narrow.url, timeout=20) as client:
        yield client


def record(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    (only,) = response.json()["records"]
    return dict(only)


def faults(response: httpx.Response) -> list[str]:
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    return [error["name"] for error in response.json()["errors"]]


GOOD: list[tuple[str, str, object]] = [
    ("i2", "-32768", -32768),
    ("i2", "+7", 7),
    ("i4", "2147483647", 2147483647),
    ("i4", " 5 ", 5),
    ("i4", "007", 7),
    ("i8", "-9223372036854775808", -9223372036854775808),
    ("num", "0.5", 0.5),
    ("num", ".5", 0.5),
    ("num", "-1e3", -1000),
    ("f8", "1.5e-3", 0.0015),
    ("b", "true", True),
    ("b", "No", False),
    ("b", "0", False),
    ("t", "a'b\"c\\d; DROP TABLE metrics --", "a'b\"c\\d; DROP TABLE metrics --"),
    ("t", " as it is ", " as it is "),
    ("t", "null", "null"),
    ("t", "größe 🙂\n", "größe 🙂\n"),
    ("t", "$1 :t {0} %s", "$1 :t {0} %s"),
    ("d", "2024-02-29", "2024-02-29"),
    ("ts", "2025-06-30T12:00:00.000001", "2025-06-30T12:00:00.000001"),
    ("ts", "2025-06-30T12:00:00+02:00", "2025-06-30T10:00:00"),
    ("ts", "2025-06-30", "2025-06-30T00:00:00"),
    ("tz", "2025-06-30T12:00:00+02:00", "2025-06-30T10:00:00+00:00"),
    ("tz", "2025-06-30T12:00:00Z", "2025-06-30T12:00:00+00:00"),
    ("tz", "2025-06-30T12:00:00", "2025-06-30T12:00:00+00:00"),
    ("tz", "20250630T140000,5+0200", "2025-06-30T12:00:00.5+00:00"),
    ("tz", "2025-W27-1", "2025-06-30T00:00:00+00:00"),
    # A plus that was not escaped arrives as a blank.
    *[("tz", f"2025-06-30T12:00:00 {at}", "2025-06-30T10:00:00+00:00") for at in ("02:00", "0200", "02")],
    ("tz", "2025-06-30 12:00 02:00", "2025-06-30T10:00:00+00:00"),
    ("tz", "2025-06-30 02:00", "2025-06-30T02:00:00+00:00"),
    ("ts", "2025-06-30T12:00:00.5 02:00", "2025-06-30T10:00:00.5"),
    ("ti", "23:59", "23:59:00"),
    ("iv", "P1Y2M3DT4H5M6.5S", "1 year 2 mons 3 days 04:05:06.5"),
    ("iv", "P7D", "7 days"),
    ("u", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("j", '{"a": [1, null, "x"]}', {"a": [1, None, "x"]}),
    ("j", "null", None),
    ("j", "1e400", 10**400),
    ("ints", "{1,NULL, -3}", [1, None, -3]),
    ("ints", "4", [4]),
    ("ints", "{}", []),
    ("texts", '{a, b c ,"d,\\"e\\\\",NULL,"NULL",""}', ["a", "b c", 'd,"e\\', None, "NULL", ""]),
    ("texts", "a,b", ["a,b"]),
    ("texts", "{open", ["{open"]),
]


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_a_value_of_the_parameters_type_arrives_as_it_was_meant(
    http: httpx.Client, name: str, text: str, value: object
) -> None:
    values = record(http.get("/metrics/types", params={name: text}))
    assert values.pop(name) == value
    assert set(values.values()) == {None}


BAD = [
    *[
        ("i2", text)
        for text in ("32768", "-32769", "1.0", "1e3", "abc", "0x10", "1_000", "٣", "1 2", "--1", "9" * 5000)
    ],
    *[("i4", text) for text in ("2147483648", "true", "\uff11")],
    ("i8", "9223372036854775808"),
    *[("num", text) for text in ("1,5", "abc", "1e", ".", "--1", "1_000", "0x1F", "1e99999999")],
    *[("f8", text) for text in ("one", "1.2.3")],
    *[("b", text) for text in ("2", "maybe", "truetrue", "null")],
    *[("t", text) for text in ("a\0b",)],
    *[
        ("d", text)
        for text in (
            "today",
            "now",
            "infinity",
            "-infinity",
            "epoch",
            "2025-02-30",
            "01/02/2025",
            "2025-6-1",
            "10000-01-01",
        )
    ],
    *[
        ("d", text)
        for text in ("2025-06-30 BC", "2025-06-30T12:00:00", "20250630T", "J2451187", "0000-01-01", "1751277600")
    ],
    *[
        ("ts", text)
        for text in ("now", "tomorrow", "infinity", "2025-06-30T25:00:00", "12:00", "2025-06-30T12:00:00 PST")
    ],
    *[("ts", text) for text in ("2025-06-30x12:00", "2025-06-30-12", "20250630012")],
    *[
        ("ts", text)
        for text in ("2025-06-30x12:00:00", "2025-06-30-12:00", "2025-06-30\u276412:00", "2025-06-30512:00")
    ],
    *[("tz", text) for text in ("now", "2025-06-30T12:00:00 Europe/Berlin", "2025-06-30T12:00:00+99:00", "allballs")],
    *[("tz", text) for text in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00")],
    *[("ti", text) for text in ("25:00", "noon", "allballs")],
    *[("iv", text) for text in ("7 days", "P", "PT", "P1", "1", "P1D2Y", "P-", "infinity")],
    *[
        ("u", text)
        for text in ("x", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1", "0000000000000000000000000000_0_1", "٣" * 32)
    ],
    *[("j", text) for text in ("{", "NaN", "Infinity", "{'a': 1}", '{"a": 1,}', "[" * 20000, '"\\ud8"')],
    *[("ints", text) for text in ("{1,2", "{1,,2}", "{1,}", "{,1}", "{{1,2},{3,4}}", "{a}", "1,2", "[1:2]={1,2}")],
    *[("texts", text) for text in ("{a,}", "{a,,b}", '{"a}', '{"a"b}', "{{a}}", '{a,"b\0"}')],
]


@pytest.mark.parametrize(("name", "text"), BAD)
def test_a_value_that_is_not_of_the_parameters_type_is_named(http: httpx.Client, name: str, text: str) -> None:
    assert faults(http.get("/metrics/types", params={name: text})) == [name]


@pytest.mark.parametrize(
    ("name", "text"), [("f8", "1e999"), ("j", '"\\u0000"'), ("j", "1e999999"), ("iv", "P" + "9" * 30 + "Y")]
)
def test_a_value_that_only_the_database_can_refuse_is_the_callers_fault(
    http: httpx.Client, name: str, text: str
) -> None:
    response = http.get("/metrics/types", params={name: text, "i4": "5"})
    assert faults(response) == [name]
    assert "unicode" not in response.text.lower()


@pytest.mark.parametrize(
    "name", ["i2", "i4", "i8", "num", "f8", "b", "d", "ts", "tz", "ti", "iv", "u", "j", "ints", "texts"]
)
def test_an_empty_value_is_null_but_for_text(http: httpx.Client, name: str) -> None:
    empty = record(http.get(f"/metrics/types?{name}=&t="))
    assert (empty[name], empty["t"]) == (None, "")
    assert record(http.get(f"/metrics/types?{name}"))[name] is None


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ([("ints", "1"), ("ints", "2")], [1, 2]),
        ([("ints", "1"), ("ints", "")], [1, None]),
        ([("texts", "a,b"), ("texts", ""), ("texts", '"')], ["a,b", "", '"']),
        ([("texts", "{a}"), ("texts", "NULL")], ["{a}", "NULL"]),
        ([("texts", "{ }")], []),
    ],
)
def test_an_array_is_its_name_repeated(http: httpx.Client, query: Query, value: object) -> None:
    assert record(http.get("/metrics/types", params=query))[query[0][0]] == value


def test_a_scalar_sent_twice_is_an_error_even_when_equal(http: httpx.Client) -> None:
    assert faults(http.get("/metrics/echo?n=1&n=1")) == ["n"]


def test_every_bad_parameter_is_named_at_once(http: httpx.Client) -> None:
    response = http.get("/metrics/typed?day_range=week&colour=red&N=1")
    assert sorted(faults(response)) == ["N", "colour", "day_range", "n"]
    assert all(error["detail"] for error in response.json()["errors"])


def test_a_required_parameter_must_have_a_value(http: httpx.Client) -> None:
    assert faults(http.get("/metrics/typed")) == ["n"]
    assert faults(http.get("/metrics/typed?n=")) == ["n"]
    assert record(http.get("/metrics/typed?n=1")) == {"n": 1, "day_range": None}


def test_a_required_text_may_be_the_empty_text(http: httpx.Client) -> None:
    assert faults(http.get("/metrics/records")) == ["series"]
    assert http.get("/metrics/records?series=").json()["records"] == []


def test_a_dashboards_filters_are_ignored_by_a_metric_that_does_not_use_them(http: httpx.Client) -> None:
    assert record(http.get("/metrics/echo?start_date=x&end_date=2025-06-30&day_range=7&day_range=8&n=1"))["n"] == 1
    assert faults(http.get("/metrics/typed?n=1&day_range=x&start_date=x")) == ["day_range"]


@pytest.mark.parametrize("query", ["", "?", "?&", "?&&"])
def test_an_empty_query_string_binds_nothing(http: httpx.Client, query: str) -> None:
    assert record(http.get(f"/metrics/echo{query}")) == {"n": None, "t": None, "d": None}


def test_plus_and_percent_are_decoded_once(http: httpx.Client) -> None:
    assert record(http.get("/metrics/echo?t=a+b%2Bc%2520"))["t"] == "a b+c%20"
    assert record(http.get("/metrics/echo?%74=x"))["t"] == "x"


@pytest.mark.parametrize(
    "query",
    [
        "&".join(f"p{i}=1" for i in range(1500)),
        "&".join(["n=1"] * 1500),
        "texts=" + "&texts=".join("x" * 1500),
    ],
)
def test_more_parameters_than_anybody_needs_are_no_fault_of_the_service(http: httpx.Client, query: str) -> None:
    assert http.get(f"/metrics/types?{query}").status_code in (200, 400, 414, 422)


@pytest.mark.parametrize("item", ["1" + " " * 15000 + "{", '"' + "\\" * 15001, "a" * 15000 + "{", " " * 15000 + "{"])
def test_a_hostile_array_takes_no_more_time_than_any_other(http: httpx.Client, item: str) -> None:
    started = time.monotonic()
    response = http.get("/metrics/types", params={"texts": "{" + item + "}"})
    assert response.status_code in (414, 422, 431)
    assert time.monotonic() - started < 10


def test_types_whose_bare_name_means_one_character_keep_them_all(http: httpx.Client) -> None:
    query: Query = [
        ("c", "abc"),
        ("bits", "101"),
        ("codes", "xy"),
        ("codes", "z"),
        ("r", "[1,5)"),
        ("ip", "10.0.0.0/8"),
    ]
    assert record(http.get("/metrics/rare-types", params=query)) == {
        "c": "abc",
        "bits": True,
        "codes": ["xy", "z"],
        "r": "[1,5)",
        "ip": "10.0.0.0/8",
    }


def test_a_value_of_a_rare_type_that_the_database_refuses_is_the_callers_fault(http: httpx.Client) -> None:
    response = http.get("/metrics/rare-types", params={"ip": "10.0.0.999", "r": "5", "c": "fine"})
    assert faults(response) == ["r", "ip"]
    assert "syntax" not in response.text
    assert "errors" not in http.get("/metrics/divide?by=0").json()


def test_what_a_function_asserts_of_its_arguments_is_the_callers_fault(
    http: httpx.Client, narrow: Service, cluster: str
) -> None:
    with psycopg.connect(cluster) as conn:
        body = "BEGIN ASSERT n > 0, 'a secret'; RETURN n; END"
        conn.execute(f"CREATE FUNCTION positive_only(n int) RETURNS int LANGUAGE plpgsql AS $${body}$$")
    (narrow.queries / "asserted.sql").write_text("SELECT POSITIVE_ONLY(:n) AS n")
    wait_until(lambda: http.get("/metrics/asserted?n=1").status_code == 200)
    response = http.get("/metrics/asserted?n=0")
    assert (response.status_code, "secret" in response.text) == (422, False)


def test_a_value_that_a_domain_does_not_take_is_the_callers_fault(
    http: httpx.Client, narrow: Service, cluster: str
) -> None:
    with psycopg.connect(cluster) as conn:
        conn.execute("CREATE DOMAIN positive AS int CHECK (VALUE > 0)")
    (narrow.queries / "domain.sql").write_text("SELECT :n::positive AS n")
    wait_until(lambda: http.get("/metrics/domain?n=1").status_code == 200)
    assert faults(http.get("/metrics/domain?n=0")) == ["n"]


def test_who_sends_no_label_of_an_enum_is_told_them(http: httpx.Client, narrow: Service, cluster: str) -> None:
    with psycopg.connect(cluster) as conn:
        conn.execute("CREATE TYPE size AS ENUM ('small', 'very large'); CREATE DOMAIN height AS size")
    (narrow.queries / "sizes.sql").write_text("SELECT :size::size AS size, :height::height AS height, :s::size[] AS s")
    query = {"size": "small", "height": "very large", "s": ["small", "very large"]}
    wait_until(lambda: http.get("/metrics/sizes").status_code == 200)
    assert record(http.get("/metrics/sizes", params=query)) == query
    response = http.get("/metrics/sizes?size=Small&height=low&s=small&s=large")
    assert faults(response) == ["size", "height", "s"]
    assert [error["detail"].partition("type ")[2] for error in response.json()["errors"]] == [
        "size (small, very large)",
        "height (small, very large)",
        "size[] (small, very large)",
    ]


def test_a_domain_over_a_domain_is_checked_as_what_it_is_in_the_end(
    http: httpx.Client, narrow: Service, cluster: str
) -> None:
    """Also as an array's item; PostgreSQL itself would take today."""
    with psycopg.connect(cluster) as conn:
        conn.execute("CREATE DOMAIN day AS date; CREATE DOMAIN workday AS day")
    (narrow.queries / "workday.sql").write_text("SELECT :d::workday AS d, CARDINALITY(:others::workday[]) AS n")
    wait_until(lambda: http.get("/metrics/workday?d=2025-06-02&others=2025-06-03").status_code == 200)
    for wrong in ("d=today", "d=infinity", "others=today"):
        assert faults(http.get(f"/metrics/workday?{wrong}")) == [wrong.partition("=")[0]]


def test_moments_in_an_array_may_have_a_plus_that_was_not_escaped(http: httpx.Client, narrow: Service) -> None:
    (narrow.queries / "moments.sql").write_text("SELECT :at::timestamptz[] AS at, :daily::timetz AS daily")
    wait_until(lambda: http.get("/metrics/moments").status_code == 200)
    noon, ten = "2025-06-30T12:00:00+02:00", "2025-06-30T10:00:00+00:00"
    for query in (f"at={noon}&at={noon}", f"at={{{noon},{noon}}}", f'at={{"{noon}","{noon}"}}'):
        assert record(http.get(f"/metrics/moments?{query}&daily=12:00+02:00")) == {
            "at": [ten, ten],
            "daily": "12:00:00+02",
        }


# ------------------------------------------------------------------------------------------------ values


def test_values_are_as_the_database_writes_them(http: httpx.Client) -> None:
    response = http.get("/metrics/values")
    for digits in ('"digits":12345678901234567890.12345678901234567890', '"zero":0.10', '"big":9007199254740993,'):
        assert digits in response.text
    values = record(response)
    assert [values[name] for name in ("nan", "infinity", "minus_infinity")] == ["NaN", "Infinity", "-Infinity"]
    assert values["instant"] == "2025-06-30T10:00:00+00:00"
    assert values["never"] == "infinity"
    assert values["duration"] == "1 mon 2 days"
    assert values["bytes"] == "\\xdeadbeef"
    assert values["numbers"] == [1, None, 3]
    assert values["document"] == {"a": [1, 2]}
    assert values["text"] == 'two\nlines, "quoted"'
    assert (values["empty"], values["nothing"], values["yes"]) == ("", None, True)
    assert (values["t"], values['rows, "quoted"'], values["größe"]) == (1, 2, 3)
    assert [column["name"] for column in response.json()["columns"]] == list(values)


def test_a_csv_has_the_same_columns_and_values(http: httpx.Client) -> None:
    response = http.get("/metrics/values.csv")
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    header, cells = csv.reader(io.StringIO(response.content.decode(), newline=""))
    values = dict(zip(header, cells, strict=True))
    assert values["digits"] == "12345678901234567890.12345678901234567890"
    assert values["text"] == 'two\nlines, "quoted"'
    assert (values["empty"], values["nothing"], values["yes"], values["nan"]) == ("", "", "true", "NaN")
    assert json.loads(values["document"]) == {"a": [1, 2]}
    assert json.loads(values["numbers"]) == [1, None, 3]
    assert header == list(record(http.get("/metrics/values")))


def test_half_a_surrogate_pair_is_a_replacement_character_in_a_csv(http: httpx.Client, narrow: Service) -> None:
    """Only a column of type json can hold one; nothing else that is escaped changes."""
    escaped = r'"\ud800 \\ud800 \u00e4 \ud83d\ude00 \n"'
    (narrow.queries / "halves.sql").write_text(f"SELECT '{escaped}'::json AS a, '{{\"b\":\"\\udc00x\"}}'::json AS b")
    wait_until(lambda: http.get("/metrics/halves").status_code == 200)
    _, cells = csv.reader(io.StringIO(http.get("/metrics/halves.csv").content.decode(), newline=""))
    assert cells == ["\ufffd \\ud800 ä 😀 \n", r'{"b":"\ufffdx"}']
    assert r"\ud800" in http.get("/metrics/halves").text


def test_a_csv_ends_its_lines_as_rfc_4180_says(http: httpx.Client) -> None:
    assert http.get("/metrics/numbers.csv?count=2").content == b"n\r\n1\r\n2\r\n"
    assert http.get("/metrics/numbers.csv?count=0").content == b"n\r\n"


def test_ndjson_has_one_record_a_line(http: httpx.Client) -> None:
    response = http.get("/metrics/numbers.ndjson?count=3")
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.content == b'{"n":1}\n{"n":2}\n{"n":3}\n'
    assert http.get("/metrics/numbers.ndjson?count=0").content == b""
    (line,) = http.get("/metrics/values.ndjson").text.split("\n")[:-1]
    assert json.loads(line) == record(http.get("/metrics/values"))


def test_a_column_called_t_is_a_column(http: httpx.Client) -> None:
    response = http.get("/metrics/t")
    assert response.json()["columns"] == [{"name": "t", "type": "text"}]
    assert record(response)["t"].startswith("a table")


def test_reviewed_sql_runs_in_utc_as_the_reader(http: httpx.Client) -> None:
    assert record(http.get("/metrics/zone")) == {"zone": "UTC", "login": "metrics_reader"}


def test_the_envelope_holds_what_the_contract_says_and_no_more(http: httpx.Client) -> None:
    response = http.get("/metrics/numbers?count=1")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "id": "numbers",
        "title": "Numbers",
        "is_editable": False,
        "columns": [{"name": "n", "type": "int4"}],
        "records": [{"n": 1}],
        "layouts": [],
        "truncated": False,
    }


# ------------------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("text/csv", "text/csv"),
        ("TEXT/CSV; charset=utf-8", "text/csv"),
        ("application/x-ndjson", "application/x-ndjson"),
        ("text/csv;q=0.5, application/json", "application/json"),
        ("application/json;q=0.5, text/csv;q=0.6", "text/csv"),
        ("text/html, application/xhtml+xml, */*;q=0.8", "application/json"),
        ("text/csv;q=0, */*", "application/json"),
        ("application/json;q=0, */*", "text/csv"),
        ("*/*, application/json;q=0.1, text/csv;q=0.2", "application/x-ndjson"),
        ("application/*, application/json;q=0.5", "application/x-ndjson"),
        ("text/*", "text/csv"),
        ("text/csv, */*", "text/csv"),
        ("*/*, text/csv", "application/json"),
        ("application/json;q=0", "application/json"),
        ("image/png, application/json;q=0", "application/json"),
        ("image/png", "application/json"),
        ("text/csv;q=nonsense, ,;,", "application/json"),
        ("", "application/json"),
    ],
)
def test_accept_chooses_the_format(http: httpx.Client, accept: str, media_type: str) -> None:
    response = http.get("/metrics/numbers?count=1", headers={"Accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"].partition(";")[0] == media_type


def test_a_suffix_goes_before_accept(http: httpx.Client) -> None:
    response = http.get("/metrics/numbers.csv?count=1", headers={"Accept": "application/json"})
    assert response.headers["content-type"] == "text/csv; charset=utf-8"


def test_a_problem_is_a_problem_in_every_format(http: httpx.Client) -> None:
    for path in ("/metrics/numbers.csv?count=x", "/metrics/nothing.ndjson", "/metrics/broken.csv"):
        response = http.get(path, headers={"Accept": "text/csv"})
        assert response.status_code >= 400
        assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "path", ["/metrics", "/metrics/numbers?count=2", "/metrics/numbers.csv?count=9", "/health/live"]
)
def test_head_answers_the_headers_of_get_without_a_body(http: httpx.Client, path: str) -> None:
    got, head = http.get(path), http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length", "x-truncated"):
        assert head.headers.get(name) == got.headers.get(name)
    assert http.head("/metrics/numbers?count=x").status_code == 422


@pytest.mark.parametrize("path", ["/metrics", "/metrics/echo", "/metrics/echo.csv", "/health", "/health/live"])
def test_a_trailing_slash_makes_no_difference(http: httpx.Client, path: str) -> None:
    response = http.get(f"{path}/")
    assert (response.status_code, response.content) == (200, http.get(path).content)


# ------------------------------------------------------------------------------------------------ limits


def test_rows_over_the_limit_are_left_out_and_the_answer_says_so(http: httpx.Client) -> None:
    whole, cut = http.get("/metrics/numbers?count=5"), http.get("/metrics/numbers?count=6")
    assert whole.json()["truncated"] is False
    assert cut.json()["truncated"] is True
    assert cut.json()["records"] == whole.json()["records"] == [{"n": n} for n in range(1, 6)]


@pytest.mark.parametrize(("suffix", "lines"), [(".csv", 6), (".ndjson", 5)])
def test_a_header_tells_the_other_formats_that_rows_were_left_out(http: httpx.Client, suffix: str, lines: int) -> None:
    cut = http.get(f"/metrics/numbers{suffix}?count=1000")
    assert cut.headers["x-truncated"] == "true"
    assert len(cut.content.splitlines()) == lines
    assert "x-truncated" not in http.get(f"/metrics/numbers{suffix}?count=5").headers


def test_a_result_over_its_limit_in_bytes_is_refused(http: httpx.Client) -> None:
    assert record(http.get("/metrics/echo", params={"t": "x" * 1900}))["t"] == "x" * 1900
    response = http.get("/metrics/echo", params={"t": "x" * 2100})
    assert response.status_code == 422
    assert "MAX_RESULT_BYTES" in response.json()["detail"]
    assert http.get("/metrics/echo", params={"t": "é" * 1100}).status_code == 422


def test_a_query_over_its_time_is_stopped(http: httpx.Client) -> None:
    started = time.monotonic()
    response = http.get("/metrics/sleep?seconds=30")
    assert time.monotonic() - started < 20
    assert response.status_code == 504
    assert "timeout" in response.json()["detail"].lower()
    assert http.get("/metrics/sleep?seconds=0").status_code == 200


def test_a_query_that_fails_on_its_data_is_the_callers_fault_only_if_it_took_parameters(http: httpx.Client) -> None:
    ours, theirs = http.get("/metrics/divide-by-zero"), http.get("/metrics/divide?by=0")
    assert (ours.status_code, theirs.status_code) == (500, 422)
    assert "division" not in ours.text + theirs.text
    assert record(http.get("/metrics/divide?by=3")) == {"quotient": 3}


def test_a_subquery_that_gives_too_many_rows_fails_on_its_data(http: httpx.Client) -> None:
    assert record(http.get("/metrics/single?count=1")) == {"n": 1}
    assert http.get("/metrics/single?count=2").status_code == 422


# ------------------------------------------------------------------------------------------------ changing tables


def test_columns_agree_with_records_two_seconds_after_a_table_changed(cluster: str, narrow: Service) -> None:
    """DDL under fire gives no error meanwhile."""
    stop, now = Event(), {"Cache-Control": "no-cache"}
    with (
        psycopg.connect(cluster, autocommit=True) as conn,
        ThreadPoolExecutor() as threads,
        httpx.Client(base_url=narrow.url, headers=now, timeout=20) as http,
    ):
        conn.execute(THINGS)
        (narrow.queries / "things.sql").write_text("SELECT *\nFROM things\nWHERE a IS NOT NULL")
        wait_until(lambda: http.get("/metrics/things").status_code == 200)
        readers = [threads.submit(read_until, stop, http) for _ in range(4)]
        try:
            for change in CHANGES:
                conn.execute(change.encode())
                time.sleep(0.1)
        finally:
            stop.set()
        answers = [answer for reader in readers for answer in reader.result()]
        assert len(answers) > 20
        assert [answer for answer in answers if answer != "good"] == []
        wait_until(lambda: column_names(http.get("/metrics/things")) == ["a", "d"])
        assert record(http.get("/metrics/things")) == {"a": "one", "d": [1, 2]}
        conn.execute("DROP TABLE things")


THINGS = "CREATE TABLE things AS SELECT 1 AS a, 'x' AS b; GRANT SELECT ON things TO metrics_reader"
CHANGES = [
    "ALTER TABLE things ADD COLUMN c date DEFAULT '2025-06-30'",
    "ALTER TABLE things DROP COLUMN b",
    "ALTER TABLE things RENAME COLUMN c TO d",
    "ALTER TABLE things ALTER COLUMN a TYPE text USING 'one'",
    "BEGIN; DROP TABLE things; CREATE TABLE things AS SELECT 2 AS e, 1 AS a;"
    " GRANT SELECT ON things TO metrics_reader; COMMIT",
    "BEGIN; DROP TABLE things; CREATE TABLE things AS SELECT 'one' AS a, '[1, 2]'::json AS d;"
    " GRANT SELECT ON things TO metrics_reader; COMMIT",
]


def read_until(stop: Event, http: httpx.Client) -> list[str]:
    """Each answer that was not as it should be, and good for those that were."""
    answers = []
    while not stop.is_set():
        response = http.get("/metrics/things")
        answers.append("good" if response.status_code == 200 else response.text)
    return answers


def column_names(response: httpx.Response) -> list[str]:
    return [column["name"] for column in response.json()["columns"]]
