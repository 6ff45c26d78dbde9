"""The document is valid, exact for its reader, and true: schemathesis holds the running service to it.

CONFORMANCE_EXAMPLES=100 sends a hundred examples to each operation instead of a few, and every kind of bad request.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from conftest import ROOT, Serve, Service, wait_until
from issuer import Issuer
from openapi_spec_validator import validate

EXAMPLES = os.environ.get("CONFORMANCE_EXAMPLES")
FILES = {
    "for-finance": "-- title: For finance\n-- roles: finance\nSELECT 'a secret value' AS secret",
    "my-tenant": "-- claim tenant: custom:tenant\nSELECT :tenant::text AS tenant",
    "by-region": "-- unit: alerts\n-- param region (required): Sales region\nSELECT :region::text AS region",
    "by-mood": "SELECT :mood::test_mood AS mood, :moods::test_mood[] AS moods, '(1,2)'::test_pair AS pair",
    "not-a-number": "SELECT 'NaN'::numeric AS nan, NULL::int4 AS nothing, 1::oid AS oid, INTERVAL '7 days' AS week",
    "beyond": "SELECT 'infinity'::date AS a, '0044-03-15 BC'::date AS b, '12345-01-01'::timestamptz AS c",
    "Sales": "SELECT 1 AS one",
    "sales": "SELECT 2 AS two",
    "2024": "SELECT 2024 AS year",
    "metric": "SELECT 3 AS three",
}
TYPES = """\
DROP TYPE IF EXISTS test_mood, test_pair;
CREATE TYPE test_mood AS ENUM ('calm', 'tense');
CREATE TYPE test_pair AS (x int4, y int4);
"""


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    issuer = Issuer("rsa")
    yield issuer
    issuer.close()


@pytest.fixture(scope="module")
async def secured(start_service: Serve, issuer: Issuer, cluster: str) -> Service:
    """A service with every kind of metric, none of which fails on its own."""
    conn = await asyncpg.connect(cluster)
    await conn.execute(TYPES)
    await conn.close()
    service = start_service(JWT_ISSUER=issuer.url, STATEMENT_TIMEOUT="0.5")
    for metric_id, sql in FILES.items():
        (service.queries / f"{metric_id}.sql").write_text(sql)
    (service.queries / "divide-by-zero.sql").unlink()
    token = token_of(issuer, **{"cognito:groups": ["finance"]})
    wait_until(
        lambda: set(FILES) <= metrics_of(seen := read(service, token)) and "divide-by-zero" not in metrics_of(seen)
    )
    return service


def token_of(issuer: Issuer, **claims: Any) -> str:
    return issuer.token(**claims)


def read(service: Service, token: str | None = None) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    document: dict[str, Any] = httpx.get(f"{service.url}/openapi.json", headers=headers, timeout=15).json()
    return document


def metrics_of(document: dict[str, Any]) -> set[str]:
    return {match[1] for path in document["paths"] if (match := re.fullmatch(r"/metrics/([^{}]+)", path))}


def parameters_of(document: dict[str, Any], metric_id: str) -> dict[str, Any]:
    operation = document["paths"][f"/metrics/{metric_id}"]["get"]
    return {parameter["name"]: parameter for parameter in operation["parameters"]}


def columns_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    record = document["components"]["schemas"][f"{name}Record"]
    assert record["required"] == list(record["properties"])
    return {name: schema["anyOf"][0] if schema.get("anyOf") else {} for name, schema in record["properties"].items()}


def test_the_document_is_valid(secured: Service, service: Service, issuer: Issuer) -> None:
    for document in (read(service), read(secured), read(secured, issuer.token())):
        assert document["openapi"].startswith("3.1")
        validate(document)


def test_every_route_is_in_it(service: Service) -> None:
    import app

    paths = read(service)["paths"]
    for route in app.OPERATIONS:
        assert paths[route.path][route.method.lower()]["operationId"] == route.endpoint.__name__


def test_parameters_have_postgresql_s_types(service: Service) -> None:
    parameters = parameters_of(read(service), "types")
    schemas = {name: parameter["schema"] for name, parameter in parameters.items()}
    assert schemas["i2"] | {"format": ""} == {"type": "integer", "format": "", "minimum": -32768, "maximum": 32767}
    assert (schemas["i4"]["format"], schemas["i8"]["format"]) == ("int32", "int64")
    assert (schemas["num"], schemas["b"], schemas["t"]) == ({"type": "number"}, {"type": "boolean"}, {"type": "string"})
    formats = {name: schemas[name]["format"] for name in ("d", "ts", "tz", "ti", "iv", "u")}
    assert formats == {
        "d": "date",
        "ts": "date-time-local",
        "tz": "date-time",
        "ti": "time-local",
        "iv": "duration",
        "u": "uuid",
    }
    assert (schemas["ints"]["items"], schemas["texts"]["items"]["type"]) == (schemas["i4"], "string")


def test_columns_have_the_types_that_row_to_json_writes(service: Service) -> None:
    columns = columns_of(read(service), "Types")
    assert columns["i8"]["format"] == "int64"
    assert columns["num"] == {"$ref": "#/components/schemas/Number"}
    assert columns["iv"] == {"type": "string"}
    assert columns["j"] == {}
    assert columns["ints"]["items"]["anyOf"][1] == {"type": "null"}


def test_enums_are_text_and_composites_anything(secured: Service, issuer: Issuer) -> None:
    document = read(secured, issuer.token())
    assert parameters_of(document, "by-mood")["mood"]["schema"] == {"type": "string"}
    columns = columns_of(document, "ByMood")
    assert (columns["mood"], columns["moods"]["type"], columns["pair"]) == ({"type": "string"}, "array", {})


def test_every_metric_takes_the_dashboard_s_filters_and_says_what_it_requires(service: Service) -> None:
    document = read(service)
    assert parameters_of(document, "records")["series"]["required"]
    for metric_id in metrics_of(document):
        assert {"start_date", "end_date", "day_range"} <= set(parameters_of(document, metric_id))


def test_a_claim_is_no_parameter(secured: Service) -> None:
    assert "tenant" not in parameters_of(read(secured), "my-tenant")


def test_roles_hide_a_metric_and_all_of_it(secured: Service, issuer: Issuer) -> None:
    finance, other = token_of(issuer, **{"cognito:groups": ["finance"]}), issuer.token(sub="bob")
    assert "for-finance" in metrics_of(read(secured, finance))
    for token in (None, other, token_of(issuer, scope="openid", **{"cognito:groups": ["finance"]})):
        assert "inance" not in json.dumps(read(secured, token))


def test_values_are_shown_to_those_only_who_may_read_them(secured: Service, issuer: Issuer) -> None:
    def example(token: str | None, metric_id: str) -> Any:
        operation = read(secured, token)["paths"][f"/metrics/{metric_id}"]["get"]
        return operation["responses"]["200"]["content"]["application/json"].get("example")

    ada, bob = (token_of(issuer, **{"custom:tenant": name}) for name in ("ada", "bob"))
    assert example(ada, "sales")["records"] == [{"two": 2}]
    assert example(ada, "my-tenant")["records"] == [{"tenant": "ada"}]
    assert example(bob, "my-tenant")["records"] == [{"tenant": "bob"}]
    assert example(None, "sales") is example(None, "my-tenant") is example(ada, "by-region") is None


def test_a_metric_that_is_slow_or_fails_holds_nobody_up(secured: Service, issuer: Issuer) -> None:
    slow = secured.queries / "slow.sql"
    slow.write_text("SELECT PG_SLEEP(5)::text AS slept")
    wait_until(lambda: "slow" in metrics_of(read(secured)))
    began = time.monotonic()
    operation = read(secured, issuer.token())["paths"]["/metrics/slow"]["get"]
    assert "example" not in operation["responses"]["200"]["content"]["application/json"]
    assert time.monotonic() - began < 4
    slow.unlink()
    wait_until(lambda: "slow" not in metrics_of(read(secured)))


def test_a_bad_token_is_refused(secured: Service) -> None:
    response = httpx.get(f"{secured.url}/openapi.json", headers={"Authorization": "Bearer nonsense"})
    assert (response.status_code, response.headers["www-authenticate"]) == (401, 'Bearer error="invalid_token"')


def test_security_is_named_where_a_token_is_needed(secured: Service, service: Service) -> None:
    paths = read(secured)["paths"]
    assert paths["/health"]["get"]["security"] == []
    assert paths["/metrics/total"]["get"]["security"] == [{"bearer": ["api/backend_access"]}]
    assert paths["/metrics"]["post"]["security"] == [{"bearer": ["api/backend_access", "api/backend_write"]}]
    document = read(service)
    assert "securitySchemes" not in document["components"]
    assert "401" not in document["paths"]["/metrics"]["get"]["responses"]


def test_an_unchanged_document_is_not_sent_again(service: Service) -> None:
    url = f"{service.url}/openapi.json"
    etag = httpx.get(url).headers["etag"]
    response = httpx.get(url, headers={"If-None-Match": etag})
    assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", etag)
    (service.queries / "new.sql").write_text("SELECT 1 AS one")
    wait_until(lambda: "new" in metrics_of(read(service)))
    assert httpx.get(url, headers={"If-None-Match": etag}).status_code == 200
    (service.queries / "new.sql").unlink()
    wait_until(lambda: "new" not in metrics_of(read(service)))


def test_no_two_operations_or_schemas_share_a_name(secured: Service) -> None:
    document = read(secured)
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len({name.lower().replace("_", "") for name in names}) == len(names)
    assert {"read_sales", "read_sales_2", "read_metric_2024", "read_metric", "read_metric_2"} <= set(names)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names)


def test_each_documented_format_of_a_metric_is_answered(service: Service) -> None:
    content = read(service)["paths"]["/metrics/total"]["get"]["responses"]["200"]["content"]
    for media_type in content:
        response = httpx.get(f"{service.url}/metrics/total", headers={"Accept": media_type})
        assert response.headers["content-type"].partition(";")[0] == media_type


def test_docs_need_nothing_from_elsewhere(secured: Service) -> None:
    page = httpx.get(f"{secured.url}/docs")
    assert page.status_code == 200
    assert "unsafe" not in page.headers["content-security-policy"]
    for link in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert link.startswith("/docs/")
        asset = httpx.get(secured.url + link)
        assert (asset.status_code, asset.headers["cache-control"]) == (200, "public, max-age=86400")
    assert httpx.get(f"{secured.url}/docs/index.html").status_code == 404


def test_docs_show_what_a_token_may_see(secured: Service, issuer: Issuer) -> None:
    """In a browser that lets nothing run or load that the page's policy does not name."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not (chromium := shutil.which("chromium")):
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"{secured.url}/docs")
        page.wait_for_selector("#operations-metrics-read_sales")
        assert page.locator("#operations-metrics-read_for_finance").count() == 0
        page.click("button.authorize")
        page.fill("input[type=text]", token_of(issuer, **{"cognito:groups": ["finance"]}))
        page.click(".auth-btn-wrapper .authorize")
        page.click(".auth-btn-wrapper .btn-done")
        page.click("#operations-metrics-read_for_finance")
        page.click("#operations-metrics-read_for_finance .try-out__btn")
        page.click("#operations-metrics-read_for_finance .execute")
        page.wait_for_selector(".live-responses-table >> text=a secret value")
        browser.close()
    assert said == []


