"""Who is let in: tokens, scopes, roles and claims, and what becomes of all that when the issuer's keys cannot be had.

Most tests ask for a path that no route has: 404 is the first answer behind the verifier, and needs no database.
"""

import asyncio
import json
import math
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx
import pytest
from conftest import Serve
from helpers import Service, run_app, wait_until
from issuer import (
    ABSENT,
    BOTH_SCOPES,
    SECRET,
    Issuer,
    b64,
    broken_jwks,
    make_token,
    private_key,
    public_jwk,
    public_pem,
)
from starlette.routing import Route

import app

READ, WRITE = BOTH_SCOPES.split()
NOWHERE, LET_IN = "/nowhere", 404
NOBODY = "postgresql://nobody@127.0.0.1:1/nothing"
CLIENTS = "dashboard, reports"
Ask = Callable[..., httpx.Response]

QUERIES = {
    "payroll": "-- roles: operations, finance\nSELECT 1 AS n",
    "by-scope": f"-- roles: {WRITE}\nSELECT 1 AS n",
    "tenant": "-- claim value: custom:tenant\nSELECT :value::text AS value, :n::int4 AS n",
    "tenants": "-- claim value: custom:tenants\nSELECT :value::text[] AS value",
    "quota": "-- claim value: limits.quota\nSELECT :value::int4 AS value",
    "network": "-- claim value: custom:network\nSELECT :value::inet AS value",
}


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    issuer = Issuer("rsa", "ec", extra=broken_jwks())
    yield issuer
    issuer.close()


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Send a request with the token, if any, as bearer, or with a whole Authorization header."""
    with httpx.Client(timeout=15) as client:

        def ask(
            service: Service,
            token: str | bytes | None = None,
            path: str = NOWHERE,
            method: str = "GET",
            authorization: str | None = None,
            **headers: str,
        ) -> httpx.Response:
            value: Any = authorization
            if token is not None:
                value = b"Bearer " + (token if isinstance(token, bytes) else token.encode())
            if value is not None:
                headers["Authorization"] = value
            return client.request(method, service.url + path, headers=headers)

        yield ask


@pytest.fixture(scope="module")
def adrift(start_service: Serve, ask: Ask, issuer: Issuer) -> Service:
    """A service whose database is a port where nobody listens."""
    return start_adrift(start_service, ask, JWT_ISSUER=issuer.url, JWT_CLIENT_IDS=CLIENTS)


# One after the other: many at once on a busy machine outlast the patience of each.
STARTING = threading.Lock()


def start_adrift(start_service: Serve, ask: Ask, **env: str) -> Service:
    with STARTING:
        service = start_service(ready=False, DATABASE_URL=NOBODY, **env)
    wait_until(lambda: ask(service, path="/health/live").status_code == 200)
    return service


@pytest.fixture(scope="module")
def secured(start_service: Serve, issuer: Issuer, ask: Ask) -> Service:
    service = start_service(JWT_ISSUER=issuer.url, JWT_CLIENT_IDS=CLIENTS)
    add_queries(service, ask, issuer.token(**claim("cognito:groups", ["operations"])))
    return service


def add_queries(service: Service, ask: Ask, token: str) -> None:
    for metric_id, sql in QUERIES.items():
        (service.queries / f"{metric_id}.sql").write_text(sql)
    wait_until(lambda: listed(ask(service, token, "/metrics")).issuperset(set(QUERIES) - {"by-scope"}))


def listed(response: httpx.Response) -> set[str]:
    assert response.status_code == 200
    return {metric["id"] for metric in response.json()["metrics"]}


def challenge(response: httpx.Response) -> tuple[int, str | None]:
    """Status and WWW-Authenticate of a problem."""
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == response.status_code
    return response.status_code, response.headers.get("www-authenticate")


MISSING = (401, "Bearer")
INVALID = (401, 'Bearer error="invalid_token"')
CANNOT_READ = (403, f'Bearer error="insufficient_scope", scope="{READ}"')
CANNOT_WRITE = (403, f'Bearer error="insufficient_scope", scope="{READ} {WRITE}"')


# ------------------------------------------------------------------------------------------------ an issuer that fails


class Cold(NamedTuple):
    """What was answered during an outage while no key had ever been had."""

    good: list[httpx.Response]
    bad: list[httpx.Response]
    fetches: int


class Warm(NamedTuple):
    """What was answered during an outage after the endpoint had worked, and how long known keys took."""

    known: list[httpx.Response]
    seconds: float
    unknown: httpx.Response
    fetches: int


class Life(NamedTuple):
    """Outages at the start, one after the other, then keys, then the same outages, then a new key alone."""

    cold: dict[str, Cold]
    recovered: httpx.Response
    warm: dict[str, Warm]
    rotated: httpx.Response
    withdrawn: httpx.Response


PAIRS = [
    ("hang", "500"),
    ("drip", "html"),
    ("deep", "redirect"),
    ("large", "no-list"),
    ("no-keys", "nothing"),
    ("down",),
]
FAILING = [answer for pair in PAIRS for answer in pair]
AFTER_SUCCESS, AFTER_FAILURES = 10, (1, 2)


@pytest.fixture(scope="module", autouse=True)
def lives(start_service: Serve, ask: Ask) -> Iterator[dict[str, Future[Life]]]:
    """They go on beside the other tests, for most of a life is waiting for a cooldown."""
    with ThreadPoolExecutor(len(PAIRS)) as threads:
        futures = {pair: threads.submit(live, start_service, ask, pair) for pair in PAIRS}
        yield {answer: future for pair, future in futures.items() for answer in pair}


def live(start_service: Serve, ask: Ask, outages: Sequence[str]) -> Life:
    issuer = Issuer("rsa")
    service = start_adrift(start_service, ask, JWT_ISSUER=issuer.url)
    old, new = issuer.token(), issuer.token("rsa-new")
    cold, warm = {}, {}
    for outage, cooldown in zip(outages, AFTER_FAILURES, strict=False):
        issuer.switch(outage)
        cold[outage] = live_cold(service, ask, issuer)
        time.sleep(cooldown + 0.1)
    issuer.switch("keys")
    recovered = ask(service, old)
    time.sleep(AFTER_SUCCESS + 0.1)
    for outage, cooldown in zip(outages, AFTER_FAILURES, strict=False):
        issuer.switch(outage)
        warm[outage] = live_warm(service, ask, issuer, old)
        time.sleep(cooldown + 0.1)
    issuer.keys = ["rsa-new"]
    issuer.switch("keys")
    rotated, withdrawn = ask(service, new), ask(service, old)
    service.stop()
    issuer.close()
    return Life(cold, recovered, warm, rotated, withdrawn)


def live_cold(service: Service, ask: Ask, issuer: Issuer) -> Cold:
    fetches = issuer.fetches
    good = [ask(service, issuer.token()) for _ in range(2)]
    bad = [ask(service, token) for token in ("garbage", forged(issuer, "none"), "x" * 9000)]
    return Cold(good, bad, issuer.fetches - fetches)


def live_warm(service: Service, ask: Ask, issuer: Issuer, remembered: str) -> Warm:
    """Those with known keys ask while somebody waits for an unknown one."""
    fetches = issuer.fetches
    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(ask, service, issuer.token("rsa-unknown"))
        time.sleep(0.2)
        started = time.monotonic()
        known = [ask(service, issuer.token()), ask(service, remembered), ask(service, path="/health/live")]
        seconds = time.monotonic() - started
    return Warm(known, seconds, asking.result(), issuer.fetches - fetches)


def changed(response: httpx.Response, status: int) -> httpx.Response | None:
    return response if response.status_code != status else None


# ------------------------------------------------------------------------------------------------ tokens

NOT_BEARER = ["", "Bearer", "Basic dXNlcjpwYXNzd29yZA==", "Token abc", "bearertoken"]


@pytest.mark.parametrize("authorization", [None, *NOT_BEARER])
def test_without_a_bearer_token_the_challenge_names_no_error(ask: Ask, adrift: Service, authorization: str) -> None:
    assert challenge(ask(adrift, authorization=authorization)) == MISSING


@pytest.mark.parametrize("second", ["Bearer other", None])
def test_two_authorization_headers_are_a_malformed_request(adrift: Service, issuer: Issuer, second: str | None) -> None:
    token = f"Bearer {issuer.token()}"
    assert status_line(adrift, token) == f"HTTP/1.1 {LET_IN} Not Found"
    assert status_line(adrift, token, second or token) == "HTTP/1.1 400 Bad Request"


def status_line(service: Service, *authorizations: str) -> str:
    lines = [f"Authorization: {value}" for value in authorizations]
    head = "\r\n".join([f"GET {NOWHERE} HTTP/1.1", "Host: metrics", "Connection: close", *lines, "", ""])
    return exchange(service, head.encode()).decode().split("\r\n")[0]


def exchange(service: Service, request: bytes) -> bytes:
    """Send bytes and read until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", httpx.URL(service.url).port or 0), timeout=30) as wire:
        wire.sendall(request)
        return b"".join(iter(lambda: wire.recv(65536), b""))


