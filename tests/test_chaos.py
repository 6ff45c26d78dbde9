"""Short runs of what `python tests/chaos.py` does, as far as no other test does it."""

import subprocess
import sys
from collections.abc import AsyncIterator

import chaos
import pytest

pytestmark = pytest.mark.anyio

HERE = (
    chaos.restart,
    chaos.idle_ended,
    chaos.late,
    chaos.frozen,
    chaos.exhausted,
    chaos.queued,
    chaos.ddl,
    chaos.terminated,
    chaos.interrupted_twice,
    chaos.killed,
    chaos.hostile,
    chaos.slow,
    chaos.heavy,
    chaos.frames,
    chaos.explained,
    chaos.uploads,
)
# The suite asks whether the service comes back; how soon is for `python tests/chaos.py`, on a machine of its own.
TIME_OUT = 30  # seconds


@pytest.fixture(scope="module")
async def lab(anyio_backend: str) -> AsyncIterator[chaos.Lab]:
    async with chaos.laboratory(chaos.Lab) as lab:
        yield lab


async def out_of_bounds(lab: chaos.Lab, scenario: AsyncIterator[chaos.Figure]) -> list[str]:
    return [str(figure) async for figure in chaos.measure(lab, scenario) if not within(figure)]


def within(figure: chaos.Figure) -> bool:
    return figure.value <= (TIME_OUT if figure.unit == "s" else figure.bound)


@pytest.mark.parametrize("scenario", HERE, ids=lambda scenario: scenario.__name__)
async def test_the_service_comes_through(scenario: chaos.Scenario, lab: chaos.Lab) -> None:
    assert await out_of_bounds(lab, scenario(lab)) == []


async def test_an_unknown_scenario_is_refused_with_the_known_ones() -> None:
    command = [sys.executable, chaos.__file__, "frozn"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode == 2
    assert "there is no scenario frozn; choose from restart, crash" in run.stderr
