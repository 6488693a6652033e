"""Preview of a submission: the answers of a cluster, and its silence."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elmanctl.errors import EnvironmentNotReady
from elmanctl.ledger.submissions import Resources
from elmanctl.schedulers.cluster import (
    ClusterAnswer,
    SubmitLimit,
    ask_cluster,
    check_gpus_of_nodes,
    check_lanes_of_nodes,
    obstacles,
    parse_limit_min,
    parse_partitions,
    requested_partitions,
)
from elmanctl.schedulers.slurm import Slurm

SINFO = """\
gpu|gpu*|up|2:00:00|2|gpu:a100:4(S:0-1)|64|500000+|NO
gpu|gpu*|up|2:00:00|1|gpu:a100:2,gpu:v100:3|32|250000|NO
cpu|cpu|down|infinite|10|(null)|128|1000000|FORCE:4
"""

ANSWERS = {
    "scontrol": """
        [ "$1" = ping ] && exit 0
        echo "ClusterName = home"; echo "SLURM_VERSION = 24.11.5"; echo "MaxArraySize = 1001" """,
    "sbatch": """
        [ "$1" = --test-only ] || exit 9
        echo "sbatch: Job 7 to start at 2026-01-01T00:00:00 using 1 processors on nodes n1 in \
partition gpu" >&2""",
    "sinfo": "cat <<E\n" + SINFO + "E",
    "sacctmgr": """
        case "$*" in
        *assoc*) echo "lab||20|||normal,high|normal" ;;
        *qos*) echo "normal|50||"; echo "high|5||" ;;
        esac""",
}


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        *(("infinite", None), ("n/a", None), ("30:00", 30), ("2:00:00", 120)),
        *(("1-00:00:00", 1440), ("7-12:30:59", 10831), ("45", 45), ("", None)),
    ],
)
def test_time_limit_is_read_in_minutes(text: str, minutes: int | None) -> None:
    assert parse_limit_min(text) == minutes


def test_partition_is_the_sum_of_its_sorts_of_nodes() -> None:
    gpu, cpu = parse_partitions(SINFO + "a line of a banner\n")
    assert (gpu.name, gpu.is_default, gpu.nodes, gpu.limit_min) == ("gpu", True, 3, 120)
    assert (gpu.gpus, gpu.cpus, gpu.mem_mb) == (5, 64, 500000)
    assert (cpu.is_up, cpu.gpus, cpu.limit_min) == (False, 0, None)
    assert requested_partitions([gpu, cpu], "") == [gpu]
    assert requested_partitions([gpu, cpu], "cpu,other") == [cpu]


def test_what_makes_jobs_wait_is_told() -> None:
    gpu, cpu = parse_partitions(SINFO)
    limit = SubmitLimit(jobs=20, of="account lab")
    short, long = Resources(timeout_min=100), Resources(timeout_min=121)
    assert obstacles([gpu], short, limit, 20) == []
    assert obstacles([gpu, cpu], long, None, 64) == []
    (warning,) = obstacles([gpu], long, None, 64)
    assert warning.startswith("jobs ask for 121 min, and partition gpu allows 120")
    (warning,) = obstacles([gpu], short, limit, 21)
    assert "account lab allows 20" in warning and "`search.max_jobs` 21" in warning
    assert obstacles([cpu], short, None, 64) == ["partition cpu is not up: jobs wait until it is"]


def test_job_of_more_gpus_than_any_node_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program = tmp_path / "sinfo"
    program.write_text(f"#!/bin/sh\n{ANSWERS['sinfo']}\n", encoding="utf-8")
    program.chmod(0o755)

    def check(gpus: int, partition: str | None = None) -> None:
        resources = Resources(nodes=2, tasks_per_node=gpus, partition=partition)
        check_gpus_of_nodes(resources, gpus, Slurm())

    check(5)
    check(6, partition="unlisted")
    check_gpus_of_nodes(Resources(gres="gpu:9"), 9, Slurm())
    with pytest.raises(EnvironmentNotReady, match="node of partition gpu has at most 5") as raised:
        check(6)
    assert raised.value.hint is not None and "`train.gpus` to 5" in raised.value.hint
    with pytest.raises(EnvironmentNotReady, match="node of partition cpu has at most 0"):
        check(2, partition="cpu")
    program.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    check(6)


def test_job_of_more_attempts_than_any_node_has_room_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program = tmp_path / "sinfo"
    program.write_text(f"#!/bin/sh\n{ANSWERS['sinfo']}\n", encoding="utf-8")
    program.chmod(0o755)

    def check(per_job: int, gpus: int = 1, **asked: Any) -> None:
        check_lanes_of_nodes(Resources(per_job=per_job, **asked), gpus, Slurm())

    check(5)
    check(64, gpus=0, partition="gpu")
    check(7, partition="unlisted")
    with pytest.raises(EnvironmentNotReady, match=r"asks for 6 GPUs .* has at most 5$") as raised:
        check(6)
    assert raised.value.hint == "set `slurm.per_job` to 5"
    with pytest.raises(EnvironmentNotReady, match="asks for 68 CPUs"):
        check(4, cpus=17)
    with pytest.raises(EnvironmentNotReady, match="asks for 600 GB of memory") as raised:
        check(3, mem_gb=200)
    assert raised.value.hint == "set `slurm.per_job` to 2"
    with pytest.raises(EnvironmentNotReady, match="at most 0"):
        check(2, partition="cpu")


Ask = Callable[..., ClusterAnswer]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Asks a cluster whose commands answer so, but for those that a test changes."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def made(
        resources: Resources | None = None,
        *,
        gpus: int = 0,
        timeout_s: float = 60,
        **changed: str,
    ) -> ClusterAnswer:
        for name, body in {**ANSWERS, **changed}.items():
            program = tmp_path / name
            program.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
            program.chmod(0o755)
        asked = resources or Resources(timeout_min=60)
        return ask_cluster("#!/bin/sh\n", asked, 64, Slurm(timeout_s=timeout_s), gpus=gpus)

    return made


@pytest.mark.parametrize(
    ("shared", "per_job", "gpus", "extra", "advised"),
    [
        ("EXCLUSIVE", 1, 1, {}, 5),
        ("EXCLUSIVE", 2, 2, {}, 2),
        ("NO", 1, 1, {"exclusive": True}, 5),
        # Shared between jobs, used as a whole, or without GPUs.
        ("NO", 1, 1, {}, None),
        ("NO", 1, 1, {"exclusive": "user"}, None),
        ("EXCLUSIVE", 5, 1, {}, None),
        ("EXCLUSIVE", 1, 0, {}, None),
    ],
)
def test_gpus_of_a_whole_node_that_stay_idle_are_told(
    ask: Ask,
    shared: str,
    per_job: int,
    gpus: int,
    extra: dict[str, object],
    advised: int | None,
) -> None:
    resources = Resources(timeout_min=5, partition="gpu", per_job=per_job, extra=extra)
    sinfo = ANSWERS["sinfo"].replace("|NO", f"|{shared}")
    warnings = ask(resources=resources, gpus=gpus, sinfo=sinfo).warnings
    told = [words for words in warnings if "whole nodes" in words]
    assert len(told) == (advised is not None)
    if advised is not None:
        assert "whole nodes of 5 GPUs" in told[0] and f"slurm.per_job={advised}`" in told[0]


def test_cluster_tells_partition_limits_accounts_and_when_a_job_could_start(ask: Ask) -> None:
    found = ask()
    assert (found.silence, found.outcome) == (None, "accepted")
    assert (found.name, found.version, found.array_limit) == ("home", "24.11.5", 1001)
    assert found.starts_at == "2026-01-01T00:00:00"
    assert [one.name for one in found.partitions] == ["gpu"]
    assert found.accounts == ("lab",)
    assert found.submit_limit == SubmitLimit(jobs=20, of="account lab")
    (warning,) = found.warnings
    assert "account lab allows 20 submitted jobs" in warning


def test_start_is_read_with_the_stray_word_that_slurm_26_puts_behind_it(ask: Ask) -> None:
    words = "sbatch: Job 2 to start at 2026-11-30T17:55:56 a using 1 processors on nodes n1 in"
    found = ask(sbatch=f"echo '{words} partition gpu' >&2")
    assert found.starts_at == "2026-11-30T17:55:56"
    assert [one.name for one in found.partitions] == ["gpu"]


def test_limit_of_the_qos_that_is_asked_for_counts(ask: Ask) -> None:
    found = ask(Resources(timeout_min=60, extra={"qos": "high"}))
    assert found.submit_limit == SubmitLimit(jobs=5, of="QOS high")


def test_refusal_is_told_with_what_there_is(ask: Ask) -> None:
    asked = Resources(timeout_min=60, partition="gpuu", account="labb")
    found = ask(
        asked,
        sbatch="echo 'allocation failure: Invalid partition name specified' >&2; exit 1",
    )
    assert (found.outcome, found.key) == ("never", "slurm.partition")
    assert found.words == "Invalid partition name specified"
    assert found.warnings == (
        "no partition `gpuu` is listed; partitions here: gpu, cpu",
        "no account `labb` is listed; your accounts: lab",
    )


def test_command_that_says_nothing_leaves_the_others_their_word(ask: Ask) -> None:
    found = ask(sacctmgr="exit 1", sinfo="exit 1")
    assert (found.outcome, found.partitions, found.accounts) == ("accepted", (), ())
    assert found.array_limit == 1001 and found.warnings == ()


def test_cluster_that_does_not_answer_in_time_is_not_asked_again(ask: Ask, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    note = f"echo x >> {asked}; "
    found = ask(scontrol=f"{note}exec sleep 60", sbatch=f"{note}exit 1", timeout_s=0.3)
    assert found == ClusterAnswer(silence="`scontrol` did not answer within 0.3 s")
    # It answers the first questions, and then no more.
    ping = '[ "$1" = ping ] && exit 0; '
    late = {"scontrol": f"{ping}{note}exec sleep 60", "sinfo": note, "sacctmgr": note}
    found = ask(**late, timeout_s=3.0)
    assert (found.outcome, found.partitions) == ("accepted", ())
    assert asked.read_text(encoding="utf-8") == "x\n" * 2


def test_cluster_that_is_not_there_is_a_silence_with_its_reason(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    munge = "echo 'scontrol: error: If munged is up, restart it'; echo 'scontrol: error: no socket'"
    found = ask(scontrol=f"({munge}) >&2; exit 1")
    # The first line alone may say little.
    assert found.silence is not None
    assert found.silence.endswith("error: If munged is up, restart it; scontrol: error: no socket")
    assert found.outcome is None
    found = ask(sbatch="echo 'sbatch: error: Zero Bytes were transmitted' >&2; exit 1")
    assert found == ClusterAnswer(silence="Zero Bytes were transmitted")
    monkeypatch.setenv("PATH", os.devnull)
    found = ask_cluster("", Resources(timeout_min=60), 64, Slurm())
    assert found == ClusterAnswer(silence="no `sbatch` on this machine")
