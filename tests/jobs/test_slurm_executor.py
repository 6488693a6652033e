"""Submitting to Slurm, finding again, asking and cancelling, with small programs as Slurm."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from elmanctl.errors import EnvironmentNotReady, SubmissionError
from elmanctl.jobs import slurm_executor
from elmanctl.jobs.executor import JobState, LiveJob, SubmissionUnknown
from elmanctl.jobs.paths import RunPaths
from elmanctl.jobs.slurm import SlurmSilent
from elmanctl.jobs.slurm_executor import SlurmExecutor
from elmanctl.jobs.submission import SCRIPT_NAME, task_pickle
from elmanctl.ledger.records import Submission, Task
from tests.jobs.slurm_tools import SlurmTools

NAME = "elman-run-1a2b3c4d-s0001"
SUBMISSION = Submission(
    id="s0001",
    job_name=NAME,
    tasks=tuple(Task(index=i, evaluation=f"g000-e0{i}", attempt=1) for i in range(2)),
    resources={"timeout_min": 5, "partition": "gpu"},
    intended_at="2026-08-01T10:00:00.000Z",
)
JOBS = [LiveJob(job_id=f"7_{i}", submission="s0001", task_index=i) for i in range(3)]
NO_ACCOUNTING = "Slurm accounting storage is disabled\n"


class Setup:
    """An executor of a run, its submission's folder, and the programs that it calls."""

    def __init__(self, root: Path, tools: SlurmTools) -> None:
        self.paths = RunPaths(root / "run")
        self.folder = self.paths.submission("s0001")
        self.executor = SlurmExecutor(self.paths, max_jobs=3)
        self.tools = tools

    def submit(self) -> str:
        return self.executor.submit(SUBMISSION, self.folder)

    def find(self) -> str | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.executor.find(SUBMISSION, self.folder)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    return Setup(tmp_path, SlurmTools(tmp_path / "bin", monkeypatch))


def test_accepted_submission_returns_the_arrays_id(slurm: Setup) -> None:
    slurm.tools.answer("sbatch", "4711\n")
    assert slurm.submit() == "4711"
    assert slurm.tools.calls == [["sbatch", "--parsable", str(slurm.folder / SCRIPT_NAME)]]


def test_id_of_a_federated_cluster_is_parted_from_its_name(slurm: Setup) -> None:
    slurm.tools.answer("sbatch", "4711;cluster-a\n")
    assert slurm.submit() == "4711"


def test_script_and_pickles_are_complete_before_sbatch_is_called(slurm: Setup) -> None:
    slurm.tools.answer("sbatch", "4711\n", does='for last; do :; done; cat "$last" > seen')
    slurm.submit()
    text = (slurm.tools.folder / "seen").read_text(encoding="utf-8")
    assert f"#SBATCH --job-name={NAME}" in text
    assert all(task_pickle(slurm.folder, index).is_file() for index in range(2))


