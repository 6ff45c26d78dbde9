"""One PostgreSQL and one service a session, empty tables for each test; `serve` starts more services with settings."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import asyncpg
import httpx
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from seed import embedded  # noqa: E402


class Service(NamedTuple):
    url: str
    process: subprocess.Popen[str]
    log: Path
    queries: Path

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(15)


T = TypeVar("T")
Serve = Callable[..., Service]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
async def cluster(anyio_backend: str) -> AsyncIterator[str]:
    """The URL of an empty database on a server of its own."""
    data = Path(tempfile.mkdtemp(prefix="metrics-api-test-"))
    data.chmod(0o755)  # as root, the database's user must reach it
    server = await embedded.start(data)
    conn = await asyncpg.connect(server.dsn)
    await conn.execute("CREATE DATABASE metrics_test")
    await conn.close()
    yield server.dsn.replace("/postgres?", "/metrics_test?")
    await server.stop()
    shutil.rmtree(data)


@pytest.fixture(scope="session")
def database_url(cluster: str) -> str:
    return cluster


@pytest.fixture(scope="session")
def start_service(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start `python app.py` on a free port, on the session's database unless told otherwise."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, ready: bool = True, **env: str) -> Service:
        queries = tmp_path_factory.mktemp("project") / "queries"
        shutil.copytree(ROOT / "tests" / "queries", queries)
        log = queries.parent / "log"
        settings = {"DATABASE_URL": cluster, "QUERIES_DIR": str(queries), **env}
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        command = [sys.executable, "-W", "error", str(ROOT / "app.py"), "--port", "0", *arguments]
        with log.open("w") as out:
            process = subprocess.Popen(command, env=inherited | settings, stdout=out, stderr=out, text=True)
        started.append(process)
        service = Service(wait_for_url(process, log), process, log, queries)
        if ready:
            wait_until(lambda: httpx.get(f"{service.url}/health/ready", verify=False).status_code == 200)
        return service

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for_url(process: subprocess.Popen[str], log: Path) -> str:
    def announced() -> str | None:
        assert process.poll() is None, log.read_text()
        found = re.search(r"^Metrics API on (http://\S+)", log.read_text(), re.MULTILINE)
        return found[1] if found else None

    return wait_until(announced)


def wait_until(condition: Callable[[], T | None], seconds: float = 15) -> T:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if result := condition():
                return result
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


@pytest.fixture(scope="session")
def service(start_service: Serve) -> Service:
    return start_service()


@pytest.fixture
async def owner(cluster: str, service: Service) -> AsyncIterator[asyncpg.Connection]:
    """The owner's connection to a database without records and without metrics of the database's own."""
    conn = await asyncpg.connect(cluster, server_settings={"timezone": "UTC"})
    for table in ("metrics", "layout_items"):  # quicker than TRUNCATE, which makes files anew
        await conn.execute(f"DELETE FROM {table}")
    await conn.execute("DELETE FROM metric_configurations WHERE source <> 'file'")
    await conn.execute(
        "DELETE FROM queries AS q WHERE NOT EXISTS (SELECT FROM metric_configurations WHERE query_id = q.id)"
    )
    yield conn
    await conn.close()


@pytest.fixture
async def client(service: Service, owner: asyncpg.Connection) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, timeout=30, verify=False) as client:
        yield client


async def eventually(condition: Callable[[], object], seconds: float = 5) -> None:
    """Wait until an async condition holds."""
    deadline = time.monotonic() + seconds
    while not await condition():  # type: ignore[misc]
        assert time.monotonic() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0.02)
