"""Pools and logins, migrations, plans; what goes wrong with a database is in chaos.py."""

import asyncio
import csv
import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psycopg
import pytest
import yoyo
from chaos import Lab, ask, laboratory, log_lines, until_ready
from conftest import Serve
from helpers import ROOT, Service, another_database, eventually, run_app, wait_until

from migrations import apply


@pytest.fixture
def database(cluster: str) -> Iterator[str]:
    with another_database(cluster, "scratch") as url:
        yield url


@pytest.fixture(scope="module")
def scarce_database(cluster: str) -> Iterator[str]:
    with another_database(cluster, "scarce") as url:
        yield url


DATA_SET = {
    "queries.csv": "id,query\nwho,SELECT CURRENT_USER::text AS login\n"
    "rest,SELECT PG_SLEEP(:seconds::float8)::text AS slept\nsecret,SELECT rolname FROM pg_authid\n",
    "metrics.json": '{"items": [{"id": "who", "queryId": "who"}, {"id": "rest", "queryId": "rest"}], "layouts": {}}',
}


@pytest.fixture(scope="module")
def scarce(scarce_database: str, start_service: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one connection for reviewed SQL, and with metrics of a data set, one of them refused."""
    directory = tmp_path_factory.mktemp("dataset")
    for name, text in DATA_SET.items():
        (directory / name).write_text(text)
    seeding = run(scarce_database, "seed", str(directory))
    assert (seeding.returncode, "permission denied" in seeding.stdout) == (1, True)
    service = start_service(DATABASE_URL=scarce_database, POOL_SIZE="1", POOL_TIMEOUT="0.3")
    yield service
    service.stop()


def connect(service: Service) -> httpx.Client:
    """A client that wants to know how things are now."""
    return httpx.Client(base_url=service.url, headers={"Cache-Control": "no-cache"}, timeout=20)


def status(http: httpx.Client, path: str) -> int:
    return http.get(path).status_code


def assert_unavailable(response: httpx.Response) -> None:
    assert (response.status_code, response.headers["content-type"]) == (503, "application/problem+json"), response.text
    assert int(response.headers["retry-after"]) >= 1


def sleeping(dsn: str, count: int) -> None:
    """Wait until so many queries of sleep.sql run."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        wait_until(lambda: conn.execute(SLEEPING).fetchone() == (count,))


SLEEPING = "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"


pytestmark = pytest.mark.anyio


def run(database: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run_app(*arguments, DATABASE_URL=database, **env)


# ------------------------------------------------------------------------------------------------ pools and logins


def test_a_pool_without_a_free_connection_is_503_within_its_timeout(scarce: Service, scarce_database: str) -> None:
    """And no failure for the health checks."""
    with connect(scarce) as http, ThreadPoolExecutor() as threads:
        slow = threads.submit(http.get, "/metrics/sleep?seconds=1.5")
        sleeping(scarce_database, 1)
        started = time.monotonic()
        response = http.get("/metrics/echo")
        assert time.monotonic() - started > 0.25
        assert_unavailable(response)
        assert status(http, "/health/ready") == status(http, "/health") == 200
        assert slow.result().status_code == 200
        assert status(http, "/metrics/echo") == 200


def test_unreviewed_sql_runs_as_the_guest_two_at_a_time(scarce: Service, scarce_database: str) -> None:
    with connect(scarce) as http, ThreadPoolExecutor() as threads:
        assert http.get("/metrics/who").json()["records"] == [{"login": "metrics_guest"}]
        assert http.get("/metrics/who").json()["is_editable"] is True
        slow = [threads.submit(http.get, f"/metrics/rest?seconds=1.{n}") for n in (4, 5)]
        sleeping(scarce_database, 2)
        assert_unavailable(http.get("/metrics/who"))
        assert status(http, "/metrics/echo") == 200
        assert [answer.result().status_code for answer in slow] == [200, 200]


def test_the_logins_have_no_memberships_and_cannot_write(scarce: Service, scarce_database: str) -> None:
    for login, other in itertools.permutations(("metrics_reader", "metrics_guest")):
        conn = psycopg.connect(scarce_database.replace("postgres@", f"{login}@"), autocommit=True)
        assert conn.execute("SELECT COUNT(*) FROM metrics").fetchone() == (0,)
        for statement in (
            "INSERT INTO metrics (id) VALUES ('x')",
            "DELETE FROM metrics",
            "TRUNCATE metrics",
            "SELECT * FROM queries",
            "CREATE TABLE mine (a int)",
            "SET ROLE postgres",
            f"SET ROLE {other}",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(statement.encode())
        conn.close()


# ------------------------------------------------------------------------------------------------ migrations

LEFT = """
SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
UNION SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION SELECT typname::text FROM pg_type WHERE typnamespace = 'public'::regnamespace
UNION SELECT rolname::text FROM pg_roles WHERE rolname LIKE 'metrics%'
"""


def test_migrations_roll_back_to_nothing_and_apply_again(database: str) -> None:
    migrated = run(database, "migrate")
    assert (migrated.returncode, migrated.stderr) == (0, "")
    conn = psycopg.connect(database, autocommit=True)
    before = {row[0] for row in conn.execute(LEFT)}
    assert {"metrics", "queries", "layout_items", "metric_configurations", "metrics_reader", "metrics_guest"} <= before
    roll_back(database)
    left = {row[0] for row in conn.execute(LEFT)}
    # Another database of the cluster still has the logins, which is why they stay.
    assert {name for name in left if "yoyo" not in name} - {"metrics_reader", "metrics_guest"} == set()
    assert run(database, "migrate").returncode == 0
    assert {row[0] for row in conn.execute(LEFT)} == before
    conn.close()


def test_the_logins_look_for_tables_where_the_owner_does(database: str) -> None:
    """PostgreSQL looks first into a schema that has the name of who asks."""
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA postgres")
    checked = run(database, "check")
    assert (checked.returncode, checked.stderr, "tables: metrics\n" in checked.stdout) == (0, "", True)


ELSEWHERE = """\
CREATE ROLE keeper LOGIN;
CREATE ROLE visitor LOGIN;
CREATE SCHEMA keeper AUTHORIZATION keeper
"""
VISIT = "GRANT USAGE ON SCHEMA keeper TO visitor; GRANT SELECT ON keeper.metrics TO visitor"


def test_logins_that_an_operator_names_need_not_look_where_the_owner_does(database: str, tmp_path: Path) -> None:
    """For an owner who has a schema of a database that others share, and for a login that looks into public."""
    (tmp_path / "counted.sql").write_text("SELECT COUNT(*) AS n FROM keeper.metrics WHERE date >= :since::date")
    keeper, visitor = (database.replace("postgres@", f"{login}@") for login in ("keeper", "visitor"))
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(ELSEWHERE)
        assert run(keeper, "migrate").returncode == 0
        conn.execute(VISIT)
    logins = {"READER_DATABASE_URL": visitor, "GUEST_DATABASE_URL": visitor}
    checked = run(keeper, "check", QUERIES_DIR=str(tmp_path), **logins)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "parameters: since date\n  columns: n int8\n  tables: keeper.metrics\n" in checked.stdout
    assert "warning" not in checked.stdout
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("DROP OWNED BY keeper, visitor CASCADE; DROP ROLE keeper, visitor")


@pytest.mark.parametrize("name", ["", "missing"])
def test_a_directory_without_a_data_set_is_refused_in_a_sentence(database: str, tmp_path: Path, name: str) -> None:
    refused = run(database, "seed", str(tmp_path / name))
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert str(tmp_path / name) in refused.stderr


def test_a_command_that_the_database_refuses_says_why_in_a_sentence(database: str, cluster: str) -> None:
    with psycopg.connect(cluster, autocommit=True) as conn:
        conn.execute("CREATE ROLE stranger LOGIN")
    for url, reason in (
        (database.replace("postgres@", "stranger@"), "stranger cannot create it in scratch"),
        (database, 'role "no_reader" does not exist'),
    ):
        refused = run(url, "check", READER_DATABASE_URL=database.replace("postgres@", "no_reader@"))
        assert (refused.returncode, reason in refused.stderr, refused.stderr.count("\n")) == (1, True, 1)
    with psycopg.connect(cluster, autocommit=True) as conn:
        conn.execute("DROP ROLE stranger")


def roll_back(url: str) -> None:
    backend = yoyo.get_backend(url.replace("postgresql:", "postgresql+psycopg:"))
    backend.rollback_migrations(backend.to_rollback(apply.read()))
    backend.connection.close()


def test_migrations_from_many_processes_at_once_are_applied_once(database: str, cluster: str) -> None:
    """Even after one was killed with yoyo's lock in its hands."""
    with ThreadPoolExecutor() as threads:
        assert [done.returncode for done in threads.map(run, [database] * 3, ["migrate"] * 3)] == [0, 0, 0]
    conn = psycopg.connect(database, autocommit=True)
    names = [row[0] for row in conn.execute("SELECT migration_id FROM _yoyo_migration")]
    assert len(names) == len(set(names)) == len(list((ROOT / "migrations").glob("*.sql"))) / 2
    conn.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 1)")
    conn.close()
    assert run(database, "migrate").returncode == 0


async def test_the_logins_get_a_password_that_follows_from_the_owners_and_have_it_set_again() -> None:
    """On a server that wants passwords, however the URL writes the owner's; none of them is shown."""
    async with laboratory(Lab) as lab, lab.owner() as conn:
        await conn.execute("ALTER ROLE postgres PASSWORD 'hunter2 @+%'")
        await conn.execute('CREATE DATABASE "the records"')
        (lab.server.directory / "pg_hba.conf").write_text("local all all scram-sha-256\n")
        await conn.execute("SELECT PG_RELOAD_CONF()")
        at = lab.server.dsn.partition("?")[2]
        for url in (
            f"postgresql://postgres:hunter2%20%40+%25@/the%20records?{at}&connect_timeout=5",
            f"postgresql:///?{at}&user=postgres&password=hunter2%20%40+%25&dbname=the%20records&keepalives=1",
        ):
            service = await lab.serve(DATABASE_URL=url)
            records = json.loads((await ask(service, "/metrics/zone")).body)["records"]
            assert records == [{"zone": "UTC", "login": "metrics_reader"}]
            service.stop()
            assert "hunter2" not in service.log.read_text()
            await conn.execute("ALTER ROLE metrics_reader PASSWORD 'changed'; ALTER ROLE metrics_guest PASSWORD NULL")


async def test_an_outage_is_a_warning_for_each_reason_and_not_for_each_attempt() -> None:
    async with laboratory(Lab) as lab:
        service = await lab.serve()
        await lab.stop_database()
        await asyncio.sleep(3)
        await lab.start_database()
        await until_ready(service)
        lines = [json.loads(line) for line in log_lines(service)]
        lost = [(line["level"], line["reason"]) for line in lines if "listener" in line["message"]]
        assert {level for level, _ in lost} == {"warning"}
        assert len(lost) == len(set(lost))


# ------------------------------------------------------------------------------------------------ workers


async def test_workers_finish_what_is_in_flight_before_their_database_stops() -> None:
    """The one that has nothing to do is gone long before the other."""
    async with laboratory(Lab) as lab:
        service = await lab.serve("--workers", "2", DATABASE_URL="", DATA_DIR=str(lab.place / "data"))
        # Whichever answers.
        await eventually(lambda: all_answer(service, "/metrics/sleep?seconds=0"), 60)
        slow = asyncio.create_task(ask(service, "/metrics/sleep?seconds=1.5"))
        await asyncio.sleep(0.7)
        service.process.terminate()
        assert (await slow).status == 200
        assert service.process.wait(10) == 0


async def test_workers_end_with_a_parent_that_is_killed() -> None:
    """Or the port would be taken for the next start."""
    async with laboratory(Lab) as lab:
        service = await lab.serve("--workers", "2")
        service.process.kill()
        await eventually(lambda: refuses(service))


async def test_a_worker_that_is_killed_while_it_says_nothing_is_replaced_at_once() -> None:
    async with laboratory(Lab) as lab:
        service = await lab.serve("--workers", "2")
        await eventually(lambda: started_workers(service, 2))
        worker = next(pid for pid in children(service) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(worker, signal.SIGSTOP)
        await asyncio.sleep(1)
        os.kill(worker, signal.SIGKILL)
        await eventually(lambda: started_workers(service, 3))
        service.process.terminate()
        assert service.process.wait(10) == 0


async def all_answer(service: Service, path: str) -> bool:
    return {reply.status for reply in await asyncio.gather(*(ask(service, path) for _ in range(20)))} == {200}


async def started_workers(service: Service, count: int) -> bool:
    return sum("startup complete" in line for line in log_lines(service)) == count


def children(service: Service) -> list[int]:
    """Each thread has its own."""
    threads = Path(f"/proc/{service.process.pid}/task").glob("*/children")
    return [int(child) for children in threads for child in children.read_text().split()]


async def refuses(service: Service) -> bool:
    return (await ask(service, "/health/live")).status == 0


# ------------------------------------------------------------------------------------------------ plans

MANY = """
INSERT INTO metrics (id, date, obsolescence_val, obsolescence, parts_flagged, alert_type, alert_category)
SELECT
  (SELECT ARRAY_AGG(id ORDER BY id) FROM queries)[1 + n % (SELECT COUNT(*) FROM queries)],
  now() - n * INTERVAL '15 minutes',
  n,
  n,
  n % 9,
  (ARRAY['Critical', 'Warning', 'Info'])[1 + n % 3],
  (ARRAY['Need approval', 'End of life'])[1 + n % 2]
FROM GENERATE_SERIES(1, 40000) AS n
"""


def test_no_metric_that_comes_along_scans_the_records(database: str, start_service: Serve) -> None:
    """Counted by the database itself, among 40,000 records over a year."""
    assert run(database, "seed").returncode == 0
    service = start_service(DATABASE_URL=database, QUERIES_DIR=str(ROOT / "queries"))
    conn = psycopg.connect(database, autocommit=True)
    conn.execute(MANY)
    conn.execute("VACUUM ANALYZE metrics")
    with connect(service) as http:
        metrics = [metric["id"] for metric in http.get("/metrics").json()["metrics"]]
        with (ROOT / "seed" / "queries.csv").open() as file:
            assert {row["id"] for row in csv.DictReader(file)} < set(metrics)
        assert {path.stem for path in (ROOT / "queries").glob("*.sql")} < set(metrics)
        whole, index = scan_counts(conn)
        for metric in metrics:
            for query in ("", "?day_range=7", "?start_date=2026-01-01&end_date=2026-01-31"):
                assert status(http, f"/metrics/{metric}{query}") == 200
            scans = scan_counts(conn)
            assert scans[0] == whole, f"{metric} scans the table"
            assert scans[1] > index, f"{metric} uses no index"
            index = scans[1]
    conn.close()
    service.stop()


SCANS = "SELECT seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname = 'metrics'"
ENDED = """
SELECT COUNT(PG_TERMINATE_BACKEND(pid)) = 0
FROM pg_stat_activity
WHERE datname = CURRENT_DATABASE()
AND usename IN ('metrics_reader', 'metrics_guest')
"""


def scan_counts(conn: psycopg.Connection) -> tuple[int, int]:
    """Whole scans and index scans; a session reports what it did when it ends, so the readers' sessions are ended."""
    wait_until(lambda: conn.execute(ENDED).fetchone() == (True,))
    whole, index = conn.execute(SCANS).fetchone() or (0, 0)
    return whole, index
