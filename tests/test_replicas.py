"""Short runs of what `python tests/chaos.py` does to instances and replicas, on one primary and one replica."""

import subprocess
from collections.abc import AsyncIterator
from typing import NamedTuple, cast

import chaos
import pytest
from helpers import eventually
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


HOSTS = {
    "a list": "{replica},{primary}/postgres?target_session_attrs=prefer-standby",
    "the primary first": "{primary},{replica}/postgres?target_session_attrs=prefer-standby",
    "options": "/postgres?host=127.0.0.1,127.0.0.1&port={replica.port},{primary.port}"
    "&target_session_attrs=prefer-standby",
}


@pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)
async def test_a_replica_that_says_nothing_is_left_out_however_the_hosts_are_written(
    hosts: str, lab: chaos.ReplicatedLab
) -> None:
    class Place(NamedTuple):
        port: int

        def __str__(self) -> str:
            return f"127.0.0.1:{self.port}"

    primary, replica = (Place(server.port) for server in (lab.primary, lab.replica))
    url = f"postgresql://metrics_reader@{hosts.format(primary=primary, replica=replica)}"
    service = await lab.serve_replicated(READER_DATABASE_URL=url, STATEMENT_TIMEOUT="2")
    assert (await chaos.newest(service, "echo", cached=False))[0].status == 200
    with chaos.frozen_family(cast("subprocess.Popen[bytes]", lab.replica.process).pid):

        async def answers() -> bool:
            return (await chaos.newest(service, "echo", cached=False))[0].status == 200

        await eventually(answers)
    await lab.release(service)


async def test_read_only_means_a_replica(lab: chaos.ReplicatedLab) -> None:
    hosts = f"127.0.0.1:{lab.primary.port},127.0.0.1:{lab.replica.port}"
    url = f"postgresql://metrics_reader@{hosts}/postgres?target_session_attrs=read-only"
    service = await lab.serve_replicated(READER_DATABASE_URL=url)
    (service.queries / "place.sql").write_text("SELECT PG_IS_IN_RECOVERY() AS replica")

    async def answers() -> bool:
        return b'"replica":true' in (await chaos.ask(service, "/metrics/place")).body

    await eventually(answers)
    await lab.release(service)


async def test_the_replica_takes_over_when_the_primary_goes(lab: chaos.ReplicatedLab) -> None:
    assert await out_of_bounds(lab, chaos.failover(lab, 3)) == []
