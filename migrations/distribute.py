"""Spreads the records over the nodes of a Citus cluster by series, as often as it is asked to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from migrations.apply import connect_owner
from migrations.connections import Login

# In the order of their foreign keys, which may only point at tables that every node has whole.
STEPS = {
    "queries": "SELECT create_reference_table('queries')",
    "metric_configurations": "SELECT create_reference_table('metric_configurations')",
    "layout_items": "SELECT create_reference_table('layout_items')",
    "metrics": "SELECT create_distributed_table('metrics', 'id')",
}
OWNED_BY_OTHERS = """\
SELECT string_agg(relname, ', ')
FROM unnest(%s::text[]) AS name
JOIN pg_class ON oid = to_regclass(name)
WHERE NOT pg_has_role(relowner, 'USAGE')
HAVING count(*) > 0
"""
WORKERS = "SELECT nodename || ':' || nodeport, success FROM run_command_on_workers('SELECT 1')"

NO_EXTENSION = """\
The database {database} has no extension citus. As a superuser, here and in a database {database} on each worker:
    CREATE EXTENSION citus;
Then, here, with addresses under which the servers reach each other:
    SELECT citus_set_coordinator_host('this-server', {port});
    SELECT citus_add_node('a-worker', 5432);  -- and each other one
Both want shared_preload_libraries = 'citus', which the extension's own documentation tells of."""
NO_WORKERS = """\
No worker is known. As a superuser, with addresses under which the servers reach each other:
    SELECT citus_set_coordinator_host('this-server', {port});
    SELECT citus_add_node('a-worker', 5432);  -- and each other one"""
SHUT_OUT = """\
The worker {worker} does not let {user} in from here: its pg_hba.conf has to. Where it asks for passwords, a superuser
tells them to this server and to each worker:
    python app.py distribute --passwords | psql 'host=… dbname=… user=…'"""
NOT_OWNED = "{user} does not own {tables}, and only the owner of a table may distribute it."

PASSWORD = """\
INSERT INTO pg_dist_authinfo (nodeid, rolename, authinfo)
SELECT 0, rolname, {} FROM pg_roles WHERE rolname = {}
ON CONFLICT (rolename, nodeid) DO UPDATE SET authinfo = excluded.authinfo;"""


def show_passwords(owner: Login, others: Iterable[Login]) -> Iterator[str]:
    """What tells a server of a cluster with which passwords to log in to the others."""
    for login in (owner, *others):
        if password := login.password or login.target.password:
            authinfo = make_conninfo(password=password)
            yield sql.SQL(PASSWORD).format(authinfo, login.user or login.target.user).as_string(None)


def distribute(owner: Login, others: Collection[Login], migrate: Callable[[], object]) -> Iterator[str]:
    """What was done, table by table, on a database that is up to date, and what is left to do.

    Raises PermissionError with what is missing, before anything is changed, ConnectionError or psycopg.Error.
    """
    with connect_owner(owner) as conn:
        if missing := [*lacking(conn), *shut_out([owner, *others])]:
            raise PermissionError("\n".join([*missing, "Nothing has been changed."]))
        migrate()
        for table, step in STEPS.items():
            yield f"{table}: {place(conn, table, step)}"
        # Those that refer to others first.
        for table in reversed(STEPS):
            conn.execute("SELECT truncate_local_data_after_distributing_table(%s::regclass)", [table])
    yield from shut_out(others)


def lacking(conn: psycopg.Connection) -> Iterator[str]:
    """What has to be done first, and by whom."""
    here = {"database": conn.info.dbname, "user": conn.info.user, "port": conn.info.port}
    if conn.execute("SELECT to_regproc('create_distributed_table')").fetchone() == (None,):
        yield NO_EXTENSION.format(**here)
    elif conn.execute("SELECT FROM citus_get_active_worker_nodes()").fetchone() is None:
        yield NO_WORKERS.format(**here)
    for (tables,) in conn.execute(OWNED_BY_OTHERS, [[*STEPS]]):
        yield NOT_OWNED.format(tables=tables, **here)


def shut_out(logins: Iterable[Login]) -> Iterator[str]:
    """Which workers do not let which logins in, as far as these can tell."""
    for login in logins:
        with suppress(psycopg.OperationalError, psycopg.ProgrammingError), login.open() as conn:
            for worker, is_open in conn.execute(WORKERS):
                if not is_open:
                    yield SHUT_OUT.format(worker=worker, user=conn.info.user)


def place(conn: psycopg.Connection, table: str, step: str) -> str:
    if conn.execute("SELECT is_distributed(%s::regclass)", [table]).fetchone() == (True,):
        return "is distributed already"
    with conn.transaction():
        # Citus distributes no table that has triggers; the service's own writes are told of without.
        conn.execute(sql.SQL("DROP TRIGGER IF EXISTS metrics_api_watch ON {}").format(sql.Identifier(table)))
        conn.execute(step)
    return "is distributed"
