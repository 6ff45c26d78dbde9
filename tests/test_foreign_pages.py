"""A page of another site, in a real browser on the machine of an open service, neither reads nor writes there."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from helpers import Service, chromium

# Reads, writes without a preflight, as JSON and as text, and listens; null for what the page is not told.
ATTACK = """async (service) => {
	const told = (answer) => answer.then((got) => got.text(), () => null)
	const metric = '{"query": "SELECT 1 AS stolen", "title": "Stolen"}'
	for (const body of [metric, new Blob([metric])]) {
		await told(fetch(`${service}/metrics`, { method: 'POST', mode: 'no-cors', body }))
	}
	const socket = new WebSocket(`${service.replace('http', 'ws')}/live`)
	const code = await new Promise((resolve) => { socket.onclose = (event) => resolve(event.code) })
	const read = (path) => told(fetch(`${service}/metrics${path}`))
	return { code, list: await read(''), hit: await read('/echo?n=1') }
}"""


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>A page</title>")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def foreign_port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with chromium("--host-resolver-rules=MAP evil.example 127.0.0.1") as browser:
        yield browser.new_page()


def titles(service: Service) -> set[str]:
    return {metric["title"] for metric in httpx.get(f"{service.url}/metrics").json()["metrics"]}


def refused(service: Service, written: int) -> list[int]:
    """The statuses of what the browser asked for since the log was so long."""
    lines = [json.loads(line) for line in service.log.read_text()[written:].splitlines()]
    return sorted({line["status"] for line in lines if line["message"] == "request" and line.get("status")})


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "evil.example"])
def test_a_page_of_another_origin_neither_reads_nor_writes(
    page: Any, service: Service, foreign_port: int, host: str
) -> None:
    httpx.get(f"{service.url}/metrics/echo?n=1")
    page.goto(f"http://{host}:{foreign_port}/")
    written = len(service.log.read_text())
    assert page.evaluate(ATTACK, service.url) == {"code": 4403, "list": None, "hit": None}
    assert "Stolen" not in titles(service)
    assert 403 in refused(service, written)


def test_a_name_that_comes_to_mean_this_machine_neither_reads_nor_writes(page: Any, service: Service) -> None:
    """DNS rebinding: to the browser, the service is what the page came from."""
    httpx.get(f"{service.url}/metrics/echo?n=1")
    rebound = f"http://evil.example:{urlsplit(service.url).port}"
    assert page.goto(f"{rebound}/").status == 421
    got = page.evaluate(ATTACK, rebound)
    assert got["code"] == 4403
    assert [json.loads(got[name])["status"] for name in ("list", "hit")] == [421, 421]
    assert "Stolen" not in titles(service)


def test_the_service_s_own_page_may_do_all_that(page: Any, service: Service) -> None:
    page.goto(f"{service.url}/docs")
    script = "async () => (await (await fetch('metrics/echo?n=1')).json()).id"
    assert page.evaluate(script) == "echo"
