"""What operations see: log lines, Prometheus, health, and what a browser on another origin is told."""

import asyncio
import json
import logging
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import asyncpg
import chaos
import httpx
import pytest
from conftest import Serve
from helpers import ROOT, Service, eventually, run_app, wait_until
from websockets.sync.client import connect

import app

pytestmark = pytest.mark.anyio

TRACE = "0af7651916cd43dd8448eb211c80319c"
ORIGIN = "https://dashboard.example"


@pytest.fixture(scope="module")
def watched(start_service: Serve) -> Service:
    """A service whose log no other test writes to."""
    return start_service(CORS_ORIGINS=f"{ORIGIN}, https://other.example", LOG_LEVEL="debug")


@pytest.fixture
def http(watched: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=watched.url, timeout=20) as client:
        yield client


def log_lines(service: Service) -> list[dict[str, Any]]:
    """Everything after the start-up text, which must be JSON."""
    return [json.loads(line) for line in chaos.log_lines(service)]


def logged(service: Service, **fields: Any) -> dict[str, Any]:
    """The newest line with these fields, as soon as it is written."""

    def found() -> dict[str, Any] | None:
        lines = [line for line in log_lines(service) if fields.items() <= line.items()]
        return lines[-1] if lines else None

    return wait_until(found)


# ------------------------------------------------------------------------------------------------ the log


def test_a_request_is_one_line_with_the_fields_of_the_contract(watched: Service, http: httpx.Client) -> None:
    for cache in ("fwd=miss", "hit"):
        http.get("/metrics/echo?n=71", headers={"X-Request-ID": cache.replace("=", "-")})
        line = logged(watched, message="request", request_id=cache.replace("=", "-"))
        known = {"method": "GET", "path": "/metrics/echo", "metric_id": "echo", "status": 200, "cache": cache}
        assert known.items() <= line.items()
        assert line["subject"] is None
        assert 0 < line["duration_ms"] < 5000
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"])
    assert sum(line.get("request_id") == "hit" for line in log_lines(watched)) == 1


def test_everything_after_the_start_up_text_is_json_the_servers_own_lines_too(watched: Service) -> None:
    lines = log_lines(watched)
    assert {"uvicorn.error", "metrics_api"} <= {line["logger"] for line in lines}
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)


def test_what_is_no_http_is_logged_and_answered_with_a_problem(watched: Service) -> None:
    host, port = watched.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"\x16\x03\x01\x02\r\n\r\n")
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"application/problem+json" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == 400
    logged(watched, level="warning", reason="The request is not HTTP/1.1.")