def claim(name: str, value: Any) -> dict[str, Any]:
    """A claim whose name is no Python name."""
    return {name: value}


def now(seconds: float) -> int:
    return int(time.time() + seconds)


GOOD: dict[str, Callable[[Issuer], str]] = {
    "RS256": lambda issuer: issuer.token(),
    "ES256": lambda issuer: issuer.token("ec"),
    "expired, within the leeway": lambda issuer: issuer.token(exp=now(-15)),
    "nbf ahead, within the leeway": lambda issuer: issuer.token(nbf=now(15)),
    "iat ahead, within the leeway": lambda issuer: issuer.token(iat=now(15)),
    "no iat": lambda issuer: issuer.token(iat=ABSENT),
    "no sub": lambda issuer: issuer.token(sub=ABSENT),
    "no token_use": lambda issuer: issuer.token(token_use=ABSENT),
    "just under 8 KB": lambda issuer: issuer.token(pad="x" * 5300),
    "one scope": lambda issuer: issuer.token(scope=READ),
    "other scopes around": lambda issuer: issuer.token(scope=f"openid {READ} email"),
    "azp": lambda issuer: issuer.token(client_id=ABSENT, azp="reports"),
    "aud as text": lambda issuer: issuer.token(client_id=ABSENT, aud="reports"),
    "aud as list": lambda issuer: issuer.token(client_id=ABSENT, aud=["account", "reports"]),
    "client_id goes before azp and aud": lambda issuer: issuer.token(azp="other", aud="other"),
    "azp goes before aud": lambda issuer: issuer.token(client_id=ABSENT, azp="reports", aud="other"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_token_is_let_in(ask: Ask, adrift: Service, issuer: Issuer, name: str) -> None:
    assert ask(adrift, GOOD[name](issuer)).status_code == LET_IN


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "bEaReR"])
def test_the_scheme_may_be_in_any_case(ask: Ask, adrift: Service, issuer: Issuer, scheme: str) -> None:
    assert ask(adrift, authorization=f"{scheme} {issuer.token()}").status_code == LET_IN


