"""Metrics and records through the API: what is stored, who is told, what is refused and in which order."""

import asyncio
import gzip
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from functools import partial
from typing import Any

import asyncpg
import httpx
import pytest
from conftest import Serve
from helpers import Service, eventually, wait_until
from issuer import Issuer

pytestmark = pytest.mark.anyio

MAX_BODY, MAX_UPLOAD = 200_000, 2 * 2**20
LIMITS = {"MAX_BODY": str(MAX_BODY), "MAX_UPLOAD": str(MAX_UPLOAD)}
TILE = {"breakpoint": "lg", "x": 1, "y": 2, "w": 3, "h": 4, "static": False}
JSON, NDJSON = {"Content-Type": "application/json"}, {"Content-Type": "application/x-ndjson"}
CSV = {"Content-Type": "text/csv"}
RECORDS = "/metrics/total/metric-records"


@pytest.fixture(scope="module")
def two(start_service: Serve, issuer: Issuer) -> Iterator[list[Service]]:
    """Two instances that share a database."""
    services = [start_service(JWT_ISSUER=issuer.url, **LIMITS) for _ in range(2)]
    yield services
    for service in services:
        service.stop()


def bearer(issuer: Issuer, **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {issuer.token(**claims)}"}


@pytest.fixture
async def api(two: list[Service], issuer: Issuer, owner: asyncpg.Connection) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=two[0].url, headers=bearer(issuer), timeout=30, verify=False) as client:
        yield client


@pytest.fixture
async def other(two: list[Service], issuer: Issuer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=two[1].url, headers=bearer(issuer), timeout=30, verify=False) as client:
        yield client


async def create(api: httpx.AsyncClient, query: str = "SELECT 1 AS a", **fields: Any) -> str:
    answer = await api.post("/metrics", json={"query": query, **fields})
    assert answer.status_code == 201, answer.text
    metric_id: str = answer.json()["id"]
    return metric_id


async def summary(api: httpx.AsyncClient, metric_id: str) -> Any:
    found = [metric for metric in (await api.get("/metrics")).json()["metrics"] if metric["id"] == metric_id]
    return found[0] if found else None


def log_lines(service: Service) -> list[dict[str, Any]]:
    return [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]


def audited(service: Service, metric_id: str) -> list[tuple[Any, ...]]:
    lines = [line for line in log_lines(service) if line["message"] == "audit" and line["metric_id"] == metric_id]
    return [(line["action"], line["subject"]) for line in lines]


# ------------------------------------------------------------------------------------------------ metrics


async def test_a_metric_is_answered_stored_and_there_at_once(
    api: httpx.AsyncClient, owner: asyncpg.Connection, two: list[Service]
) -> None:
    query = "SELECT id, :n::int4 AS n FROM metrics"
    answer = await api.post("/metrics", json={"query": query, "title": "Mine", "layouts": [TILE]})
    body = answer.json()
    assert body.keys() == {"id", "query", "version", "parameters", "columns", "notes"}
    metric_id = body.pop("id")
    assert answer.status_code == 201
    assert answer.headers["location"] == f"metrics/{metric_id}"
    assert body == {
        "query": query,
        "version": 1,
        "parameters": [{"name": "n", "type": "int4", "required": False, "description": ""}],
        "columns": [{"name": "id", "type": "text"}, {"name": "n", "type": "int4"}],
        "notes": [],
    }
    result = (await api.get(f"/metrics/{metric_id}")).json()
    assert (result["title"], result["is_editable"], result["layouts"]) == ("Mine", True, [TILE])
    assert (await summary(api, metric_id))["version"] == 1
    row = await owner.fetchrow("SELECT * FROM metric_configurations WHERE id = $1", metric_id)
    assert (row["source"], row["prompt"], row["created_by"]) == ("api", None, "ada")
    await eventually(lambda: asyncio.to_thread(audited, two[0], metric_id))
    assert audited(two[0], metric_id) == [("create", "ada")]


async def test_every_write_is_seen_by_another_instance(api: httpx.AsyncClient, other: httpx.AsyncClient) -> None:
    metric_id = await create(api)

    async def title() -> str | None:
        metric = await summary(other, metric_id)
        return metric["title"] if metric else None

    async def becomes(wanted: str | None) -> None:
        async def check() -> bool:
            return await title() == wanted

        await eventually(check)

    await becomes(f"Metric {metric_id[:8]}")
    await api.patch(f"/metrics/{metric_id}", json={"title": "New"})
    await becomes("New")
    await api.delete(f"/metrics/{metric_id}")
    await becomes(None)


async def test_the_prompt_is_kept_and_logged_by_nobody(
    api: httpx.AsyncClient, owner: asyncpg.Connection, two: list[Service]
) -> None:
    prompt = "How many alerts did the zebra-company have in June 2025?"
    answer = await api.post("/metrics", json={"query_generation_prompt": prompt})
    assert answer.status_code == 201
    metric_id = answer.json()["id"]
    assert await owner.fetchval("SELECT prompt FROM metric_configurations WHERE id = $1", metric_id) == prompt
    for text in ("zebra-company", "zebra-company by the day"):
        changed = await api.patch(f"/metrics/{metric_id}", json={"query_generation_prompt": text})
        assert changed.status_code == 200
    assert await owner.fetchval("SELECT prompt FROM metric_configurations WHERE id = $1", metric_id) == text
    await eventually(lambda: asyncio.to_thread(lambda: len(audited(two[0], metric_id)) == 3))
    assert "zebra" not in two[0].log.read_text()


