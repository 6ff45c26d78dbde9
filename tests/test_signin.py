"""Signing in on the dashboard, in a real browser, with an OpenID Connect provider of its own process and origin."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from conftest import Serve
from helpers import ROOT, Service, wait_until
from test_dashboard import DESKTOP, context_of, expect, violations

import app


@contextmanager
def provider_on(port: int) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, str(ROOT / "tests" / "provider.py"), str(port)])
    wait_until(lambda: httpx.get(f"http://127.0.0.1:{port}/.well-known/openid-configuration").status_code == 200)
    yield
    process.terminate()
    process.wait(15)


@pytest.fixture(scope="module")
def free_ports() -> list[int]:
    with closing(socket.create_server(("127.0.0.1", 0))) as one, closing(socket.create_server(("127.0.0.1", 0))) as two:
        return [int(probe.getsockname()[1]) for probe in (one, two)]


@pytest.fixture(scope="module")
def service(start_service: Serve, free_ports: list[int]) -> Iterator[Service]:
    with provider_on(free_ports[0]):
        issuer = f"http://127.0.0.1:{free_ports[0]}"
        started = start_service(JWT_ISSUER=issuer, JWT_CLIENT_IDS="dashboard", BROWSER_CLIENT_ID="dashboard")
        # A provider that is slow at first is one that cannot be reached, for the page.
        wait_until(lambda: "token_endpoint" in httpx.get(started.url).text)
        yield started
        started.stop()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page whose console must stay silent: an error, a warning or what its policy forbids fails the test."""
    context = context_of(browser, DESKTOP)
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    yield opened
    context.close()
    assert [text for text in said if not text.startswith("Failed to load resource")] == []


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name)


def sign_in(page: Any, url: str, person: str = "Ada") -> None:
    page.goto(url)
    button(page, "Sign in").click()
    button(page, person).click()


def stored(page: Any) -> str:
    return str(page.evaluate("JSON.stringify([{ ...sessionStorage }, { ...localStorage }])"))


def expect_tiles(page: Any) -> None:
    expect(page.locator(".cell[data-state=ready]").first).to_be_visible()
    expect(button(page, "Sign in")).to_be_hidden()


def expect_sentence(page: Any, url: str, sentence: str) -> None:
    """It says what went wrong, offers the button again, and neither address bar nor storage knows of the attempt."""
    expect(page.get_by_role("alert").filter(has_text=sentence)).to_be_visible()
    expect(button(page, "Sign in")).to_be_visible()
    assert page.url == url
    assert stored(page) == "[{},{}]"


def test_signing_in_leads_back_to_the_same_view(page: Any, service: Service) -> None:
    """The token is in the page's memory alone, and a reload signs in again without a question."""
    view = f"{service.url}/?period=7&find=total"
    frames: list[str] = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda frame: frames.append(frame)))
    sign_in(page, view)
    expect_tiles(page)
    assert page.url == view
    expect(page.get_by_label("Period")).to_have_value("7")
    expect(page.locator("#state")).to_have_attribute("data-state", "live")
    assert json.loads(frames[0])["type"] == "auth"
    assert stored(page) == '[{"signed-in":"yes"},{}]'
    expect(button(page, "New tile")).to_be_visible()

    page.reload()
    expect_tiles(page)
    assert page.url == view


def test_signing_out_ends_both_sessions(page: Any, service: Service) -> None:
    sign_in(page, service.url)
    expect_tiles(page)
    button(page, "Sign out").click()
    expect(button(page, "Sign in")).to_be_visible()
    assert violations(page) == []
    assert page.url == f"{service.url}/"
    assert stored(page) == "[{},{}]"
    page.reload()
    expect(page.locator(".cell")).to_have_count(0)
    button(page, "Sign in").click()
    expect(button(page, "Ada")).to_be_visible()


def test_who_may_only_read_is_offered_nothing_else(page: Any, service: Service) -> None:
    sign_in(page, service.url, "Rita")
    expect_tiles(page)
    for name in ("New tile", "Edit"):
        expect(button(page, name)).to_be_hidden()
    page.locator(".cell").first.get_by_label("Menu").click()
    expect(button(page, "Full screen")).to_be_visible()
    for name in ("Rename", "Delete"):
        expect(button(page, name)).to_be_hidden()


