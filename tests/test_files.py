"""SQL files: headers, :name, what is refused and how that is said, and files that come and go."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from conftest import Serve
from helpers import Service, run_app, wait_until

HEADERS = """\
-- title: Alerts: by type
--description:   How many, "quoted" and with: colons
-- unit: €
-- a comment that is no header

-- chart: bar
-- ttl: 300
-- param region (required): Sales region
--   param   since  : First day
SELECT
  -- unit: of nothing, for the header is over
  :region AS region,
  :since::date AS since
"""

# A file's SQL, the query string, and the one record that it answers.
ACCEPTED: dict[str, tuple[str | bytes, str, dict[str, Any]]] = {
    "strings": (
        "SELECT ':x' AS a, 'it''s :x' AS b, E'\\':x' AS c, U&':x' AS d, $$:x '$$ AS e, $q$ $$:x $q$ AS f",
        "",
        {"a": ":x", "b": "it's :x", "c": "':x", "d": ":x", "e": ":x '", "f": " $$:x "},
    ),
    "backslash": ("SELECT 'a\\' AS a, :n::int4 AS n, 'b' AS b", "n=1", {"a": "a\\", "n": 1, "b": "b"}),
    "identifiers": (
        'SELECT 1 AS ":x", 2 AS "a"":b", 3 AS a$b$c, 4 AS "ü:x"',
        "",
        {":x": 1, 'a":b': 2, "a$b$c": 3, "ü:x": 4},
    ),
    "comments": ("SELECT -- :x isn't one\n1 /* :x /* it's :y */ :z */ AS a --:x", "", {"a": 1}),
    "casts": ("SELECT '1'::int4 AS a, :n::int4::text AS b, (:n)::text AS c", "n=7", {"a": 1, "b": "7", "c": "7"}),
    "named-arguments": ("SELECT MAKE_INTERVAL(days := 1, hours => :h)::text AS i", "h=2", {"i": "1 day 02:00:00"}),
    "slices": (
        "SELECT (ARRAY[1, 2, 3])[1:2] AS a, (ARRAY[1, 2, 3])[2:n] AS b, (ARRAY[1, 2, 3])[:lo : :hi] AS c"
        ', (ARRAY[1, 2, 3])[(i)[1]:n] AS d, (ARRAY[1, 2, 3])[(1):n] AS e, (ARRAY[1, 2, 3])[s."n":n] AS f'
        " FROM (SELECT 3 AS n, ARRAY[2] AS i) AS s",
        "lo=2&hi=3",
        {"a": [1, 2], "b": [2, 3], "c": [2, 3], "d": [2, 3], "e": [1, 2, 3], "f": [3]},
    ),
    "operators": (
        "SELECT '{\"a:b\": 1}'::jsonb->>'a:b' AS a, 3-:n AS b, 'x'||:t||'y' AS c, 1=:n AS d",
        "n=1&t=-",
        {"a": "1", "b": 2, "c": "x-y", "d": True},
    ),
    "json-object": (
        "SELECT JSON_OBJECT('a':n, t.key:n, $$b$$:n, 'c' : :n::int4, 'd':'it''s':: text) AS o"
        " FROM (SELECT 'x' AS key, 1 AS n) AS t",
        "n=2",
        {"o": {"a": 1, "x": 1, "b": 1, "c": 2, "d": "it's"}},
    ),
    "names": (
        "SELECT :n::int4 + :n AS twice, :N::int4 AS other, :_a1::int4 AS c, :größe::int4 AS d",
        "n=2&N=5&_a1=6&gr%C3%B6%C3%9Fe=7",
        {"twice": 4, "other": 5, "c": 6, "d": 7},
    ),
    "semicolon": ("SELECT ';' AS a;", "", {"a": ";"}),
    "semicolon-comment": ("SELECT 1 AS a ; -- done; really\n/* ; */ ;\n\n", "", {"a": 1}),
    "comment-last": ("SELECT 1 AS a -- no line break after this", "", {"a": 1}),
    "bom": (b"\xef\xbb\xbf-- title: BOM\nSELECT 1 AS a", "", {"a": 1}),
    "crlf": (
        b"-- title: CRLF\r\n-- chart: bar\r\n-- unit: EUR\r\nSELECT 1 AS a, -- :x\r\n  :n::int4 AS n;\r\n",
        "n=3",
        {"a": 1, "n": 3},
    ),
    "with": ("WITH a AS (SELECT 1 AS a) SELECT * FROM a", "", {"a": 1}),
    "values": ("VALUES (1, :t)", "t=x", {"column1": 1, "column2": "x"}),
    "parenthesis": ("(SELECT 1 AS a)", "", {"a": 1}),
    "union": ("SELECT 1 AS a WHERE false UNION SELECT 2 ORDER BY a LIMIT :n", "n=1", {"a": 2}),
    "braces": ("SELECT '{sql} {0} %s {{}}' AS a", "", {"a": "{sql} {0} %s {{}}"}),
    "list": (
        "SELECT COUNT(*) AS n FROM GENERATE_SERIES(1, 9) AS g WHERE g = ANY (:ids)",
        "ids=1&ids=2&ids=77",
        {"n": 2},
    ),
    "default": (
        "SELECT COALESCE(:start_date, CURRENT_DATE - 30) = CURRENT_DATE - COALESCE(:day_range, 30) AS d",
        "",
        {"d": True},
    ),
    "records": ("SELECT ARRAY[ROW(1)] AS a", "", {"a": [{"f1": 1}]}),
    "domain": ("SELECT :n::information_schema.cardinal_number AS n", "n=1", {"n": 1}),
    "any-comments": (
        "/* (c) :x\n-- unit: none */\n-- title: One\u2028Two\r/* /* */ */ -- unit: kg\n\n-- chart: bar\nSELECT 1 AS a",
        "",
        {"a": 1},
    ),
    "UPPER_and-lower-9": ("SELECT 1 AS a", "", {"a": 1}),
    "9": ("SELECT 1 AS a", "", {"a": 1}),
    "x" * 64: ("SELECT 1 AS a", "", {"a": 1}),
}

REFUSED: dict[str, str | bytes] = {
    "no-column": "SELECT secret_column FROM metrics",
    "no-table": "SELECT 1 AS a FROM secret_table",
    "no-sense": "SELEKT 1",
    "unfinished": "SELECT 'unfinished",
    "unfinished-comment": "SELECT 1 AS a /* /* */",
    "closing": "SELECT 1 AS a) AS t; DELETE FROM metrics; --",
    "closing-comment": "SELECT 1 AS a) AS t /*",
    "several": "SELECT 1 AS a; SELECT 2 AS a",
    "several-hidden": "SELECT 1 AS a; /* SELECT */ COMMIT;",
    "duplicate-columns": "-- title: Twice\n\nSELECT 1 AS a, 2 AS b, 3 AS a",
    "unnamed-columns": "SELECT 1, 2",
    "star-join": "SELECT * FROM metrics AS a JOIN metrics AS b USING (metric_id)",
    "no-columns": "SELECT FROM metrics",
    "empty": "",
    "blank": " \r\n\t",
    "only-comments": "-- title: Nothing\n/* at all */",
    "only-semicolon": ";",
    "not-utf-8": b"SELECT 'gr\xf6\xdfe' AS a",
    "utf-16": "SELECT 1 AS a".encode("utf-16"),
    "nul": b"SELECT 1 AS a\0",
    "nul-in-string": b"SELECT 'a\0b' AS a",
    "insert": "INSERT INTO metrics (id) VALUES ('x') RETURNING id",
    "update": "UPDATE metrics SET id = id RETURNING id",
    "merge": "MERGE INTO metrics AS m USING (SELECT 1) AS s ON false WHEN MATCHED THEN DELETE RETURNING m.id",
    "data-modifying": "WITH gone AS (DELETE FROM metrics RETURNING id) SELECT id FROM gone",
    "select-into": "SELECT 1 AS a INTO TEMP spoils",
    "for-update": "SELECT id FROM metrics FOR UPDATE",
    "copy": "COPY metrics TO STDOUT",
    "copy-program": "COPY (SELECT 1) TO PROGRAM 'true'",
    "do": "DO $$ BEGIN END $$",
    "call": "CALL nothing()",
    "commit": "COMMIT",
    "set": "SET statement_timeout = 0",
    "show": "SHOW timezone",
    "explain": "EXPLAIN SELECT 1 AS a",
    "listen": "LISTEN metrics_api",
    "notify": "NOTIFY metrics_api",
    "prepare": "PREPARE p AS SELECT 1 AS a",
    "execute": "EXECUTE p",
    "deallocate": "DEALLOCATE ALL",
    "discard": "DISCARD ALL",
    "fetch": "FETCH ALL FROM c",
    "vacuum": "VACUUM metrics",
    "forbidden": "SELECT id FROM queries",
    "forbidden-function": "SELECT PG_READ_FILE('/etc/passwd') AS a",
    "numbered": "SELECT $1::int4 AS a",
    "untyped": "-- :x costs $1\nSELECT 1 AS a WHERE :x IS NULL AND :x IS NOT NULL",
    "deep": "SELECT " + "(" * 20000 + "1" + ")" * 20000 + " AS a",
    "raises-when-planned": "SELECT raises() AS secret_column",
    "slow-to-plan": "SELECT slow() AS secret_column",
}

STRAY = {
    "no id.sql": "SELECT 1 AS a",
    "-dash.sql": "SELECT 1",
    "größe.sql": "SELECT 1",
    ".sql": "SELECT 1",
    f"{'y' * 65}.sql": "SELECT 1",
}
IGNORED = {"notes.txt": "SELECT 1", "backup.sql~": "SELECT 1", "README.md": "x"}
FUNCTIONS = """
CREATE OR REPLACE FUNCTION raises() RETURNS int4 IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''secret''; END';
CREATE OR REPLACE FUNCTION slow() RETURNS int4 IMMUTABLE LANGUAGE plpgsql AS 'BEGIN PERFORM PG_SLEEP(9); RETURN 1; END'
"""


CHARTS = {"number", "line", "bar", "stacked", "hbar", "table"}
DRAWN = {f"drawn-{chart}": f"-- chart: {chart}\nSELECT 'a' AS name, 1 AS total" for chart in CHARTS}


def write(directory: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture(scope="module")
def queries(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with every kind of file, good and bad."""
    with psycopg.connect(cluster) as conn:
        if conn.info.server_version < 160_000:
            ACCEPTED.pop("json-object", None)
    directory = tmp_path_factory.mktemp("queries")
    write(directory, {f"{name}.sql": sql for name, (sql, _, _) in ACCEPTED.items()})
    write(directory, {f"{name}.sql": sql for name, sql in REFUSED.items()})
    write(directory, {"headers.sql": HEADERS, **STRAY, **IGNORED})
    write(directory, {"bad-headers.sql": "-- chart: pie\n-- ttl: soon\n-- param nobody: Nothing\nSELECT 1 AS a"})
    write(directory, {f"{name}.sql": sql for name, sql in DRAWN.items()})
    (directory / "directory.sql").mkdir()
    (directory / "dangling.sql").symlink_to(directory / "nowhere")
    return directory