def forged(issuer: Issuer, algorithm: str, key: Any = None, **header: Any) -> str:
    return issuer.token(header={"alg": algorithm, **header}, key=b"" if key is None else key)


def with_part(issuer: Issuer, index: int, part: str) -> str:
    parts = issuer.token().split(".")
    parts[index] = part
    return ".".join(parts)


def signed(issuer: Issuer, payload: str) -> str:
    return make_token({"alg": "RS256", "kid": "rsa"}, payload, private_key("rsa"))


def with_evil_url(issuer: Issuer, name: str, kid: Any = "rsa") -> str:
    return issuer.token(header={name: f"{issuer.url}/evil", "kid": kid}, key=private_key("rsa-evil"))


def variants(
    name: str, values: Sequence[Any], make: Callable[[Issuer, Any], str]
) -> dict[str, Callable[[Issuer], str]]:
    def maker(value: Any) -> Callable[[Issuer], str]:
        return lambda issuer: make(issuer, value)

    return {f"{name} {str(value)[:8]!r}": maker(value) for value in values}


NO_DATES: Any = (10**30, 10**400, math.inf, math.nan, "soon", [])
BAD: dict[str, Callable[[Issuer], str | bytes]] = {
    # Not a token
    "one word": lambda issuer: "garbage",
    "three words": lambda issuer: "a.b.c",
    "dots": lambda issuer: "..",
    "two tokens": lambda issuer: f"{issuer.token()} {issuer.token()}",
    "two tokens with a comma": lambda issuer: f"{issuer.token()},{issuer.token()}",
    "non-ASCII": lambda issuer: "é.é.é".encode(),
    "no UTF-8": lambda issuer: b"\xff.\xfe.\xfd",
    "a good token and non-ASCII": lambda issuer: f"{issuer.token()}é".encode(),
    "non-ASCII that a lenient decoder skips": lambda issuer: f"{issuer.token()}éé".encode(),
    "2 parts": lambda issuer: issuer.token().rpartition(".")[0],
    "4 parts": lambda issuer: issuer.token() + ".abc",
    "5 parts, as an encrypted token has": lambda issuer: issuer.token() + ".abc.def",
    "over 8 KB": lambda issuer: issuer.token(pad="x" * 7000),
    "60 KB": lambda issuer: issuer.token(pad="x" * 44_000),
    "the header is no object": lambda issuer: with_part(issuer, 0, b64(b"[1]")),
    "the header is no JSON": lambda issuer: with_part(issuer, 0, b64(b"{")),
    "the header is no UTF-8": lambda issuer: with_part(issuer, 0, b64(b'{"kid":"\xff"}')),
    "the header is deep": lambda issuer: with_part(issuer, 0, b64(b"[" * 4000)),
    "the payload is no object": lambda issuer: signed(issuer, "[1]"),
    "the payload is no JSON": lambda issuer: signed(issuer, "{"),
    "the payload is deep": lambda issuer: signed(issuer, "[" * 4000),
    "the payload was changed": lambda issuer: with_part(issuer, 1, b64(json.dumps(issuer.claims(sub="eve")).encode())),
    "the signature was changed": lambda issuer: with_part(issuer, 2, b64(b"x" * 256)),
    "no signature": lambda issuer: with_part(issuer, 2, ""),
    # Algorithms
    **variants("alg", ("none", "None", "NONE", "nOnE", ""), lambda issuer, alg: forged(issuer, alg)),
    "alg missing": lambda issuer: issuer.token(header={"alg": ABSENT}),
    "alg a number": lambda issuer: issuer.token(header={"alg": 256}, key=b""),
    "alg a list": lambda issuer: issuer.token(header={"alg": ["RS256"]}, key=b""),
    "HS256 with the public key": lambda issuer: forged(issuer, "HS256", public_pem("rsa")),
    "HS256 with the public key as a JWK": lambda issuer: forged(
        issuer, "HS256", json.dumps(public_jwk("rsa")).encode()
    ),
    "HS256 with an empty key": lambda issuer: issuer.token(header={"alg": "HS256"}, key=b"\0"),
    "RS384": lambda issuer: forged(issuer, "RS384", private_key("rsa")),
    "RS512": lambda issuer: forged(issuer, "RS512", private_key("rsa")),
    "PS256": lambda issuer: forged(issuer, "PS256", private_key("rsa")),
    "rs256": lambda issuer: issuer.token(header={"alg": "rs256"}, key=b"x"),
    # Headers that want something of whoever verifies
    "crit": lambda issuer: issuer.token(header={"crit": ["exp"], "exp": now(60)}),
    "crit with an unknown name": lambda issuer: issuer.token(header={"crit": ["urn:x"], "urn:x": 1}),
    "crit empty": lambda issuer: issuer.token(header={"crit": []}),
    "b64 false": lambda issuer: issuer.token(header={"crit": ["b64"], "b64": False}),
    "jku, known kid": lambda issuer: with_evil_url(issuer, "jku"),
    "jku, unknown kid": lambda issuer: with_evil_url(issuer, "jku", "rsa-evil"),
    "jku, no kid": lambda issuer: with_evil_url(issuer, "jku", ABSENT),
    "x5u, known kid": lambda issuer: with_evil_url(issuer, "x5u"),
    "x5u, unknown kid": lambda issuer: with_evil_url(issuer, "x5u", "rsa-evil"),
    "jwk, known kid": lambda issuer: issuer.token(header={"jwk": public_jwk("rsa-evil")}, key=private_key("rsa-evil")),
    "jwk, its own kid": lambda issuer: issuer.token("rsa-evil", header={"jwk": public_jwk("rsa-evil")}),
    "jwk, no kid": lambda issuer: issuer.token("rsa-evil", header={"jwk": public_jwk("rsa-evil"), "kid": ABSENT}),
    # Keys
    "kid unknown": lambda issuer: issuer.token("rsa-unknown"),
    **variants("kid", (5, None, ["rsa"], {}, ""), lambda issuer, kid: issuer.token(header={"kid": kid})),
    "kid missing": lambda issuer: issuer.token(header={"kid": ABSENT}),
    "another key": lambda issuer: issuer.token(key=private_key("rsa-evil")),
    "RS256 with the kid of an EC key": lambda issuer: issuer.token("rsa", header={"kid": "ec"}),
    "ES256 with the kid of an RSA key": lambda issuer: issuer.token("ec", header={"kid": "rsa"}),
    "a symmetric key among the public ones": lambda issuer: forged(issuer, "HS256", SECRET, kid="oct"),
    "an EC key said to be for RS256": lambda issuer: issuer.token("ec-as-rsa"),
    "an RSA key said to be for ES256": lambda issuer: issuer.token("rsa-as-ec"),
    "a key of another curve": lambda issuer: issuer.token("ec-p384", header={"alg": "ES384"}),
    "a key of another curve said to be for ES256": lambda issuer: issuer.token("ec-p384", header={"alg": "ES256"}),
    "a key of 1024 bits": lambda issuer: issuer.token("rsa-weak"),
    "a key for encryption": lambda issuer: issuer.token("rsa-enc"),
    "a key for RS384": lambda issuer: forged(issuer, "RS384", private_key("rsa-384"), kid="rsa-384"),
    "EdDSA": lambda issuer: forged(issuer, "EdDSA", private_key("ed"), kid="ed"),
    # Claims
    "exp missing": lambda issuer: issuer.token(exp=ABSENT),
    "exp past": lambda issuer: issuer.token(exp=now(-60)),
    **variants("exp", (*NO_DATES, 1e300, -math.inf, None, True, {}, -1, 0), lambda issuer, exp: issuer.token(exp=exp)),
    "nbf ahead": lambda issuer: issuer.token(nbf=now(60)),
    **variants("nbf", NO_DATES, lambda issuer, nbf: issuer.token(nbf=nbf)),
    **variants("iat", NO_DATES, lambda issuer, iat: issuer.token(iat=iat)),
    "iat ahead": lambda issuer: issuer.token(iat=now(60)),
    "iss missing": lambda issuer: issuer.token(iss=ABSENT),
    "iss another": lambda issuer: issuer.token(iss="https://evil.example"),
    "iss a longer one": lambda issuer: issuer.token(iss=issuer.url + "/"),
    "iss a list": lambda issuer: issuer.token(iss=[issuer.url]),
    "iss null": lambda issuer: issuer.token(iss=None),
    "sub a number": lambda issuer: issuer.token(sub=5),
    "an id token": lambda issuer: issuer.token(token_use="id", aud="dashboard", client_id=ABSENT),
    "token_use null": lambda issuer: issuer.token(token_use=None),
    "token_use a list": lambda issuer: issuer.token(token_use=["access"]),
    "half a character in a claim": lambda issuer: issuer.token(sub="\ud800"),
    "half a character deep in a claim": lambda issuer: issuer.token(**claim("custom:tenant", [{"name": "\ud800"}])),
    # Clients
    "another client": lambda issuer: issuer.token(client_id="other"),
    "a client's name and more": lambda issuer: issuer.token(client_id="dashboard2"),
    "the whole list as client": lambda issuer: issuer.token(client_id=CLIENTS),
    "no client": lambda issuer: issuer.token(client_id=ABSENT),
    "another azp": lambda issuer: issuer.token(client_id=ABSENT, azp="other"),
    "another aud": lambda issuer: issuer.token(client_id=ABSENT, aud="other"),
    "aud a list of others": lambda issuer: issuer.token(client_id=ABSENT, aud=["other", "another"]),
    "aud an empty list": lambda issuer: issuer.token(client_id=ABSENT, aud=[]),
    "aud a list of lists": lambda issuer: issuer.token(client_id=ABSENT, aud=[["dashboard"], {}]),
    "another client, but azp and aud listed": lambda issuer: issuer.token(
        client_id="other", azp="dashboard", aud="dashboard"
    ),
    "another azp, but aud listed": lambda issuer: issuer.token(client_id=ABSENT, azp="other", aud="dashboard"),
}