def test_a_traceback_is_a_field_of_one_line_however_often_the_fault_strikes(start_service: Serve) -> None:
    service = start_service()
    with httpx.Client(base_url=service.url) as http:
        answers = [http.get("/metrics/divide-by-zero", headers={"Cache-Control": "no-cache"}) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {500}
    last = logged(service, message="request", request_id=answers[-1].headers["x-request-id"])
    assert last["status"] == 500
    faults = [line for line in log_lines(service) if line["level"] == "error"]
    assert [line["message"] for line in faults] == ["a request failed"]
    assert "division by zero" in faults[0]["traceback"]
    assert faults[0]["request_id"] == answers[0].headers["x-request-id"]
    assert "division" not in answers[0].text
    service.stop()


def test_a_fault_that_goes_on_is_told_every_ten_seconds_with_how_often_it_struck() -> None:
    repeats, told = app.Repeats(), []
    for second in range(25):
        for reason in ("refused", "frozen"):
            record = logging.LogRecord("metrics_api", logging.WARNING, "", 0, "down", None, None)
            record.created, record.__dict__["fields"] = 1000.0 + second, {"reason": reason}
            if repeats.filter(record):
                told.append((second, record.__dict__["fields"]))
    assert told == [
        (0, {"reason": "refused"}),
        (0, {"reason": "frozen"}),
        (10, {"reason": "refused", "repeated": 9}),
        (10, {"reason": "frozen", "repeated": 9}),
        (20, {"reason": "refused", "repeated": 9}),
        (20, {"reason": "frozen", "repeated": 9}),
    ]


def test_every_write_has_an_audit_line(watched: Service, http: httpx.Client) -> None:
    created = http.post("/metrics", json={"query": "SELECT 1 AS n"}, headers={"X-Request-ID": "c-1"})
    metric_id = created.json()["id"]
    path = f"/metrics/{metric_id}"
    layout = [{"breakpoint": "lg", "x": 0, "y": 0, "w": 1, "h": 1}]
    http.patch(path, json={"title": "Another"}, headers={"X-Request-ID": "c-2"})
    http.put(f"{path}/layouts", json=layout, headers={"X-Request-ID": "c-3"})
    http.post(f"{path}/metric-records", json=[{}, {}], headers={"X-Request-ID": "c-4"})
    http.delete(path, headers={"X-Request-ID": "c-5"})
    http.delete(path, headers={"X-Request-ID": "c-6"})
    http.post("/metrics?dry_run=true", json={"query": "SELECT 1 AS n"}, headers={"X-Request-ID": "c-7"})
    logged(watched, message="request", request_id="c-7")
    audits = {line["request_id"]: line for line in log_lines(watched) if line["message"] == "audit"}
    actions = {"c-1": "create", "c-2": "change", "c-3": "layouts", "c-4": "records", "c-5": "delete"}
    assert {key: line["action"] for key, line in audits.items() if key.startswith("c-")} == actions
    assert {audits[key]["metric_id"] for key in actions} == {metric_id}
    assert all(audits[key]["subject"] is None for key in actions)
    assert (audits["c-2"]["version"], audits["c-4"]["inserted"]) == (2, 2)


def test_audit_lines_are_written_at_every_level(start_service: Serve) -> None:
    service = start_service(LOG_LEVEL="error")
    with httpx.Client(base_url=service.url) as http:
        http.get("/metrics/echo")
        http.post("/metrics/echo/metric-records", json={})
    assert logged(service, message="audit")["action"] == "records"
    assert [line["message"] for line in log_lines(service)] == ["audit"]
    service.stop()


@pytest.mark.parametrize("level", ["debug", "info"])
def test_the_text_of_a_prompt_is_logged_at_debug_only(watched: Service, service: Service, level: str) -> None:
    prompt = "records per day in plumbago"
    service = watched if level == "debug" else service
    with httpx.Client(base_url=service.url) as http:
        created = http.post("/metrics", json={"query_generation_prompt": prompt})
        assert created.status_code == 201
        http.patch(created.headers["location"], json={"query_generation_prompt": f"{prompt} again"})
        http.post("/metrics", json={"query_generation_prompt": f"{prompt}\0"})
        last = http.delete(created.headers["location"])
    logged(service, message="request", request_id=last.headers["x-request-id"])
    assert ("plumbago" in service.log.read_text()) == (level == "debug")


def test_no_token_is_logged_wherever_it_is_sent(watched: Service, http: httpx.Client) -> None:
    http.get("/metrics/echo?t=s3cr3t.0", headers={"Authorization": "Bearer s3cr3t.1"})
    http.get("/metrics/echo?access_token=s3cr3t.2", headers={"Cookie": "token=s3cr3t.3"})
    http.get("/nowhere", headers={"Authorization": "Basic s3cr3t.4"})
    http.get("/metrics", headers=[("Authorization", "Bearer s3cr3t.5"), ("Authorization", "Bearer s3cr3t.6")])
    live = watched.url.replace("http", "ws", 1) + "/live"
    with connect(live, additional_headers={"Authorization": "Bearer s3cr3t.7"}) as socket:
        socket.send(json.dumps({"type": "auth", "token": "s3cr3t.8"}))
        socket.send(json.dumps({"type": "subscribe", "id": "unknown"}))
        assert json.loads(socket.recv(5))["status"] == 404
    last = http.get("/metrics")
    logged(watched, message="request", request_id=last.headers["x-request-id"])
    assert re.findall(r"s3cr3t\.\d", watched.log.read_text()) == []


@pytest.mark.parametrize(
    ("redirection", "workers"),
    [("", 1), ("", 2), (">/dev/full", 1), (">&-", 1)],
    ids=["unread", "workers", "full", "none"],
)
def test_a_log_that_goes_nowhere_stops_neither_answers_nor_the_end(
    cluster: str, watched: Service, redirection: str, workers: int
) -> None:
    """A pipe that nobody reads, a full disk, no standard output at all."""
    port = random.randint(10_000, 30_000)  # below those that the system gives to clients meanwhile
    command = f"exec '{sys.executable}' '{ROOT}/app.py' --port {port} --workers {workers} {redirection}"
    env = {"PATH": os.environ["PATH"], "DATABASE_URL": cluster, "QUERIES_DIR": str(watched.queries)}
    with (
        subprocess.Popen(["sh", "-c", command], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        try:
            wait_until(lambda: http.get("/health").status_code == 200)
            for _ in range(60):  # a pipe takes 64 KB
                assert http.get(f"/{'x' * 2000}").status_code == 404
            assert http.get("/metrics/echo").status_code == 200
            process.terminate()
            process.wait(8)
        finally:
            process.kill()
        assert process.stderr
        assert process.stderr.read() == b""


# ------------------------------------------------------------------------------------------------ identities


@pytest.mark.parametrize("given", ["a", "A.b-c_9", "x" * 128])
def test_a_request_id_is_taken_and_given_back(watched: Service, http: httpx.Client, given: str) -> None:
    for path, status in (("/metrics/echo", 200), ("/nowhere", 404)):
        answer = http.get(path, headers={"X-Request-ID": given})
        assert (answer.status_code, answer.headers.get_list("x-request-id")) == (status, [given])
        assert logged(watched, message="request", request_id=given, path=path)["status"] == status
    assert answer.json()["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", "a;b", "a, b", "é"])
def test_a_bad_request_id_is_replaced(http: httpx.Client, given: str) -> None:
    first, second = (http.get("/metrics/echo", headers=[(b"X-Request-ID", given.encode())]) for _ in range(2))
    ids = {first.headers["x-request-id"], second.headers["x-request-id"]}
    assert len(ids) == 2
    assert all(re.fullmatch("[A-Za-z0-9._-]{1,128}", one) for one in ids)


def test_a_traceparent_keeps_its_trace_and_gets_a_span(watched: Service, http: httpx.Client) -> None:
    spans = set()
    for flags in ("00", "01"):
        given = f"00-{TRACE}-b7ad6b7169203331-{flags}"
        answer = http.get("/metrics/echo", headers={"traceparent": given})
        back = re.fullmatch(rf"00-{TRACE}-([0-9a-f]{{16}})-{flags}", answer.headers["traceparent"])
        assert back
        spans.add(back[1])
        assert logged(watched, request_id=answer.headers["x-request-id"])["trace_id"] == TRACE
    assert len(spans) == 2
    assert spans.isdisjoint({"b7ad6b7169203331", "0" * 16})


@pytest.mark.parametrize(
    "given",
    [
        "",
        TRACE,
        f"00-{TRACE.upper()}-b7ad6b7169203331-01",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-b7ad6b7169203331-01-more",
        f"ff-{TRACE}-b7ad6b7169203331-01",
    ],
)
def test_a_bad_traceparent_is_ignored(watched: Service, http: httpx.Client, given: str) -> None:
    answer = http.get("/metrics/echo", headers={"traceparent": given})
    assert answer.status_code == 200
    assert given not in answer.headers.get_list("traceparent")
    assert logged(watched, request_id=answer.headers["x-request-id"]).get("trace_id") != TRACE


async def test_the_database_knows_which_metric_runs(watched: Service, owner: asyncpg.Connection) -> None:
    async with httpx.AsyncClient(base_url=watched.url) as http:
        asked = asyncio.create_task(http.get("/metrics/sleep?seconds=0.5"))
        await eventually(lambda: owner.fetchval(RUNNING))
        assert (await asked).status_code == 200


RUNNING = "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '/* metric: sleep */%'"


# ------------------------------------------------------------------------------------------------ Prometheus


def samples(http: httpx.Client, name: str) -> dict[str, float]:
    """The values of one metric by their labels."""
    answer = http.get("/prometheus")
    assert answer.headers["content-type"].startswith("text/plain")
    found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", answer.text, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def test_prometheus_counts_requests_results_rows_and_runs(http: httpx.Client) -> None:
    miss, hit = 'cache="fwd=miss",metric_id="numbers"', 'cache="hit",metric_id="numbers"'
    rows = 'metric_id="numbers"'
    before = samples(http, "metric_results_total"), samples(http, "metric_rows_total")
    for _ in range(3):
        assert http.get("/metrics/numbers?count=7").status_code == 200
    after = samples(http, "metric_results_total"), samples(http, "metric_rows_total")
    assert after[0][miss] - before[0].get(miss, 0) == 1
    assert after[0][hit] - before[0].get(hit, 0) == 2
    assert after[1][rows] - before[1].get(rows, 0) == 7
    assert samples(http, "metric_run_seconds_count")[rows] >= 1
    assert samples(http, "http_request_duration_seconds_count")['method="GET",route="/metrics/{id}",status="200"'] >= 3
    assert samples(http, "listener_connected") == {"": 1}
    assert 'login="reader"' in samples(http, "database_connections")


def test_prometheus_has_the_ids_of_known_metrics_only(http: httpx.Client) -> None:
    for n in range(20):
        http.get(f"/metrics/unknown-{n}")
        http.get(f"/nowhere-{n}")
        http.request(f"BREW{n}", "/metrics")
    text = http.get("/prometheus").text
    assert not re.search("unknown-|nowhere-|BREW", text)


# ------------------------------------------------------------------------------------------------ CORS


def test_metrics_that_are_gone_leave_no_figures_behind(watched: Service, http: httpx.Client) -> None:
    (watched.queries / "passing.sql").write_text("SELECT 1 AS n")
    wait_until(lambda: http.get("/metrics/passing").status_code == 200)
    made = http.post("/metrics", json={"query": "SELECT 1 AS n"}).json()["id"]
    assert http.get(f"/metrics/{made}").status_code == 200
    assert all(metric_id in http.get("/prometheus").text for metric_id in ("passing", made))
    http.delete(f"/metrics/{made}")
    assert made not in http.get("/prometheus").text
    (watched.queries / "passing.sql").unlink()
    wait_until(lambda: "passing" not in http.get("/prometheus").text)
    http.get("/metrics/echo?n=1")
    assert 'metric_id="echo"' in http.get("/prometheus").text


def preflight(http: httpx.Client, method: str, headers: str, origin: str = ORIGIN) -> httpx.Response:
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers, "Origin": origin}
    return http.options("/metrics/echo", headers=asked)


@pytest.fixture(scope="module")
def guarded(start_service: Serve) -> Service:
    """A service that wants tokens, from an issuer that nobody has to reach for a preflight."""
    service = start_service(CORS_ORIGINS=ORIGIN, JWT_ISSUER="http://127.0.0.1:9", ready=False)
    wait_until(lambda: httpx.get(f"{service.url}/health").status_code == 200)
    return service


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
def test_a_preflight_needs_no_token(guarded: Service, method: str) -> None:
    with httpx.Client(base_url=guarded.url) as http:
        answer = preflight(http, method, "authorization, content-type, if-none-match, x-request-id")
    assert answer.status_code in (200, 204)
    assert answer.headers["access-control-allow-origin"] in (ORIGIN, "*")
    assert method in answer.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in answer.headers


def test_a_preflight_of_a_foreign_origin_is_not_granted(http: httpx.Client) -> None:
    answer = preflight(http, "GET", "authorization", "https://evil.example")
    assert "access-control-allow-origin" not in answer.headers
    assert answer.status_code == 400
    assert answer.headers["x-request-id"]
    assert "Origin" in answer.headers["vary"]


def test_answers_and_errors_carry_the_headers_alike(http: httpx.Client, guarded: Service) -> None:
    errors = {"/nowhere": 404, "/metrics/echo?x=1": 422, "/metrics/divide-by-zero": 500, "/metrics/echo": 200}
    answers = {path: http.get(path, headers={"Origin": ORIGIN}) for path in errors}
    answers["401"] = httpx.get(f"{guarded.url}/metrics", headers={"Origin": ORIGIN})
    answers["431"] = http.get("/metrics", headers={"Origin": ORIGIN, "X": "x" * 70_000})
    assert [answer.status_code for answer in answers.values()] == [*errors.values(), 401, 431]
    for answer in answers.values():
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}
        assert {"ETag", "Age", "Cache-Status", "Location", "X-Request-ID"} <= exposed
        assert "access-control-allow-credentials" not in answer.headers
        assert "Origin" in answer.headers["vary"]


