"""Several ranks of one attempt, as processes of this machine: one result, whatever ends a rank."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from elmanctl.run.paths import AttemptPaths
from tests.jobs.attempts import CHECKOUT, Write, losses, read
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.torch

# The worker of rank 0.  Each rank imports `sitecustomize` beside it, which a test may write.
WORKER = """
import sys
from elmanctl.jobs.evaluation import evaluate_attempt
evaluate_attempt(sys.argv[1])
"""

# Does something on one rank when it reports, or would report, a step.
AT_STEP = """
import os, signal, sys
import elmanctl.jobs.other_rank as other_rank
def step(self, record):
    if record.step == {step}:
        {action}
other_rank._Silent.step = step
"""


@pytest.fixture
def in_others(tmp_path: Path) -> Any:
    """Let the other ranks do something when they have made a step."""

    def put(action: str, step: int = 3) -> None:
        (tmp_path / "sitecustomize.py").write_text(AT_STEP.format(action=action, step=step))

    return put


def environment(folder: Path, **more: str) -> dict[str, str]:
    known = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    path = f"{folder}{os.pathsep}{CHECKOUT}"
    return {**known, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


@contextmanager
def started(paths: AttemptPaths, folder: Path, **more: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(paths.folder)],
        env=environment(folder, **more),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(process: "subprocess.Popen[str]") -> str:
    """Wait for the end of a worker and return its log."""
    return process.communicate(timeout=PATIENCE_S)[1]


def run(paths: AttemptPaths, folder: Path) -> dict[str, Any]:
    """Run an attempt and return its result."""
    with started(paths, folder) as process:
        log = finish(process)
    assert paths.result.exists(), log
    return read(paths.result)


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Any, what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited for {what}")


def has_steps(paths: AttemptPaths, count: int) -> bool:
    return paths.metrics.exists() and len(paths.metrics.read_text().splitlines()) >= count


def test_ranks_of_this_machine_leave_one_result(write: Write, tmp_path: Path) -> None:
    alone, together = write(1), write(2, gpus=2, continues_from=())
    one, two = run(alone, tmp_path), run(together, tmp_path)
    assert two["verdict"]["kind"] == "completed" and two["ranks"] == 2
    # Each rank sums its half of the batch.
    assert losses(together) == pytest.approx(losses(alone), abs=1e-5)
    assert one["steps"] == two["steps"]
    assert not together.rendezvous.exists() and not together.checkpoint.exists()


def test_all_ranks_end_when_the_first_is_asked_to_stop(write: Write, tmp_path: Path) -> None:
    paths = write(gpus=2, steps=10**6, checkpoint_min=0.0, stoppable=True, heartbeat_s=0.01)
    with started(paths, tmp_path) as process:
        wait_for(lambda: has_steps(paths, 3), "the third step")
        others = children(process.pid)
        paths.stop.write_text("{}")
        log = finish(process)
    assert process.returncode == 0, log
    result = read(paths.result)
    assert (result["verdict"]["kind"], result["loss"], result["ranks"]) == ("stopped", None, 2)
    assert result["steps"] == len(losses(paths)) >= 3
    assert others and not any(map(is_alive, others))


def test_exception_of_another_rank_is_the_verdict_once(
    write: Write, tmp_path: Path, in_others: Any
) -> None:
    text = "CUDA out of memory. Tried to allocate 2.00 GiB."
    in_others(f"import torch; raise torch.OutOfMemoryError({text!r})")
    paths = write(gpus=3, batch=6)
    result = run(paths, tmp_path)
    assert result["verdict"]["kind"] == "oom"
    (evidence,) = result["verdict"]["evidence"]
    rank = result["failed_rank"]
    assert rank in (1, 2)
    assert evidence["text"].startswith(f"OutOfMemoryError: {text} (rank {rank} of 3 on ")
    assert result["steps"] >= 3


def test_another_rank_that_is_killed_is_told_by_its_signal(
    write: Write, tmp_path: Path, in_others: Any
) -> None:
    in_others("os.kill(os.getpid(), signal.SIGKILL)")
    paths = write(gpus=2)
    result = run(paths, tmp_path)
    assert result["verdict"]["kind"] == "killed"
    (evidence,) = result["verdict"]["evidence"]
    assert evidence["text"].startswith("rank 1 of 2 on ")
    assert evidence["text"].endswith(" was ended by signal 9 (SIGKILL)")
    assert paths.checkpoint.exists()


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM])
def test_other_ranks_end_with_rank_0_however_it_ends(
    write: Write, tmp_path: Path, ended_by: signal.Signals
) -> None:
    paths = write(gpus=2, steps=10**6, checkpoint_min=0.0)
    with started(paths, tmp_path) as process:
        wait_for(lambda: has_steps(paths, 5), "five steps")
        (other,) = children(process.pid)
        process.send_signal(ended_by)
        assert process.wait(PATIENCE_S) == -ended_by
    wait_for(lambda: not is_alive(other), "the other rank to end")
    assert not paths.result.exists()


def test_attempt_goes_on_from_the_checkpoint_of_all_ranks(
    write: Write, tmp_path: Path, in_others: Any
) -> None:
    undisturbed = write(1, evaluation="g000-e01", gpus=2)
    expected = run(undisturbed, tmp_path)
    first = write(1, gpus=2)
    in_others("os.kill(os.getpid(), signal.SIGKILL)", step=6)
    assert run(first, tmp_path)["verdict"]["kind"] == "killed"
    (tmp_path / "sitecustomize.py").unlink()
    second = write(2, gpus=2)
    result = run(second, tmp_path)
    assert result["continued_from"]["attempt"] == 1 and result["continued_from"]["step"] >= 4
    assert result["loss"] == expected["loss"]
    assert losses(second) == losses(undisturbed)[result["continued_from"]["step"] :]


def task(rank: int, node: str = "n1") -> dict[str, str]:
    """The variables of a task of a Slurm job."""
    names = {"PROCID": rank, "LOCALID": rank, "NTASKS": 2, "JOB_ID": 77, "RESTART_COUNT": 1}
    variables = {f"SLURM_{name}": str(value) for name, value in names.items()}
    return {**variables, "SLURMD_NODENAME": node, "SUBMITIT_EXECUTOR": "slurm"}


def test_tasks_of_a_job_never_use_the_address_of_an_earlier_start(
    write: Write, tmp_path: Path
) -> None:
    paths = write(gpus=2)
    stale = {"version": 1, "host": "127.0.0.1", "port": 1, "key": "x", "job_id": "77", "restart": 0}
    paths.rendezvous.write_text(json.dumps(stale))
    paths.claim.write_text(json.dumps({"version": 1, "job_id": "77", "restart": 0, "host": "n1"}))
    with started(paths, tmp_path, **task(1)) as other:
        time.sleep(1.0)
        assert other.poll() is None
        with started(paths, tmp_path, **task(0)) as first:
            log = finish(first)
            assert first.returncode == 0, log
        assert other.wait(PATIENCE_S) == 0
    assert read(paths.result)["verdict"]["kind"] == "completed"
    assert read(paths.result)["job_id"] == "77"


def test_other_tasks_end_quietly_when_there_is_nothing_to_do(write: Write, tmp_path: Path) -> None:
    done, held = write(1, gpus=2), write(2, gpus=2)
    done.result.write_text("{}")
    held.claim.write_text(json.dumps({"version": 1, "job_id": "5", "restart": 0}))
    for paths in (done, held):
        with started(paths, tmp_path, **task(1)) as other:
            assert "nothing to do" in finish(other)
            assert other.returncode == 0
    assert done.result.read_text() == "{}" and not held.result.exists()


def test_task_that_is_killed_leaves_no_result_and_its_name_to_the_judge(
    write: Write, tmp_path: Path, in_others: Any
) -> None:
    in_others("os.kill(os.getpid(), signal.SIGKILL)")
    paths = write(gpus=2)
    with started(paths, tmp_path, **task(1, "n2")), started(paths, tmp_path, **task(0)) as first:
        assert "RankLost: rank 1 of 2 on n2 ended without a word" in finish(first)
        assert first.returncode == 1
    assert not paths.result.exists() and paths.checkpoint.exists()
    lost = read(paths.heartbeat)["lost_rank"]
    assert {key: value for key, value in lost.items() if key != "at"} == {
        "rank": 1,
        "count": 2,
        "node": "n2",
        "how": "ended without a word",
    }


def test_job_with_too_few_tasks_says_so(write: Write, tmp_path: Path) -> None:
    paths = write(gpus=4)
    with started(paths, tmp_path, **task(0)) as first:
        finish(first)
    (evidence,) = read(paths.result)["verdict"]["evidence"]
    assert "the job has 2 tasks, and 4 processes train its model" in evidence["text"]