def test_a_method_that_is_not_allowed_is_logged_like_any_request(service: Service) -> None:
    headers = {"X-Request-ID": "not-allowed"}
    assert httpx.put(f"{service.url}/metrics", headers=headers).status_code == 405
    wait_until(lambda: '"request_id":"not-allowed"' in service.log.read_text())


CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "unsupported_method",
    "ignored_auth",
)


def test_every_answer_is_as_documented(secured: Service, issuer: Issuer, tmp_path: Path) -> None:
    """schemathesis sends what the document allows, and what it does not, to each operation."""
    token = token_of(issuer, **{"cognito:groups": ["finance"], "custom:tenant": "ada"})
    bearer = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=secured.url, headers=bearer) as client:
        made = [client.post("/metrics", json={"query": "SELECT 1 AS one"}).json()["id"] for _ in range(3)]
    document = read(secured, token)
    operations = sum(len(path) for path in document["paths"].values())
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        *("--config-file", str(ROOT / "tests" / "conformance.toml")),
        *("run", "openapi.json", "--url", secured.url),
        *("--header", f"Authorization: Bearer {token}"),
        *("--checks", ",".join(CHECKS)),
        *("--phases", "coverage,fuzzing" if EXAMPLES else "fuzzing"),
        *("--max-examples", EXAMPLES or "8"),
        "--generation-deterministic",
        "--no-color",
    ]
    env = {"SCHEMATHESIS_HOOKS": "conformance", "PYTHONPATH": str(ROOT / "tests"), "KNOWN_METRICS": ",".join(made)}
    done = subprocess.run(command, env=os.environ | env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
    assert f"Tested: {operations}" in done.stdout
    assert "traceback" not in secured.log.read_text()