def test_a_foreign_origin_is_told_nothing(http: httpx.Client) -> None:
    answer = http.get("/metrics/echo", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


# ------------------------------------------------------------------------------------------------ health


@pytest.mark.parametrize("path", ["/health", "/health/"])
def test_health_is_these_two_words(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert (answer.status_code, answer.json()) == (200, {"application": True, "database": True})


def test_ready_names_every_check_with_what_it_measured(http: httpx.Client) -> None:
    answer = http.get("/health/ready")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/health+json")
    ready = answer.json()
    assert ready["status"] == "warn"
    assert any("queries/broken.sql" in check["output"] for check in ready["checks"]["metrics:files"])
    for login in ("reader", "owner"):
        (check,) = ready["checks"][f"{login}:responseTime"]
        assert (check["status"], check["observedUnit"]) == ("pass", "ms")
        assert 0 < check["observedValue"] < 1000
    for name in ("reader:connections", "owner:waiting", "cache:bytes", "cache:hitRatio", "listener:connectedSince"):
        assert ready["checks"][name][0]["status"] == "pass"
        assert "observedValue" in ready["checks"][name][0]
    assert ready["checks"]["database:migrations"][0]["status"] == "pass"
    statuses = {check["status"] for checks in ready["checks"].values() for check in checks}
    assert statuses == {"pass", "warn"}


def test_everything_that_names_the_version_agrees_with_the_changelog(http: httpx.Client) -> None:
    (newest, *_) = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    ready = http.get("/health/ready").json()
    assert run_app("--version").stdout == f"Metrics API {newest}\n"
    assert http.get("/openapi.json").json()["info"]["version"] == newest
    assert {ready["version"], ready["releaseId"]} == {newest}


def test_ready_says_what_is_missing_and_not_where_or_as_whom(start_service: Serve) -> None:
    """Anybody may ask; the log knows the rest, the password aside."""
    service = start_service(DATABASE_URL="postgresql://mallory:hunter2@127.0.0.1:9/none", ready=False)
    wait_until(lambda: httpx.get(f"{service.url}/health/live").status_code == 200)
    answer = httpx.get(f"{service.url}/health/ready")
    (check,) = answer.json()["checks"]["database:migrations"]
    assert (answer.status_code, check["status"]) == (503, "fail")
    assert "ConnectionError" in check["output"]
    assert not re.search("127.0.0.1|mallory|hunter2", answer.text)
    assert "127.0.0.1" in logged(service, level="warning")["reason"]
    assert "hunter2" not in service.log.read_text()
    service.stop()


def test_health_is_cheap_enough_for_a_loop(http: httpx.Client) -> None:
    """The database is asked once a second at most."""
    began = time.monotonic()
    checks = [http.get("/health/ready").json()["checks"]["reader:responseTime"][0] for _ in range(200)]
    asked = len({check["observedValue"] for check in checks})
    assert asked <= time.monotonic() - began + 2


def test_live_is_200_while_the_process_turns_and_ready_says_what_is_missing(guarded: Service) -> None:
    assert httpx.get(f"{guarded.url}/health/live").status_code == 200
    ready = httpx.get(f"{guarded.url}/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "fail")
    assert ready.json()["checks"]["keys:age"][0]["status"] == "fail"
    assert httpx.get(f"{guarded.url}/metrics", headers={"Authorization": f"Bearer {UNSIGNED}"}).status_code == 503


# {"alg": "RS256", "kid": "k"} and {}, signed by nobody.
UNSIGNED = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImsifQ.e30.AAAA"