def test_variables_that_outrank_the_script_do_not_reach_sbatch(
    slurm: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_JOB_NAME", "another")
    monkeypatch.setenv("SLURM_CONF", "kept")
    slurm.tools.answer("sbatch", "4711\n", does="export -p > seen")
    slurm.submit()
    seen = (slurm.tools.folder / "seen").read_text(encoding="utf-8")
    assert "SBATCH_" not in seen
    assert "SLURM_CONF='kept'" in seen


def test_refusal_carries_sbatchs_own_words(slurm: Setup) -> None:
    words = "sbatch: error: Batch job submission failed: Invalid account or account/partition"
    slurm.tools.answer("sbatch", stderr=f"{words}\n", code=1)
    with pytest.raises(SubmissionError) as told:
        slurm.submit()
    assert told.value.message == words
    assert not isinstance(told.value, SubmissionUnknown)
    assert told.value.hint


def test_sbatch_that_is_absent_refuses(slurm: Setup) -> None:
    with pytest.raises(SubmissionError, match="cannot run `sbatch`") as told:
        slurm.submit()
    assert not isinstance(told.value, SubmissionUnknown)


@pytest.mark.parametrize(
    "words",
    [
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: Unable to contact slurm controller (connect failure)",
        "sbatch: error: slurm_receive_msg: Connection refused",
        "sbatch: error: slurm_receive_msg: Connection reset by peer",
    ],
)
def test_answer_that_was_lost_on_the_way_is_no_refusal(slurm: Setup, words: str) -> None:
    slurm.tools.answer("sbatch", stderr=f"{words}\n", code=1)
    with pytest.raises(SubmissionUnknown, match="sbatch: error"):
        slurm.submit()


def test_success_without_an_id_is_no_refusal(slurm: Setup) -> None:
    slurm.tools.answer("sbatch", "Submitted batch job 4711 on cluster a\n")
    with pytest.raises(SubmissionUnknown, match="Submitted batch job 4711"):
        slurm.submit()


def test_sbatch_that_was_killed_is_no_refusal(slurm: Setup) -> None:
    slurm.tools.answer("sbatch", does="kill -9 $$")
    with pytest.raises(SubmissionUnknown):
        slurm.submit()


def test_sbatch_that_hangs_is_no_refusal(slurm: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm.tools.answer("sbatch", does="exec sleep 60")
    monkeypatch.setattr(slurm_executor, "SBATCH_TIMEOUT_S", 0.3)
    with pytest.raises(SubmissionUnknown, match="did not answer"):
        slurm.submit()


def test_interrupt_from_the_keyboard_does_not_reach_sbatch(slurm: Setup) -> None:
    """A Ctrl-C goes to the terminal's group; sbatch is in a session of its own."""
    (slurm.tools.folder / "ps").symlink_to("/bin/ps")
    slurm.tools.answer("sbatch", "4711\n", does="ps -o sid= -p $$ > session; echo $$ > self")
    slurm.submit()
    session = (slurm.tools.folder / "session").read_text(encoding="utf-8").strip()
    assert session == (slurm.tools.folder / "self").read_text(encoding="utf-8").strip()


ROW = "{id}_0|RUNNING|None|n1|{id}|{name}\n"


def test_submission_that_was_accepted_is_found_in_squeue_by_its_name(slurm: Setup) -> None:
    rows = ROW.format(id=9, name=f"{NAME}1") + ROW.format(id=12, name=NAME)
    slurm.tools.answer("squeue", rows)
    assert slurm.find() == "12"
    assert slurm.tools.called("sacct") == 0


def test_submission_that_left_squeue_is_found_in_sacct(slurm: Setup) -> None:
    slurm.tools.answer("squeue", ROW.format(id=9, name="other"))
    slurm.tools.answer("sacct", "12_0|COMPLETED|n1\n12_1|COMPLETED|n1\n")
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
    slurm.tools.answer("squeue", f"12|PENDING|BadConstraints||12|{NAME}\n")
    slurm.tools.answer("sacct", "12|FAILED|None assigned\n")
    assert slurm.find() is None


def test_nothing_is_concluded_while_squeue_is_silent(slurm: Setup) -> None:
    slurm.tools.answer("squeue", stderr="slurm_load_jobs error: Unable to contact\n", code=1)
    slurm.tools.answer("sacct")
    with pytest.raises(EnvironmentNotReady):
        slurm.find()


def test_nothing_is_concluded_while_sacct_is_silent(slurm: Setup) -> None:
    slurm.tools.answer("squeue")
    slurm.tools.answer("sacct", stderr="sacct: error: slurmdbd: Connection refused\n", code=1)
    with pytest.raises(SlurmSilent):
        slurm.find()


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
    program = "import sys, time; time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "sbatch", str(slurm.folder / SCRIPT_NAME)]
    )
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


def test_while_squeue_is_down_every_job_is_unknown_and_the_reason_is_kept(slurm: Setup) -> None:
    slurm.tools.answer("squeue", stderr="slurm_load_jobs error: Unable to contact\n", code=1)
    reports = slurm.executor.reports(JOBS)
    assert {job.job_id for job in JOBS} == set(reports)
    assert {report.state for report in reports.values()} == {JobState.UNKNOWN}
    assert {report.reason for report in reports.values()} == {
        "`squeue` failed: slurm_load_jobs error: Unable to contact"
    }
    assert slurm.tools.called("sacct") == 0


def test_jobs_that_squeue_lists_as_alive_need_no_accounting(slurm: Setup) -> None:
    slurm.tools.answer(
        "squeue", "7_0|RUNNING|None|n1|7|a\n7_1|PENDING|Priority||7|a\n7_2|COMPLETING|None|n2|7|a\n"
    )
    reports = slurm.executor.reports(JOBS)
    assert reports["7_0"].state is JobState.RUNNING
    assert reports["7_0"].node == "n1"
    assert (reports["7_1"].state, reports["7_1"].reason) == (JobState.PENDING, "Priority")
    assert reports["7_2"].state is JobState.RUNNING
    assert slurm.tools.called("sacct") == 0


def test_exit_code_of_a_job_that_ended_comes_from_accounting(slurm: Setup) -> None:
    slurm.tools.answer("squeue", "7_0|FAILED|NonZeroExitCode|n1|7|a\n7_1|RUNNING|None|n1|7|a\n")
    slurm.tools.answer(
        "sacct",
        "7_0|FAILED|3:0|3:0|n1|NonZeroExitCode\n7_1|RUNNING|0:0|0:0|n1|None\n"
        "7_2|OUT_OF_MEMORY|0:125|0:125|n2|OutOfMemory\n",
    )
    reports = slurm.executor.reports(JOBS)
    assert (reports["7_0"].state, reports["7_0"].exit_code) == (JobState.ENDED, 3)
    assert reports["7_1"].state is JobState.RUNNING
    assert (reports["7_2"].raw, reports["7_2"].node) == ("OUT_OF_MEMORY", "n2")
    assert [slurm.tools.called(name) for name in ("squeue", "sacct")] == [1, 1]


def test_job_that_neither_command_knows_has_vanished(slurm: Setup) -> None:
    slurm.tools.answer("squeue")
    slurm.tools.answer("sacct")
    reports = slurm.executor.reports(JOBS)
    assert {report.state for report in reports.values()} == {JobState.VANISHED}


def test_accounting_that_lags_behind_does_not_revive_a_job(slurm: Setup) -> None:
    slurm.tools.answer("squeue", "7_0|COMPLETED|None|n1|7|a\n")
    slurm.tools.answer("sacct", "7_0|RUNNING|0:0|0:0|n1|None\n7_1|RUNNING|0:0|0:0|n1|None\n")
    reports = slurm.executor.reports(JOBS)
    assert (reports["7_0"].state, reports["7_0"].raw) == (JobState.ENDED, "COMPLETED")
    assert reports["7_1"].state is JobState.VANISHED


def test_without_accounting_squeue_alone_tells_how_jobs_ended(slurm: Setup) -> None:
    slurm.tools.answer("squeue", "7_0|TIMEOUT|TimeLimit|n1|7|a\n7_1|RUNNING|None|n1|7|a\n")
    slurm.tools.answer("sacct", stderr=NO_ACCOUNTING, code=1)
    reports = slurm.executor.reports(JOBS)
    assert (reports["7_0"].state, reports["7_0"].raw) == (JobState.ENDED, "TIMEOUT")
    assert reports["7_0"].exit_code is None
    assert reports["7_1"].state is JobState.RUNNING
    assert reports["7_2"].state is JobState.VANISHED


def test_jobs_of_others_are_not_reported(slurm: Setup) -> None:
    slurm.tools.answer("squeue", ROW.format(id=99, name="other") + "7_0|RUNNING|None|n1|7|a\n")
    assert set(slurm.executor.reports(JOBS[:1])) == {"7_0"}


def test_no_more_jobs_are_queued_than_allowed(slurm: Setup) -> None:
    assert slurm.executor.free_slots([]) == [None] * 3
    assert slurm.executor.free_slots([None, None]) == [None]
    assert slurm.executor.free_slots([None] * 5) == []


def test_cancelling_nothing_asks_nobody(slurm: Setup) -> None:
    slurm.executor.cancel([])
    assert slurm.tools.calls == []


def test_log_of_a_job_is_where_the_script_sends_it(slurm: Setup) -> None:
    assert slurm.executor.log(JOBS[1]) == slurm.folder / "7_1_0_log.out"
