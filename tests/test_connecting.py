"""Connection strings, each tried with both drivers on Debian's PostgreSQL with TLS, and poolers before it."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import httpx
import psycopg
import pytest
from conftest import Serve
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from helpers import run_app, wait_until
from psycopg import pq
from rig import free_port

import app
from migrations import connections
from migrations.connections import Login, Target

pytestmark = pytest.mark.anyio

PROGRAMS = Path("/usr/lib/postgresql/15/bin")
PGBOUNCER = Path("/usr/sbin/pgbouncer")
HBA = """\
local all all trust
hostssl certified owner samehost cert
hostnossl plain all samehost scram-sha-256
hostssl secured all samehost scram-sha-256
host records all samehost scram-sha-256
"""
POOLS = """\
[databases]
session = host={home} port={database} dbname=records pool_mode=session
transaction = host={home} port={database} dbname=records pool_mode=transaction
single = host={home} port={database} dbname=records pool_mode=transaction pool_size=1
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {home}/users
{more}
"""
DROPS = "ignore_startup_parameters = statement_timeout, lock_timeout, jit, idle_in_transaction_session_timeout,"
DROPS += " default_transaction_read_only\nserver_round_robin = 1"


class Place(NamedTuple):
    """Debian's PostgreSQL on a socket below home and on TCP with TLS, and poolers as installed and as often set up."""

    home: Path
    port: int
    pooler: int
    dropping: int