@pytest.fixture(scope="module")
def http(cluster: str, service: Service, start_service: Serve, queries: Path) -> Iterator[httpx.Client]:
    with psycopg.connect(cluster, autocommit=True) as conn:
        conn.execute("DELETE FROM metric_configurations WHERE source <> 'file'")
        conn.execute(FUNCTIONS)
        service = start_service(ready=False, QUERIES_DIR=str(queries), STATEMENT_TIMEOUT="0.5")
        with httpx.Client(base_url=service.url, timeout=20) as client:
            wait_until(lambda: client.get("/health/ready").status_code == 200)
            yield client
        service.stop()
        conn.execute("DROP FUNCTION raises(), slow()")


@pytest.fixture(scope="module")
def listed(http: httpx.Client) -> dict[str, Any]:
    return {metric["id"]: metric for metric in http.get("/metrics").json()["metrics"]}


def test_a_header_says_what_the_metric_is(listed: dict[str, Any]) -> None:
    metric = listed["headers"]
    assert metric == metric | {
        "title": "Alerts: by type",
        "description": 'How many, "quoted" and with: colons',
        "unit": "€",
        "chart": "bar",
        "is_editable": False,
        "version": 1,
        "live": True,
        "layouts": [],
        "columns": [{"name": "region", "type": "text"}, {"name": "since", "type": "date"}],
        "parameters": [
            {"name": "region", "type": "text", "required": True, "description": "Sales region"},
            {"name": "since", "type": "date", "required": False, "description": "First day"},
        ],
    }


