"""Errors as RFC 9457 problems: their shape, their order, and requests that no well-behaved client sends."""

import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from conftest import Serve
from helpers import Service, wait_until


@pytest.fixture(scope="module")
def strict(start_service: Serve) -> Iterator[Service]:
    service = start_service(STATEMENT_TIMEOUT="0.5", MAX_RESULT_BYTES="1024")
    yield service
    service.stop()


@pytest.fixture(scope="module")
def http(strict: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=strict.url, timeout=20) as client:
        yield client


def raw(service: Service, head: bytes, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """What the service answers to these very bytes, with Connection: close added: status, headers, body."""
    url = urlsplit(service.url)
    with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
        connection.sendall(head + b"\r\nHost: localhost\r\nConnection: close\r\n\r\n" + body)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    top, _, content = answer.partition(b"\r\n\r\n")
    lines = top.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, content


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The body of a response that is a problem in every respect."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json"), (
        response.text
    )
    body = response.json()
    assert set(body) - {"errors"} == {"type", "title", "status", "detail", "instance", "request_id"}
    assert (body["status"], body["title"]) == (status, HTTPStatus(status).phrase)
    assert body["type"]
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["detail"]
    assert all(set(error) == {"name", "detail"} for error in body.get("errors", []))
    return dict(body)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nothing", 404),
        ("/metrics/nothing", 404),
        ("/metrics/nothing.csv", 404),
        ("/metrics/a/b", 404),
        ("/health/nothing", 404),
        ("/Metrics", 404),
        ("/metrics/echo?n=x", 422),
        ("/metrics/echo?colour=red", 422),
        ("/metrics/records", 422),
        ("/metrics/divide?by=0", 422),
        ("/metrics/divide-by-zero", 500),
        ("/metrics/broken", 500),
        ("/metrics/sleep?seconds=5", 504),
        ("/metrics/echo?t=" + "x" * 1200, 422),
        ("/metrics/echo?t=%FF", 400),
        ("/metrics/echo?%FF=1", 400),
        ("/metrics?t=%C3", 400),
        ("/metrics/echo?t=%C3&n=%A9", 400),
        ("/metrics/echo?t=%ED%A0%80", 400),
        ("/metrics/echo?t=%F4%90%80%80", 400),
    ],
)
def test_every_error_is_a_problem(http: httpx.Client, path: str, status: int) -> None:
    body = problem(http.get(path), status)
    assert body["instance"] == path.partition("?")[0]
    for word in ("SELECT", "FROM", "no_such_column", "division", "asyncpg", "Traceback", "::"):
        assert word not in json.dumps(body)


def test_input_errors_are_listed_by_name(http: httpx.Client) -> None:
    body = problem(http.get("/metrics/echo?n=x&d=today&colour=red"), 422)
    assert sorted(error["name"] for error in body["errors"]) == ["colour", "d", "n"]
    assert "ISO 8601" in next(error["detail"] for error in body["errors"] if error["name"] == "d")


@pytest.mark.parametrize(
    "metric_id",
    ["a.b", "-a", "_a", "a b", "%C3%A9", "a%00", "a%0A", "%FF", "x" * 65, "x" * 5000, ".", "echo.json", "*"],
)
def test_an_id_with_illegal_characters_or_too_many_is_422(http: httpx.Client, strict: Service, metric_id: str) -> None:
    status, headers, _ = raw(strict, f"GET /metrics/{metric_id.replace(' ', '%20')} HTTP/1.1".encode())
    assert (status, headers["content-type"]) == (422, "application/problem+json")


@pytest.mark.parametrize("suffix", ["", ".csv", ".ndjson"])
def test_an_id_of_64_characters_may_be_unknown_and_one_of_65_may_not(http: httpx.Client, suffix: str) -> None:
    problem(http.get(f"/metrics/{'x' * 64}{suffix}"), 404)
    problem(http.get(f"/metrics/{'x' * 65}{suffix}"), 422)