@pytest.mark.parametrize("name", BAD)
def test_every_bad_token_is_refused_alike(ask: Ask, adrift: Service, issuer: Issuer, name: str) -> None:
    response = ask(adrift, BAD[name](issuer))
    assert challenge(response) == INVALID
    assert response.json() == {
        "type": "about:blank",
        "title": "Unauthorized",
        "status": 401,
        "detail": "Send a valid access token: Authorization: Bearer <JWT>.",
        "instance": NOWHERE,
        "request_id": response.headers["x-request-id"],
    }
    assert "/evil" not in issuer.requests


def test_a_token_is_remembered_no_longer_than_it_holds(ask: Ask, adrift: Service, issuer: Issuer) -> None:
    token = issuer.token(exp=now(-27))
    assert ask(adrift, token).status_code == LET_IN
    assert ask(adrift, token).status_code == LET_IN
    refused = wait_until(lambda: changed(ask(adrift, token), LET_IN))
    assert challenge(refused) == INVALID


def test_the_log_has_the_reason_but_no_token(ask: Ask, adrift: Service, issuer: Issuer) -> None:
    good, bad = issuer.token(sub="grace"), issuer.token(iss="https://evil.example")
    ask(adrift, good)
    request_id = ask(adrift, bad).headers["x-request-id"]
    line = wait_until(lambda: next((line for line in adrift.log.read_text().splitlines() if request_id in line), None))
    assert "issuer" in json.loads(line)["reason"].lower()
    assert '"subject":"grace"' in adrift.log.read_text()
    for part in {*good.split("."), *bad.split(".")}:
        assert part not in adrift.log.read_text()


