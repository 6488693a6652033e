"""Reports on lanes, by the report on their job and the exit code of their step."""

import os
import time
from pathlib import Path

import pytest

from elmanctl.ledger.submissions import Resources, Submission, Task
from elmanctl.schedulers.executor import JobReport, JobState, LiveJob
from elmanctl.schedulers.lanes import CANCEL_FILE, EXIT_FILE, lane_report, slurm_job, to_cancel

RUNNING = JobReport(state=JobState.RUNNING, raw="RUNNING", node="n1")


def ended(raw: str) -> JobReport:
    return JobReport(state=JobState.ENDED, raw=raw, node="n1")


def leave(folder: Path, code: int, age_s: float = 0.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EXIT_FILE).write_text(f"{code}\n", encoding="utf-8")
    then = time.time() - age_s
    os.utime(folder / EXIT_FILE, (then, then))
    return folder


def test_lane_that_has_not_ended_is_as_its_job_is(tmp_path: Path) -> None:
    for report in (RUNNING, ended("NODE_FAIL"), JobReport(state=JobState.VANISHED)):
        assert lane_report(report, tmp_path) == report


@pytest.mark.parametrize(("code", "raw"), [(0, "COMPLETED"), (1, "FAILED"), (127, "FAILED")])
def test_lane_that_ends_by_itself_is_over_while_its_job_runs(
    tmp_path: Path, code: int, raw: str
) -> None:
    found = lane_report(RUNNING, leave(tmp_path, code))
    assert (found.state, found.raw, found.exit_code, found.signal, found.node) == (
        *(JobState.ENDED, raw, code, None),
        "n1",
    )
    # Whatever becomes of the job later.
    assert lane_report(ended("TIMEOUT"), tmp_path).raw == raw


def test_signal_may_be_the_end_of_the_job_and_is_judged_when_that_is_known(tmp_path: Path) -> None:
    assert lane_report(RUNNING, leave(tmp_path, 137)) == RUNNING
    assert lane_report(ended("PREEMPTED"), tmp_path).raw == "PREEMPTED"
    own = lane_report(ended("COMPLETED"), tmp_path)
    assert (own.raw, own.exit_code, own.signal) == ("FAILED", 137, 9)
    # A job that goes on for so long does not end with it.
    late = lane_report(RUNNING, leave(tmp_path, 139, age_s=61))
    assert (late.state, late.signal) == (JobState.ENDED, 11)
    (tmp_path / CANCEL_FILE).touch()
    assert lane_report(RUNNING, leave(tmp_path, 143)).state is JobState.ENDED


def lane(index: int, *lanes: int, job: str = "7_0") -> LiveJob:
    return LiveJob(
        job_id=f"{job}.lane{index % 4}",
        submission="s0001",
        task_index=index,
        job_name="elman-s0001",
        lanes=lanes,
    )


def test_steps_are_cancelled_or_the_job_when_nothing_else_is_left_in_it(tmp_path: Path) -> None:
    for index in (0, 1, 2):
        (tmp_path / f"task-{index}").mkdir()
        (tmp_path / f"task-{index}" / "step").write_text(f"{index + 5}\n", encoding="utf-8")
    first, second = lane(0, 0, 1, 2, 3), lane(1, 0, 1, 2, 3)
    assert to_cancel([first, second], [tmp_path] * 2) == ["7_0.5", "7_0.6"]
    # One that has no step yet gets none.
    assert to_cancel([lane(3, 0, 1, 2, 3)], [tmp_path]) == []
    assert (tmp_path / "task-3" / CANCEL_FILE).exists()
    for index in (2, 3):
        leave(tmp_path / f"task-{index}", 0)
    assert to_cancel([first, second], [tmp_path] * 2) == ["7_0"]
    single = LiveJob(job_id="8_1", submission="s0002", task_index=1, job_name="elman-s0002")
    assert to_cancel([single, lane(0, 0, 1, 2, 3)], [tmp_path] * 2) == ["8_1", "7_0.5"]


def test_attempts_of_a_submission_are_lanes_of_its_jobs() -> None:
    tasks = tuple(Task(index=n, evaluation=f"g000-e{n:02}", attempt=1) for n in range(6))
    resources = Resources(per_job=4)
    packed = Submission(id="s1", job_name="elman-s1", tasks=tasks, resources=resources)
    names = [packed.job_of("7", index) for index in range(6)]
    assert names == [*(f"7_0.lane{lane}" for lane in range(4)), "7_1.lane0", "7_1.lane1"]
    assert [packed.lanes_of(index) for index in (1, 5)] == [(0, 1, 2, 3), (4, 5)]
    assert {slurm_job(name) for name in names} == {"7_0", "7_1"}
    single = Submission(id="s1", job_name="elman-s1", tasks=tasks[:1])
    assert (single.job_of("7", 0), single.lanes_of(0), slurm_job("7_0")) == ("7_0", (), "7_0")
