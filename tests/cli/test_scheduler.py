"""What is said of the scheduler, and of workers that died with their controller, from files."""

import json
import os
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from elmanctl import clock
from elmanctl.doctor import Finding, examine
from elmanctl.ledger.files import write_json
from elmanctl.ledger.payloads import (
    ControllerStarted,
    EvaluationReopened,
    SubmissionAccepted,
    SubmissionIntended,
)
from elmanctl.ledger.submissions import SubmissionIntent, Task
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.scheduler_note import SchedulerNote, read_note, write_note
from elmanctl.search.session import Session
from tests.command_line import QuickCommandLine
from tests.schedulers.slurm_tools import SlurmTools

RUN = "interrupted-search"
JOB = "g001-e00"


@pytest.fixture
def paths(quick_with_runs: QuickCommandLine) -> RunPaths:
    """The run whose controller was interrupted while one job was at work."""
    return RunPaths(quick_with_runs.folder / "runs" / RUN)


@pytest.fixture
def controller(paths: RunPaths) -> Iterator[Session]:
    """A controller at work."""
    with Session.open(paths.folder) as session:
        session.start_controller()
        yield session


def leave(paths: RunPaths, *, age_s: float = 0.0, **told: object) -> None:
    at = clock.to_text(clock.now() - timedelta(seconds=age_s))
    write_json(
        paths.scheduler,
        {"version": 1, "at": at, "next_s": 60.0, "silent_reason": None, "accounting": None}
        | {"pending": {}}
        | told,
    )


def submit_one(session: Session) -> str:
    """Put an attempt on record whose job waits; return its evaluation."""
    session.record(EvaluationReopened(evaluation="g000-e02", changes={}, by="test"))
    number = len(session.state.evaluations["g000-e02"].attempts) + 1
    task = Task(index=0, evaluation="g000-e02", attempt=number)
    submission = SubmissionIntent(id="s9999", job_name="x", tasks=(task,))
    session.record(SubmissionIntended(submission=submission))
    session.record(SubmissionAccepted(submission="s9999", job_id="77", adopted=False))
    return "g000-e02"


def test_pending_job_shows_slurms_reason_and_the_age_of_the_last_poll(
    quick_with_runs: QuickCommandLine, paths: RunPaths, controller: Session
) -> None:
    name = submit_one(controller)
    leave(paths, pending={"77_0": "QOSMaxJobsPerUserLimit", "5_0": "Priority"})
    done = quick_with_runs("status", RUN, "--all")
    (row,) = [line for line in done.stdout.splitlines() if line.startswith(name)]
    assert row.endswith("python_error (attempt 1); QOSMaxJobsPerUserLimit")
    assert re.search(r"slurm +last poll \d+s ago\n", done.stderr)
    told = json.loads(quick_with_runs("status", RUN, "--all", "--json").stdout)
    reasons = {row["evaluation"]: row["reason"] for row in told["evaluations"]}
    assert reasons[name] == "python_error (attempt 1); QOSMaxJobsPerUserLimit"
    assert told["run"]["scheduler"]["is_stale"] is False
    assert set(told["run"]["scheduler"]) == {
        *("at", "next_s", "asked_at", "silent_reason", "accounting", "refusal"),
        *("age_s", "is_stale"),
    }


def test_silence_and_missing_accounting_are_said(
    quick_with_runs: QuickCommandLine, paths: RunPaths, controller: Session
) -> None:
    leave(paths, silent_reason="`squeue` failed: no answer; asking again in 2m", accounting=False)
    told = quick_with_runs("status", RUN).stderr
    assert "`squeue` failed: no answer; asking again in 2m" in told
    assert "no accounting, so only squeue" in told


