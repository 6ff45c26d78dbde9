"""An OpenID Connect provider on loopback, for browsers: `python tests/provider.py PORT`.

Authorization code with PKCE (RFC 7636), codes and refresh tokens that count once, a session of its own in a cookie.
Who signs in is a button of its page, and decides what the tokens are like.
"""

import base64
import hashlib
import secrets
import sys
import time
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

import uvicorn
from issuer import BOTH_SCOPES, make_token, private_key, public_jwk
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

PORT = int(sys.argv[1])
URL = f"http://127.0.0.1:{PORT}"


class Person(NamedTuple):
    """Lifetimes in seconds."""

    scope: str = BOTH_SCOPES
    token: float = 3600
    code: float = 60
    renewals: int = 1000


PEOPLE = {
    "Ada": Person(),
    "Rita, who may only read": Person(scope="api/backend_access"),
    "Otto, whose tokens are short": Person(token=2),
    "Iris, whose tokens cannot be renewed": Person(token=2, renewals=0),
    "Lena, whose code has expired": Person(code=0),
}


class Grant(NamedTuple):
    person: str
    asked: dict[str, str]
    until: float
    renewals: int


grants: dict[str, Grant] = {}  # by code or refresh token


def give(grant: Grant) -> str:
    grants[name := secrets.token_urlsafe(16)] = grant
    return name


async def configuration(request: Request) -> Response:
    document = {"issuer": URL, "jwks_uri": f"{URL}/.well-known/jwks.json"}
    return JSONResponse(document | {f"{name}_endpoint": f"{URL}/{name}" for name in ENDPOINTS})


async def keys(request: Request) -> Response:
    return JSONResponse({"keys": [public_jwk("rsa")]})


async def authorization(request: Request) -> Response:
    """A page to choose a person on, or the answer at once for whoever is known by the cookie."""
    asked = dict(request.query_params)
    wanted = {"response_type": "code", "code_challenge_method": "S256", "client_id": "dashboard"}
    if not (wanted.items() <= asked.items() and "openid" in asked["scope"].split()):
        return HTMLResponse("This client may not ask that.", 400)
    if person := request.cookies.get("person"):
        return answer(asked, person)
    if asked.get("prompt") == "none":
        return send_back(asked, error="login_required")
    buttons = "".join(f'<button name=person value="{name}">{name}</button>' for name in [*PEOPLE, "Nobody"])
    return HTMLResponse(f"<!doctype html><title>Who are you?</title><form method=post>{buttons}</form>")


async def choose(request: Request) -> Response:
    asked = dict(request.query_params)
    person = dict(parse_qsl((await request.body()).decode()))["person"]
    if person == "Nobody":
        return send_back(asked, error="access_denied", error_description="nobody was chosen")
    response = answer(asked, person)
    response.set_cookie("person", person, httponly=True)
    return response


def answer(asked: dict[str, str], person: str) -> Response:
    code = give(Grant(person, asked, time.time() + PEOPLE[person].code, PEOPLE[person].renewals))
    return send_back(asked, code=code)


def send_back(asked: dict[str, str], **said: str) -> Response:
    return RedirectResponse(f"{asked['redirect_uri']}?{urlencode(said | {'state': asked['state']})}", 303)


async def token(request: Request) -> Response:
    """Tokens for a code or a refresh token, neither of which is worth anything afterwards."""
    form = dict(parse_qsl((await request.body()).decode()))
    grant = grants.pop(form.get("code") or form.get("refresh_token", ""), None)
    if grant is None or time.time() >= grant.until or not proves(form, grant.asked):
        return to_page({"error": "invalid_grant"}, 400)
    return to_page(tokens(grant), 200)


def proves(form: dict[str, str], asked: dict[str, str]) -> bool:
    if form["client_id"] != asked["client_id"] or form["grant_type"] == "refresh_token":
        return form["client_id"] == asked["client_id"]
    digest = hashlib.sha256(form["code_verifier"].encode()).digest()
    challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    return (challenge, form["redirect_uri"]) == (asked["code_challenge"], asked["redirect_uri"])


def tokens(grant: Grant) -> dict[str, Any]:
    person = PEOPLE[grant.person]
    now = int(time.time())
    own = {"iss": URL, "sub": grant.person, "iat": now, "exp": now + person.token}
    access = {"client_id": "dashboard", "token_use": "access", "scope": person.scope, "jti": secrets.token_hex(8)}
    refresh = Grant(grant.person, grant.asked, now + 3600, grant.renewals - 1)
    return {
        "access_token": sign(own | access),
        "id_token": sign(own | {"aud": "dashboard", "nonce": grant.asked["nonce"], "name": grant.person}),
        "token_type": "Bearer",
        "expires_in": person.token,
        "refresh_token": give(refresh) if grant.renewals else "spent",
    }


def sign(claims: dict[str, Any]) -> str:
    return make_token({"alg": "RS256", "kid": "rsa"}, claims, private_key("rsa"))


def to_page(content: dict[str, Any], status: int) -> Response:
    """For a page of another origin to read."""
    return JSONResponse(content, status, {"Access-Control-Allow-Origin": "*", "Cache-Control": "no-store"})


async def end_session(request: Request) -> Response:
    response = RedirectResponse(request.query_params["post_logout_redirect_uri"], 303)
    response.delete_cookie("person")
    return response


ENDPOINTS = {"authorization": authorization, "token": token, "end_session": end_session}
app = Starlette(
    routes=[
        Route("/.well-known/openid-configuration", configuration),
        Route("/.well-known/jwks.json", keys),
        Route("/authorization", authorization),
        Route("/authorization", choose, methods=["POST"]),
        Route("/token", token, methods=["POST"]),
        Route("/end_session", end_session),
    ]
)

if __name__ == "__main__":
    uvicorn.run(app, port=PORT, log_level="warning")
