"""Short runs of what `python tests/chaos.py` does to instances and replicas, on one primary and one replica."""

from collections.abc import AsyncIterator

import chaos
import pytest
from test_chaos import out_of_bounds

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def lab(anyio_backend: str) -> AsyncIterator[chaos.ReplicatedLab]:
    """Of an empty database at first; the tests follow each other, and the last one loses the primary."""
    async with chaos.laboratory(chaos.ReplicatedLab) as lab:
        yield lab


async def test_two_instances_of_two_workers_start_at_once_agree_and_serve_nothing_older(
    lab: chaos.ReplicatedLab,
) -> None:
    assert await out_of_bounds(lab, chaos.instances(lab, 2.5)) == []


async def test_a_replica_that_lags_is_waited_for_and_never_served(lab: chaos.ReplicatedLab) -> None:
    assert await out_of_bounds(lab, chaos.replica_lags(lab)) == []


async def test_a_replica_may_restart_and_is_used_again(lab: chaos.ReplicatedLab) -> None:
    assert await out_of_bounds(lab, chaos.replica_restarted(lab, 2)) == []


async def test_the_replica_takes_over_when_the_primary_goes(lab: chaos.ReplicatedLab) -> None:
    assert await out_of_bounds(lab, chaos.failover(lab, 3)) == []
