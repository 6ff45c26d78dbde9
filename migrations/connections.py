"""Reads connection strings as libpq does, and connects as it would; logins and what poolers do to them."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import os
import random
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import quote, urlencode

import asyncpg

if TYPE_CHECKING:
    import psycopg

ANY = ".*"
UNCHECKED = "asks for a check of the server that only libpq makes"
# What becomes of each of libpq's parameters, and so of its variables (PGHOST is host's): the values that are taken, or
# are harmless to ignore, and what that means, or why the others are refused.
PARAMETERS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("service", "user", "password", "passfile", "dbname", "options"), (ANY, "taken")),
    **dict.fromkeys(("host", "hostaddr", "port", "target_session_attrs", "load_balance_hosts"), (ANY, "taken")),
    **dict.fromkeys(("sslmode", "sslnegotiation", "sslrootcert", "sslcrl", "sslcrldir"), (ANY, "taken")),
    **dict.fromkeys(("sslcert", "sslkey", "sslpassword", "krbsrvname"), (ANY, "taken")),
    **dict.fromkeys(("ssl_min_protocol_version", "ssl_max_protocol_version"), (ANY, "taken")),
    **dict.fromkeys(("application_name", "fallback_application_name"), (ANY, "sessions are named after their purpose")),
    **dict.fromkeys(("keepalives", "keepalives_idle", "keepalives_interval"), (ANY, "time limits and a heartbeat do")),
    **dict.fromkeys(("keepalives_count", "tcp_user_timeout"), (ANY, "time limits and a heartbeat do")),
    **dict.fromkeys(("min_protocol_version", "max_protocol_version"), (ANY, "every server speaks 3.0")),
    **dict.fromkeys(("sslcompression", "sslsni", "sslkeylogfile"), (ANY, "changes nothing that is sent or read")),
    **dict.fromkeys(("gssdelegation", "gsslib"), (ANY, "the defaults do")),
    "channel_binding": (ANY, "kept to by libpq, which migrates; Neon's strings ask for it"),
    "client_encoding": (ANY, "UTF-8 is spoken"),
    "connect_timeout": (ANY, "POOL_TIMEOUT bounds it"),
    "sslcertmode": ("disable|allow", UNCHECKED),
    **dict.fromkeys(("require_auth", "requirepeer"), ("", UNCHECKED)),
    "gssencmode": ("disable|prefer", "asks for encryption by Kerberos; use sslmode"),
    "replication": ("false|off|no|0", "asks for a session that runs no queries"),
    **dict.fromkeys(("scram_client_key", "scram_server_key"), ("", "stands for a password, which is needed itself")),
    **dict.fromkeys(("oauth_issuer", "oauth_client_id", "oauth_scope"), ("", "is for logins without a password")),
    "oauth_client_secret": ("", "is for logins without a password"),
}
SESSION_ATTRIBUTES = {"read-write": "primary", "read-only": "standby"}  # sessions that only read would count as such
OPPORTUNISTIC = ("prefer", "allow")
CLIENT_FILES = ("sslcert", "sslkey", "sslpassword", "ssl_min_protocol_version", "ssl_max_protocol_version")
SOCKETS = "/var/run/postgresql"
# Contradict each other, which is the last that libpq looks at: it has read everything, and connects to nothing.
CONTRADICTION = {"min_protocol_version": "latest", "max_protocol_version": "3.0"}


def read(url: str) -> dict[str, str]:
    """The parameters that libpq would use: the string's, its variables', those of service and password files, defaults.

    Raises ValueError, which never repeats the string.
    """
    # Those who start the embedded database load it meanwhile.
    import psycopg
    from psycopg import pq
    from psycopg.conninfo import make_conninfo

    try:
        conn = pq.PGconn.connect_start(os.fsencode(make_conninfo(url, **CONTRADICTION)))
    except psycopg.ProgrammingError:
        raise ValueError("must be a URL such as postgresql://user:password@host:5432/database") from None
    said = conn.error_message.decode(errors="replace").strip()
    if "max_protocol_version" not in said:
        raise ValueError(f"is refused: {said}")
    options = {option.keyword.decode(): os.fsdecode(option.val) for option in conn.info if option.val}
    return options | {"password": os.fsdecode(conn.password)}


def check(options: dict[str, str]) -> None:
    """Raises ValueError for what cannot be kept to."""
    from psycopg import pq

    variables = {option.keyword.decode(): option.envvar for option in pq.Conninfo.get_defaults()}
    for name, value in options.items():
        taken, reason = PARAMETERS.get(name, (ANY, ""))
        if not re.fullmatch(taken, value, re.DOTALL):
            origin = f" (or {variable.decode()})" if (variable := variables[name]) else ""
            raise ValueError(f"has a parameter that is not taken: {name}{origin} {reason}")


def places(options: dict[str, str]) -> dict[tuple[str, int], str]:
    """Address and port of each host, and the name by which its certificate knows it; raises ValueError."""
    addresses = options.get("hostaddr", "").split(",")
    names = options["host"].split(",") if "host" in options else addresses
    ports = options["port"].split(",")
    ports *= len(names) // len(ports)
    found = {}
    for name, address, port in itertools.zip_longest(names, addresses, ports, fillvalue=""):
        if not re.fullmatch(r"\d{0,5}", port, re.ASCII) or not 0 < int(port or 5432) < 2**16:
            raise ValueError("must name a port from 1 to 65535")
        found[address or name or SOCKETS, int(port or 5432)] = name
    return found


class Context(ssl.SSLContext):
    """TLS that knows servers by their names where their addresses were given, too."""

    names: dict[str, str]

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        name = self.names.get(str(server_hostname)) or server_hostname
        return super().wrap_bio(incoming, outgoing, server_side, name, session)


def tls(options: dict[str, str], names: dict[str, str]) -> Context:
    """What sslmode and the files beside it, or those in libpq's places, come to; raises ValueError."""
    home, mode = Path("~/.postgresql").expanduser(), options["sslmode"]
    context = Context(ssl.PROTOCOL_TLS_CLIENT)
    context.names, context.check_hostname = names, mode == "verify-full"
    context.set_alpn_protocols(["postgresql"])
    for bound in ("minimum", "maximum"):
        if version := options.get(f"ssl_{bound[:3]}_protocol_version"):
            setattr(context, f"{bound}_version", ssl.TLSVersion[f"TLSv{version[4:].replace('.', '_')}"])
    root = options.get("sslrootcert") or existing(home / "root.crt")
    if mode in OPPORTUNISTIC or not (root or mode.startswith("verify")):
        context.verify_mode = ssl.CERT_NONE
    elif root == "system":
        context.load_default_certs()
    else:
        load("sslrootcert", context.load_verify_locations, root or str(home / "root.crt"))
    crl, directory = options.get("sslcrl") or existing(home / "root.crl"), options.get("sslcrldir")
    if context.verify_mode and (crl or directory):
        load("sslcrl", context.load_verify_locations, crl, directory)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    # To libpq, one that is missing is none.
    cert = existing(Path(options.get("sslcert") or home / "postgresql.crt"))
    if cert and options.get("sslcertmode") != "disable":
        key = options.get("sslkey") or existing(home / "postgresql.key")
        load("sslcert", context.load_cert_chain, cert, key, lambda: options.get("sslpassword", ""))
    return context