def test_stale_note_is_called_stale_and_tells_nothing_else(
    quick_with_runs: QuickCommandLine,
    paths: RunPaths,
    controller: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    submit_one(controller)
    leave(paths, pending={"77_0": "Priority"}, silent_reason="no answer")
    later = clock.now() + timedelta(seconds=361)
    monkeypatch.setattr(clock, "now", lambda: later)
    done = quick_with_runs("status", RUN, "--all")
    assert "last poll 6m ago: the controller hangs" in done.stderr
    assert "Priority" not in done.stdout and "no answer" not in done.stderr
    told = json.loads(quick_with_runs("status", RUN, "--json").stdout)["run"]["scheduler"]
    assert set(told) == {"at", "age_s", "is_stale"} and told["is_stale"] is True


def test_note_of_an_earlier_controller_or_of_none_is_not_shown(
    quick_with_runs: QuickCommandLine, paths: RunPaths
) -> None:
    leave(paths)
    assert "last poll" not in quick_with_runs("status", RUN).stderr
    with Session.open(paths.folder) as session:
        session.start_controller()
        leave(paths, age_s=3600.0)
        assert "last poll" not in quick_with_runs("status", RUN).stderr
    leave(paths)
    # The run says that it is running, and nobody drives it.
    assert "last poll" not in quick_with_runs("status", RUN).stderr


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 2}', '{"version": 1}', '{"version": 1, "at": 3}']
)
def test_damaged_note_is_no_note(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scheduler.json"
    path.write_text(text, encoding="utf-8")
    assert read_note(path) is None


def test_note_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    note = SchedulerNote(at=clock.to_text(clock.now()), next_s=60.0, pending={"7_0": "Priority"})
    write_note(tmp_path / "absent" / "scheduler.json", note)
    write_note(tmp_path / "scheduler.json", note)
    assert read_note(tmp_path / "scheduler.json") == note


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds, time.time() - seconds))


def write_log(paths: RunPaths, text: str) -> Path:
    found = json.loads(paths.ledger.read_text(encoding="utf-8").splitlines()[0])
    assert found["kind"] == "run_created"
    with Session.open(paths.folder) as session:
        attempt = session.state.evaluations[JOB].attempts[-1]
        log = paths.submission(attempt.submission) / f"{attempt.job_id}_0_log.out"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text, encoding="utf-8")
    return log


def test_following_ends_when_worker_and_controller_are_dead(
    quick_with_runs: QuickCommandLine, paths: RunPaths
) -> None:
    write_log(paths, "the last words\n")
    beat = paths.attempt(JOB, 1).heartbeat
    beat.write_text("{}", encoding="utf-8")
    age(beat, 600)
    done = quick_with_runs("logs", RUN, JOB, "-f")
    assert (done.returncode, done.stdout) == (0, "the last words\n")
    assert "its last heartbeat is 10m old" in done.stderr
    assert f"elmanctl resume {RUN}" in done.stderr


def test_following_ends_when_the_worker_never_came_to_a_heartbeat(
    quick_with_runs: QuickCommandLine, paths: RunPaths
) -> None:
    age(write_log(paths, "Illegal instruction\n"), 600)
    done = quick_with_runs("logs", RUN, JOB, "-f")
    assert "its log is 10m old, and it never wrote a heartbeat" in done.stderr


def test_following_ends_when_a_local_worker_left_its_exit_code(
    quick_with_runs: QuickCommandLine, paths: RunPaths
) -> None:
    log = write_log(paths, "x\n")
    (log.parent / "exit").write_text("137\n", encoding="utf-8")
    assert "exited without a result" in quick_with_runs("logs", RUN, JOB, "-f").stderr


def findings(runs: Path) -> dict[str, Finding]:
    return {found.name: found for found in examine(runs, 0.0, str) if found.part == "slurm"}


def test_doctor_tells_of_accounting_and_of_the_limit_on_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = SlurmTools(tmp_path / "bin", monkeypatch)
    assert "accounting" not in findings(tmp_path)
    for command in ("sbatch", "squeue", "sacct", "scancel"):
        tools.answer(command)
    tools.answer("scontrol", "MaxArraySize            = 1001\n")
    found = findings(tmp_path)
    assert found["accounting"].is_fine
    assert found["arrays"].detail == "at most 1001 jobs each; larger ones are split"
    tools.answer("sacct", stderr="Slurm accounting storage is disabled\n", code=1)
    tools.answer("scontrol", stderr="Unable to contact slurm controller\n", code=1)
    found = findings(tmp_path)
    assert not found["accounting"].is_fine
    assert found["accounting"].detail.startswith("none: `sacct` failed: Slurm accounting storage")
    assert not found["arrays"].is_fine


def test_run_whose_jobs_are_on_another_cluster_is_left_alone(
    quick_with_runs: QuickCommandLine, paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session.open(paths.folder) as session:
        session.record(ControllerStarted(host="login", pid=1, clusters="north"))
    monkeypatch.setenv("SLURM_CLUSTERS", "south")
    before = paths.ledger.read_bytes()
    for words in (
        ("resume", RUN),
        ("cancel", "--run", RUN, "--all", "--yes"),
        ("requeue", RUN, "--failed", "--force", "--yes"),
    ):
        done = quick_with_runs(*words)
        assert done.returncode == 2, done.stderr
        assert "on the cluster `north`, and Slurm would be asked about" in done.stderr
        assert "hint: `export SLURM_CLUSTERS=north`" in done.stderr
    assert paths.ledger.read_bytes() == before
