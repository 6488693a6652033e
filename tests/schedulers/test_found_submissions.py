"""Submissions that the Slurm executor finds again after a controller's end."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from elmanctl.errors import EnvironmentNotReady
from elmanctl.schedulers import earlier_sbatch
from elmanctl.schedulers.executor import JobState, LiveJob
from elmanctl.schedulers.submission import SCRIPT_NAME
from tests.schedulers.executor_setup import JOBS, NAME, NO_ACCOUNTING, ROW, SUBMISSION, Setup


def test_submission_that_was_accepted_is_found_in_squeue_by_its_name(slurm: Setup) -> None:
    rows = ROW.format(id=9, name=f"{NAME}1") + ROW.format(id=12, name=NAME)
    slurm.tools.answer("squeue", rows)
    assert slurm.find() == "12"
    assert slurm.tools.called("sacct") == 0


def test_submission_that_left_squeue_is_found_in_sacct(slurm: Setup) -> None:
    slurm.tools.answer("squeue", ROW.format(id=9, name="other"))
    slurm.tools.answer(
        "sacct", f"12_0|COMPLETED|0:0|0:0|n1|None|{NAME}\n12_1|COMPLETED|0:0|0:0|n1|None|{NAME}\n"
    )
    assert slurm.find() == "12"
    call = next(call for call in slurm.tools.calls if call[0] == "sacct")
    assert call[call.index("--name") + 1] == NAME
    # An hour before the intention, in local time: clocks differ.
    assert call[call.index("-S") + 1] < "2026-08-02"


def test_submission_that_neither_knows_was_never_accepted(slurm: Setup) -> None:
    slurm.tools.answer("squeue")
    slurm.tools.answer("sacct")
    assert slurm.find() is None


def test_record_of_a_refused_request_is_no_job(slurm: Setup) -> None:
    slurm.tools.answer("squeue", f"12|PENDING|BadConstraints||12|0|0|{NAME}\n")
    slurm.tools.answer("sacct", f"12|FAILED|1:0|0:0|None assigned|None|{NAME}\n")
    assert slurm.find() is None


def test_nothing_is_concluded_while_squeue_is_silent(slurm: Setup) -> None:
    slurm.tools.answer("squeue", stderr="slurm_load_jobs error: Unable to contact\n", code=1)
    slurm.tools.answer("sacct")
    with pytest.raises(EnvironmentNotReady):
        slurm.find()


def test_nothing_is_concluded_while_sacct_is_silent(slurm: Setup) -> None:
    slurm.tools.answer("squeue")
    slurm.tools.answer("sacct", stderr="sacct: error: slurmdbd: Connection refused\n", code=1)
    polled = slurm.executor.poll(JOBS, [SUBMISSION])
    assert polled.found == {}
    assert polled.accounting_error == "`sacct` failed: sacct: error: slurmdbd: Connection refused"
    assert {report.reason for report in polled.reports.values()} == {polled.accounting_error}
    assert polled.accounting is None


def test_accounting_that_is_silent_is_asked_ever_more_rarely(slurm: Setup) -> None:
    slurm.tools.answer("squeue")
    slurm.tools.answer("sacct", stderr="sacct: error: slurmdbd: Connection refused\n", code=1)
    asked = []
    for _ in range(40):
        before = slurm.tools.called("sacct")
        assert slurm.executor.poll(JOBS, []).accounting_error is not None
        asked.append(slurm.tools.called("sacct") - before)
    assert [look for look, calls in enumerate(asked) if calls] == [0, 2, 6, 14, 24, 34]
    slurm.tools.answer("sacct")
    while slurm.executor.poll(JOBS, []).accounting_error is not None:
        assert slurm.tools.called("squeue") < 60
    before = slurm.tools.called("sacct")
    slurm.executor.poll(JOBS, [])
    assert slurm.tools.called("sacct") == before + 1


def test_accounting_that_is_off_is_asked_once_and_remembered(slurm: Setup) -> None:
    slurm.tools.answer("squeue")
    slurm.tools.answer("sacct", stderr=NO_ACCOUNTING, code=1)
    assert [slurm.executor.poll(JOBS, []).accounting for _ in range(4)] == [False] * 4
    assert slurm.tools.called("sacct") == 1
    # And it is no complaint, and no obstacle.
    polled = slurm.executor.poll(JOBS, [SUBMISSION])
    assert (polled.accounting_error, polled.found) == (None, {"s0001": None})


def test_a_hundred_orphans_take_two_commands(slurm: Setup) -> None:
    orphans = [
        replace(SUBMISSION, id=f"s{i:04}", job_name=f"elman-run-1a2b3c4d-s{i:04}")
        for i in range(100)
    ]
    listed, ended, never = orphans[:40], orphans[40:80], orphans[80:]
    slurm.tools.answer(
        "squeue", "".join(ROW.format(id=100 + i, name=one.job_name) for i, one in enumerate(listed))
    )
    line = "{id}_0|COMPLETED|0:0|0:0|n1|None|{name}\n"
    slurm.tools.answer(
        "sacct", "".join(line.format(id=200 + i, name=one.job_name) for i, one in enumerate(ended))
    )
    found = slurm.executor.poll([], orphans).found
    assert [found[one.id] for one in listed] == [str(100 + i) for i in range(40)]
    assert [found[one.id] for one in ended] == [str(200 + i) for i in range(40)]
    assert [found[one.id] for one in never] == [None] * 20
    assert [call[0] for call in slurm.tools.calls] == ["squeue", "sacct"]


def test_more_names_than_one_command_can_hold_are_asked_about_in_turns(slurm: Setup) -> None:
    slurm.tools.answer("squeue")
    slurm.tools.answer("sacct")
    jobs = [
        LiveJob(job_id=f"{i}_0", submission=f"s{i}", task_index=0, job_name=f"{i:0200}")
        for i in range(1000)
    ]
    reports = slurm.reports(jobs)
    # A job that was not asked about has no report, and so is not missed.
    assert 0 < len(reports) < 1000
    assert list(reports) == [f"{i}_0" for i in range(len(reports))]


def test_job_id_that_was_used_again_tells_of_nobody_elses_job(slurm: Setup) -> None:
    slurm.tools.answer("squeue", "7_0|RUNNING|None|n1|7|0|0|another\n")
    slurm.tools.answer("sacct", "7_0|COMPLETED|0:0|0:0|n1|None|another\n")
    assert {report.state for report in slurm.reports().values()} == {JobState.VANISHED}


def test_job_that_is_no_array_is_found_by_what_it_left_and_by_its_name(slurm: Setup) -> None:
    slurm.tools.answer("squeue", f"12|RUNNING|None|n1|12|0|0|{NAME}\n")
    assert slurm.find() == "12"
    (slurm.folder / "4711_submitted.pkl").symlink_to("task-0.pkl")
    assert slurm.find() == "4711"


def test_cluster_without_accounting_is_no_obstacle_to_finding(slurm: Setup) -> None:
    slurm.tools.answer("squeue")
    slurm.tools.answer("sacct", stderr=NO_ACCOUNTING, code=1)
    assert slurm.find() is None


def test_job_that_has_started_is_found_by_what_it_left_in_the_folder(slurm: Setup) -> None:
    """On a cluster without accounting nothing else is left of a job that has ended."""
    slurm.folder.mkdir(parents=True)
    (slurm.folder / "4711_1_submitted.pkl").symlink_to("task-1.pkl")
    assert slurm.find() == "4711"
    assert slurm.tools.calls == []


@pytest.fixture
def orphan(slurm: Setup) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like the sbatch of a controller that died."""
    program = "import sys, time; time.sleep(1000)"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "sbatch", str(slurm.folder / SCRIPT_NAME)]
    )
    # Popen returns within exec, a moment before the kernel knows the command line.
    while not Path(f"/proc/{process.pid}/cmdline").read_bytes():
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()


