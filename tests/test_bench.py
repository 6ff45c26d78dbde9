"""A short run of the bench: that it measures, and not what, for other load strikes it here."""

import re
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import bench
import pytest
import rig
from helpers import ROOT, another_database

BENCH = Path(__file__).with_name("bench.py")
LINE = re.compile(r"(?P<name>.{21}) (not installed| *[\d.]+ \S* +at (least|most) [\d.]+ +(ok|over|under)\b.*)")


def test_a_short_run_prints_its_figures() -> None:
    command = [sys.executable, str(BENCH), "--short", "miss"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    lines = [LINE.fullmatch(line) for line in run.stdout.splitlines()]
    assert all(lines), run.stdout + run.stderr
    names = ", ".join(line["name"].rstrip() for line in lines if line)
    assert names == "miss / least, miss, statements", run.stdout + run.stderr


def test_an_unknown_figure_is_refused_with_the_known_ones() -> None:
    run = subprocess.run([sys.executable, str(BENCH), "mis"], capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode == 2
    assert "there is no figure mis; choose from hit, miss" in run.stderr


@pytest.mark.anyio
async def test_among_fifty_thousand_records_metrics_stay_indexed_and_records_small(
    cluster: str, tmp_path: Path
) -> None:
    with another_database(cluster, "growth") as url:
        settings = {"DATABASE_URL": url, "QUERIES_DIR": str(ROOT / "queries")}
        conn = await asyncpg.connect(url)
        grown = await bench.grow_through(
            rig.Bench(tmp_path, settings, True, 50_000, AsyncExitStack()), conn, sizes=[50_000]
        )
        await conn.close()
    assert len(grown[0].runs) == 15
    sizes = [figure for figure in bench.growth_figures(grown) if figure.unit in ("bytes", "scans", "MiB")]
    assert len(sizes) == 4
    assert [figure.line() for figure in sizes if not figure.good] == []
