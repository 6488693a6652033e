"""Allocations as scontrol shows them, and the slots in them."""

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.errors import EnvironmentNotReady
from elmanctl.ledger.submissions import Allocation, Resources
from elmanctl.schedulers.allocation import (
    Granted,
    Share,
    is_in_step,
    job_id_here,
    read_granted,
    slots_of,
)

# Two kinds of nodes, as Slurm 22.05 shows them.
SHOWN = """\
JobId=4711 JobName=my search
   UserId=ada(1000) GroupId=ada(1000) MCS_label=N/A
   JobState=RUNNING Reason=None Dependency=(null)
   StartTime=2026-12-01T13:09:07 EndTime=2026-12-01T13:19:07 Deadline=N/A
   NodeList=n[1-2],m7
   JOB_GRES=gpu:a100:12
     Nodes=n[1-2] CPU_IDs=0-7,16-23 Mem=64000 GRES=gpu:a100:4(IDX:0-3)
     Nodes=m7 CPU_IDs=3 Mem=0 GRES=gpu:a100:1(IDX:0),gpu:v100:3(IDX:1-3),shard:8(S:0)
"""
NAMES = {"n[1-2]": ["n1", "n2"], "m7": ["m7"]}


def granted(*shares: Share) -> Granted:
    allocation = Allocation(job_id="4711", job_name="held")
    return Granted(allocation=allocation, is_alive=True, ends_at=None, shares=shares)


def test_nodes_and_their_shares_are_read() -> None:
    found = read_granted("4711", SHOWN, lambda nodes: NAMES[nodes])
    assert found.allocation.job_id == "4711" and found.is_alive
    assert found.ends_at is not None
    assert found.shares == (
        Share(node="n1", cpus=16, mem_mb=64000, gpus=4),
        Share(node="n2", cpus=16, mem_mb=64000, gpus=4),
        Share(node="m7", cpus=1, mem_mb=0, gpus=4),
    )


@pytest.mark.parametrize(
    ("shown", "is_alive", "has_end"),
    [
        (SHOWN.replace("JobState=RUNNING", "JobState=TIMEOUT"), False, True),
        (SHOWN.replace("JobState=RUNNING", "JobState=COMPLETING"), True, True),
        (SHOWN.replace("EndTime=2026-12-01T13:19:07", "EndTime=Unknown"), True, False),
    ],
)
def test_end_is_read(shown: str, is_alive: bool, has_end: bool) -> None:
    found = read_granted("4711", shown, lambda nodes: NAMES[nodes])
    assert (found.is_alive, found.ends_at is not None) == (is_alive, has_end)


def test_allocation_without_nodes_is_refused() -> None:
    with pytest.raises(EnvironmentNotReady, match="no nodes"):
        read_granted("4711", "JobId=4711 JobState=PENDING\n   NodeList=\n", lambda nodes: [])


@pytest.mark.parametrize(
    ("environ", "job_id"),
    [
        ({"SLURM_JOB_ID": "4711"}, "4711"),
        ({"SLURM_JOBID": "4711"}, "4711"),
        # squeue lists it by this name.
        (
            {"SLURM_JOB_ID": "99", "SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "3"},
            "4711_3",
        ),
    ],
)
def test_allocation_of_the_environment(environ: Mapping[str, str], job_id: str) -> None:
    assert job_id_here(environ) == job_id


def test_environment_outside_of_an_allocation_is_refused() -> None:
    with pytest.raises(EnvironmentNotReady, match="in none"):
        job_id_here({"SLURM_CONF": "/etc/slurm.conf"})


@pytest.mark.parametrize(
    ("step", "expected"), [(None, False), ("0", True), ("4294967290", False), ("4294967291", False)]
)
def test_step_is_told_from_the_script_of_a_job(step: str | None, expected: bool) -> None:
    assert is_in_step({} if step is None else {"SLURM_STEP_ID": step}) is expected


@pytest.mark.parametrize(
    ("resources", "gpus", "expected"),
    [
        # One on each GPU, with its part of the rest.
        (Resources(gres="gpu:1"), 1, [("n1", 2, 8000, "gpu:1")] * 4),
        (Resources(gres="gpu:a100:2"), 2, [("n1", 4, 16000, "gpu:a100:2")] * 2),
        # What is asked for limits how many there are.
        (Resources(gres="gpu:1", cpus=4), 1, [("n1", 4, 16000, "gpu:1")] * 2),
        (Resources(gres="gpu:1", mem_gb=12.0), 1, [("n1", 4, 12288, "gpu:1")] * 2),
        # By an option of its own, which is no step's.
        (Resources(extra={"gpus": 1}), 1, [("n1", 2, 8000, "gpu:1")] * 4),
        (Resources(cpus=3), 0, [("n1", 3, 16000, "none")] * 2),
    ],
)
def test_slots_of_a_node(
    resources: Resources, gpus: int, expected: Sequence[tuple[object, ...]]
) -> None:
    node = Share(node="n1", cpus=8, mem_mb=32000, gpus=4)
    found = slots_of(granted(node), resources, gpus)
    assert [(slot.node, slot.cpus, slot.mem_mb, slot.gres) for slot in found] == expected


def test_node_without_room_is_named_with_what_is_missing() -> None:
    node = Share(node="n1", cpus=8, mem_mb=32000, gpus=2)
    with pytest.raises(EnvironmentNotReady) as caught:
        slots_of(granted(node), Resources(gres="gpu:4"), 4)
    assert "it asks for 4 GPUs, and n1 has 2 GPUs, 8 CPUs, 31.2 GB" in caught.value.message


SHARES = st.builds(
    Share,
    node=st.sampled_from(["n1", "n2", "n3"]),
    cpus=st.integers(1, 200),
    mem_mb=st.one_of(st.just(0), st.integers(500, 2_000_000)),
    gpus=st.integers(0, 16),
)


@given(
    shares=st.lists(SHARES, min_size=1, max_size=4, unique_by=lambda share: share.node),
    cpus=st.one_of(st.none(), st.integers(1, 64)),
    mem_gb=st.one_of(st.none(), st.floats(0.1, 500)),
    gpus=st.integers(0, 8),
)
def test_slots_fit_side_by_side_and_no_further_one_would(
    shares: list[Share], cpus: int | None, mem_gb: float | None, gpus: int
) -> None:
    resources = Resources(gres=f"gpu:{gpus}" if gpus else None, cpus=cpus, mem_gb=mem_gb)
    wanted_mb = round((mem_gb or 0) * 1024)
    try:
        slots = slots_of(granted(*shares), resources, gpus)
    except EnvironmentNotReady:
        slots = ()
    for share in shares:
        mine = [slot for slot in slots if slot.node == share.node]
        assert sum(slot.cpus for slot in mine) <= share.cpus
        assert sum(slot.mem_mb for slot in mine) <= share.mem_mb
        assert len(mine) * gpus <= share.gpus
        assert all(slot.cpus >= (cpus or 1) for slot in mine)
        assert all(slot.mem_mb >= wanted_mb or not share.mem_mb for slot in mine)
        more = len(mine) + 1
        assert (
            more * (cpus or 1) > share.cpus
            or more * gpus > share.gpus
            or (share.mem_mb and more * wanted_mb > share.mem_mb)
        )