# ------------------------------------------------------------------------------------------------ scopes

NOT_THE_SCOPE = {
    "missing": ABSENT,
    "empty": "",
    "a prefix": "api/backend",
    "a longer one": f"{READ}_all",
    "upper case": READ.upper(),
    "the resource server alone": "api/",
    "separated by commas": f"{READ},{WRITE}",
    "a list": [READ],
    "a number": 5,
    "null": None,
    "another server's": "other/backend_access",
    "the writing one alone": WRITE,
}


@pytest.mark.parametrize("scope", NOT_THE_SCOPE.values(), ids=NOT_THE_SCOPE)
def test_reading_wants_the_read_scope_and_writing_both(ask: Ask, adrift: Service, issuer: Issuer, scope: Any) -> None:
    token = issuer.token(scope=scope)
    assert challenge(ask(adrift, token)) == CANNOT_READ
    assert challenge(ask(adrift, token, method="POST")) == CANNOT_WRITE


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_the_read_scope_alone_writes_nothing(ask: Ask, adrift: Service, issuer: Issuer, method: str) -> None:
    for scope in (READ, f"{READ} api/backend", f"{READ} {WRITE}x"):
        assert challenge(ask(adrift, issuer.token(scope=scope), method=method)) == CANNOT_WRITE
    assert ask(adrift, issuer.token(), method=method).status_code == LET_IN


@pytest.mark.parametrize(
    "path", ["/metrics", "/metrics/", "/metrics/total", "/metrics/total.csv", "//metrics", "/%6detrics"]
)
def test_head_and_every_spelling_of_a_path_want_the_same(ask: Ask, adrift: Service, issuer: Issuer, path: str) -> None:
    for method in ("GET", "HEAD"):
        response = ask(adrift, path=path, method=method)
        assert (response.status_code, response.headers.get("www-authenticate")) == MISSING
        response = ask(adrift, issuer.token(scope=""), path=path, method=method)
        assert (response.status_code, response.headers.get("www-authenticate")) == CANNOT_READ


# ------------------------------------------------------------------------------------------------ routes

PUBLIC = re.compile(r"/|/(docs|pages|\.well-known)(/.*)?|/openapi\.json|/prometheus|/health(/.*)?")
# What lets its caller in by its first message, and so has tests of its own.
SOCKETS = {"/live", "/live/"}
ROUTES = [
    (method, route.path)
    for route in app.app.routes
    if isinstance(route, Route) and route.path != "/mcp"  # whose tools want a scope each
    for method in sorted((route.methods or set()) - {"HEAD"})
]


def test_every_path_that_is_served_is_a_route_or_a_socket() -> None:
    others = [route for route in app.app.routes if not isinstance(route, Route)]
    assert {getattr(route, "path", None) for route in others} <= SOCKETS


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_route_lets_in_whom_the_document_says(
    ask: Ask, secured: Service, issuer: Issuer, method: str, path: str
) -> None:
    wanted = "public" if PUBLIC.fullmatch(path) else "read" if method == "GET" else "write"
    if not path.endswith("/{name}"):
        operation = httpx.get(f"{secured.url}/openapi.json").json()["paths"][path][method.lower()]
        scopes = {"public": [], "read": [{"bearer": [READ]}], "write": [{"bearer": [READ, WRITE]}]}
        assert operation["security"] == scopes[wanted]
        assert ("401" in operation["responses"]) == (wanted != "public" or path == "/openapi.json")
    path = re.sub(r"\{[^}]*\}", "total", path)
    tokens = [None, issuer.token(scope="openid"), issuer.token(scope=READ), issuer.token()]
    answers = [ask(secured, token, path, method) for token in tokens]
    refusals = {
        "public": [None, None, None, None],
        "read": [MISSING, CANNOT_READ, None, None],
        "write": [MISSING, CANNOT_WRITE, CANNOT_WRITE, None],
    }
    assert [challenge(answer) if answer.status_code in (401, 403) else None for answer in answers] == refusals[wanted]
    assert not [answer for answer in answers if answer.status_code >= 500]


