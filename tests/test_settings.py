"""The command line and the environment: what stops the start, and what it then says."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import pytest
from conftest import Serve
from helpers import ROOT, Service, run_app, wait_until

import app


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A command with a DATABASE_URL that leads nowhere unless it is given."""
    return run_app(*arguments, **{"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none", **env})


def refused(*arguments: str, **env: str) -> str:
    """The one sentence with which a start was refused."""
    done = run(*arguments, **env)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_every_bad_variable_is_named_at_once_and_no_password_shown(tmp_path: Path) -> None:
    bad = {
        "STATEMENT_TIMEOUT": "soon",
        "POOL_TIMEOUT": "nan",
        "POOL_SIZE": "1.5",
        "MAX_ROWS": "0",
        "MAX_RESULT_BYTES": "16 MB",
        "LOG_LEVEL": "loud",
        "AUTH": "yes",
        "HARDEN_DATABASE": "true",
        "QUERIES_DIR": str(tmp_path / "missing"),
        "DATABASE_URL": "mysql://root:hunter2@host/db",
        "READER_DATABASE_URL": "hunter2",
        "GUEST_DATABASE_URL": "https://u:hunter2@host/",
    }
    said = refused(**bad)
    assert [name for name in bad if name not in said] == []
    assert said.count("\n") == 1
    assert "hunter2" not in said


BAD = [
    {"STATEMENT_TIMEOUT": "-1", "POOL_TIMEOUT": "0", "POOL_SIZE": "0", "MAX_ROWS": "ten", "MAX_RESULT_BYTES": "-1"},
    {"STATEMENT_TIMEOUT": "inf", "POOL_SIZE": "-3", "MAX_ROWS": "9" * 20, "QUERIES_DIR": str(ROOT / "app.py")},
    {"STATEMENT_TIMEOUT": "0.0001", "DATA_DIR": str(ROOT / "app.py"), "DATABASE_URL": "postgresql://u:hunter2@[::1/db"},
    {"STATEMENT_TIMEOUT": "2592000", "DATABASE_URL": "postgresql://u:hunter2@host:port/db"},
    {"DATABASE_URL": "postgresql://u:hunter2@h:99999/db", "READER_DATABASE_URL": "postgresql://u:hunter2@h:port/db"},
    {"DATABASE_URL": "postgresql://u:hunter2%zz@h/db", "READER_DATABASE_URL": "postgresql://u:hunter2 x@h/db"},
    {"DATABASE_URL": "postgresql://u:hunter2@h/db?no_option=1", "QUERIES_DIR": "x" * 300},
    {"JWKS_URL": "https://", "CACHE_URL": "redis://:hunter2@h:6379/one", "CACHE_STALE": "-0.1", "CACHE_TTL": "nan"},
    {"JWT_ISSUER": "http://u:hunter2@example.com"},
    {"BROWSER_CLIENT_ID": "dashboard", "JWT_ISSUER": ""},
]


def test_values_at_the_edge_are_taken() -> None:
    """The issuer is a name where JWKS_URL is given; a server of one model needs no name of it."""
    settings = app.load_settings(
        {
            "CACHE_TTL": "0",
            "CACHE_STALE": "0",
            "JWT_ISSUER": "http://issuer.internal",
            "JWKS_URL": "https://keys.internal/jwks",
            "SQL_MODEL_URL": "http://model.internal/v1",
        }
    )
    assert (settings.cache_ttl, settings.cache_stale, settings.sql_model) == (0, 0, None)


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_value_stops_the_start_and_is_named(bad: dict[str, str]) -> None:
    """A limit of 0.1 ms would mean none to PostgreSQL, and 30 days in milliseconds are more than it takes."""
    said = refused("migrate", **bad)
    assert [name for name in bad if name not in said] == []
    assert "hunter2" not in said


def test_a_command_tells_that_the_database_is_down_without_its_password() -> None:
    """Empty variables count as unset."""
    url = "postgresql://owner:hunter2@127.0.0.1:1/none"
    said = refused("migrate", DATABASE_URL=url, STATEMENT_TIMEOUT="", POOL_SIZE=" ", LOG_LEVEL="")
    assert "127.0.0.1" in said
    assert "hunter2" not in said


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.com"])
def test_an_open_service_refuses_every_host_but_loopback(host: str) -> None:
    said = refused("--host", host)
    assert "JWT_ISSUER" in said
    assert "AUTH" in said


def test_a_host_that_is_none_is_refused_in_a_sentence() -> None:
    assert "--host" in refused("--host", "no.such.host.invalid", "--port", "0", AUTH="off")


def test_auth_off_serves_any_host(start_service: Serve) -> None:
    service = start_service("--host", "0.0.0.0", AUTH="off")
    assert httpx.get(f"{service.url}/metrics").status_code == 200
    service.stop()