async def test_a_dry_run_stores_nothing(api: httpx.AsyncClient, owner: asyncpg.Connection) -> None:
    before = await owner.fetch("SELECT id FROM queries")
    answer = await api.post("/metrics?dry_run=true", json={"query": "SELECT 1 AS a"})
    assert answer.status_code == 200
    assert answer.json() == {
        "query": "SELECT 1 AS a",
        "version": 1,
        "parameters": [],
        "columns": [{"name": "a", "type": "int4"}],
        "notes": [],
        "records": [{"a": 1}],
        "truncated": False,
    }
    assert "location" not in answer.headers
    assert (await api.post("/metrics?dry_run=true", json={"query": "DROP TABLE metrics"})).status_code == 422
    assert await owner.fetch("SELECT id FROM queries") == before


async def test_a_dry_run_shows_the_first_hundred_records_and_says_when_there_are_more(api: httpx.AsyncClient) -> None:
    for rows, shown, truncated in ((0, 0, False), (100, 100, False), (101, 100, True)):
        query = f"SELECT n, :x::text AS x FROM generate_series(1, {rows}) AS n"
        answer = (await api.post("/metrics?dry_run=true", json={"query": query})).json()
        assert answer["records"] == [{"n": n, "x": None} for n in range(1, shown + 1)]
        assert answer["truncated"] is truncated