def issue(home: Path, name: str, host: str, issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None = None) -> Any:
    """Write a key and a certificate for it, which the issuer signs, or else the key itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    by, signer = issuer or (subject, key)
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(by, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    certificate = builder.sign(signer, hashes.SHA256())
    (home / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    (home / f"{name}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, secret))
    (home / f"{name}.key").chmod(0o600)
    return subject, key


@contextmanager
def running(command: Sequence[str | Path], user: str | None, port: int) -> Iterator[None]:
    """A server that takes connections on a port of 127.0.0.1, with no groups but the user's own."""
    process = subprocess.Popen(
        command, user=user, extra_groups=[] if user else None, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def answers() -> bool:
        assert process.poll() is None, command
        try:
            psycopg.connect(f"postgresql://nobody@127.0.0.1:{port}/none")
        except psycopg.OperationalError as exc:
            return "refused" not in str(exc)
        return True

    try:
        wait_until(answers)
        yield
    finally:
        process.terminate()
        process.wait(15)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    if not (PROGRAMS.is_dir() and PGBOUNCER.exists()):
        pytest.skip("Debian's postgresql-15 and pgbouncer are not installed")
    home = Path(tempfile.mkdtemp(prefix="metrics-api-connecting-"))
    user = "postgres" if os.geteuid() == 0 else None
    issuer = issue(home, "ca", "Tests")
    issue(home, "server", "localhost", issuer)
    issue(home, "client", "owner", issuer)
    issue(home, "stranger", "localhost")
    home.chmod(0o755)
    if user:
        for path in (home, home / "server.key"):
            shutil.chown(path, user)
    port, pooler, dropping = free_port(), free_port(), free_port()
    initdb: list[str | Path] = [
        PROGRAMS / "initdb",
        "-D",
        home / "data",
        "--no-sync",
        "--auth=trust",
        "--username=owner",
    ]
    subprocess.run(initdb, user=user, check=True, stdout=subprocess.DEVNULL)
    (home / "data" / "pg_hba.conf").write_text(HBA)
    (home / "users").write_text("".join(f'"{name}" ""\n' for name in ("owner", "metrics_reader", "metrics_guest")))
    settings = f"listen_addresses=127.0.0.1 unix_socket_directories={home} port={port} fsync=off timezone=Asia/Tokyo"
    settings += f" ssl=on ssl_cert_file={home}/server.crt ssl_key_file={home}/server.key ssl_ca_file={home}/ca.crt"
    server: list[str | Path] = [PROGRAMS / "postgres", "-D", home / "data"]
    for setting in settings.split():
        server += ["-c", setting]
    for name, number, more in (("stock", pooler, ""), ("dropping", dropping, DROPS)):
        (home / f"{name}.ini").write_text(POOLS.format(home=home, database=port, port=number, more=more))
    with ExitStack() as servers:
        servers.enter_context(running(server, user, port))
        with psycopg.connect(f"host={home} port={port} user=owner dbname=postgres", autocommit=True) as conn:
            for name in ("records", "secured", "plain", "certified"):
                conn.execute(f"CREATE DATABASE {name}")
            conn.execute("ALTER ROLE owner PASSWORD 'p@ss:w/rd'")
        servers.enter_context(running([PGBOUNCER, home / "stock.ini"], user, pooler))
        servers.enter_context(running([PGBOUNCER, home / "dropping.ini"], user, dropping))
        yield Place(home, port, pooler, dropping)
    shutil.rmtree(home)


FACTS = """\
SELECT
  CASE WHEN ssl THEN 'TLS' WHEN INET_CLIENT_ADDR() IS NULL THEN 'socket' ELSE 'plain' END
  || ' ' || CURRENT_DATABASE() || ' ' || CURRENT_SETTING('work_mem')
FROM pg_stat_ssl
WHERE pid = PG_BACKEND_PID()
"""
OWNER = "postgresql://owner:p%40ss%3Aw%2Frd@localhost:{port}"
NOT_READ = "keepalives=1&keepalives_idle=9&channel_binding=prefer&gssencmode=prefer&connect_timeout=9"
# A string, variables, and what the session is.
TAKEN: dict[str, tuple[str, dict[str, str], str]] = {
    "postgres:": (f"{OWNER}/records".replace("postgresql:", "postgres:"), {}, "TLS records 4MB"),
    "words": ("host=localhost port={port} user=owner password='p@ss:w/rd' dbname=records", {}, "TLS records 4MB"),
    "ssl=true": (f"{OWNER}/secured?ssl=true", {}, "TLS secured 4MB"),
    "disable": (f"{OWNER}/records?sslmode=disable", {}, "plain records 4MB"),
    "allow": (f"{OWNER}/records?sslmode=allow", {}, "plain records 4MB"),
    "allow, where TLS is wanted": (f"{OWNER}/secured?sslmode=allow", {}, "TLS secured 4MB"),
    "prefer, where none is wanted": (f"{OWNER}/plain?sslmode=prefer", {}, "plain plain 4MB"),
    "require": (f"{OWNER}/records?sslmode=require", {}, "TLS records 4MB"),
    "verify-ca": (
        f"{OWNER}/records?sslmode=verify-ca&sslrootcert={{home}}/ca.crt".replace("localhost", "127.0.0.1"),
        {},
        "TLS records 4MB",
    ),
    "verify-full": (f"{OWNER}/records?sslmode=verify-full&sslrootcert={{home}}/ca.crt", {}, "TLS records 4MB"),
    "verify-full by address": (
        f"{OWNER}/records?sslmode=verify-full&sslrootcert={{home}}/ca.crt&hostaddr=127.0.0.1",
        {},
        "TLS records 4MB",
    ),
    "the system's CAs": (
        f"{OWNER}/records?sslmode=verify-full&sslrootcert=system",
        {"SSL_CERT_FILE": "{home}/ca.crt"},
        "TLS records 4MB",
    ),
    "the system's CAs alone": (
        f"{OWNER}/records?sslrootcert=system",
        {"SSL_CERT_FILE": "{home}/ca.crt"},
        "TLS records 4MB",
    ),
    "TLS by variables": (
        f"{OWNER}/records",
        {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "{home}/ca.crt", "PGSSLMINPROTOCOLVERSION": "TLSv1.3"},
        "TLS records 4MB",
    ),
    "a certificate of the client's": (
        "postgresql://owner@localhost:{port}/certified?sslcert={home}/client.crt&sslkey={home}/client.key",
        {},
        "TLS certified 4MB",
    ),
    "one by variables": (
        "postgresql://owner@localhost:{port}/certified?sslmode=require",
        {"PGSSLCERT": "{home}/client.crt", "PGSSLKEY": "{home}/client.key"},
        "TLS certified 4MB",
    ),
    "a missing one": (f"{OWNER}/records?sslmode=require&sslcert=/none", {}, "TLS records 4MB"),
    "options": (f"{OWNER}/records?options=-c%20work_mem%3D5MB", {}, "TLS records 5MB"),
    "PGOPTIONS": (f"{OWNER}/records", {"PGOPTIONS": "-c work_mem=6MB"}, "TLS records 6MB"),
    "a socket": ("postgresql://owner@/records?host={home}&port={port}", {}, "socket records 4MB"),
    "a socket as host": ("postgresql://owner@{quoted}:{port}/records", {"PGSSLMODE": "require"}, "socket records 4MB"),
    "hosts": (f"{OWNER},localhost:{{port}}/records".replace("{port}", "1", 1), {}, "TLS records 4MB"),
    "hosts in options": (
        "postgresql://owner@/records?host=localhost,{home}&port=1,{port}&load_balance_hosts=random",
        {},
        "socket records 4MB",
    ),
    "read-write": (f"{OWNER}/records?target_session_attrs=read-write", {}, "TLS records 4MB"),
    "what changes nothing": (f"{OWNER}/records?{NOT_READ}", {"PGAPPNAME": "mine"}, "TLS records 4MB"),
    "variables alone": (
        "postgresql://",
        {
            "PGHOST": "localhost",
            "PGPORT": "{port}",
            "PGUSER": "owner",
            "PGPASSWORD": "p@ss:w/rd",
            "PGDATABASE": "records",
        },
        "TLS records 4MB",
    ),
    "a service": ("postgresql:///?service=records", {"PGSERVICEFILE": "{home}/services"}, "TLS records 7MB"),
    "PGSERVICE": ("postgresql://", {"PGSERVICE": "records", "PGSERVICEFILE": "{home}/services"}, "TLS records 7MB"),
    "passfile": ("postgresql://owner@localhost:{port}/records?passfile={home}/passwords", {}, "TLS records 4MB"),
    "PGPASSFILE": (
        "postgresql://owner@localhost:{port}/records",
        {"PGPASSFILE": "{home}/passwords"},
        "TLS records 4MB",
    ),
    "~/.pgpass": ("postgresql://owner@localhost:{port}/records", {"HOME": "{home}"}, "TLS records 4MB"),
}


@pytest.fixture
def libpq_files(place: Place) -> None:
    password = "p@ss\\:w/rd"
    for name in ("passwords", ".pgpass"):
        (place.home / name).write_text(f"elsewhere:*:*:*:no\nlocalhost:{place.port}:records:owner:{password}\n")
        (place.home / name).chmod(0o600)
    lines = ["host=localhost", f"port={place.port}", "dbname=records", "user=owner", "password=p@ss:w/rd"]
    (place.home / "services").write_text("\n".join(["[records]", *lines, "options=-c work_mem=7MB", ""]))


def filled(text: str, place: Place) -> str:
    quoted = str(place.home).replace("/", "%2F")
    return text.format(port=place.port, pooler=place.pooler, dropping=place.dropping, home=place.home, quoted=quoted)


def a_login(url: str, place: Place, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Login:
    for name, value in variables.items():
        monkeypatch.setenv(name, filled(value, place))
    return Login(Target("DATABASE_URL", filled(url, place)))


async def session(login: Login, **settings: str) -> asyncpg.Connection:
    return await connections.connect(login, patience=5, server_settings=settings, timeout=10)


@pytest.mark.usefixtures("libpq_files")
@pytest.mark.parametrize(("url", "variables", "facts"), TAKEN.values(), ids=TAKEN)
async def test_a_string_leads_both_drivers_to_the_same_session(
    url: str, variables: dict[str, str], facts: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = a_login(url, place, variables, monkeypatch)
    with login.open() as libpq:
        assert libpq.execute(FACTS).fetchone() == (facts,)
    conn = await session(login, statement_timeout="1234")
    assert await conn.fetchval(FACTS) == facts
    assert await conn.fetchval("SHOW statement_timeout") == "1234ms"
    await conn.close()


FAIL = {
    "the name is another": f"{OWNER}/records?sslmode=verify-full&sslrootcert={{home}}/ca.crt".replace(
        "localhost", "127.0.0.1"
    ),
    "the CA is another": f"{OWNER}/records?sslmode=verify-ca&sslrootcert={{home}}/stranger.crt",
    "the system does not know the CA": f"{OWNER}/records?sslrootcert=system",
    "TLS is refused": f"{OWNER}/plain?sslmode=require",
    "TLS is required": f"{OWNER}/secured?sslmode=disable",
    "it is no standby": f"{OWNER}/records?target_session_attrs=standby",
}


@pytest.mark.parametrize("url", FAIL.values(), ids=FAIL)
async def test_what_libpq_refuses_is_refused(url: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    login = a_login(url, place, {}, monkeypatch)
    with pytest.raises(psycopg.OperationalError):
        login.open()
    login.target.pooled = False  # what libpq finds out otherwise
    with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.TargetServerAttributeNotMatched)):
        await session(login)


# A string, variables, and what the sentence names.
REFUSED: list[tuple[str, dict[str, str], str]] = [
    ("postgresql://u:hunter2@h/db?sslmode=often", {}, "sslmode"),
    ("postgresql://u:hunter2@h/db?sslmode=require&sslrootcert=system", {}, "verify-full"),
    ("postgresql://u:hunter2@h/db?sslmode=verify-full&sslrootcert=/none", {}, "/none"),
    ("postgresql://u:hunter2@h/db?sslmode=verify-full&sslrootcert=/etc/passwd", {}, "sslrootcert"),
    ("postgresql://u:hunter2@h/db", {"PGSSLCERT": "/none"}, "/none"),
    ("postgresql://u:hunter2@h,g/db?port=1,2,3", {}, "port"),
    ("postgresql://u:hunter2@h/db?service=none", {}, "service"),
    ("postgresql://u:hunter2@h/db?require_auth=md5", {}, "PGREQUIREAUTH"),
    ("postgresql://u:hunter2@h/db", {"PGREQUIREAUTH": "md5"}, "PGREQUIREAUTH"),
    ("postgresql://u:hunter2@h/db?requirepeer=x", {}, "requirepeer"),
    ("postgresql://u:hunter2@h/db", {"PGGSSENCMODE": "require"}, "PGGSSENCMODE"),
    ("postgresql://u:hunter2@h/db?replication=database", {}, "replication"),
    ("postgresql://u:hunter2@h/db?target_session_attrs=best", {}, "target_session_attrs"),
    ("postgresql://u:hunter2@h/db?database=x", {}, "postgresql://user:password@host:5432/database"),
]


@pytest.mark.parametrize(("url", "variables", "named"), REFUSED)
async def test_what_cannot_be_kept_to_stops_the_start_with_a_sentence(
    url: str, variables: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(app.CommandError, match=f"READER_DATABASE_URL .*{named}") as caught:
        app.load_settings({"READER_DATABASE_URL": url})
    assert "hunter2" not in str(caught.value)


async def test_every_parameter_of_libpq_is_taken_or_ignored_or_refused() -> None:
    assert connections.PARAMETERS.keys() == {option.keyword.decode() for option in pq.Conninfo.get_defaults()}


# ------------------------------------------------------------------------------------------------ poolers


@pytest.mark.parametrize("pooler", ["{pooler}", "{dropping}"])
async def test_settings_hold_behind_a_pooler_and_after_a_reset(
    pooler: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it refuses them at the start of a session, or drops them."""
    login = a_login(f"postgresql://owner@127.0.0.1:{pooler}/session", place, {}, monkeypatch)
    conn = await session(login, statement_timeout="1234", timezone="UTC", jit="off")
    for _ in range(2):
        names = ("statement_timeout", "timezone", "jit")
        assert [await conn.fetchval(f"SHOW {name}") for name in names] == ["1234ms", "UTC", "off"]
        await conn.reset()
    await conn.close()


async def test_a_pooler_in_session_mode_serves_as_it_is_installed(place: Place, start_service: Serve) -> None:
    service = start_service(DATABASE_URL=f"postgresql://owner@127.0.0.1:{place.pooler}/session", ready=False)
    sql = "SELECT CURRENT_SETTING('statement_timeout') AS timeout, CURRENT_SETTING('timezone') AS zone"
    (service.queries / "settings.sql").write_text(sql)
    with httpx.Client(base_url=service.url, timeout=10) as client:
        wait_until(lambda: client.get("/metrics/settings").status_code == 200)
        results = [client.get("/metrics/settings").json()]
        for n in range(3):
            answer = client.post("/metrics?dry_run=true", json={"query": f"{sql}, {n} AS n"})
            assert answer.status_code == 200, answer.text
            results.append(answer.json())
        for result in results:
            row = result["records"][0]
            assert (row["timeout"], row["zone"]) == ("10s", "UTC")
        ready = client.get("/health/ready").json()["checks"]
    assert ready["listener:connectedSince"][0]["status"] == "pass"
    service.stop()


SENTENCE = "{} goes through a pooler in transaction mode"


async def test_a_pooler_in_transaction_mode_is_named_instead_of_failing_now_and_then(
    place: Place, start_service: Serve
) -> None:
    url = f"postgresql://owner@127.0.0.1:{place.pooler}/transaction"
    service = start_service(DATABASE_URL=url, ready=False)
    sentence = SENTENCE.format("DATABASE_URL")
    with httpx.Client(base_url=service.url, timeout=10) as client:
        wait_until(lambda: sentence in client.get("/health/ready").text)
        assert client.get("/health/ready").status_code == 503
        assert client.get("/metrics/total").status_code == 503
    service.stop()
    assert sentence in service.log.read_text()


@pytest.mark.parametrize("address", ["{pooler}/transaction", "{pooler}/single", "{dropping}/transaction"])
async def test_the_variable_that_leads_to_it_is_the_one_that_is_named(address: str, place: Place) -> None:
    """However few sessions it has, and in which order it gives them out."""
    env = {
        "DATABASE_URL": f"postgresql://owner@/records?host={place.home}&port={place.port}",
        "READER_DATABASE_URL": f"postgresql://owner:x@127.0.0.1:{filled(address, place)}",
    }
    done = await asyncio.to_thread(run_app, "migrate", **env)
    assert done.returncode == 1
    assert done.stderr.startswith(SENTENCE.format("READER_DATABASE_URL"))
    assert done.stderr.count("\n") == 1
