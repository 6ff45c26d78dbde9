"""The clients that people generate from the document: each compiles, and the Python one reads and creates."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from helpers import Service, wait_until

TOOLS = ("openapi-typescript@7.13.0", "typescript@5.9.3")
USE_PYTHON = """\
import sys
from datetime import date

from client import Client
from client.api.catalog import create_metric, create_records, list_metrics
from client.api.metrics import read_echo, read_lists
from client.models import EchoResult, MetricDefinition, NewMetric, ProblemDetails, Record

client = Client(base_url=sys.argv[1], raise_on_unexpected_status=True)
read = read_echo.sync(client=client, n=7, t="a b", d=date(2025, 6, 30))
assert isinstance(read, EchoResult), read
(row,) = read.records
assert (row.n, row.t, row.d) == (7, "a b", date(2025, 6, 30)), row
lists = read_lists.sync(client=client, ints=[1, 2], texts=["x,y"])
assert (lists.records[0].ints, lists.records[0].texts) == ([1, 2], ["x,y"]), lists

made = create_metric.sync(client=client, body=NewMetric(query="SELECT :n::int4 AS n", title="Made by a client"))
assert isinstance(made, MetricDefinition) and made.parameters[0].type_ == "int4", made
assert made.id in {metric.id for metric in list_metrics.sync(client=client).metrics}
written = create_records.sync(client=client, id=made.id, body=[Record(obsolescence=12.5, alert_type="Critical")])
assert (written.inserted, written.duplicates) == (1, 0), written
refused = create_metric.sync(client=client, body=NewMetric(query="DROP TABLE metrics"))
assert isinstance(refused, ProblemDetails) and refused.status == 422, refused
"""
USE_TYPESCRIPT = """\
import type { components, operations, paths } from "./schema";

type Query = NonNullable<paths["/metrics/echo"]["get"]["parameters"]["query"]>;
type Result = operations["read_echo"]["responses"][200]["content"]["application/json"];

export const query: Query = { n: 7, d: "2025-06-30", day_range: 30 };
export const numbers = (result: Result): (number | null)[] => result.records.map(record => record.n);
export const metric: components["schemas"]["NewMetric"] = { query: "SELECT 1 AS one", is_editable: true, layouts: [] };
// @ts-expect-error n is a number
export const wrong: Query = { n: "seven" };
// @ts-expect-error a metric has these columns and no others
export const missing = (result: Result) => result.records[0]!.no_such_column;
"""


@pytest.fixture
def document(service: Service, tmp_path: Path) -> Iterator[Path]:
    file, path = service.queries / "lists.sql", tmp_path / "openapi.json"
    file.write_text("SELECT :ints::int4[] AS ints, :texts::text[] AS texts")

    def fetch() -> bool:
        path.write_bytes(httpx.get(f"{service.url}/openapi.json", timeout=15).content)
        return b"/metrics/lists" in path.read_bytes()

    wait_until(fetch)
    yield path
    file.unlink()


def run(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_generated_python_client_reads_and_creates_metrics(service: Service, document: Path) -> None:
    folder = document.parent
    (folder / "config.json").write_text(json.dumps({"post_hooks": []}))
    generator = Path(sys.executable).with_name("openapi-python-client")
    where = ("--path", document, "--output-path", folder / "client", "--config", folder / "config.json")
    run(generator, "generate", "--meta", "none", *where, cwd=folder)
    run(sys.executable, "-m", "compileall", "-q", "client", cwd=folder)
    (folder / "use.py").write_text(USE_PYTHON)
    run(sys.executable, "use.py", service.url, cwd=folder)


def test_the_generated_typescript_types_hold_under_strict(document: Path) -> None:
    npm = shutil.which("npm")
    if not npm:
        pytest.skip("npm is not installed")
    folder = document.parent
    install = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), *TOOLS]
    env = os.environ | {"npm_config_fetch_retries": "0", "npm_config_fetch_timeout": "20000"}
    done = subprocess.run(install, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install {' and '.join(TOOLS)}: {done.stderr.strip()[-200:]}")
    run(folder / "node_modules/.bin/openapi-typescript", document, "-o", folder / "schema.d.ts", cwd=folder)
    (folder / "use.ts").write_text(USE_TYPESCRIPT)
    run(folder / "node_modules/.bin/tsc", "--strict", "--noEmit", "--target", "es2022", "use.ts", cwd=folder)