# ------------------------------------------------------------------------------------------------ roles

ROLES: list[tuple[dict[str, Any], bool]] = [
    ({}, False),
    ({"cognito:groups": []}, False),
    ({"cognito:groups": ["sales"]}, False),
    ({"cognito:groups": ["Operations", "operation", "operations2", "operations, finance"]}, False),
    ({"cognito:groups": {"operations": True}}, False),
    ({"cognito:groups": [["operations"], None, 5]}, False),
    ({"groups": ["operations"]}, False),
    ({"cognito:groups": ["operations"]}, True),
    ({"cognito:groups": ["sales", "finance"]}, True),
    ({"scope": f"{READ} finance"}, True),
]


@pytest.mark.parametrize(("claims", "seen"), ROLES)
def test_a_metric_is_for_whoever_has_one_of_its_roles(
    ask: Ask, secured: Service, issuer: Issuer, claims: dict[str, Any], seen: bool
) -> None:
    token = issuer.token(**claims)
    assert ("payroll" in listed(ask(secured, token, "/metrics"))) is seen
    for path in ("/metrics/payroll", "/metrics/payroll.csv", "/metrics/payroll.ndjson", "/metrics/payroll/"):
        for _ in range(2):
            assert ask(secured, token, path).status_code == (200 if seen else 403)


def test_a_scope_is_a_role(ask: Ask, secured: Service, issuer: Issuer) -> None:
    writer, reader = issuer.token(), issuer.token(scope=READ)
    assert "by-scope" in listed(ask(secured, writer, "/metrics"))
    assert ask(secured, writer, "/metrics/by-scope").status_code == 200
    assert "by-scope" not in listed(ask(secured, reader, "/metrics"))
    assert ask(secured, reader, "/metrics/by-scope").status_code == 403


def test_the_role_is_looked_for_after_404_and_before_422(ask: Ask, secured: Service, issuer: Issuer) -> None:
    token = issuer.token()
    assert ask(secured, token, "/metrics/no-payroll").status_code == 404
    response = ask(secured, token, "/metrics/payroll?unknown=1")
    assert challenge(response) == (403, None)
    assert "SELECT" not in response.text


# ------------------------------------------------------------------------------------------------ claims

CLAIMED: list[tuple[str, dict[str, Any], Any]] = [
    ("tenant", {}, None),
    ("tenant", {"custom:tenant": None}, None),
    ("tenant", {"custom:tenant": "acme"}, "acme"),
    ("tenant", {"custom:tenant": "'; DROP TABLE metrics --"}, "'; DROP TABLE metrics --"),
    ("tenant", {"custom:tenant": 5}, "5"),
    ("tenants", {}, None),
    ("tenants", {"custom:tenants": []}, []),
    ("tenants", {"custom:tenants": "acme"}, ["acme"]),
    ("tenants", {"custom:tenants": ["acme", "b,c}", '"\\', "NULL", ""]}, ["acme", "b,c}", '"\\', "NULL", ""]),
    ("tenants", {"custom:tenants": ["acme", None]}, ["acme", None]),
    ("quota", {"limits": {"quota": 5}}, 5),
    ("quota", {"limits": {"quota": "5"}}, 5),
    ("quota", {"limits.quota": 5}, 5),
    ("quota", {"limits": {"quota": None}}, None),
    ("quota", {"limits": {}}, None),
    ("quota", {"limits": "none"}, None),
    ("network", {"custom:network": "10.0.0.0/8"}, "10.0.0.0/8"),
]
ILL_TYPED: list[tuple[str, Any]] = [
    ("tenant", {"custom:tenant": ["acme", "other"]}),
    ("tenant", {"custom:tenant": ["acme"]}),
    ("tenant", {"custom:tenant": []}),
    ("tenant", {"custom:tenant": {"name": "acme"}}),
    ("tenant", {"custom:tenant": "a\0b"}),
    ("tenants", {"custom:tenants": ["acme", "\0"]}),
    ("quota", {"limits": {"quota": "five"}}),
    ("quota", {"limits": {"quota": 1.5}}),
    ("quota", {"limits": {"quota": True}}),
    ("quota", {"limits": {"quota": 2**31}}),
    ("quota", {"limits": {"quota": 10**400}}),
    ("quota", {"limits": {"quota": [1, 2]}}),
    ("quota", {"limits": {"quota": {"a": 1}}}),
    ("network", {"custom:network": "nowhere"}),
]