def test_what_a_header_leaves_out_has_a_default(listed: dict[str, Any]) -> None:
    assert listed["UPPER_and-lower-9"]["title"] == "Upper and lower 9"
    assert (listed["9"]["description"], listed["9"]["unit"]) == ("", "")
    assert {metric["chart"] for metric in listed.values()} <= CHARTS


def test_headers_are_read_after_a_bom_and_with_crlf(listed: dict[str, Any]) -> None:
    assert listed["bom"]["title"] == "BOM"
    assert [listed["crlf"][name] for name in ("title", "chart", "unit")] == ["CRLF", "bar", "EUR"]


def test_a_header_may_stand_among_other_comments(listed: dict[str, Any]) -> None:
    """None of which may hide what it says of roles."""
    expected = {"title": "One\u2028Two", "unit": "kg", "chart": "bar"}
    assert listed["any-comments"] == listed["any-comments"] | expected


def test_a_metric_is_drawn_as_its_file_says_and_the_document_knows_how(
    http: httpx.Client, listed: dict[str, Any]
) -> None:
    assert {listed[f"drawn-{chart}"]["chart"] for chart in CHARTS} == CHARTS
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    assert set(schemas["MetricSummary"]["properties"]["chart"]["enum"]) == CHARTS


def test_a_bad_header_is_a_warning_and_the_metric_serves(http: httpx.Client) -> None:
    assert http.get("/metrics/bad-headers").json()["records"] == [{"a": 1}]
    warnings = [check["output"] for check in checks(http) if "bad-headers" in check["output"]]
    assert [any(word in warning for warning in warnings) for word in ("pie", "soon", "nobody")] == [True] * 3


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_name_after_a_colon_is_a_parameter_and_nothing_else_is(http: httpx.Client, name: str) -> None:
    if name not in ACCEPTED:
        pytest.skip("PostgreSQL has this syntax from 16 on")
    _, query, values = ACCEPTED[name]
    response = http.get(f"/metrics/{name}?{query}")
    assert response.status_code == 200, response.text
    assert response.json()["records"] == [values]


