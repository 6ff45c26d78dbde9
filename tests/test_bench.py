"""A short run of the bench: bounds so loose that only the program can break them, not what else the machine does."""

import re
import subprocess
import sys
from pathlib import Path

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
