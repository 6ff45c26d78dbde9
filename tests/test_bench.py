"""A short run of the bench: bounds so loose that only the program can break them, not what else the machine does."""

import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import bench
import pytest
from conftest import ROOT
from cryptography.hazmat.primitives.asymmetric import rsa

BENCH = Path(__file__).with_name("bench.py")
LINE = re.compile(r".{12} *(?P<value>[\d.]+) (?P<unit>\S+) +at (?P<kind>least|most) (?P<bound>[\d.]+) .*")
# Ratios bear other load; a latency measures it too, but a loop that stands still for a second shows.
LOOSER = {"times": 2, "ms": 10}


def test_a_short_run_stays_near_its_bounds() -> None:
    command = [sys.executable, str(BENCH), "--short", "miss", "stall", "hit", "bulk"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    figures = [LINE.fullmatch(line) for line in run.stdout.splitlines()]
    assert len(figures) == 6, run.stdout + run.stderr
    for figure in figures:
        assert figure, run.stdout
        value, bound, looser = float(figure["value"]), float(figure["bound"]), LOOSER[figure["unit"]]
        assert value >= bound / looser if figure["kind"] == "least" else value <= bound * looser, run.stdout


def test_an_unknown_figure_is_refused_with_the_known_ones() -> None:
    run = subprocess.run([sys.executable, str(BENCH), "mis"], capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode == 2
    assert "there is no figure mis; choose from miss, stall" in run.stderr


@pytest.mark.anyio
async def test_among_fifty_thousand_records_metrics_stay_indexed_and_records_small(
    cluster: str, tmp_path: Path
) -> None:
    """A start, a request and a write, too, take what they take on an empty table."""
    owner = await asyncpg.connect(cluster)
    await owner.execute("CREATE DATABASE growth")
    url = cluster.replace("/metrics_test?", "/growth?")
    settings = {"DATABASE_URL": url, "QUERIES_DIR": str(ROOT / "queries")}
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    conn = await asyncpg.connect(url)
    grown = await bench.grow_through(
        bench.Bench(tmp_path, settings, key, True, 50_000, ExitStack()), conn, sizes=[50_000]
    )
    await conn.close()
    await owner.execute("DROP DATABASE growth")
    await owner.close()
    assert len(grown[0].runs) == 12
    for figure in bench.growth_figures(grown):
        looser = 1 if figure.unit in ("bytes", "scans", "MiB") else 10
        assert figure.value >= figure.bound / 10 if figure.at_least else figure.value <= figure.bound * looser, figure