def test_sbatch_of_a_dead_controller_is_waited_for(
    slurm: Setup, orphan: subprocess.Popen[bytes]
) -> None:
    slurm.tools.answer("squeue", ROW.format(id=12, name=NAME))
    began = time.monotonic()
    ended = subprocess.Popen(
        [sys.executable, "-c", f"import os, time; time.sleep(0.5); os.kill({orphan.pid}, 15)"]
    )
    # The orphan is this process' child: it is gone for /proc once it is waited for.
    signal.signal(signal.SIGCHLD, lambda *_: orphan.poll())
    try:
        assert slurm.find() == "12"
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ended.wait()
    assert time.monotonic() - began >= 0.4


def test_sbatch_of_a_dead_controller_that_hangs_is_killed_after_its_time(
    slurm: Setup, orphan: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(earlier_sbatch, "SBATCH_TIMEOUT_S", 0.3)
    slurm.tools.answer("squeue", ROW.format(id=12, name=NAME))
    script = str(slurm.folder / SCRIPT_NAME)
    # Who only reads that script is left alone, and not waited for.
    program = "import time; time.sleep(1000)"
    reader = subprocess.Popen([sys.executable, "-c", program, "/tools/sbatch/view", script])
    signal.signal(signal.SIGCHLD, lambda *_: orphan.poll())
    try:
        assert slurm.find() == "12"
        assert orphan.returncode == -signal.SIGKILL
        assert reader.poll() is None
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        reader.kill()
        reader.wait()


def test_nothing_is_concluded_while_an_sbatch_cannot_be_killed(
    slurm: Setup, orphan: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signal 0 stands for a process that hangs in the kernel and hears none."""
    monkeypatch.setattr(earlier_sbatch, "SBATCH_TIMEOUT_S", 0.0)
    monkeypatch.setattr(earlier_sbatch, "_KILLED_S", 0.1)
    monkeypatch.setattr(earlier_sbatch, "signal", SimpleNamespace(SIGKILL=0))
    with pytest.raises(EnvironmentNotReady, match=rf"cannot be killed: \[{orphan.pid}\]"):
        slurm.find()
    assert slurm.tools.called("squeue") == 0