@pytest.mark.parametrize(
    ("person", "sentence"), [("Lena", "took too long"), ("Nobody", "did not sign you in: nobody was chosen")]
)
def test_a_sign_in_that_fails_says_so(page: Any, service: Service, person: str, sentence: str) -> None:
    view = f"{service.url}/?period=7"
    sign_in(page, view, person)
    expect_sentence(page, view, sentence)


def test_the_answer_to_another_sign_in_is_not_used(page: Any, service: Service) -> None:
    """A link with somebody else's code would sign people in as that somebody."""
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method) if "/token" in request.url else None)
    page.goto(f"{service.url}/?code=stolen&state=guessed")
    expect_sentence(page, f"{service.url}/", "not begun in this tab")

    button(page, "Sign in").click()
    expect(button(page, "Ada")).to_be_visible()
    asked = dict(parse_qsl(urlsplit(page.url).query))
    assert asked["code_challenge_method"] == "S256"
    page.goto(f"{asked['redirect_uri']}?code=stolen&state=guessed")
    expect_sentence(page, f"{service.url}/", "not begun in this tab")
    assert "POST" not in sent


def test_an_id_token_for_another_sign_in_is_not_used(page: Any, service: Service) -> None:
    def of_another(route: Any) -> None:
        route.continue_(url=re.sub(r"nonce=[^&]+", "nonce=other", route.request.url))

    page.route(re.compile("/authorization"), of_another)
    sign_in(page, service.url)
    expect_sentence(page, f"{service.url}/", "not begun in this tab")


def test_a_token_is_renewed_while_it_can_be(page: Any, service: Service) -> None:
    """The open socket gets the new one."""
    tokens: list[str] = []

    def heard(frame: str) -> None:
        message = json.loads(frame)
        if message["type"] == "auth":
            tokens.append(message["token"])

    page.on("websocket", lambda socket: socket.on("framesent", heard))
    sign_in(page, service.url, "Otto")
    expect_tiles(page)
    with page.expect_request(lambda request: "refresh_token" in (request.post_data or "")):
        pass
    wait_until(lambda: page.wait_for_timeout(50) or len(set(tokens)) >= 2)
    expect_tiles(page)


def test_what_is_shown_stays_when_a_token_cannot_be_renewed(page: Any, service: Service) -> None:
    sign_in(page, service.url, "Iris")
    expect(page.get_by_role("alert").filter(has_text="Your sign-in has ended")).to_be_visible()
    expect(page.locator(".cell[data-state=ready]").first).to_be_visible()
    expect(button(page, "Sign in")).to_be_visible()


def test_a_provider_that_is_down_is_said(page: Any, start_service: Serve, free_ports: list[int]) -> None:
    """The page is served all the same; one that goes down later is not gone to."""
    port = free_ports[1]
    service = start_service(JWT_ISSUER=f"http://127.0.0.1:{port}", BROWSER_CLIENT_ID="dashboard", ready=False)
    said = page.get_by_role("alert").filter(has_text="The sign-in page cannot be reached")
    wait_until(lambda: httpx.get(f"{service.url}/health/live").status_code == 200)
    page.goto(service.url)
    expect(said).to_be_visible()
    with provider_on(port):

        def there() -> bool:
            button(page, "Try again").click()
            expect(page.locator("#enter")).to_be_visible()
            return bool(button(page, "Sign in").is_visible())

        wait_until(there)
    button(page, "Sign in").click()
    expect(said).to_be_visible()
    assert page.url == f"{service.url}/"
    service.stop()


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://other.example"},
        {"token_endpoint": "http://issuer.example/token"},
        {"token_endpoint": "https://issuer.example/; script-src *"},
        {"end_session_endpoint": "javascript:alert(1)"},
    ],
)
def test_a_configuration_that_is_not_the_issuer_s_or_not_safe_is_refused(change: dict[str, str]) -> None:
    issuer = "https://issuer.example"
    names = ("authorization_endpoint", "token_endpoint", "end_session_endpoint")
    document = {"issuer": issuer} | {name: f"{issuer}/{name}" for name in names}
    assert app.parse_endpoints(issuer, json.dumps(document).encode()).keys() == set(names)
    with pytest.raises(ValueError, match="another issuer"):
        app.parse_endpoints(issuer, json.dumps(document | change).encode())