@pytest.mark.parametrize(("metric", "claims", "value"), CLAIMED)
def test_a_claim_is_bound_from_the_token(
    ask: Ask, secured: Service, issuer: Issuer, metric: str, claims: dict[str, Any], value: Any
) -> None:
    response = ask(secured, issuer.token(**claims), f"/metrics/{metric}")
    assert response.status_code == 200
    assert response.json()["records"][0]["value"] == value


@pytest.mark.parametrize(("metric", "claims"), ILL_TYPED)
def test_an_ill_typed_claim_is_forbidden(
    ask: Ask, secured: Service, issuer: Issuer, metric: str, claims: dict[str, Any]
) -> None:
    assert ask(secured, issuer.token(**claims), f"/metrics/{metric}").status_code == 403


@pytest.mark.parametrize("query", ["value=other", "value=", "value=acme", "n=1&value=other", "v%61lue=other"])
def test_a_claim_in_the_url_is_an_error(ask: Ask, secured: Service, issuer: Issuer, query: str) -> None:
    response = ask(secured, issuer.token(**claim("custom:tenant", "acme")), f"/metrics/tenant?{query}")
    assert response.status_code == 422
    assert [error["name"] for error in response.json()["errors"]] == ["value"]


def test_a_claim_is_no_parameter_that_a_caller_could_send(ask: Ask, secured: Service, issuer: Issuer) -> None:
    metrics = ask(secured, issuer.token(), "/metrics").json()["metrics"]
    names = {metric["id"]: [parameter["name"] for parameter in metric["parameters"]] for metric in metrics}
    assert names["tenant"] == ["n"]


@pytest.mark.parametrize("path", ["/metrics/tenant", "/metrics/tenant.csv", "/metrics/tenant.ndjson?n=1"])
def test_each_tenant_gets_its_own_result(ask: Ask, secured: Service, issuer: Issuer, path: str) -> None:
    """Whoever asks first, asks again, or sends the other's ETag."""
    tokens = {tenant: issuer.token(**claim("custom:tenant", tenant)) for tenant in ("acme", "globex")}
    for tenant, other in [("acme", "globex"), ("globex", "acme"), ("globex", "acme"), ("acme", "globex")]:
        response = ask(secured, tokens[tenant], path)
        assert response.status_code == 200
        assert tenant in response.text
        assert other not in response.text
        answer = ask(secured, tokens[other], path, **claim("If-None-Match", response.headers["etag"]))
        assert answer.status_code == 200
        assert other in answer.text


@pytest.mark.anyio
async def test_tenants_who_ask_at_once_get_their_own_results(secured: Service, issuer: Issuer) -> None:
    tenants = [f"tenant-{number % 4}" for number in range(40)]
    tokens = {tenant: issuer.token(**claim("custom:tenant", tenant)) for tenant in tenants}
    async with httpx.AsyncClient(base_url=secured.url, timeout=15) as client:
        headers = [{"Authorization": f"Bearer {tokens[tenant]}"} for tenant in tenants]
        answers = await asyncio.gather(*(client.get("/metrics/tenant?n=7", headers=each) for each in headers))
    assert [answer.json()["records"][0]["value"] for answer in answers] == tenants


def test_odd_characters_in_a_subject_harm_nobody(ask: Ask, secured: Service, issuer: Issuer) -> None:
    for subject in ("\0", "a\nb", "é", ""):
        assert ask(secured, issuer.token(sub=subject), "/metrics").status_code == 200


# ------------------------------------------------------------------------------------------------ a pool's own tokens


@pytest.fixture(scope="module")
def moto(ask: Ask) -> Iterator[str]:
    """The URL of a stand-in for AWS."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: httpx.get(f"{url}/moto-api/").status_code == 200, 30)
    yield url
    process.kill()
    process.wait()


class Pool:
    """A Cognito user pool with one user in one group."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.id = self.call("CreateUserPool", PoolName="metrics")["UserPool"]["Id"]
        self.issuer = f"https://cognito-idp.us-east-1.amazonaws.com/{self.id}"
        self.jwks_url = f"{url}/{self.id}/.well-known/jwks.json"
        user = {"UserPoolId": self.id, "Username": "ada"}
        self.call("AdminCreateUser", **user)
        self.call("AdminSetUserPassword", Password="Correct-horse-7", Permanent=True, **user)
        self.call("CreateGroup", UserPoolId=self.id, GroupName="operations")
        self.call("AdminAddUserToGroup", GroupName="operations", **user)

    def call(self, operation: str, **body: Any) -> dict[str, Any]:
        target = f"AWSCognitoIdentityProviderService.{operation}"
        headers = {"X-Amz-Target": target, "Content-Type": "application/x-amz-json-1.1"}
        response = httpx.post(self.url, json=body, headers=headers, timeout=30)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json() if response.content else {}
        return answer

    def create_client(self, name: str) -> str:
        flows = ["ALLOW_USER_PASSWORD_AUTH"]
        answer = self.call("CreateUserPoolClient", UserPoolId=self.id, ClientName=name, ExplicitAuthFlows=flows)
        return str(answer["UserPoolClient"]["ClientId"])

    def sign_in(self, client: str) -> dict[str, str]:
        who = {"USERNAME": "ada", "PASSWORD": "Correct-horse-7"}
        answer = self.call("InitiateAuth", ClientId=client, AuthFlow="USER_PASSWORD_AUTH", AuthParameters=who)
        tokens: dict[str, str] = answer["AuthenticationResult"]
        return tokens


