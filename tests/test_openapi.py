"""The document is valid, exact for its reader, and true: schemathesis holds the running service to it.

CONFORMANCE_EXAMPLES=100 sends a hundred examples to each operation instead of a few, and every kind of bad request.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from conftest import Serve
from helpers import ROOT, Service, chromium, wait_until
from issuer import Issuer
from openapi_spec_validator import validate
from starlette.routing import Route

import app

EXAMPLES = os.environ.get("CONFORMANCE_EXAMPLES")
FILES = {
    "for-finance": "-- title: For finance\n-- roles: finance\nSELECT 'a secret value' AS secret",
    "my-tenant": "-- claim tenant: custom:tenant\nSELECT :tenant::text AS tenant",
    "by-region": "-- unit: alerts\n-- param region (required): Sales region\nSELECT :region::text AS region",
    "by-mood": """SELECT
        :mood::test_mood AS mood,
        :humour::test_humour AS humour,
        :moods::test_mood[] AS moods,
        '(1,2)'::test_pair AS pair""",
    "holidays": "SELECT :day::test_holiday AS day",
    "not-a-number": "SELECT 'NaN'::numeric AS nan, NULL::int4 AS nothing, 1::oid AS oid, INTERVAL '7 days' AS week",
    "beyond": "SELECT 'infinity'::date AS a, '0044-03-15 BC'::date AS b, '12345-01-01'::timestamptz AS c",
    "Sales": "SELECT 1 AS one",
    "sales": "SELECT 2 AS two",
    "2024": "SELECT 2024 AS year",
    "metric": "SELECT 3 AS three",
}
TYPES = """\
DROP TYPE IF EXISTS test_mood, test_pair CASCADE;
DROP DOMAIN IF EXISTS test_day CASCADE;
CREATE TYPE test_mood AS ENUM ('calm', 'tense');
CREATE TYPE test_pair AS (x int4, y int4);
CREATE DOMAIN test_humour AS test_mood;
CREATE DOMAIN test_day AS date;
CREATE DOMAIN test_holiday AS test_day;
"""


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


def test_every_route_is_in_it_and_each_of_its_operations_is_a_route(service: Service) -> None:
    document = read(service)
    described = {
        (method, path, operation["operationId"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if operation["tags"] != ["metrics"]
    }
    routed = {
        (method.lower(), route.path, route.name)
        for route in app.app.routes
        if isinstance(route, Route) and route.path not in ("/docs/{name}", "/pages/{name}")
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert described == routed


def test_every_id_in_a_path_has_the_form_of_a_metric_id(service: Service) -> None:
    for path, operations in read(service)["paths"].items():
        for operation in operations.values() if "{id}" in path else ():
            assert operation["parameters"][0]["schema"]["pattern"] == f"^{app.METRIC_ID.pattern}$"


def test_parameters_have_postgresql_s_types(service: Service) -> None:
    parameters = parameters_of(read(service), "types")
    schemas = {name: parameter["schema"] for name, parameter in parameters.items()}
    for name, form, bits in (("i2", "int32", 16), ("i4", "int32", 32), ("i8", "int64", 64)):
        bounds = {"minimum": -(2 ** (bits - 1)), "maximum": 2 ** (bits - 1) - 1}
        assert schemas[name] == {"type": "integer", "format": form, **bounds}
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


def test_an_enum_s_labels_are_listed_for_its_parameters(secured: Service) -> None:
    parameters = parameters_of(read(secured), "by-mood")
    labels = {"type": "string", "enum": ["calm", "tense"]}
    assert parameters["mood"]["schema"] == parameters["humour"]["schema"] == labels
    assert parameters["moods"]["schema"] == {"type": "array", "items": labels}


def test_a_domain_over_a_domain_is_what_it_is_in_the_end(secured: Service) -> None:
    document = read(secured)
    assert parameters_of(document, "holidays")["day"]["schema"] == {"type": "string", "format": "date"}
    assert columns_of(document, "Holidays")["day"] == {"type": "string", "format": "date"}


def test_columns_of_enums_are_text_and_composites_anything(secured: Service, issuer: Issuer) -> None:
    document = read(secured, issuer.token())
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


def test_it_shows_neither_values_nor_sql(secured: Service, issuer: Issuer) -> None:
    text = json.dumps(read(secured, token_of(issuer, **{"cognito:groups": ["finance"], "custom:tenant": "lovelace"})))
    assert "read_for_finance" in text
    assert "a secret value" not in text
    assert "lovelace" not in text
    assert "SELECT :" not in text


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
    assert "//" not in page.text.replace("// ", "")
    for link in (loaded := re.findall(r"\bdocs/[\w.-]+\b", page.text)):
        asset = httpx.get(f"{secured.url}/{link}")
        assert (asset.status_code, asset.headers["cache-control"]) == (200, "public, max-age=86400")
    assert len(loaded) == 3
    assert httpx.get(f"{secured.url}/docs/index.html").status_code == 404


def test_docs_show_what_a_token_may_see(secured: Service, issuer: Issuer) -> None:
    """By their titles, in a browser that lets nothing run or load that the page's policy does not name."""
    from test_dashboard import violations

    with chromium() as browser:
        page = browser.new_page(reduced_motion="reduce")
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"{secured.url}/docs")
        page.wait_for_selector("#operations-tag-metrics")
        assert page.locator(".opblock").count() == 0
        page.click("#operations-tag-metrics")
        page.wait_for_selector("#operations-metrics-read_sales")
        titles = page.locator("[id^=operations-metrics-] .opblock-summary-description").all_inner_texts()
        unnamed = [title for title in titles if re.match("Metric [0-9a-f]{8}$", title)]
        assert titles[len(titles) - len(unnamed) :] == unnamed
        assert titles == sorted(titles, key=lambda title: (title in unnamed, title.lower()))
        assert page.locator("#operations-metrics-read_for_finance").count() == 0
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert violations(page) == []
        page.click("button.authorize")
        page.fill("input[type=text]", token_of(issuer, **{"cognito:groups": ["finance"]}))
        page.click(".auth-btn-wrapper .authorize")
        page.click(".auth-btn-wrapper .btn-done")
        page.click("#operations-metrics-read_for_finance")
        page.click("#operations-metrics-read_for_finance .try-out__btn")
        page.click("#operations-metrics-read_for_finance .execute")
        page.wait_for_selector(".live-responses-table >> text=a secret value")
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