async def test_a_dry_run_says_why_it_fails_on_the_data_and_is_no_way_around_the_time_limit(
    api: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    await owner.execute("INSERT INTO metrics (id, parts_flagged) VALUES ('total', 0)")
    answer = await api.post("/metrics?dry_run=true", json={"query": "SELECT 1 / parts_flagged AS a FROM metrics"})
    assert (answer.status_code, answer.json()["errors"]) == (422, [{"name": "query", "detail": "division by zero"}])
    answer = await api.post("/metrics?dry_run=true", json={"query": "SELECT pg_sleep(30)::text AS a"})
    assert answer.status_code == 504


async def test_a_definition_says_what_a_metric_is_made_of(
    api: httpx.AsyncClient, two: list[Service], owner: asyncpg.Connection
) -> None:
    prompt = "How many alerts in June 2025?"
    made = (await api.post("/metrics", json={"query_generation_prompt": prompt, "title": "Mine"})).json()
    path = f"/metrics/{made['id']}"
    columns = [{"name": "total_alerts", "type": "int8"}]
    parameters = [{"name": n, "type": "date", "required": False, "description": ""} for n in ("start_date", "end_date")]
    assert (await api.get(f"{path}/definition")).json() == {
        "id": made["id"],
        "title": "Mine",
        "description": "",
        "source": "api",
        "query": made["query"],
        "prompt": prompt,
        "created_by": "ada",
        "version": 1,
        "is_editable": True,
        "parameters": parameters,
        "columns": columns,
        "tables": ["metrics"],
    }
    await api.patch(path, json={"title": "Other"})
    assert (await api.get(f"{path}/definition")).json()["prompt"] == prompt
    await api.patch(path, json={"query": "SELECT 1 AS a"})
    changed = (await api.get(f"{path}/definition")).json()
    assert (changed["prompt"], changed["version"], changed["tables"]) == (None, 3, [])

    file = (await api.get("/metrics/total/definition")).json()
    assert file["query"] == (two[0].queries / "total.sql").read_text()
    assert (file["source"], file["prompt"], file["created_by"], file["is_editable"]) == ("file", None, None, False)


async def test_the_definition_of_what_does_not_compile_says_what_is_wrong(api: httpx.AsyncClient) -> None:
    broken = (await api.get("/metrics/broken/definition")).json()
    assert (broken["fault"], broken["place"]) == ('column "no_such_column" does not exist', "3:3")
    assert (broken["title"], broken["parameters"], broken["columns"]) == ("Does not compile", [], [])
    assert "no_such_column" in broken["query"]
    assert (await api.get("/metrics/none/definition")).status_code == 404


async def test_a_definition_is_for_whoever_may_read_the_metric(
    api: httpx.AsyncClient, two: list[Service], issuer: Issuer
) -> None:
    (two[0].queries / "payroll.sql").write_text("-- roles: finance\nSELECT 1 AS n")
    finance = bearer(issuer, **{"cognito:groups": ["finance"]})

    async def there() -> bool:
        return (await api.get("/metrics/payroll/definition", headers=finance)).status_code == 200

    await eventually(there)
    assert (await api.get("/metrics/payroll/definition")).status_code == 403
    (two[0].queries / "payroll.sql").unlink()


@pytest.mark.usefixtures("triggers")
async def test_a_patch_leaves_the_queries_of_other_metrics_alone(
    api: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    """A data set may call its queries as other metrics are called."""
    queries = [("q", "SELECT 1 AS shared"), ("m1", "SELECT 2 AS others")]
    metrics = [("m1", "q", True), ("m4", "q", True), ("m2", "m1", False)]
    await owner.executemany("INSERT INTO queries (id, query) VALUES ($1, $2)", queries)
    await owner.executemany(
        "INSERT INTO metric_configurations (id, query_id, is_editable, source) VALUES ($1, $2, $3, 'dataset')", metrics
    )
    await eventually(lambda: answers(api, "/metrics/m2"))

    async def records() -> list[Any]:
        return [(await api.get(f"/metrics/{metric_id}")).json()["records"] for metric_id in ("m1", "m2", "m4")]

    for n in (3, 4):
        assert (await api.patch("/metrics/m1", json={"query": f"SELECT {n} AS mine"})).status_code == 200
        assert await records() == [[{"mine": n}], [{"others": 2}], [{"shared": 1}]]
    assert (await api.patch("/metrics/m2", json={"query": "SELECT 5 AS a"})).status_code == 409


async def test_a_patch_changes_what_it_names_and_null_takes_away(api: httpx.AsyncClient) -> None:
    metric_id = await create(api, title="Old", layouts=[TILE])
    path = f"/metrics/{metric_id}"
    answer = await api.patch(path, json={"query": "SELECT 2 AS b", "version": 1})
    assert (answer.status_code, answer.json()["version"], answer.json()["id"]) == (200, 2, metric_id)
    result = (await api.get(path)).json()
    assert (result["title"], result["layouts"], result["records"]) == ("Old", [TILE], [{"b": 2}])
    patch = {"Content-Type": "application/merge-patch+json"}
    answer = await api.patch(path, content=b'{"title": null, "layouts": null}', headers=patch)
    assert (answer.status_code, answer.json()["version"], answer.json()["query"]) == (200, 3, "SELECT 2 AS b")
    result = (await api.get(path)).json()
    assert (result["title"] != "Old", result["layouts"]) == (True, [])


async def test_whoever_was_slower_gets_409(api: httpx.AsyncClient) -> None:
    path = f"/metrics/{await create(api)}"
    answers = await asyncio.gather(*[api.patch(path, json={"title": f"T{i}", "version": 1}) for i in range(5)])
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]
    assert (await api.delete(f"{path}?version=1")).status_code == 409
    assert (await api.delete(f"{path}?version=2")).status_code == 204
    for answer in (await api.get(path), await api.delete(path), await api.patch(path, json={"title": "x"})):
        assert answer.status_code == 404


async def test_a_version_is_judged_by_the_database_and_not_by_what_an_instance_remembers(
    api: httpx.AsyncClient, other: httpx.AsyncClient
) -> None:
    path = f"/metrics/{await create(api)}"
    await eventually(lambda: answers(other, path))
    for version in range(1, 13, 2):
        for instance, title in ((api, "here"), (other, None)):
            body = {"version": version, "title": title} if title else {"version": version + 1, "layouts": [TILE]}
            answer = await instance.patch(path, json=body)
            assert answer.status_code == 200, answer.text
    await eventually(lambda: answers(other, path))
    await asyncio.sleep(0.7)
    for instance in (api, other):
        result = (await instance.get(path)).json()
        assert (result["title"], result["layouts"]) == ("here", [TILE])


async def answers(client: httpx.AsyncClient, path: str) -> bool:
    return (await client.get(path)).status_code == 200


@pytest.mark.parametrize("editable", [True, False])
async def test_a_metric_is_editable_unless_it_says_otherwise(api: httpx.AsyncClient, editable: bool) -> None:
    path = f"/metrics/{await create(api, is_editable=editable)}"
    expected = (200, 204) if editable else (409, 409)
    assert (await api.put(f"{path}/layouts", json=[TILE])).json() == [TILE]
    patched = await api.patch(path, json={"title": "x"})
    assert (patched.status_code, (await api.delete(path)).status_code) == expected


async def test_what_comes_from_a_file_has_a_place_but_no_editor(api: httpx.AsyncClient) -> None:
    answer = await api.put("/metrics/total/layouts", json=[TILE, TILE | {"breakpoint": "md"}])
    assert answer.status_code == 200
    assert (await summary(api, "total"))["layouts"] == [TILE, TILE | {"breakpoint": "md"}]
    assert (await summary(api, "total"))["version"] == 1
    for answer in (await api.patch("/metrics/total", json={"title": "x"}), await api.delete("/metrics/total")):
        assert answer.status_code == 409
        assert "queries/total.sql" in answer.json()["detail"]
    await api.put("/metrics/total/layouts", json=[])


async def test_records_outlive_their_metric_and_deleting_it_twice_is_404(
    api: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    path = f"/metrics/{await create(api)}"
    assert (await api.post(f"{path}/metric-records", json={})).json() == {"inserted": 1, "duplicates": 0}
    assert (await api.delete(path)).status_code == 204
    assert await owner.fetchval("SELECT COUNT(*) FROM metrics") == 1


# ------------------------------------------------------------------------------------------------ bad input

BAD_BODIES: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 400),
    "no JSON": (b"{", 400),
    "two values": (b"{} {}", 400),
    "NaN": (b'{"title": NaN}', 400),
    "Infinity": (b'{"title": -Infinity}', 400),
    "single quotes": (b"{'a': 1}", 400),
    "no UTF-8": (b'{"title": "\xff"}', 400),
    "UTF-16": ('{"title": "a"}'.encode("utf-16"), 400),
    "half a surrogate pair": (b'{"title": "\\ud800"}', 400),
    "65 deep": (b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", 400),
    "too deep for anybody": (b"[" * 90_000, 400),
    "too deep, closed": (b"[" * 90_000 + b"]" * 90_000, 400),
    "too large": (b'{"title": "' + b"x" * MAX_BODY + b'"}', 413),
    "array": (b"[]", 422),
    "number": (b"5", 422),
    "null": (b"null", 422),
    "64 deep": (b'{"title":' + b"[" * 63 + b"]" * 63 + b"}", 422),
    "unknown field": (b'{"title": "a", "query": "SELECT 1 AS a", "color": "red"}', 422),
    "id": (b'{"id": "mine", "query": "SELECT 1 AS a"}', 422),
    "number for a text": (b'{"query": 5}', 422),
    "number beyond any float": (b'{"query": 1e999}', 422),
    "number beyond any integer": (b'{"query": ' + b"9" * 5000 + b"}", 422),
    "NUL in the title": (b'{"query": "SELECT 1 AS a", "title": "a\\u0000"}', 422),
    "NUL in the SQL": (b'{"query": "SELECT 1 AS a\\u0000"}', 422),
    "empty SQL": (b'{"query": ""}', 422),
    "blank SQL": (b'{"query": " "}', 422),
    "empty title": (b'{"query": "SELECT 1 AS a", "title": ""}', 422),
    "layouts of no array": (b'{"query": "SELECT 1 AS a", "layouts": {"lg": []}}', 422),
    "layout without width": (
        b'{"query": "SELECT 1 AS a", "layouts": [{"breakpoint": "lg", "x": 0, "y": 0, "h": 1}]}',
        422,
    ),
}


@pytest.mark.parametrize(("body", "status"), BAD_BODIES.values(), ids=BAD_BODIES)
async def test_a_bad_body_is_refused_for_every_write(api: httpx.AsyncClient, body: bytes, status: int) -> None:
    path = f"/metrics/{await create(api)}"
    targets = [("POST", "/metrics"), ("PATCH", path)]
    if body != b"[]":
        targets.append(("PUT", f"{path}/layouts"))
    for method, target in targets:
        answer = await api.request(method, target, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == status, (method, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        if status == 422:
            assert answer.json()["errors"][0]["name"]
    assert (await summary(api, path.removeprefix("/metrics/")))["version"] == 1


BAD_LAYOUTS = {
    "negative": [TILE | {"x": -1}],
    "no width": [TILE | {"w": 0}],
    "beyond an integer": [TILE | {"h": 2**31}],
    "fraction": [TILE | {"y": 0.5}],
    "text": [TILE | {"y": "1"}],
    "no breakpoint": [{key: value for key, value in TILE.items() if key != "breakpoint"}],
    "empty breakpoint": [TILE | {"breakpoint": ""}],
    "NUL": [TILE | {"breakpoint": "l\0g"}],
    "breakpoint twice": [TILE, TILE],
    "more breakpoints than twenty": [TILE | {"breakpoint": f"b{n}"} for n in range(21)],
}


async def test_a_bad_layout_is_refused(api: httpx.AsyncClient) -> None:
    for name, layouts in BAD_LAYOUTS.items():
        put = await api.put("/metrics/total/layouts", json=layouts)
        post = await api.post("/metrics", json={"query": "SELECT 1 AS a", "layouts": layouts})
        assert (name, put.status_code, post.status_code) == (name, 422, 422)
    assert (await summary(api, "total"))["layouts"] == []


async def test_a_body_has_no_more_objects_than_sql_may_have_braces(client: httpx.AsyncClient) -> None:
    """They would all be made before somebody counts them."""
    headers = {"Content-Type": "application/json"}
    put = await client.put("/metrics/total/layouts", content=b"[" + b"{}," * 100_000 + b"{}]", headers=headers)
    assert (put.status_code, put.json()["detail"]) == (422, "The body must not have more than 100000 objects.")
    braces = "{" * 99_980
    post = await client.post("/metrics?dry_run=true", json={"query": f"SELECT '{braces}' AS a"})
    assert post.json()["records"] == [{"a": braces}]


async def test_a_metric_has_so_many_columns_and_parameters_as_everybody_can_be_shown(client: httpx.AsyncClient) -> None:
    for count, status in ((124, 201), (125, 422)):
        columns = ", ".join(f":p{n}::int AS c{n}" for n in range(count))
        answer = await client.post("/metrics", json={"query": f"SELECT {columns}, 1 AS one"})
        assert answer.status_code == status, answer.text
    assert answer.json()["detail"].endswith("it has 251 columns and parameters, and 250 are allowed.")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"title": "a"},
        {"query": "SELECT 1 AS a", "query_generation_prompt": "alerts"},
        {"query_generation_prompt": ""},
        {"query_generation_prompt": "a" * 10_001},
        {"query_generation_prompt": "a\0"},
        {"query_generation_prompt": None},
        {"query": None},
        {"query": "SELECT 1 AS a", "title": "a" * 201},
        {"query": "SELECT 1 AS a", "is_editable": "yes"},
    ],
    ids=str,
)
async def test_exactly_one_of_query_and_prompt_within_their_limits(
    api: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    answer = await api.post("/metrics", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"]


@pytest.mark.parametrize("version", ["1", 1.5, True, None, [1]])
async def test_a_version_is_an_integer(api: httpx.AsyncClient, version: Any) -> None:
    path = f"/metrics/{await create(api)}"
    assert (await api.patch(path, json={"version": version, "title": "x"})).status_code == 422
    assert (await api.delete(f"{path}?version={version}x")).status_code == 422


@pytest.mark.parametrize("dry_run", ["yes", "", "1", "true&dry_run=true", "true&unknown=1"])
async def test_dry_run_is_true_or_false(api: httpx.AsyncClient, dry_run: str) -> None:
    assert (await api.post(f"/metrics?dry_run={dry_run}", json={"query": "SELECT 1 AS a"})).status_code == 422


async def test_what_knows_no_dry_run_refuses_it(api: httpx.AsyncClient) -> None:
    metric_id = await create(api)
    answer = await api.patch(f"/metrics/{metric_id}?dry_run=true", json={"title": "Mine"})
    assert (answer.status_code, answer.json()["errors"][0]["name"]) == (422, "dry_run")
    assert (await summary(api, metric_id))["version"] == 1


LARGE = b'"' + b"x" * MAX_BODY + b'"'
ORDER: list[tuple[str, str, dict[str, str], bytes, int]] = [
    ("PATCH", "/metrics/no-such-metric", {"Content-Type": "text/plain"}, LARGE, 404),
    ("PUT", "/metrics/no-such-metric/layouts", {"Content-Type": "text/plain"}, b"{", 404),
    ("POST", "/metrics/no-such-metric/metric-records", {"Content-Type": "text/plain"}, b"{", 404),
    ("PUT", "/metrics", {"Content-Type": "text/plain"}, LARGE, 405),
    ("POST", "/metrics/total", {"Content-Type": "text/plain"}, LARGE, 405),
    ("DELETE", "/metrics/total/layouts", {}, b"", 405),
    ("PATCH", "/metrics/total", {"Content-Type": "text/plain"}, LARGE, 409),
    ("DELETE", "/metrics/total?version=x", {}, b"", 409),
    ("POST", "/metrics", {"Content-Type": "text/plain"}, LARGE, 415),
    ("POST", "/metrics?dry_run=maybe", {"Content-Type": "text/plain"}, b"{}", 415),
    ("POST", "/metrics", {"Content-Type": "application/json", "Content-Encoding": "gzip"}, gzip.compress(b"{}"), 415),
    ("POST", RECORDS, {"Content-Type": "text/csv", "Content-Encoding": "gzip"}, gzip.compress(b"date\n"), 415),
    ("POST", "/metrics", {"Content-Type": "application/json", "Content-Encoding": "identity"}, b"{}", 422),
    ("POST", RECORDS, {"Content-Type": "application/xml"}, b"x" * (MAX_UPLOAD + 1), 415),
    ("POST", "/metrics", {"Content-Encoding": "gzip"}, LARGE, 415),
    ("POST", "/metrics", {"Content-Type": "application/json"}, b"{" + LARGE, 413),
    ("POST", "/metrics?dry_run=maybe", {"Content-Type": "application/json"}, LARGE, 413),
    ("POST", "/metrics?dry_run=maybe", {"Content-Type": "application/json"}, b"{", 400),
    ("POST", "/metrics?dry_run=maybe", {"Content-Type": "application/json"}, b"{}", 422),
    ("POST", RECORDS, {"Content-Type": "application/json"}, b'{"x": ', 400),
    ("POST", RECORDS + "?dry_run=true", JSON, b"{", 400),
    ("POST", RECORDS + "?dry_run=true", JSON, b"{}", 422),
    ("PUT", "/metrics/total/layouts?dry_run=true", JSON, b"[]", 422),
    ("POST", "/metrics", {}, b'{"query": "SELECT 1 AS n"}', 415),
    ("POST", RECORDS, {}, b"{}", 415),
    ("PUT", "/metrics/total/layouts", {}, b"[]", 415),
]


async def test_errors_are_looked_for_in_the_order_of_the_contract(api: httpx.AsyncClient) -> None:
    for method, path, headers, body, status in ORDER:
        answer = await api.request(method, path, headers=headers, content=body)
        assert (method, path, answer.status_code) == (method, path, status), answer.text
        assert ("allow" in answer.headers) == (status == 405)
        assert ("accept-encoding" in answer.headers) == ("gzip" in headers.values())


async def test_a_caller_without_the_write_scope_is_refused_before_anything_is_read(
    api: httpx.AsyncClient, issuer: Issuer
) -> None:
    reader = bearer(issuer, scope="api/backend_access")
    for method, path in (("POST", "/metrics"), ("PATCH", "/metrics/none"), ("POST", RECORDS), ("DELETE", "/metrics/x")):
        answer = await api.request(method, path, headers=reader | {"Content-Type": "text/plain"}, content=LARGE)
        assert answer.status_code == 403


@pytest.mark.parametrize(("path", "limit"), [("/metrics", MAX_BODY), (RECORDS, MAX_UPLOAD)])
async def test_what_is_announced_too_large_is_refused_at_once(
    two: list[Service], issuer: Issuer, path: str, limit: int
) -> None:
    host, port = two[0].url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {limit + 1}\r\n"
    )
    writer.write((head + f"Authorization: {bearer(issuer)['Authorization']}\r\n\r\n").encode())
    assert (await asyncio.wait_for(reader.readline(), 3)).split()[1] == b"413"
    writer.close()


@pytest.mark.parametrize(("path", "limit"), [("/metrics", MAX_BODY), (RECORDS, MAX_UPLOAD)])
async def test_what_turns_out_too_large_is_refused(
    two: list[Service], issuer: Issuer, owner: asyncpg.Connection, path: str, limit: int
) -> None:
    host, port = two[0].url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    head += "Content-Type: application/x-ndjson\r\n"
    head = head if path == RECORDS else head.replace("x-ndjson", "json")
    writer.write((head + f"Authorization: {bearer(issuer)['Authorization']}\r\n\r\n").encode())
    lines = b'{"alert_type": "' + b"x" * 982 + b'"}\n'
    writer.write(b"%x\r\n%b\r\n" % (len(lines), lines) * (limit // len(lines) + 1))
    assert (await asyncio.wait_for(reader.readline(), 10)).split()[1] == b"413"
    writer.close()
    assert await owner.fetchval("SELECT COUNT(*) FROM metrics") == 0


# ------------------------------------------------------------------------------------------------ records

FULL = {
    "metric_id": "6f2c1c9e-8f0a-4f57-9f1e-0123456789ab",
    "date": "2025-06-30T12:00:00+02:00",
    "obsolescence_val": 12.50,
    "obsolescence": -0.1,
    "parts_flagged": 7,
    "alert_type": 'Critical, "urgent"\nand late',
    "alert_category": "Rückstand",
}


async def in_chunks(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def as_csv(record: dict[str, Any]) -> bytes:
    cells = ['"' + str(value).replace('"', '""') + '"' for value in record.values()]
    return ("\ufeff" + ",".join(record) + "\r\n" + ",".join(cells) + "\r\n").encode()


BODIES = {
    "object": ({"Content-Type": "application/json"}, json.dumps(FULL).encode()),
    "array": ({"Content-Type": "application/json; charset=utf-8"}, json.dumps([FULL], indent=2).encode()),
    "NDJSON": (NDJSON, b"\n" + json.dumps(FULL).encode() + b"\r\n\n"),
    "NDJSON without an end": (NDJSON, json.dumps(FULL, ensure_ascii=False).encode()),
    "CSV": (CSV, as_csv(FULL)),
    "CSV without an end": ({"Content-Type": "text/csv; charset=utf-8; header=present"}, as_csv(FULL).rstrip()),
}


@pytest.mark.parametrize(("headers", "body"), BODIES.values(), ids=BODIES)
async def test_a_record_is_the_same_in_every_format_however_it_arrives(
    api: httpx.AsyncClient,
    owner: asyncpg.Connection,
    two: list[Service],
    headers: dict[str, str],
    body: bytes,
) -> None:
    contents: list[bytes | AsyncIterator[bytes]] = [body, in_chunks(body, 1)]
    for i, content in enumerate(contents):
        answer = await api.post(RECORDS, content=content, headers=headers)
        assert (answer.status_code, answer.json()) == (201, {"inserted": 1 - i, "duplicates": i})
    row = await owner.fetchrow("SELECT * FROM metrics")
    assert (row["id"], str(row["metric_id"])) == ("total", FULL["metric_id"])
    assert row["date"] == datetime.fromisoformat(str(FULL["date"]))
    assert (str(row["obsolescence_val"]), str(row["obsolescence"]), row["parts_flagged"]) == ("12.5", "-0.1", 7)
    assert (row["alert_type"], row["alert_category"]) == (FULL["alert_type"], FULL["alert_category"])
    await eventually(lambda: asyncio.to_thread(lambda: ("records", "ada") in audited(two[0], "total")))


async def test_the_largest_and_smallest_values_arrive_in_every_format(
    api: httpx.AsyncClient, owner: asyncpg.Connection
) -> None:
    record = '{"date": "%s", "obsolescence": 1e999, "obsolescence_val": 0.1000000000000000000000000000000000000001}'
    for date in ("0001-01-01T00:00:00.000001", "9999-12-31"):
        text = record % date
        csv = f"date,obsolescence,obsolescence_val\n{date},1e999,0.1000000000000000000000000000000000000001\n"
        for body, headers in ((text, JSON), (f"[{text}]", JSON), (text, NDJSON), (csv, CSV)):
            answer = await api.post(RECORDS, content=body, headers=headers)
            assert answer.status_code == 201, answer.text
    same = "date::text, obsolescence = 1e999 AND obsolescence_val::text = '0.1000000000000000000000000000000000000001'"
    assert [
        tuple(row) for row in await owner.fetch(f"SELECT {same}, COUNT(*) FROM metrics GROUP BY 1, 2 ORDER BY 1")
    ] == [
        ("0001-01-01 00:00:00.000001+00", True, 4),
        ("9999-12-31 00:00:00+00", True, 4),
    ]


async def test_a_record_without_anything_is_now(api: httpx.AsyncClient, owner: asyncpg.Connection) -> None:
    assert (await api.post(RECORDS, json=[{}, {}])).json() == {"inserted": 2, "duplicates": 0}
    assert (await api.post(RECORDS, content="date,alert_type\n,\n", headers=CSV)).json()["inserted"] == 1
    ages = await owner.fetch("SELECT EXTRACT(EPOCH FROM NOW() - date)::float8 AS age, alert_type FROM metrics")
    assert all(0 <= row["age"] < 5 and row["alert_type"] is None for row in ages)


@pytest.mark.parametrize(
    ("headers", "body"), [(JSON, b"[]"), (NDJSON, b""), (NDJSON, b"\n \n"), (CSV, b"date\n"), (CSV, b"")]
)
async def test_nothing_is_no_records(api: httpx.AsyncClient, headers: dict[str, str], body: bytes) -> None:
    answer = await api.post(RECORDS, content=body, headers=headers)
    assert (answer.status_code, answer.json()) == (201, {"inserted": 0, "duplicates": 0})


async def test_equal_records_are_two_unless_their_ids_say_otherwise(api: httpx.AsyncClient) -> None:
    record = {"date": "2025-06-30", "parts_flagged": 1}
    assert (await api.post(RECORDS, json=[record, record])).json() == {"inserted": 2, "duplicates": 0}
    record["metric_id"] = str(uuid.uuid4())
    assert (await api.post(RECORDS, json=[record, record])).json() == {"inserted": 1, "duplicates": 1}


async def test_a_record_is_seen_at_once(api: httpx.AsyncClient) -> None:
    for count in range(1, 4):
        await api.post(RECORDS, json={"obsolescence": 1})
        fresh = await api.get("/metrics/total", headers={"Cache-Control": "no-cache"})
        assert fresh.json()["records"] == [{"total": count, "records": count}]


def large_array(end: bytes = b"]") -> bytes:
    record = b'{"date": "2025-06-30", "alert_type": "]}, {\\" \\\\", "parts_flagged": 1}'
    return b" \n[" + b" ,\n".join([record] * 2000) + end


@pytest.mark.parametrize(("size", "end"), [(7919, b" ] \r\n "), (65_537, b"]"), (1_048_577, b"]\n")])
async def test_a_long_array_is_read_however_it_is_cut(
    api: httpx.AsyncClient, owner: asyncpg.Connection, size: int, end: bytes
) -> None:
    content = in_chunks(large_array(end), size)
    answer = await api.post(RECORDS, content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()) == (201, {"inserted": 2000, "duplicates": 0})
    assert await owner.fetchval("SELECT COUNT(*) FROM metrics") == 2000


@pytest.mark.parametrize(
    "end", [b"", b",]", b"]]", b"] 5", b", 5]", b'{"parts_flagged": 1}]', b"}", b', {"alert_type": ["a"]}]']
)
async def test_a_long_array_with_a_bad_end_leaves_nothing(
    api: httpx.AsyncClient, owner: asyncpg.Connection, end: bytes
) -> None:
    answer = await api.post(RECORDS, content=large_array(end), headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert await owner.fetchval("SELECT COUNT(*) FROM metrics") == 0


async def test_an_array_that_is_too_long_is_told_what_may_be_longer(api: httpx.AsyncClient) -> None:
    body = b"[" + b"{}," * (MAX_BODY // 3) + b"{}]"
    answer = await api.post(RECORDS, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, "NDJSON or CSV" in answer.json()["detail"]) == (413, True)


async def test_nothing_is_written_when_one_of_many_is_wrong(api: httpx.AsyncClient, owner: asyncpg.Connection) -> None:
    lines = [b'{"parts_flagged": 1}'] * 5000
    lines[4321] = b'{"parts_flagged": "many"}'
    answer = await api.post(RECORDS, content=b"\n".join(lines), headers=NDJSON)
    assert answer.status_code == 422
    assert [error["name"] for error in answer.json()["errors"]] == ["line 4322, parts_flagged"]
    assert await owner.fetchval("SELECT COUNT(*) FROM metrics") == 0


async def test_the_first_hundred_errors_are_named(api: httpx.AsyncClient) -> None:
    rows = [{"date": "today"} if i % 2 else {"parts_flagged": 2**31} for i in range(1000)]
    errors = (await api.post(RECORDS, json=rows)).json()["errors"]
    assert len(errors) == 100
    assert [error["name"] for error in errors[:2]] == ["row 1, parts_flagged", "row 2, date"]
    assert "ISO 8601" in errors[1]["detail"]


BAD_RECORDS: dict[str, tuple[Any, str]] = {
    "unknown field": ({"colour": "red"}, "colour"),
    "the series": ({"id": "other"}, "id"),
    "year 0": ({"date": "0000-01-01"}, "date"),
    "year 1": ({"date": "0001-01-01T00:00:00+14:00"}, "date"),
    "last microsecond": ({"date": "9999-12-31T23:59:59.999999"}, "date"),
    "no T": ({"date": "2025-06-30x12:00"}, "date"),
    "no time": ({"date": "20250630012"}, "date"),
    "year 10000": ({"date": "10000-01-01"}, "date"),
    "30 February": ({"date": "2025-02-30"}, "date"),
    "infinity": ({"date": "infinity"}, "date"),
    "today": ({"date": "today"}, "date"),
    "x between date and time": ({"date": "2025-06-30x12:00:00"}, "date"),
    "number as date": ({"date": 1_750_000_000}, "date"),
    "no uuid": ({"metric_id": "1"}, "metric_id"),
    "text as number": ({"obsolescence": "many"}, "obsolescence"),
    "NaN as text": ({"obsolescence": "NaN"}, "obsolescence"),
    "infinity as text": ({"obsolescence_val": "-Infinity"}, "obsolescence_val"),
    "a number beyond numbers": ({"obsolescence": "1e1000000"}, "obsolescence"),
    "more digits than a number has": ({"obsolescence": "1." + "1" * 20_000}, "obsolescence"),
    "fraction": ({"parts_flagged": 0.5}, "parts_flagged"),
    "beyond an integer": ({"parts_flagged": 2**31}, "parts_flagged"),
    "beyond any integer": ({"parts_flagged": 10**30}, "parts_flagged"),
    "boolean": ({"parts_flagged": True}, "parts_flagged"),
    "NUL": ({"alert_type": "a\0"}, "alert_type"),
    "object": ({"alert_category": {}}, "alert_category"),
}


async def test_an_error_names_row_and_column(api: httpx.AsyncClient, owner: asyncpg.Connection) -> None:
    for name, (record, column) in BAD_RECORDS.items():
        text = json.dumps(record)
        for place, body in (("row 1", text), ("row 2", f"[{{}}, {text}]"), ("line 2", "{}\n" + text)):
            answer = await api.post(RECORDS, content=body, headers=NDJSON if place == "line 2" else JSON)
            assert (name, answer.status_code) == (name, 422), answer.text
            assert "errors" in answer.json(), (name, answer.text)
            (error,) = answer.json()["errors"]
            assert error["name"].startswith(place)
            assert column in error["name"] + error["detail"]
    assert await owner.fetchval("SELECT COUNT(*) FROM metrics") == 0


BAD_CSV: dict[str, tuple[bytes, int, str]] = {
    "short row": (b"date,parts_flagged\n2025-06-30,1\n2025-06-30\n", 422, "line 3"),
    "long row": (b"date,parts_flagged\n2025-06-30,1,2\n", 422, "line 2"),
    "unknown column": (b"date,colour\n2025-06-30,red\n", 422, "line 1, 'colour'"),
    "column twice": (b"date,date\n2025-06-30,2025-06-30\n", 422, "line 1"),
    "no header": (b"2025-06-30,1\n", 422, "line 1, '2025-06-30'"),
    "row after a cell of two lines": (b'alert_type,parts_flagged\n"a\n""b""",1\nc,x\n', 422, "line 4, parts_flagged"),
    "bad date": (b"date\n30.06.2025\n", 422, "line 2, date"),
    "the word null": (b"alert_type,parts_flagged\nnull,1\nnull,null\n", 422, "line 3, parts_flagged"),
    "quote that stays open": (b'alert_type\n"a\nb\n', 400, ""),
    "text after a quote": (b'alert_type\n"a"b\n', 400, ""),
    "no UTF-8": (b"alert_type\n\xff\n", 400, ""),
}


async def test_a_bad_line_of_csv_is_named(api: httpx.AsyncClient, owner: asyncpg.Connection) -> None:
    began = time.monotonic()
    for name, (body, status, place) in BAD_CSV.items():
        answer = await api.post(RECORDS, content=body, headers=CSV)
        assert (name, answer.status_code) == (name, status), answer.text
        assert status == 400 or answer.json()["errors"][0]["name"] == place
    assert time.monotonic() - began < len(BAD_CSV), "an answer keeps the next request of its connection waiting"
    assert await owner.fetchval("SELECT COUNT(*) FROM metrics") == 0


NO_JSON: list[tuple[dict[str, str], bytes]] = [
    (NDJSON, b'{"obsolescence": NaN}'),
    (NDJSON, b'{"obsolescence": Infinity}'),
    (NDJSON, b"{}\n{"),
    (NDJSON, b'{"alert_type": "\xff"}'),
    (JSON, b'[{"obsolescence": NaN}]'),
    (JSON, b"[" * 100_000),
    (JSON, b'[{"alert_type": "\xff"}]'),
    (JSON, b'[{"alert_type": "\\ud800"}]'),
]


async def test_records_that_are_no_json_are_400(api: httpx.AsyncClient) -> None:
    for headers, body in NO_JSON:
        answer = await api.post(RECORDS, content=body, headers=headers)
        assert (body[:40], answer.status_code) == (body[:40], 400), answer.text


@pytest.mark.parametrize("headers", [NDJSON, CSV], ids=["NDJSON", "CSV"])
async def test_a_line_without_end_is_refused_early_and_stops_nobody(
    api: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    posting = asyncio.create_task(
        api.post(RECORDS, content=b"alert_type\n" + b"x" * (MAX_UPLOAD - 100), headers=headers)
    )
    await asyncio.sleep(0.02)
    assert (await api.get("/health/live", timeout=5)).status_code == 200
    assert (await posting).status_code == 400


async def test_slow_uploads_keep_no_other_write_waiting(
    two: list[Service], api: httpx.AsyncClient, issuer: Issuer
) -> None:
    host, port = two[0].url.removeprefix("http://").split(":")
    head = (
        f"POST {RECORDS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nContent-Length: 100\r\n"
    )
    connections = [await asyncio.open_connection(host, int(port)) for _ in range(12)]
    for _, writer in connections:
        writer.write((head + f"Authorization: {bearer(issuer)['Authorization']}\r\n\r\n{{").encode())
    await asyncio.sleep(0.3)
    answer = await api.post("/metrics", json={"query": "SELECT 1 AS a"})
    for _, writer in connections:
        writer.close()
    assert answer.status_code == 201, answer.text


async def test_an_upload_that_breaks_off_leaves_nothing(
    two: list[Service], issuer: Issuer, owner: asyncpg.Connection
) -> None:
    host, port = two[0].url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {RECORDS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999\r\n"
    head += "Content-Type: application/x-ndjson\r\n"
    writer.write((head + f"Authorization: {bearer(issuer)['Authorization']}\r\n\r\n").encode() + b"{}\n" * 5000)
    await writer.drain()
    await asyncio.sleep(0.2)
    writer.close()
    wait_until(lambda: any(line.get("status") == 499 for line in log_lines(two[0])))
    assert await owner.fetchval("SELECT COUNT(*) FROM metrics") == 0


async def test_files_are_listed_by_id_and_then_the_others_as_they_were_made(
    api: httpx.AsyncClient, other: httpx.AsyncClient
) -> None:
    """By every instance, whatever has been changed since."""
    made = [await create(api) for _ in range(6)]
    for metric_id in reversed(made):
        assert (await api.patch(f"/metrics/{metric_id}", json={"title": "Changed"})).status_code == 200

    async def listed(client: httpx.AsyncClient) -> bool:
        metrics = (await client.get("/metrics")).json()["metrics"]
        ids, titles = [metric["id"] for metric in metrics], [metric["title"] for metric in metrics[-6:]]
        return ids == [*sorted(ids[:-6]), *made] and titles == ["Changed"] * 6

    for client in (api, other):
        await eventually(partial(listed, client))


async def test_a_message_about_a_parameter_calls_it_by_its_name(client: httpx.AsyncClient) -> None:
    answer = await client.post("/metrics?dry_run=true", json={"query": "SELECT :a::int AS a, :who IS NULL AS nobody"})
    assert answer.json()["errors"] == [
        {
            "name": "query",
            "detail": "line 1, column 22: could not determine data type of parameter :who; "
            "write :who::text or the like",
        },
    ]
    answer = await client.post("/metrics?dry_run=true", json={"query": "SELECT 'parameter $9'::int AS a"})
    assert answer.json()["errors"] == [
        {"name": "query", "detail": 'line 1, column 8: invalid input syntax for type integer: "parameter $9"'},
    ]
    answer = await client.post("/metrics?dry_run=true", json={"query": "SELECT 1 AS a FROM :metrics"})
    assert answer.json()["errors"] == [
        {"name": "query", "detail": 'line 1, column 20: syntax error at or near ":metrics"'}
    ]


@pytest.mark.parametrize("name", ["{}", "parameter_{}"])
async def test_any_number_of_parameters_leaves_the_columns_of_errors_as_they_are(
    client: httpx.AsyncClient, name: str
) -> None:
    parameters = " + ".join(f":{name.format(letter)}::int" for letter in "abcdefghijklmnopqrstuvwxyz")
    query = f"SELECT\n  {parameters} + nope AS sum"
    answer = await client.post("/metrics?dry_run=true", json={"query": query})
    column = query.splitlines()[1].index("nope") + 1
    assert answer.json()["errors"] == [
        {"name": "query", "detail": f'line 2, column {column}: column "nope" does not exist'},
    ]