def existing(path: Path) -> str | None:
    return str(path) if os.path.exists(path) else None


def load(option: str, read: Callable[..., None], *args: Any) -> None:
    """Raises ValueError."""
    try:
        read(*args)
    except OSError as exc:
        path = next(arg for arg in args if arg)
        raise ValueError(f"names a file with {option} that cannot be used: {path}: {exc.strerror}") from exc


def asyncpg_tls(options: dict[str, str], names: dict[str, str]) -> dict[str, Any]:
    """Raises ValueError."""
    mode = options["sslmode"]
    if mode == "disable" or not names:
        return {"ssl": False, "direct_tls": False}
    context = tls(options, names)
    if mode not in OPPORTUNISTIC:
        return {"ssl": context, "direct_tls": options["sslnegotiation"] == "direct"}
    # Only asyncpg itself can go on without; it takes files from nowhere but a URL.
    files = {name: options[name] for name in CLIENT_FILES if name in options}
    if "sslcert" in files and not existing(Path(files["sslcert"])):
        raise ValueError(f"names an sslcert that is missing: {files['sslcert']}")
    return {"ssl": mode, "direct_tls": False, "dsn": f"postgresql:///?{urlencode(files, quote_via=quote)}"}


class Target:
    """What a variable names: one server or several, and whether a pooler stands between, once that is known."""

    def __init__(self, variable: str, url: str) -> None:
        """Raises ValueError, which says what is wrong with the variable."""
        options = read(url)
        check(options)
        found = places(options)
        self.variable, self.url = variable, url
        self.user, self.password = options["user"], options["password"]
        self.random = options["load_balance_hosts"] == "random"
        self.pooled: bool | None = None
        self.looking: asyncio.Task[None] | None = None
        self.places = list(found)
        wanted = options["target_session_attrs"]
        self.arguments: dict[str, Any] = {
            "database": options["dbname"],
            "target_session_attrs": SESSION_ATTRIBUTES.get(wanted, wanted),
            "krbsrvname": options["krbsrvname"],
            "server_settings": {"options": options["options"]} if "options" in options else {},
            **asyncpg_tls(options, {host: name for (host, _), name in found.items() if not host.startswith("/")}),
        }

    def names_login(self, user: str) -> bool:
        """Whether it says itself as whom to connect, other than as a user whose password is derived."""
        from psycopg.conninfo import conninfo_to_dict

        named = conninfo_to_dict(self.url)
        if named.keys() & {"password", "service"} or named.get("user", user) != user:
            return True
        return "user" in named and self.password not in ("", os.environ.get("PGPASSWORD"))