def test_types_are_the_databases_own_and_have_short_names(listed: dict[str, Any]) -> None:
    types = {name: {p["name"]: p["type"] for p in listed[name]["parameters"]} for name in ("list", "default", "union")}
    assert types == {
        "list": {"ids": "int4[]"},
        "default": {"start_date": "date", "day_range": "int4"},
        "union": {"n": "int8"},
    }
    assert listed["records"]["columns"] == [{"name": "a", "type": "record[]"}]
    assert listed["domain"]["parameters"][0]["type"] == "cardinal_number"


def test_what_a_domain_does_not_take_is_the_callers_fault(http: httpx.Client) -> None:
    assert http.get("/metrics/domain?n=-1").status_code == 422


@pytest.mark.parametrize("name", [*REFUSED, "directory", "dangling"])
def test_a_file_that_does_not_compile_answers_500_and_names_itself_but_not_its_sql(
    http: httpx.Client, listed: dict[str, Any], name: str
) -> None:
    assert name not in listed
    response = http.get(f"/metrics/{name}")
    assert (response.status_code, response.headers["content-type"]) == (500, "application/problem+json")
    assert f"queries/{name}.sql" in response.json()["detail"]
    for word in ("secret", "SELECT", "syntax"):
        assert word not in response.text


def checks(http: httpx.Client) -> list[dict[str, Any]]:
    response = http.get("/health/ready")
    assert response.headers["content-type"] == "application/health+json"
    return [check for group in response.json()["checks"].values() for check in group if "output" in check]


def warned(http: httpx.Client) -> str:
    return "\n".join(check["output"] for check in checks(http))