@pytest.mark.parametrize(
    "path",
    [
        "/metrics/a/b",
        "/metrics/a%2Fb",
        "/metrics/a%2fb",
        "/metrics/%2F",
        "/metrics/echo%2F",
        "/metrics/echo%2F.csv",
        "/metrics/%2Fecho",
        "/metrics/echo%2Flayouts",
        "/metrics/echo%2fmetric-records",
        "/metrics%2Fecho",
        "/health%2Flive",
    ],
)
def test_a_slash_in_an_id_is_404_encoded_or_not(strict: Service, path: str) -> None:
    assert raw(strict, b"GET /metrics/echo HTTP/1.1")[0] == 200
    for method in ("GET", "HEAD", "PUT", "POST"):
        status, headers, _ = raw(strict, f"{method} {path} HTTP/1.1".encode())
        assert (status, headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize("path", ["/%2Fmetrics", "/metrics/..", "/metrics/../health", "/./metrics"])
def test_a_path_is_what_it_says(strict: Service, path: str) -> None:
    assert raw(strict, f"GET {path} HTTP/1.1".encode())[0] in (400, 404, 422)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/metrics"),
        ("PUT", "/metrics"),
        ("PUT", "/metrics/echo"),
        ("POST", "/metrics/echo"),
        ("POST", "/health"),
        ("PATCH", "/health/live"),
        ("TRACE", "/metrics"),
        ("DELETE", "/health/ready/"),
    ],
)
def test_another_method_is_405_and_told_which_there_are(http: httpx.Client, method: str, path: str) -> None:
    response = http.request(method, path, content=b"{" if method != "TRACE" else None)
    body = problem(response, 405)
    assert {"GET", "HEAD"} <= {name.strip() for name in response.headers["allow"].split(",")}
    assert method not in response.headers["allow"].split(", ")
    assert body["instance"] == path.rstrip("/")


def test_a_path_that_is_none_is_404_whatever_the_method(http: httpx.Client) -> None:
    for method in ("GET", "POST", "DELETE", "PUT"):
        problem(http.request(method, "/nothing"), 404)


def test_headers_over_64_kb_are_431(http: httpx.Client) -> None:
    problem(http.get("/metrics", headers={"X-Long": "x" * 66_000}), 431)
    problem(http.get("/nothing", headers=[("X-Many", "x" * 100)] * 700), 431)
    problem(http.get("/nothing", headers=[("a", "")] * 20_000), 431)
    assert http.get("/metrics", headers={"X-Long": "x" * 60_000}).status_code == 200
    assert http.get("/health", headers={"X-Long": "x" * 66_000}).status_code == 431


def test_two_authorization_headers_are_400(http: httpx.Client) -> None:
    two = [("Authorization", "Bearer a"), ("authorization", "Bearer a")]
    problem(http.get("/metrics", headers=two), 400)


def test_errors_are_looked_for_in_their_order(http: httpx.Client) -> None:
    """400 for the head, 431, 404, 405, 422."""
    two = [("Authorization", "Bearer a"), ("Authorization", "Bearer b")]
    large = [("X-Long", "x" * 66_000)]
    problem(http.post("/nothing?%FF", headers=[*two, *large]), 400)
    problem(http.post("/nothing?%FF", headers=large), 400)
    problem(http.post("/nothing", headers=[*large]), 431)
    problem(http.post("/nothing/"), 404)
    problem(http.put("/metrics/echo?n=x"), 405)
    problem(http.get("/metrics/broken?n=x"), 500)
    problem(http.get("/metrics/nothing?n=x"), 404)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /metrics/echo?t=\xff HTTP/1.1",
        b"GET /metrics/echo?\xe9=1 HTTP/1.1",
        b"GET /metrics/\xff HTTP/1.1",
        b"GET /metrics HTTP/1.1\r\nAuthorization: a\r\nAuthorization: b",
        b"GET  HTTP/1.1",
        b"NONSENSE",
        b"GET /metrics HTTP/9.9",
        b"GET /metrics HTTP/1.1\r\nX-Bad\x00: 1",
        b"GET /metrics HTTP/1.1\r\nNo colon",
        b"GET /metrics HTTP/1.1\r\nContent-Length: -1",
        b"GET /metrics HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2",
    ],
)
def test_a_malformed_head_is_400_and_leaves_no_traceback(strict: Service, head: bytes) -> None:
    before = len(strict.log.read_text())
    status, headers, content = raw(strict, head)
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert json.loads(content)["request_id"] == headers["x-request-id"]
    assert "Traceback" not in strict.log.read_text()[before:]