class Login(NamedTuple):
    """Where and as whom to connect; user and password, if given, go before the target's."""

    target: Target
    user: str | None = None
    password: str | None = None

    def open(self) -> psycopg.Connection:
        """A connection of libpq's own; raises psycopg.OperationalError."""
        import psycopg

        return psycopg.connect(
            self.target.url, user=self.user, password=self.password, autocommit=True, connect_timeout=5
        )


def derived_login(owner: Target, named: Target | None, hosts: Target, user: str) -> Login:
    """The login that a variable names, or one that the migrations create, on its hosts or else on those of another.

    Its password follows from the owner's, so that every instance knows it; an owner without one gives one without.
    """
    if named and named.names_login(user):
        return Login(named)
    password = hmac.new(owner.password.encode(), user.encode(), "sha256").hexdigest() if owner.password else None
    return Login(named or hosts, user, password)


class MigrationFailed(Exception):
    """What libpq or the database says against a migration."""


class TransactionPooling(ConnectionError):
    """A pooler gives each transaction another session."""


WHO = "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = PG_BACKEND_PID()"


def look(login: Login, conn: psycopg.Connection) -> None:
    """Notice a pooler, which gives out process ids of its own; raises TransactionPooling."""
    conn.prepare_threshold = None
    first = conn.execute(WHO).fetchone()
    pooled = first is not None and first[0] != conn.info.backend_pid
    if pooled and shares_sessions(login, conn):
        raise TransactionPooling(
            f"{login.target.variable} goes through a pooler in transaction mode, which loses settings, statements and"
            " LISTEN: name the database's own host instead (Neon: without -pooler; Supabase: port 5432)"
        )
    login.target.pooled = pooled


def shares_sessions(login: Login, conn: psycopg.Connection) -> bool:
    """Whether a second client may get a session of the first one's, or the first one several."""
    mine = {conn.execute(WHO).fetchone()}
    with login.open() as other:
        other.prepare_threshold = None
        for _ in range(3):
            with other.transaction():
                if other.execute(WHO).fetchone() in mine:
                    return True
                mine.add(conn.execute(WHO).fetchone())
            mine.add(conn.execute(WHO).fetchone())
    return len(mine) > 1


def look_anew(login: Login) -> None:
    """Raises TransactionPooling, or ConnectionError when nothing answers."""
    import psycopg

    try:
        with login.open() as conn:
            look(login, conn)
    except psycopg.OperationalError as exc:
        raise ConnectionError(str(exc).strip()) from exc


async def looked(login: Login) -> None:
    """Look once for all who ask meanwhile, lest a host that says nothing takes every thread; raises as look_anew()."""
    target = login.target
    if target.looking is None or target.looking.done():
        target.looking = asyncio.create_task(asyncio.to_thread(look_anew, login), name=f"look at {target.variable}")
        target.looking.add_done_callback(lambda task: task.cancelled() or task.exception())
    await asyncio.shield(target.looking)


# What a statement raises that names a login or a database in vain.
NAMED_IN_VAIN = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)
SERVER_DOWN = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)


def meaning(exc: BaseException | None) -> Exception | None:
    """What an error stands for that is none of the session's own, or None: bad data, or a server behind this one.

    Citus has nodes and postgres_fdw others' servers, of which a session that goes on tells as of errors in a statement.
    """
    if not isinstance(exc, asyncpg.PostgresError) or exc.severity_en != "ERROR":
        return None
    if isinstance(exc, NAMED_IN_VAIN):
        return cast(Exception, asyncpg.DataError(str(exc)))
    if isinstance(exc, SERVER_DOWN) or "failure on connection marked as essential" in str(exc):
        return ConnectionError(str(exc))
    return None


