"""Behind a proxy that strips a path prefix: nginx where it is installed, a small one of the test's otherwise."""

import shutil
import socket
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from helpers import Service, wait_until

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
CONFIG = """\
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    scgi_temp_path scgi;
    uwsgi_temp_path uwsgi;
    map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}
    server {{
        listen 127.0.0.1:{port};
        location /api/ {{
            proxy_pass {service}/;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
        }}
    }}
}}
"""


def pump(read: Callable[[], bytes], write: Callable[[bytes], object]) -> None:
    with suppress(OSError, ValueError):
        while piece := read():
            write(piece)


class OneRequest(socketserver.StreamRequestHandler):
    """Takes the prefix off a connection's one request and hands on everything else as it is."""

    def handle(self) -> None:
        first, *lines = iter(self.rfile.readline, b"\r\n")
        if not any(line.lower().startswith(b"upgrade:") for line in lines):
            lines = [line for line in lines if not line.lower().startswith(b"connection:")] + [b"Connection: close\r\n"]
        with socket.create_connection(self.server.upstream) as upstream:  # type: ignore[attr-defined]
            upstream.sendall(b"".join([first.replace(b" /api/", b" /", 1), *lines, b"\r\n"]))
            threading.Thread(target=pump, args=(self.rfile.read1, upstream.sendall), daemon=True).start()
            pump(lambda: upstream.recv(65536), self.wfile.write)
        with suppress(OSError):
            self.request.shutdown(socket.SHUT_RDWR)


@contextmanager
def small_proxy(service: Service) -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), OneRequest) as proxy:
        proxy.daemon_threads = True
        parts = urlsplit(service.url)
        proxy.upstream = (parts.hostname, parts.port)  # type: ignore[attr-defined]
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield proxy.server_address[1]
        proxy.shutdown()


@contextmanager
def nginx(service: Service, directory: Path) -> Iterator[int]:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = int(probe.getsockname()[1])
    (directory / "nginx.conf").write_text(CONFIG.format(port=port, service=service.url))
    process = subprocess.Popen([str(NGINX), "-p", str(directory), "-c", "nginx.conf"], stderr=subprocess.DEVNULL)
    yield port
    process.terminate()
    process.wait(15)


@pytest.fixture(scope="module")
def prefix(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL below which a proxy serves the service."""
    with nginx(service, tmp_path_factory.mktemp("nginx")) if NGINX else small_proxy(service) as port:
        url = f"http://127.0.0.1:{port}/api"
        wait_until(lambda: httpx.get(f"{url}/health").status_code == 200)
        yield url


def test_the_document_s_server_is_below_the_prefix(prefix: str) -> None:
    document = httpx.get(f"{prefix}/openapi.json")
    (server,) = document.json()["servers"]
    assert urljoin(str(document.url), server["url"]) == f"{prefix}/"


@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
def test_the_location_of_a_new_metric_is_below_the_prefix(service: Service, prefix: str, path: str) -> None:
    for root in (service.url, prefix):
        made = httpx.post(root + path, json={"query": "SELECT 1 AS one"})
        assert made.status_code == 201
        location = urljoin(str(made.url), made.headers["location"])
        assert location == f"{root}/metrics/{made.json()['id']}"
        assert httpx.delete(location).status_code == 204


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page whose console must stay silent."""
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    page.close()
    assert said == []


@pytest.mark.parametrize("path", ["/docs", "/docs/"])
def test_the_docs_page_tries_operations_out_below_the_prefix(page: Any, prefix: str, path: str, tmp_path: Path) -> None:
    page.goto(prefix + path)
    page.click("#operations-tag-metrics")
    page.click("#operations-metrics-read_total")
    page.click("#operations-metrics-read_total .try-out__btn")
    page.click("#operations-metrics-read_total .execute")
    page.wait_for_selector("#operations-metrics-read_total .live-responses-table >> text=records")
    assert page.locator(".request-url pre").inner_text() == f"{prefix}/metrics/total"
    page.screenshot(path=tmp_path / "docs.png")
    page.click("text=Dashboard")
    page.wait_for_selector(".cell[data-id=total][data-state=ready]")
    assert page.url == f"{prefix}/"


def test_the_dashboard_and_its_socket_are_below_the_prefix(page: Any, prefix: str, tmp_path: Path) -> None:
    sockets: list[str] = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    page.goto(f"{prefix}/")
    page.wait_for_selector(".cell[data-id=total][data-state=ready]")
    assert sockets == [f"{prefix.replace('http', 'ws')}/live"]
    page.screenshot(path=tmp_path / "dashboard.png")