def test_many_requests_in_one_piece_are_answered_and_too_many_end_the_connection(strict: Service) -> None:
    one = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for count, answered in ((200, 200), (5000, 0)):
        with socket.create_connection((urlsplit(strict.url).hostname, urlsplit(strict.url).port), timeout=20) as client:
            client.sendall(one * count)
            answers = b""
            with suppress(ConnectionResetError):
                while answers.count(b"200 OK") < count and (more := client.recv(2**16)):
                    answers += more
        assert answers.count(b"200 OK") == answered


@pytest.mark.parametrize("path", ["/metrics", "/metrics/echo/metric-records"])
@pytest.mark.parametrize("body", [b"zz\r\n{}\r\n0\r\n\r\n", b"2\r\n{}0\r\n\r\n"])
def test_a_body_in_malformed_chunks_is_400(strict: Service, path: str, body: bytes) -> None:
    head = f"POST {path} HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked"
    status, headers, _ = raw(strict, head.encode(), body)
    assert (status, headers["content-type"]) == (400, "application/problem+json")


def test_a_request_id_is_given_back_and_a_bad_one_replaced(http: httpx.Client) -> None:
    given = "a.B_9-" + "x" * 122
    response = http.get("/metrics/nothing", headers={"X-Request-ID": given})
    assert problem(response, 404)["request_id"] == given
    for bad in (b"x" * 129, b"a b", b"a/b", "é".encode(), b""):
        response = http.get("/nothing", headers=[(b"X-Request-ID", bad)])
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", problem(response, 404)["request_id"])
    ids = {http.get("/health/live").headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5


def test_a_body_that_nobody_asked_for_does_no_harm(http: httpx.Client) -> None:
    response = http.request("GET", "/metrics/numbers?count=1", content=b"x" * 100_000)
    assert response.status_code == 200
    assert http.get("/metrics/numbers?count=1").status_code == 200


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/metrics/divide-by-zero", "division by zero"),
        ("/metrics/divide?by=0", "division by zero"),
        ("/metrics/broken", "no_such_column"),
        ("/metrics/sleep?seconds=9", "statement timeout"),
    ],
)
def test_the_log_has_the_reason_that_the_caller_is_not_told(
    http: httpx.Client, strict: Service, path: str, reason: str
) -> None:
    response = http.get(path)
    request_id = response.headers["x-request-id"]
    assert reason not in response.text
    wait_until(lambda: f'"{request_id}"' in strict.log.read_text())
    lines = [json.loads(line) for line in strict.log.read_text().splitlines() if f'"{request_id}"' in line]
    assert reason in json.dumps(lines)


FULL_DISK = """
CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION USING ERRCODE = '53100'; END$$;
CREATE TRIGGER full_disk BEFORE INSERT ON metrics EXECUTE FUNCTION full_disk()
"""


@pytest.mark.anyio
@pytest.mark.usefixtures("triggers")
async def test_a_full_disk_is_no_fault_of_the_records(client: httpx.AsyncClient, owner: asyncpg.Connection) -> None:
    await owner.execute(FULL_DISK)
    try:
        answer = await client.post("/metrics/echo/metric-records", json={})
    finally:
        await owner.execute("DROP FUNCTION full_disk CASCADE")
    assert (answer.status_code, "disk is full" in answer.json()["detail"]) == (503, True)