def test_a_port_in_use_is_refused_in_a_sentence(service: Service) -> None:
    port = service.url.rpartition(":")[2]
    said = refused("--port", port)
    assert port in said
    assert "--port" in said


@pytest.mark.parametrize("arguments", [["serve-it"], ["--port", "http"], ["migrate", "x"]])
def test_an_unknown_command_or_argument_exits_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage:" in done.stderr


@pytest.mark.parametrize("port", ["65536", "-1"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    done = run(f"--port={port}")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "port" in done.stderr


def test_the_start_up_text_says_where_it_serves_and_that_it_is_open(service: Service) -> None:
    text = service.log.read_text().partition("{")[0]
    assert text.startswith(f"Metrics API on {service.url}\n")
    assert "JWT_ISSUER" in text


def test_after_the_start_up_text_every_line_of_the_log_is_json(start_service: Serve) -> None:
    service = start_service(DATABASE_URL="postgresql://owner:hunter2@127.0.0.1:1/none", ready=False)
    with httpx.Client(base_url=service.url, headers={"Authorization": "Bearer sesame"}) as http:
        wait_until(lambda: http.get("/health/live").status_code == 200)
        http.get("/metrics/echo?t=sesame", headers={"X-Request-ID": "mine"})
        http.get("/a%0A%22b%22/%1b[31m")
    service.stop()
    text = service.log.read_text()
    lines = [json.loads(line) for line in re.sub(r"^[^{].*\n", "", text, flags=re.MULTILINE).splitlines()]
    assert re.search(r"^\{.*\n[^{]", text, re.MULTILINE) is None
    (line,) = [line for line in lines if line.get("request_id") == "mine"]
    assert {name: line[name] for name in ("method", "path", "status", "subject")} == {
        "method": "GET",
        "path": "/metrics/echo",
        "status": 503,
        "subject": None,
    }
    assert line["duration_ms"] > 0
    assert "metric_id" in line
    assert "hunter2" not in text
    assert "sesame" not in text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has another user for the database")
def test_where_the_data_are_instead_is_a_line_of_the_log(start_service: Serve, tmp_path: Path) -> None:
    service = start_service(DATABASE_URL="", DATA_DIR=str(tmp_path / "data"))
    service.stop()
    lines = [json.loads(line) for line in service.log.read_text().partition("{")[2].splitlines()[1:]]
    (told,) = [line["message"] for line in lines if line["message"].startswith("Data: /var/lib/metrics-api/")]
    shutil.rmtree(Path(told.split()[1].rstrip(",")).parent)


NAMES = {
    "CACHE_TLL": "CACHE_TTL",
    "JWT_ISUER": "JWT_ISSUER",
    "cache_ttl": "CACHE_TTL",
    "DATABSE_URL": "DATABASE_URL",
    "LOGLEVEL": "LOG_LEVEL",
    "SQL_MODEL_ULR": "SQL_MODEL_URL",
}
OTHERS = "PATH HOME HOSTNAME DATABASE DATA PGDATABASE TEST_DATABASE_URL CACHE_DIR XDG_DATA_DIRS JWT_SECRET LOG"


def test_a_variable_that_looks_like_a_misspelt_one_is_named_and_no_other() -> None:
    """Nor is one when that which it resembles is set, too."""
    environ = dict.fromkeys([*NAMES, *OTHERS.split(), "MAX_ROWS_", "MAX_ROWS"], "1")
    told = "\n".join(app.misspelt(environ))
    assert [
        name for name, meant in NAMES.items() if f"{name} is not a variable of the service; is {meant} " not in told
    ] == []
    assert told.count("\n") == len(NAMES) - 1
    assert "CACHE_TTL" in run("migrate", CACHE_TLL="5").stderr


def test_the_start_says_how_to_open_the_embedded_database_which_may_start_empty(start_service: Serve) -> None:
    data = Path(tempfile.mkdtemp(prefix="metrics-api-test-"))
    data.chmod(0o755)  # as root, the database's user must reach it
    service = start_service(DATABASE_URL="", DATA_DIR=str(data), DEMO_DATA="off", CACHE_TLL="5")
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    (command,) = [line["message"].partition(": ")[2] for line in lines if "psql" in line["message"]]
    asked = f"{command} --no-psqlrc -At -c 'SELECT CURRENT_USER, COUNT(*) FROM metrics'"
    assert subprocess.check_output(["sh", "-c", asked], text=True) == "postgres|0\n"
    assert any("is CACHE_TTL meant" in line["message"] for line in lines)
    service.stop()
    shutil.rmtree(data)


def test_another_server_serves_the_same_application(cluster: str, tmp_path: Path) -> None:
    """`uvicorn app:app` says what is wrong with a setting, too."""
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", "0", "--lifespan", "on"]
    env = {"PATH": os.environ["PATH"], "DATABASE_URL": cluster, "MAX_ROWS": "none"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=10)
    assert done.returncode != 0
    assert "MAX_ROWS must be" in done.stdout + done.stderr