def test_a_pool_s_access_token_is_let_in_and_its_id_token_is_not(start_service: Serve, ask: Ask, moto: str) -> None:
    pool = Pool(moto)
    ours, theirs = pool.create_client("ours"), pool.create_client("theirs")
    scope = "aws.cognito.signin.user.admin"
    env = {"JWT_ISSUER": pool.issuer, "JWKS_URL": pool.jwks_url, "JWT_CLIENT_IDS": ours, "JWT_READ_SCOPE": scope}
    service = start_service(**env)
    tokens = pool.sign_in(ours)
    add_queries(service, ask, tokens["AccessToken"])
    assert ask(service, tokens["AccessToken"], "/metrics/payroll").status_code == 200
    assert challenge(ask(service, tokens["IdToken"], "/metrics")) == INVALID
    assert challenge(ask(service, pool.sign_in(theirs)["AccessToken"], "/metrics")) == INVALID
    wanted = f'Bearer error="insufficient_scope", scope="{scope} {WRITE}"'
    assert challenge(ask(service, tokens["AccessToken"], "/metrics", "POST")) == (403, wanted)


# ------------------------------------------------------------------------------------------------ open mode


def test_without_an_issuer_everybody_is_let_in_on_loopback(ask: Ask, service: Service, issuer: Issuer) -> None:
    assert "JWT_ISSUER is not set" in service.log.read_text()
    for token in (None, "garbage", issuer.token()):
        assert ask(service, token, "/metrics").status_code == 200


def test_without_an_issuer_other_addresses_are_refused() -> None:
    done = run_app("--port", "0", "--host", "0.0.0.0", DATABASE_URL=NOBODY)
    assert done.returncode == 1
    assert "JWT_ISSUER" in done.stderr


def test_auth_off_lets_everybody_in_on_any_address(start_service: Serve, ask: Ask, issuer: Issuer) -> None:
    service = start_service("--host", "0.0.0.0", AUTH="off", JWT_ISSUER=issuer.url)
    add_queries(service, ask, "garbage")
    assert ask(service, path="/metrics/payroll").status_code == 200
    assert ask(service, path="/metrics/tenant").json()["records"][0]["value"] is None
    assert ask(service, path="/metrics/tenant?value=acme").status_code == 422
    service.stop()


# ------------------------------------------------------------------------------------------------ keys


def test_a_flood_of_unknown_keys_costs_one_fetch(start_service: Serve, ask: Ask) -> None:
    """And while it goes on, whoever has a valid token is let in; here the one fetch takes a second."""
    issuer = Issuer("rsa", answer="slow")
    service = start_adrift(start_service, ask, JWT_ISSUER=issuer.url)
    payload_and_signature = issuer.token().partition(".")[2]
    headers = [b64(json.dumps({"alg": "RS256", "kid": f"random-{number}"}).encode()) for number in range(2000)]
    heads = [f"GET {NOWHERE} HTTP/1.1\r\nHost: m\r\nAuthorization: Bearer {head}." for head in headers]
    requests = [f"{head}{payload_and_signature}\r\n\r\n".encode() for head in heads]
    last = f"GET {NOWHERE} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n".encode()
    started = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        floods = [threads.submit(exchange, service, b"".join(requests[n::4]) + last) for n in range(4)]
        valid = [ask(service, issuer.token(sub=f"user-{number}")).status_code for number in range(20)]
        answers = b"".join(flood.result() for flood in floods)
    assert time.monotonic() - started < 60
    assert valid == [LET_IN] * 20
    assert answers.count(b"HTTP/1.1 401 ") == 2004
    assert answers.count(b'error="invalid_token"') == 2000
    assert issuer.fetches == 1
    service.stop()
    issuer.close()


@pytest.mark.parametrize("outage", FAILING)
def test_keys_that_were_never_had_are_503(lives: dict[str, Future[Life]], outage: str) -> None:
    """One fetch serves both requests, and what is bad without looking at a key is bad all the same."""
    cold = lives[outage].result().cold[outage]
    for response in cold.good:
        assert challenge(response) == (503, None)
        assert int(response.headers["retry-after"]) >= 1
    assert [challenge(response) for response in cold.bad] == [INVALID] * 3
    assert cold.fetches == (0 if outage == "down" else 1)


@pytest.mark.parametrize("outage", FAILING)
def test_known_keys_serve_on_while_the_endpoint_fails(lives: dict[str, Future[Life]], outage: str) -> None:
    warm = lives[outage].result().warm[outage]
    assert [response.status_code for response in warm.known] == [LET_IN, LET_IN, 200]
    assert warm.seconds < 3  # a fetch may take as long
    assert challenge(warm.unknown) == INVALID
    assert warm.fetches == (0 if outage == "down" else 1)


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_keys_are_fetched_when_a_cooldown_is_over(lives: dict[str, Future[Life]], pair: tuple[str, ...]) -> None:
    """A new key is taken, and a withdrawn one refused, also to tokens that were remembered."""
    life = lives[pair[0]].result()
    assert life.recovered.status_code == LET_IN
    assert life.rotated.status_code == LET_IN
    assert challenge(life.withdrawn) == INVALID
