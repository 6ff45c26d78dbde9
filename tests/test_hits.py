"""What is answered from a request's bytes comes to what the whole way through the application would have come to.

The same request with a header that no other had takes the whole way, so one service is both the tried and the oracle.
"""

import itertools
import random
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import asyncpg
import httpx
import pytest
from conftest import Serve
from helpers import Service, wait_until
from issuer import BOTH_SCOPES, Issuer

pytestmark = pytest.mark.anyio
# What differs each time, whichever way is taken.
OWN = {"date", "age", "x-request-id", "traceparent", "server-timing"}
BALANCER = {
    "X-Amzn-Trace-Id": "Root=1-{n}",
    "X-Forwarded-For": "10.0.0.{n}",
    "X-Forwarded-Proto": "https",
    "Forwarded": "for=10.0.0.{n}",
    "X-Real-IP": "10.0.0.{n}",
    "Via": "1.1 proxy{n}",
    "CF-Ray": "ray{n}",
    "tracestate": "vendor={n}",
    "X-Request-ID": "given-{n}",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def without_own(self) -> tuple[int, dict[str, str], bytes]:
        return self.status, {name: value for name, value in self.headers.items() if name not in OWN}, self.body


class Wire:
    """A connection on which bytes are sent as a test wants, opened anew when the server has closed it."""

    def __init__(self, service: Service) -> None:
        self.address = ("127.0.0.1", httpx.URL(service.url).port)
        self.socket: socket.socket | None = None
        self.rest = b""

    def send(self, *pieces: bytes) -> None:
        if self.socket is None:
            self.socket = socket.create_connection(self.address, timeout=10)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.rest = b""
        for i, piece in enumerate(pieces):
            if i:
                time.sleep(0.002)
            self.socket.sendall(piece)

    def close(self) -> None:
        if self.socket:
            self.socket.close()
        self.socket = None

    def read(self) -> bytes:
        assert self.socket
        try:
            chunk = self.socket.recv(65536)
        except ConnectionResetError:
            chunk = b""
        self.rest += chunk
        return chunk

    def answer(self, method: str = "GET") -> Answer:
        while b"\r\n\r\n" not in self.rest:
            assert self.read(), f"closed after {self.rest!r}"
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(status_line.split()[1])
        length = 0 if method == "HEAD" or status == 304 else int(headers["content-length"])
        while len(self.rest) < length:
            assert self.read()
        body, self.rest = self.rest[:length], self.rest[length:]
        if headers.get("connection") == "close":
            self.close()
        return Answer(status, headers, body)

    def ask(self, request: bytes) -> Answer:
        self.send(request)
        return self.answer(request.partition(b" ")[0].decode())


def compose(path: str, method: str = "GET", version: str = "1.1", **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def added(request: bytes, *lines: str) -> bytes:
    head, _, rest = request.partition(b"\r\n")
    return b"\r\n".join([head, *(line.encode("latin-1") for line in lines), rest])


NONCE = itertools.count()
FINANCE: dict[str, Any] = {"cognito:groups": ["finance"]}


def whole_way(request: bytes) -> bytes:
    return added(request, f"X-Never-Seen: {next(NONCE)}")


@pytest.fixture(scope="module")
def guarded(start_service: Serve, issuer: Issuer) -> Service:
    service = start_service(JWT_ISSUER=issuer.url, JWKS_URL=issuer.url)
    (service.queries / "payroll.sql").write_text("-- roles: finance\nSELECT 1 AS n")
    (service.queries / "tenant.sql").write_text("-- claim value: custom:tenant\nSELECT :value::text AS value")
    with httpx.Client(base_url=service.url, headers=bearer(issuer.token(**FINANCE))) as client:
        wait_until(lambda: client.get("/metrics/payroll").status_code == 200)
        wait_until(lambda: client.get("/metrics/tenant").status_code == 200)
    return service


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def wire(guarded: Service) -> Iterator[Wire]:
    wire = Wire(guarded)
    yield wire
    wire.close()


def warm(wire: Wire, request: bytes) -> Answer:
    """The answer after which these bytes have been seen."""
    wire.ask(request)
    answer = wire.ask(request)
    assert answer.headers["cache-status"] == "metrics; hit"
    return answer


def seen_lines(service: Service, path: str) -> list[str]:
    return [line for line in service.log.read_text().splitlines() if f'"path":"{path}"' in line]


# ---- what is as on the whole way


def test_an_answer_from_bytes_is_logged_and_counted_and_named(guarded: Service, issuer: Issuer, wire: Wire) -> None:
    request = compose("/metrics/echo?n=7001", **bearer(issuer.token()))
    count = 'metric_results_total{cache="hit",metric_id="echo"}'

    def hits() -> float:
        figures = httpx.get(f"{guarded.url}/prometheus").text
        found = re.search(rf"^{re.escape(count)} (\S+)$", figures, re.MULTILINE)
        return float(found[1]) if found else 0

    warm(wire, request)
    before = hits()
    named = added(request, "X-Request-ID: mine-1", f"traceparent: {BALANCER['traceparent']}")
    first, second = wire.ask(request), wire.ask(named)
    assert hits() == before + 2
    assert first.headers["x-request-id"] != second.headers["x-request-id"] == "mine-1"
    trace, span = BALANCER["traceparent"].split("-")[1:3]
    assert re.fullmatch(rf"00-{trace}-(?!{span})[0-9a-f]{{16}}-01", second.headers["traceparent"])

    def lines() -> list[str]:
        return [line for line in seen_lines(guarded, "/metrics/echo") if '"mine-1"' in line]

    (line,) = wait_until(lines)
    for part in ('"status":200', '"cache":"hit"', '"metric_id":"echo"', '"subject":"ada"', f'"trace_id":"{trace}"'):
        assert part in line


@pytest.mark.parametrize("given", ["a b", "", "x" * 129, "é"])
def test_a_bad_request_id_is_replaced_on_either_way(issuer: Issuer, wire: Wire, given: str) -> None:
    request = compose("/metrics/echo?n=7002", **bearer(issuer.token()))
    warm(wire, request)
    for ask in (request, whole_way(request)):
        assert wire.ask(added(ask, f"X-Request-ID: {given}")).headers["x-request-id"] != given


def test_two_request_ids_are_none(issuer: Issuer, wire: Wire) -> None:
    request = compose("/metrics/echo?n=7003", **bearer(issuer.token()))
    warm(wire, request)
    for ask in (request, whole_way(request)):
        assert wire.ask(added(ask, "X-Request-ID: a", "X-Request-ID: b")).headers["x-request-id"] not in ("a", "b")


def test_the_age_goes_on(issuer: Issuer, wire: Wire) -> None:
    request = compose("/metrics/echo?n=7004", **bearer(issuer.token()))
    warm(wire, request)
    assert wait_until(lambda: int(wire.ask(request).headers["age"]) >= 1)


def test_head_and_conditional_requests_have_answers_of_their_own(issuer: Issuer, wire: Wire) -> None:
    headers = bearer(issuer.token())
    full = warm(wire, compose("/metrics/echo?n=7005", **headers))
    assert warm(wire, compose("/metrics/echo?n=7005", "HEAD", **headers)).without_own()[:2] == full.without_own()[:2]
    same = warm(wire, compose("/metrics/echo?n=7005", If_None_Match=full.headers["etag"], **headers))
    assert (same.status, same.body) == (304, b"")
    assert warm(wire, compose("/metrics/echo?n=7005", If_None_Match='"other"', **headers)).body == full.body


@pytest.mark.usefixtures("triggers")
async def test_a_record_that_is_written_shows_within_half_a_second(
    guarded: Service, owner: asyncpg.Connection, issuer: Issuer, wire: Wire
) -> None:
    request = compose("/metrics/total", **bearer(issuer.token()))
    etag = warm(wire, request).headers["etag"]
    conditional = compose("/metrics/total", If_None_Match=etag, **bearer(issuer.token()))
    assert warm(wire, conditional).status == 304
    await owner.execute("INSERT INTO queries VALUES ('total', 'x') ON CONFLICT DO NOTHING")
    await owner.execute("INSERT INTO metrics (id, obsolescence) VALUES ('total', 5)")
    time.sleep(0.5)
    assert b'"records":[{"total":5,"records":1}]' in wire.ask(request).body
    assert wire.ask(conditional).status == 200


def test_an_expired_token_is_refused_between_two_equal_requests(issuer: Issuer, wire: Wire) -> None:
    request = compose("/metrics/echo?n=7006", **bearer(issuer.token(exp=int(time.time()) - 27)))
    warm(wire, request)
    wait_until(lambda: wire.ask(request).status == 401)


def test_a_role_that_is_asked_for_by_the_file_from_now_on_is_missed_at_once(
    guarded: Service, issuer: Issuer, wire: Wire
) -> None:
    path = guarded.queries / "open-today.sql"
    path.write_text("SELECT 1 AS n")
    request = compose("/metrics/open-today", **bearer(issuer.token()))
    wait_until(lambda: wire.ask(request).status == 200)
    warm(wire, request)
    path.write_text("-- roles: finance\nSELECT 1 AS n")
    wait_until(lambda: wire.ask(request).status == 403)
    path.unlink()
    wait_until(lambda: wire.ask(request).status == 404)


def test_a_key_that_the_issuer_takes_back_takes_its_tokens_with_it(start_service: Serve) -> None:
    issuer = Issuer("rsa-old")
    service = start_service(JWT_ISSUER=issuer.url, JWKS_URL=issuer.url)
    wire = Wire(service)
    request = compose("/metrics/echo?n=1", **bearer(issuer.token("rsa-old")))
    warm(wire, request)
    issuer.keys = ["rsa-new"]
    newer = compose("/metrics/echo?n=1", **bearer(issuer.token("rsa-new")))
    wait_until(lambda: wire.ask(newer).status == 200)  # within the ten seconds between two fetches
    assert wire.ask(request).status == 401
    wire.close()
    issuer.close()
    service.stop()


# ---- what the bytes may be


def test_a_head_in_two_pieces_and_two_heads_in_one_are_answered_in_order(issuer: Issuer, wire: Wire) -> None:
    headers = bearer(issuer.token())
    one, two = (compose(f"/metrics/echo?n={n}", **headers) for n in (7101, 7102))
    bodies = [warm(wire, request).body for request in (one, two)]
    for cut in (1, 20, len(one) - 2, len(one) - 1):
        wire.send(one[:cut], one[cut:])
        assert wire.answer().body == bodies[0]
    for pieces in ([one + two], [one + two[:9], two[9:]], [one[:30], one[30:] + two], [one, two]):
        wire.send(*pieces)
        assert [wire.answer().body, wire.answer().body] == bodies


def test_half_a_head_followed_by_a_whole_one_is_one_request(issuer: Issuer, wire: Wire) -> None:
    """What looks like a request that was seen is the rest of another's head, or its body."""
    request = compose("/metrics/echo?n=7103", **bearer(issuer.token()))
    warm(wire, request)
    wire.send(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-Rest: ", request)
    assert wire.answer().body == b'{"status":"pass"}'
    post = compose("/metrics", "POST", Content_Length=str(len(request)), Content_Type="application/json", **bearer("x"))
    wire.send(post, request)
    assert wire.answer().status == 401
    wire.send(compose("/health/live"))
    assert wire.answer().body == b'{"status":"pass"}'


@pytest.mark.parametrize(
    "smuggled",
    [
        ["Content-Length: 4"],
        ["Transfer-Encoding: chunked"],
        ["Content-Length: 4", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: x, chunked"],
        ["X-Forwarded-For: a\r\n Transfer-Encoding: chunked"],
        ["Via: 1\r\n\tb"],
        ["X-Forwarded-For: \0"],
        ["X-Forwarded-For: \x7f"],
        ["X-Forwarded-For : a"],
        ["X-Forwarded-For"],
        ["Via:a\nContent-Length: 4"],
        ["X-Real-IP: a\rb"],
        ["Authorization: Bearer x"],
        ["Connection: close"],
        ["Upgrade: websocket", "Connection: Upgrade"],
        ["Expect: 100-continue"],
        ["X-Request-ID: a", "X-Request-ID: b"],
    ],
    ids=repr,
)
def test_what_a_line_does_to_a_request_that_was_seen_it_does_on_the_whole_way(
    issuer: Issuer, wire: Wire, smuggled: list[str]
) -> None:
    request = compose("/metrics/echo?n=7104", **bearer(issuer.token()))
    warm(wire, request)
    follower = compose("/health/live", Connection="close")

    def outcome(ask: bytes) -> bytes:
        wire.close()
        with suppress(ConnectionError):  # it may be closed by then
            wire.send(added(ask, *smuggled))
            wire.read()
            wire.send(follower)
        while wire.read():
            pass
        ids = rb"(?im)^(date|age|x-request-id|traceparent|server-timing|sec-websocket-accept): .*\r\n"
        return re.sub(rb'"request_id":"[^"]*"', b"", re.sub(ids, b"", wire.rest))

    first, whole = outcome(request), outcome(whole_way(request))
    assert sorted(first.split(b"\r\n")) == sorted(whole.split(b"\r\n"))


@pytest.mark.parametrize(
    "broken",
    [
        (b"\r\n\r\n", b"\r\n\r\nvia: a\r\n"),
        (b"\r\n\r\n", b"\r\n\r\nvia: a"),
        (b"\r\n\r\n", b"\r\n\r\r\nx-real-ip: a\n"),
        (b"\r\n\r\n", b"\r\nx-real-ip: a\n\r\n"),
        (b"\r\n\r\n", b"\r\nx-real-ip: a\r\n\r\n\r\n"),
        (b"GET", b"via: a\r\nGET"),
        (b"GET", b"\r\nvia: a\r\nGET"),
        (b" HTTP/1.1\r\n", b"\r\nvia: a HTTP/1.1\r\n"),
        (b" HTTP/1.1\r\n", b" HTTP/1.1\r\nvia: a\r\r\n"),
        (b" HTTP/1.1\r\n", b" HTTP/1.1\r\nvia: a\r\n"),
    ],
    ids=repr,
)
def test_a_line_at_a_wrong_place_is_what_it_is_on_the_whole_way(
    issuer: Issuer, wire: Wire, broken: tuple[bytes, bytes]
) -> None:
    """The line that a proxy adds has been cut out of such a head before."""
    request = compose("/metrics/echo?n=7105", **bearer(issuer.token()))
    for line in ("Via: 1.1 a", "via: 1.1 a", "x-real-ip: 10.0.0.1"):
        warm(wire, added(request, line))

    def outcome(ask: bytes) -> list[int]:
        wire.close()
        with suppress(ConnectionError):
            wire.send(ask.replace(*broken, 1))
            time.sleep(0.1)
            wire.send(compose("/health/live", Connection="close"))
        while wire.read():
            pass
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", wire.rest)]

    assert outcome(request) == outcome(whole_way(request))


def test_a_reader_who_takes_nothing_stops_being_answered(guarded: Service, issuer: Issuer) -> None:
    """What waits to be sent is bounded, and everything that was asked for comes in the end."""
    wire = Wire(guarded)
    request = compose("/metrics/numbers?count=2000", **bearer(issuer.token()))
    body = warm(wire, request).body
    assert wire.socket
    wire.socket.settimeout(0.5)
    sent = 0
    try:
        for _ in range(200_000):
            wire.socket.sendall(request)
            sent += 1
    except TimeoutError:
        pass
    assert 0 < sent < 200_000
    wire.socket.settimeout(10)
    for _ in range(min(sent, 50)):
        assert wire.answer().body == body
    wire.close()


# ---- ten thousand interleavings


class Asked(NamedTuple):
    request: bytes
    method: str


def random_request(random: random.Random, tokens: list[str], etags: list[str]) -> Asked:
    path = random.choice(["/metrics/echo?n=1", "/metrics/echo?n=2", "/metrics/total", "/metrics/tenant"])
    path = random.choice(
        [path, path, "/metrics/payroll", path.replace("?", ".csv?"), "/metrics/none", "/metrics/echo?n=x"]
    )
    headers: dict[str, str] = bearer(random.choice(tokens))
    for name, values in {
        "If-None-Match": etags,
        "Accept": ["text/csv", "*/*", "application/x-ndjson"],
        "Accept-Encoding": ["gzip", "br"],
        "Cache-Control": ["max-age=60", "no-cache", "only-if-cached"],
    }.items():
        if values and random.random() < 0.2:
            headers[name] = random.choice(values)
    method = random.choice(["GET", "GET", "GET", "HEAD"])
    return Asked(compose(path, method, random.choice(["1.1"] * 9 + ["1.0"]), **headers), method)


def balanced(random: random.Random, request: bytes) -> bytes:
    """With lines that proxies add."""
    chosen = random.sample(list(BALANCER.items()), random.randint(0, 4))
    return added(request, *(f"{name}: {value.format(n=random.randrange(250))}" for name, value in chosen))


def changed_byte(random: random.Random, request: bytes) -> bytes:
    """One byte of the path or of a header's value is another letter."""
    places = [found.start() for found in re.finditer(rb"[a-z]", request)]
    place = random.choice(places)
    return request[:place] + random.choice(b"abcdefxyz").to_bytes() + request[place + 1 :]


def deliver(random: random.Random, wire: Wire, asked: Asked) -> Answer:
    """In one piece, in several, or in one with the request before it."""
    manner = random.random()
    if manner < 0.1:
        cut = random.randrange(1, len(asked.request))
        wire.send(asked.request[:cut], asked.request[cut:])
    elif manner < 0.2:
        wire.send(compose("/health/live") + asked.request)
        assert wire.answer().status == 200
    else:
        wire.send(asked.request)
    return wire.answer(asked.method)


async def test_ten_thousand_interleavings_come_to_what_the_whole_way_comes_to(
    guarded: Service, owner: asyncpg.Connection, issuer: Issuer
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    await owner.execute("INSERT INTO queries VALUES ('total', 'x') ON CONFLICT DO NOTHING")
    people: list[dict[str, Any]] = [{}, {"cognito:groups": ["finance"]}, {"custom:tenant": "a"}, {"custom:tenant": "b"}]
    tokens = [issuer.token(sub=f"user{i}", **claims) for i, claims in enumerate(people)]
    tokens.append(issuer.token(scope=BOTH_SCOPES.split()[1]))
    tokens.append(issuer.token(exp=int(time.time()) - 25))  # expires on the way
    wires = [Wire(guarded) for _ in range(3)]
    requests: list[Asked] = []
    etags: list[str] = []
    for step in range(10_000):
        if step % 500 == 0:
            await owner.execute("INSERT INTO metrics (id, obsolescence) VALUES ('total', 1)")
        if not requests or chance.random() < 0.1:
            requests = [*requests[-20:], random_request(chance, tokens, etags)]
        asked = chance.choice(requests)
        request = balanced(chance, asked.request)
        if chance.random() < 0.05:
            request = changed_byte(chance, request)
        asked = asked._replace(request=request)
        wire, oracle = chance.choice(wires), chance.choice(wires)
        for _ in range(20):  # until nothing happens between the two: a write that is heard of, a token that expires
            answer = deliver(chance, wire, asked)
            expected = oracle.ask(whole_way(request))
            if comparable(answer) == comparable(expected):
                break
        assert comparable(answer) == comparable(expected), f"seed {seed}, step {step}: {request!r}"
        if etag := answer.headers.get("etag"):
            etags = [*etags[-5:], etag]
    for wire in wires:
        wire.close()


def comparable(answer: Answer) -> tuple[int, dict[str, str], bytes]:
    status, headers, body = answer.without_own()
    headers.pop("cache-status", None)  # the first of two may be the one that runs
    return status, headers, re.sub(rb'"request_id":"[^"]*"', b"", body)
