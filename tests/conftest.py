"""One PostgreSQL and one service a session, empty tables for each test; `serve` starts more services with settings.

    TEST_DATABASE_URL=postgresql://… pytest      on that database, whose records and metrics go

What a database that is given cannot do is skipped; that of a Citus cluster may be distributed beforehand.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from helpers import APP, ROOT, Service, chromium, launch, wait_for_url, wait_until
from issuer import Issuer

from seed import embedded

Serve = Callable[..., Service]
GIVEN = os.environ.get("TEST_DATABASE_URL")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """A database that is given takes one test at a time."""
    if GIVEN:
        config.option.numprocesses = 0


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
async def cluster(anyio_backend: str) -> AsyncIterator[str]:
    """The URL of an empty database on a server of its own, or of the one that is given."""
    if GIVEN:
        yield GIVEN
        return
    data = Path(tempfile.mkdtemp(prefix="metrics-api-test-"))
    data.chmod(0o755)  # as root, the database's user must reach it
    server = await embedded.start(data)
    conn = await asyncpg.connect(server.dsn)
    await conn.execute("CREATE DATABASE metrics_test")
    await conn.close()
    yield server.dsn.replace("/postgres?", "/metrics_test?")
    await server.stop()
    shutil.rmtree(data)


@contextmanager
def starting(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """What starts `python app.py` on a free port, on the session's database unless told otherwise."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, ready: bool = True, **env: str) -> Service:
        queries = tmp_path_factory.mktemp("project") / "queries"
        shutil.copytree(ROOT / "tests" / "queries", queries)
        log = queries.parent / "log"
        settings = {"DATABASE_URL": cluster, "QUERIES_DIR": str(queries), **env}
        process = launch([*APP, "--port", "0", *arguments], log, settings)
        started.append(process)
        service = Service(wait_for_url(process, log), process, log, queries)
        if ready:
            wait_until(lambda: httpx.get(f"{service.url}/health/ready", verify=False).status_code == 200)
        return service

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def start_service(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """For services that end with their module: each one follows every change of the database."""
    with starting(cluster, tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="session")
def service(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with starting(cluster, tmp_path_factory) as start:
        yield start()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    issuer = Issuer("rsa", "ec")
    yield issuer
    issuer.close()


@pytest.fixture(scope="session")
async def triggers(cluster: str, service: Service) -> None:
    """For tests that write past the service and expect that it hears of it."""
    conn = await asyncpg.connect(cluster)
    watched = await conn.fetchval("SELECT 'metrics'::regclass IN (SELECT relation FROM watches)")
    await conn.close()
    if not watched:
        pytest.skip("the engine has no triggers for this table")


@pytest.fixture(scope="session")
async def owners(cluster: str) -> AsyncIterator[asyncpg.Pool]:
    """One connection, for a session of PostgreSQL's costs more than most tests do."""
    async with asyncpg.create_pool(cluster, min_size=1, max_size=1, server_settings={"timezone": "UTC"}) as pool:
        yield pool


# What tests leave behind, in the order in which it may go.
LEFT = (
    "metrics",
    "layout_items",
    "metric_configurations WHERE source <> 'file'",
    "queries AS q WHERE NOT EXISTS (SELECT FROM metric_configurations WHERE query_id = q.id)",
)


@pytest.fixture
async def owner(owners: asyncpg.Pool, service: Service) -> AsyncIterator[asyncpg.Connection]:
    """The owner's connection to a database without records and without metrics of the database's own."""
    async with owners.acquire() as conn:
        for rows in LEFT:
            # Every service follows a deletion, of nothing, too.
            if await conn.fetchval(f"SELECT 1 FROM {rows} LIMIT 1"):
                await conn.execute(f"DELETE FROM {rows}")
        yield conn


@pytest.fixture
async def client(service: Service, owner: asyncpg.Connection) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, timeout=30, verify=False) as client:
        yield client