TELL = "SELECT tell_of_changes($1)"


@asynccontextmanager
async def changing(conn: asyncpg.Connection, *tables: str) -> AsyncIterator[None]:
    """A transaction that tells all instances which tables it changes, and again when it is over where that is due."""
    async with conn.transaction():
        yield
        again = await conn.fetchval(TELL, tables)
    if again:
        await conn.execute(TELL, tables)


class Session(asyncpg.Connection):  # type: ignore[misc] # asyncpg has no types
    """One whose end the server may have seen to: asyncpg closes expired sessions in tasks that nobody awaits."""

    settings = ""  # statements that make what the session lacks, and lacks again when it is reset

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's signature
        with suppress(OSError):
            await super().close(timeout=timeout)

    def get_reset_query(self) -> str:
        return f"{super().get_reset_query()}\n{self.settings}"


MAX_ERROR = 2**19  # bytes, more than any quote from the longest SQL that is taken


class ShortErrors:
    """Hands on what the server sends, but cuts long errors: asyncpg takes minutes over one of a hundred megabytes."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol
        self.held = bytearray()
        self.skip = 0  # bytes to come of an error that was cut

    def data_received(self, data: bytes) -> None:
        """PostgreSQL's messages are a letter, the length of what follows in four bytes, and the rest."""
        self.held += data[self.skip :]
        self.skip = max(self.skip - len(data), 0)
        while len(self.held) >= 5:
            size = 1 + int.from_bytes(self.held[1:5])
            kept = MAX_ERROR if self.held[0] == ord("E") and size > MAX_ERROR else size
            if len(self.held) < kept:
                break
            message = bytes(self.held[:kept])
            if kept < size:
                # Ends behind the last whole character, and its fields end with a zero byte each.
                text = message[5:].decode(errors="ignore").encode() + b"\0\0"
                message = b"E" + (4 + len(text)).to_bytes(4) + text
            self.skip = max(size - len(self.held), 0)
            del self.held[:size]
            self.protocol.data_received(message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.protocol, name)


class GuestSession(Session):
    """One for SQL that nobody reviewed, whose errors may be of any length."""

    def __init__(self, protocol: asyncio.Protocol, transport: asyncio.Transport, *args: Any) -> None:
        super().__init__(protocol, transport, *args)
        transport.set_protocol(cast(Any, ShortErrors(protocol)))


async def connect(
    login: Login, *, patience: float, server_settings: Mapping[str, str], **options: Any
) -> asyncpg.Connection:
    """Connect as libpq would, but leave out those of several hosts that say nothing for so many seconds.

    A pooler refuses settings, or drops them, so they are made when the session is there.
    """
    target = login.target
    if target.pooled is None:
        await looked(login)
    given = target.arguments["server_settings"]
    named = {"user": login.user or target.user, "password": login.password or target.password or None}
    options = {"connection_class": Session, **target.arguments, **named, **options}
    options["server_settings"] = given if target.pooled else {**given, **server_settings}
    conn = await connect_any(target, patience, options)
    if target.pooled:
        conn.settings = "".join(f"SET {name} = '{value}';" for name, value in server_settings.items())
        await conn.execute(conn.settings)
    return conn


async def connect_any(target: Target, patience: float, options: dict[str, Any]) -> asyncpg.Connection:
    found = random.sample(target.places, len(target.places)) if target.random else target.places
    hosts = options | hosts_of(found)
    if len(found) == 1:
        return await asyncpg.connect(**hosts)
    with suppress(TimeoutError):
        return await asyncpg.connect(**hosts | {"timeout": patience})

    async def speaks(place: tuple[str, int]) -> bool:
        alone = hosts_of([place]) | {"target_session_attrs": "any", "timeout": patience / 2}
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            (await asyncpg.connect(**options | alone)).terminate()
            return True
        return False

    speaking = list(itertools.compress(found, await asyncio.gather(*map(speaks, found))))
    if not speaking:
        raise ConnectionError("no host says anything")
    return await asyncpg.connect(**options | hosts_of(speaking))


def hosts_of(found: Sequence[tuple[str, int]]) -> dict[str, Any]:
    return {"host": [host for host, _ in found], "port": [port for _, port in found]}