def test_readiness_warns_of_every_file_that_does_not_serve(http: httpx.Client) -> None:
    response = http.get("/health/ready")
    assert (response.status_code, response.json()["status"]) == (200, "warn")
    told = warned(http)
    missing = [name for name in (*STRAY, *(f"{name}.sql" for name in REFUSED)) if f"/{name}" not in told]
    assert missing == [".sql"] or missing == []
    assert not [name for name in (*ACCEPTED, *IGNORED) if f"/{name}.sql:" in told]


def test_a_file_whose_name_is_no_id_is_no_metric(http: httpx.Client, listed: dict[str, Any]) -> None:
    assert list(listed) == sorted({*ACCEPTED, *DRAWN, "headers", "bad-headers"})
    assert http.get("/metrics/no%20id").status_code == 422


def command(database: str, queries: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run_app(*arguments, DATABASE_URL=database, QUERIES_DIR=str(queries), **env)


def test_check_names_file_and_line_of_each_that_does_not_compile(
    cluster: str, http: httpx.Client, queries: Path
) -> None:
    done = command(cluster, queries, "check", STATEMENT_TIMEOUT="0.5")
    assert (done.returncode, done.stderr) == (1, "")
    for line in (
        f'{queries}/no-column.sql:1:8: error: column "secret_column" does not exist',
        f"{queries}/forbidden.sql:1: error: permission denied for table queries",
        f"{queries}/duplicate-columns.sql:3: error: two columns are named 'a'",
        f"{queries}/untyped.sql:2:21: error: could not determine data type of parameter :x; write :x::text or the like",
    ):
        assert line in done.stdout
    refused = {Path(line.partition(".sql")[0]).name for line in done.stdout.splitlines() if "error:" in line}
    assert refused == {*REFUSED, "directory", "dangling"}
    assert (
        f"{queries}/headers.sql\n  parameters: region text, since date\n  columns: region text, since date"
        in done.stdout
    )


# ------------------------------------------------------------------------------------------------ coming and going


@pytest.fixture(scope="module")
def living(start_service: Serve) -> Iterator[tuple[httpx.Client, Service]]:
    service = start_service()
    with httpx.Client(base_url=service.url) as client:
        yield client, service
    service.stop()


@pytest.fixture
def database(cluster: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(cluster, autocommit=True) as conn:
        yield conn


def before_long(http: httpx.Client, path: str, status: int, records: object = None) -> None:
    def as_expected() -> bool:
        response = http.get(path)
        return response.status_code == status and (records is None or response.json()["records"] == records)

    wait_until(as_expected)


def test_files_that_are_added_edited_or_removed_are_noticed(
    living: tuple[httpx.Client, Service],
) -> None:
    """Also beside an editor's lock, a link to nowhere, and when the new file is as long as the old one."""
    http, service = living
    file = service.queries / "fresh.sql"
    assert http.get("/metrics/fresh").status_code == 404
    (service.queries / ".#fresh.sql").symlink_to("somebody@somewhere.1234")
    file.write_text("SELECT 1 AS a")
    before_long(http, "/metrics/fresh", 200, [{"a": 1}])
    file.write_text("SELECT 2 AS a")
    before_long(http, "/metrics/fresh", 200, [{"a": 2}])
    file.write_text("SELECT 3 AS")
    before_long(http, "/metrics/fresh", 500)
    shutil.copy(service.queries / "zone.sql", service.queries / "side")
    os.replace(service.queries / "side", file)
    before_long(http, "/metrics/fresh", 200)
    file.unlink()
    before_long(http, "/metrics/fresh", 404)
    assert "fresh" not in http.get("/metrics").text


def test_a_file_that_stops_compiling_is_a_line_of_the_log_and_another_when_it_does_again(
    living: tuple[httpx.Client, Service],
) -> None:
    """Once a change, with file, line and reason, as an editor can open it."""
    http, service = living
    file = service.queries / "wrong.sql"
    for sql, status in (("SELECT 1 AS a", 200), ("SELECT 1 AS a,\n nothing", 500), ("SELECT 2 AS a", 200)):
        file.write_text(sql)
        before_long(http, "/metrics/wrong", status)
        wait_until(lambda status=status: ("wrong.sql" in warned(http)) == (status == 500))  # type: ignore[misc]
        time.sleep(1.5)  # in which it is looked at again
    file.unlink()
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if str(file) in line]
    assert [(line["level"], line["message"], line.get("reason")) for line in lines] == [
        ("warning", "a metric does not compile", f'{file}:2:2: column "nothing" does not exist'),
        ("info", f"{file} compiles again", None),
    ]


def test_a_file_that_waits_for_a_lock_holds_up_no_other(
    living: tuple[httpx.Client, Service], database: psycopg.Connection[Any]
) -> None:
    http, service = living
    database.execute("CREATE TABLE busy AS SELECT 1 AS a; GRANT SELECT ON busy TO metrics_reader")
    with database.transaction():
        database.execute("LOCK TABLE busy")
        (service.queries / "busy.sql").write_text("SELECT a FROM busy")
        before_long(http, "/metrics/busy", 500)
        for number in range(3):
            (service.queries / "free.sql").write_text(f"SELECT {number} AS a")
            before_long(http, "/metrics/free", 200, [{"a": number}])
    wait_until(lambda: http.get("/metrics/busy").status_code == 200)
    for name in ("busy", "free"):
        (service.queries / f"{name}.sql").unlink()
    database.execute("DROP TABLE busy")


def test_a_missing_grant_counts_as_not_compiling_until_it_is_given(
    living: tuple[httpx.Client, Service], database: psycopg.Connection[Any]
) -> None:
    http, service = living
    database.execute("DROP TABLE IF EXISTS sales; CREATE TABLE sales AS SELECT 5 AS amount")
    (service.queries / "sales.sql").write_text("SELECT amount\nFROM sales")
    before_long(http, "/metrics/sales", 500)
    database.execute("GRANT SELECT ON sales TO metrics_reader")
    wait_until(lambda: http.get("/metrics/sales").status_code == 200)
    database.execute("REVOKE SELECT ON sales FROM metrics_reader")
    response = http.get("/metrics/sales", headers={"Cache-Control": "no-cache"})
    assert (response.status_code, "sales.sql" in response.text) == (500, True)
    assert "permission" not in response.text
    database.execute("DROP TABLE sales")


def test_a_header_names_the_tables_that_a_function_reads(
    living: tuple[httpx.Client, Service], database: psycopg.Connection[Any], cluster: str
) -> None:
    """Or views of them; what is none is a warning."""
    http, service = living
    database.execute(SALES)
    (service.queries / "sold.sql").write_text("-- tables: sold_view, nowhere, no.such.thing.ever\nSELECT sold() AS n")
    before_long(http, "/metrics/sold", 200, [{"n": 1}])
    assert [metric["live"] for metric in http.get("/metrics").json()["metrics"] if metric["id"] == "sold"] == [False]
    warned = [check["output"] for check in checks(http) if "sold" in check["output"]]
    assert [name in warning for name, warning in zip(("nowhere", "no.such"), warned, strict=True)] == [True, True]
    done = command(cluster, service.queries, "check")
    assert """app.py watch '"Sold things"'`""" in done.stdout
    (service.queries / "sold.sql").unlink()
    database.execute('DROP FUNCTION sold(); DROP TABLE "Sold things" CASCADE')


SALES = """
CREATE TABLE "Sold things" AS SELECT 1 AS n;
CREATE VIEW sold_view AS SELECT n FROM "Sold things";
CREATE FUNCTION sold() RETURNS int4 LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN RETURN (SELECT n FROM sold_view); END'
"""


STORES = """
CREATE TABLE stores (n int);
CREATE VIEW all_stores AS SELECT * FROM stores;
CREATE MATERIALIZED VIEW counted_stores AS SELECT COUNT(*) AS n FROM stores;
GRANT SELECT ON stores, counted_stores TO metrics_reader
"""


def test_a_table_is_put_under_watch_and_taken_out_of_it(
    living: tuple[httpx.Client, Service], database: psycopg.Connection[Any], cluster: str
) -> None:
    """A running service knows before long; all tables that are named, or none."""
    http, service = living
    database.execute(STORES)
    (service.queries / "stores.sql").write_text("SELECT COUNT(*) AS n FROM stores")
    (service.queries / "counted.sql").write_text("SELECT n FROM counted_stores")
    before_long(http, "/metrics/stores", 200, [{"n": 0}])

    run = partial(command, cluster, service.queries)

    def live() -> bool:
        return next(bool(m["live"]) for m in http.get("/metrics").json()["metrics"] if m["id"] == "stores")

    checked = run("check").stdout
    assert "stores is not watched; `python app.py watch stores` makes the metric exact" in checked
    assert "counted_stores cannot be watched" in checked
    for refused in ("all_stores", "counted_stores", "nowhere", "no.such.thing.ever"):
        done = run("watch", "stores", refused)
        assert (done.returncode, done.stderr.startswith(refused), done.stderr.count("\n")) == (1, True, 1)
    assert not live()
    assert run("watch", "stores").stdout == "Watched: stores\n"
    wait_until(live)
    database.execute("INSERT INTO stores VALUES (1)")
    before_long(http, "/metrics/stores", 200, [{"n": 1}])
    database.execute("TRUNCATE stores")
    before_long(http, "/metrics/stores", 200, [{"n": 0}])
    assert run("unwatch", "stores").stdout == "Not watched any more: stores\n"
    wait_until(lambda: not live())
    (service.queries / "stores.sql").unlink()
    (service.queries / "counted.sql").unlink()
    database.execute("DROP TABLE stores CASCADE")


def test_files_are_mirrored_into_the_tables(
    living: tuple[httpx.Client, Service], database: psycopg.Connection[Any]
) -> None:
    """So that records and layouts have something to refer to."""
    http, service = living
    (service.queries / "mirrored.sql").write_text("-- title: In the mirror\nSELECT 1 AS a")
    before_long(http, "/metrics/mirrored", 200)
    row = database.execute(MIRRORED).fetchone()
    assert row == ("mirrored", "file", "In the mirror", False, 1)
    database.execute(
        "INSERT INTO layout_items VALUES ('mirrored', 'lg', 0, 0, 4, 8, false), ('mirrored', 'md', 1, 2, 3, 4, true)"
    )
    (service.queries / "mirrored.sql").write_text("-- title: In the mirror\nSELECT 2 AS a")
    before_long(http, "/metrics/mirrored", 200, [{"a": 2}])
    layouts = [
        {"breakpoint": "lg", "x": 0, "y": 0, "w": 4, "h": 8, "static": False},
        {"breakpoint": "md", "x": 1, "y": 2, "w": 3, "h": 4, "static": True},
    ]
    assert http.get("/metrics/mirrored").json()["layouts"] == layouts
    listed = {metric["id"]: metric for metric in http.get("/metrics").json()["metrics"]}
    assert listed["mirrored"]["layouts"] == layouts
    database.execute("INSERT INTO metrics (id) VALUES ('mirrored'); DELETE FROM metrics WHERE id = 'mirrored'")
    database.execute("DELETE FROM layout_items WHERE item_id = 'mirrored'")


MIRRORED = "SELECT query_id, source, title, is_editable, version FROM metric_configurations WHERE id = 'mirrored'"


def test_what_is_no_sql_file_is_named_and_the_others_are_served(start_service: Serve, cluster: str) -> None:
    """A pipe, a directory, a file of a gigabyte, a name that is no UTF-8, or that a terminal would obey."""
    service = start_service()
    os.mkfifo(service.queries / "pipe.sql")
    (service.queries / "directory.sql").mkdir()
    with (service.queries / "large.sql").open("w") as file:
        file.truncate(2**30)
    Path(os.fsdecode(os.fsencode(service.queries) + b"/\xff.sql")).write_text("SELECT 1 AS n")
    (service.queries / "\x1b[31m.sql").write_text("SELECT 1 AS n")
    (service.queries / "last.sql").write_text('SELECT 1 AS "\x1b[32m"')
    wait_until(lambda: httpx.get(f"{service.url}/metrics/last").status_code == 200)
    files = httpx.get(f"{service.url}/health/ready").json()["checks"]["metrics:files"]
    warned = " ".join(check["output"] for check in files)
    for name in ("pipe.sql", "directory.sql", "large.sql", "\\udcff.sql", "\\x1b[31m.sql"):
        assert name in warned
    checked = command(cluster, service.queries, "check").stdout
    assert "\x1b" not in checked
    assert "\\x1b[31m" in checked
    assert "\\x1b[32m" in checked
    service.stop()
