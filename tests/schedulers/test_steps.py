"""Reports on steps of an allocation, by their files, their supervisor and their allocation."""

import os
import time
from pathlib import Path

import pytest

from elmanctl.ledger.submissions import Allocation, Submission, Task
from elmanctl.processes import start_ticks
from elmanctl.schedulers import steps
from elmanctl.schedulers.executor import ALLOCATION_ENDED, JobReport, JobState, LiveJob
from elmanctl.schedulers.lanes import CANCEL_FILE, STEP_FILE, slurm_job

HELD = Allocation(job_id="4711", job_name="held")
ALIVE = JobReport(state=JobState.RUNNING, raw="RUNNING", node="n[1-2]")
TOO_LATE = (
    "srun: error: Unable to create step for job 4711: Job/step already completing or completed"
)


def over(raw: str) -> JobReport:
    return JobReport(state=JobState.ENDED, raw=raw, node="n[1-2]")


class Step:
    """The folder of a step: what its supervisor, its script and a controller leave there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log.out"

    def began(self) -> None:
        (self.folder / STEP_FILE).write_text("3 n2\n", encoding="utf-8")

    def supervised(self, host: str = os.uname().nodename) -> None:
        words = f"{os.getpid()} {start_ticks(os.getpid())} {host}\n"
        (self.folder / "process").write_text(words, encoding="utf-8")

    def ended(self, code: int, age_s: float = 0.0) -> None:
        (self.folder / "process").write_text(f"{2**22 - 1} 1 {os.uname().nodename}\n")
        (self.folder / "exit").write_text(f"{code}\n", encoding="utf-8")
        then = time.time() - age_s
        os.utime(self.folder / "exit", (then, then))

    def report(self, of_allocation: JobReport = ALIVE) -> JobReport:
        return steps.step_report(of_allocation, self.folder, self.log)

    def own(self) -> JobReport | None:
        """The report while Slurm is not asked."""
        return steps.own_report(self.folder, self.log)


@pytest.fixture
def step(tmp_path: Path) -> Step:
    return Step(tmp_path)


def test_step_waits_until_it_has_a_number_and_then_runs_on_its_node(step: Step) -> None:
    step.supervised()
    assert step.report().state is JobState.PENDING
    step.began()
    for report in (step.report(), step.own()):
        assert report is not None and (report.state, report.node) == (JobState.RUNNING, "n2")


@pytest.mark.parametrize("code", [0, 1, 2, 127, 134, 139])
def test_step_that_ends_by_itself(step: Step, code: int) -> None:
    step.began()
    step.ended(code, age_s=61)
    report = step.own()
    assert report is not None and report.state is JobState.ENDED
    assert (report.exit_code, report.node) == (code, "n2")
    assert report.signal == (code - 128 if code > 128 else None)
    # Whatever becomes of the allocation later, unless srun's code says nothing.
    if code:
        assert step.report(over("TIMEOUT")) == report


@pytest.mark.parametrize("raw", ["TIMEOUT", "PREEMPTED", "CANCELLED by 0", "COMPLETED", "gone"])
@pytest.mark.parametrize("code", [None, 0, 137, 140, 143])
def test_allocation_takes_its_steps_along(step: Step, raw: str, code: int | None) -> None:
    step.began()
    if code is not None:
        step.ended(code, age_s=500)
    report = step.report(over(raw))
    assert (report.state, report.raw, report.reason) == (JobState.ENDED, ALLOCATION_ENDED, raw)
    assert report.node == "n2"


def test_node_that_died_is_the_end_of_its_own_steps_alone(step: Step) -> None:
    step.began()
    step.log.write_text("srun: error: Node failure on n2\n", encoding="utf-8")
    step.ended(0)
    for report in (step.own(), step.report(over("NODE_FAIL"))):
        assert report is not None and (report.raw, report.node) == ("NODE_FAIL", "n2")
    step.log.write_text("srun: error: Node failure on n22\n", encoding="utf-8")
    assert step.report(over("NODE_FAIL")).raw == ALLOCATION_ENDED


def test_step_that_came_too_late_was_taken_along(step: Step) -> None:
    step.log.write_text(f"{TOO_LATE}\n", encoding="utf-8")
    step.ended(1)
    assert step.report().state is not JobState.ENDED
    assert step.report(over("TIMEOUT")).raw == ALLOCATION_ENDED


@pytest.mark.parametrize(("code", "certain_s"), [(137, 6), (143, 61), (0, 61)])
def test_end_is_the_steps_own_once_the_allocation_has_outlived_it(
    step: Step, code: int, certain_s: float
) -> None:
    step.began()
    step.ended(code)
    assert step.own() is None
    assert step.report().state is JobState.RUNNING
    step.ended(code, age_s=certain_s)
    assert step.report().state is JobState.ENDED
    # Nobody has asked Slurm: SIGKILL may have been its.
    assert (step.own() is None) == (certain_s < 60)


def test_step_that_the_controller_ends_before_the_allocation(step: Step) -> None:
    step.began()
    (step.folder / steps.END_FILE).touch()
    step.ended(143)
    report = step.own()
    assert report is not None and report.raw == ALLOCATION_ENDED
    step.ended(139)
    report = step.own()
    assert report is not None and report.signal == 11


def test_step_that_is_cancelled(step: Step) -> None:
    job = LiveJob(
        job_id="4711.s0003", submission="s0003", task_index=0, job_name="elman", allocation=HELD
    )
    assert slurm_job(job.job_id) == "4711"
    # It has no number yet, and will not begin.
    assert steps.to_cancel([job], [step.folder]) == []
    assert (step.folder / CANCEL_FILE).exists()
    step.began()
    assert steps.to_cancel([job], [step.folder]) == ["4711.3"]
    step.ended(143)
    assert steps.to_cancel([job], [step.folder]) == []
    for report in (step.own(), step.report(over("TIMEOUT"))):
        assert report is not None and (report.raw, report.signal) == ("FAILED", 15)


def test_supervisor_that_was_killed_leaves_a_step_that_has_vanished(step: Step) -> None:
    step.began()
    (step.folder / "process").write_text(f"{2**22 - 1} 1 {os.uname().nodename}\n", encoding="utf-8")
    assert step.own() is None
    assert step.report().state is JobState.VANISHED


def test_supervisor_on_another_host_is_believed_while_the_allocation_lives(step: Step) -> None:
    step.began()
    step.supervised(host="login7")
    assert step.report().state is JobState.RUNNING
    assert step.report(JobReport(state=JobState.VANISHED)).state is JobState.VANISHED
    assert step.report(over("TIMEOUT")).raw == ALLOCATION_ENDED


def test_submission_is_found_by_what_its_supervisor_left(step: Step) -> None:
    task = Task(index=0, evaluation="g000-e00", attempt=1, slot=2, allocation=HELD)
    submission = Submission(id="s0003", job_name="elman", tasks=(task,), is_array=False)
    assert steps.found(submission, step.folder) is None
    step.supervised()
    assert steps.found(submission, step.folder) == "4711.s0003"
    assert submission.job_of("4711.s0003", 0) == "4711.s0003"
