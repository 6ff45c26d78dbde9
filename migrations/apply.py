"""Applies the migrations, hardens a database that is the service's own, and opens the logins that they create."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from migrations.connections import Login, MigrationFailed, TransactionPooling, look, look_anew

# An arbitrary number that no other application uses as an advisory lock.
MIGRATION_LOCK = 7_102_025

# What only a superuser may set. The guest's errors, which may quote a gigabyte each, would fill the server's log.
LOGIN_SETTINGS = (
    "metrics_reader SET temp_file_limit = '1GB'",
    "metrics_guest SET temp_file_limit = '1GB'",
    "metrics_guest SET log_min_messages = 'fatal'",
)
# A derived login looks for tables where the owner does, be it in a schema of his name.
SEARCH_PATH = """\
SELECT FORMAT('IN DATABASE %I SET search_path = %s', CURRENT_DATABASE(), STRING_AGG(QUOTE_IDENT(name), ', '))
FROM UNNEST(CURRENT_SCHEMAS(false)) AS name
HAVING ARRAY_AGG(name) <> '{public}'
"""


def is_pending(conn: psycopg.Connection) -> bool:
    """Whether there is anything to apply, which most starts need not load yoyo and its parser of SQL to know."""
    names = {path.stem for path in Path(__file__).parent.glob("*.sql") if not path.stem.endswith(".rollback")}
    try:
        return not names <= {name for (name,) in conn.execute("SELECT migration_id FROM _yoyo_migration")}
    except psycopg.errors.UndefinedTable:
        return True


def read() -> Any:
    """Those in SQL: yoyo would take this file for one, too."""
    import yoyo

    return yoyo.read_migrations(str(Path(__file__).parent)).filter(lambda migration: migration.is_raw_sql())


def apply_pending(conn: psycopg.Connection, url: str) -> None:
    """Raises PermissionError, or psycopg.Error when a migration fails."""
    import yoyo

    # yoyo takes one host, and of the URL proper it decodes the login alone.
    place = {"host": conn.info.host, "hostaddr": conn.info.hostaddr, "port": conn.info.port}
    options = conninfo_to_dict(url) | place
    backend = yoyo.get_backend(f"postgresql+psycopg:///?{urlencode(options)}")
    try:
        backend.break_lock()
        backend.apply_migrations(backend.to_apply(read()))
    except psycopg.errors.UndefinedTable as exc:  # yoyo says nothing when it cannot make its own
        message = f"{exc.diag.message_primary}, and {conn.info.user} cannot create it in {conn.info.dbname}"
        raise PermissionError(message) from exc
    finally:
        backend.connection.close()


def migrate(owner: Login, others: Collection[Login], *, hardened: bool) -> list[str]:
    """Apply the migrations and open the derived logins, one instance at a time; return what could not be done.

    yoyo's own lock is a row that outlives whoever is killed with it; a session's advisory lock does not. Its blocking
    form deadlocks with CREATE INDEX CONCURRENTLY. Raises ConnectionError, PermissionError for an owner who may create
    nothing, or MigrationFailed.
    """
    try:
        faults = migrate_alone(owner, [login for login in others if login.user], hardened)
    except psycopg.Error as exc:
        raise MigrationFailed(str(exc).strip()) from exc
    look_at_others(others)
    return faults


def migrate_alone(owner: Login, derived: Collection[Login], hardened: bool) -> list[str]:
    """Raises as migrate() does, and psycopg.Error."""
    with connect_owner(owner) as conn:
        look(owner, conn)
        while conn.execute("SELECT PG_TRY_ADVISORY_LOCK(%s)", [MIGRATION_LOCK]).fetchone() != (True,):
            time.sleep(0.1)
        if is_pending(conn):
            apply_pending(conn, owner.target.url)
        if hardened:
            harden(conn)
        paths = [f"{login.user} {path}" for (path,) in conn.execute(SEARCH_PATH) for login in derived]
        for setting in (*LOGIN_SETTINGS, *paths):
            with suppress(psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedObject):
                conn.execute(f"ALTER ROLE {setting}")
        return [fault for login in derived if (fault := open_login(conn, login._replace(target=owner.target)))]


def connect_owner(owner: Login) -> psycopg.Connection:
    try:
        return owner.open()
    except psycopg.OperationalError as exc:
        raise ConnectionError(str(exc).strip()) from exc


def look_at_others(logins: Iterable[Login]) -> None:
    """Raises TransactionPooling; what does not answer is looked at when it does."""
    for login in logins:
        if login.target.pooled is None:
            try:
                look_anew(login)
            except TransactionPooling:
                raise
            except ConnectionError:
                continue


def harden(conn: psycopg.Connection) -> None:
    """Take from PUBLIC what lets a SELECT do more than read; who does not own the functions is only warned."""
    if functions := [signature for (signature,) in conn.execute("SELECT signature FROM unrevoked_functions()")]:
        conn.execute(f"REVOKE EXECUTE ON FUNCTION {', '.join(functions)} FROM PUBLIC")
    database = sql.Identifier(conn.info.dbname)
    conn.execute(sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(database))
    conn.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")


def open_login(conn: psycopg.Connection, login: Login) -> str | None:
    """Set the password of a derived login that cannot log in; return why it still cannot."""
    fault = refusal(login)
    if not (fault and login.user and login.password):
        return fault
    try:
        verifier = conn.pgconn.encrypt_password(login.password.encode(), login.user.encode(), b"scram-sha-256")
        conn.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(login.user), verifier.decode()))
    except psycopg.Error as exc:
        return f"the password of {login.user} cannot be set: {exc}"
    return refusal(login)


def refusal(login: Login) -> str | None:
    try:
        login.open().close()
    except psycopg.OperationalError as exc:
        return str(exc).strip()
    return None
