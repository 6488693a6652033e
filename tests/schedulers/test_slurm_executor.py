"""The Slurm executor against small programs that stand in for Slurm."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from elmanctl.errors import EnvironmentNotReady, SubmissionError
from elmanctl.ledger.records import Resources, Submission, Task
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers import slurm_executor
from elmanctl.schedulers.executor import (
    JobReport,
    JobState,
    LiveJob,
    SubmissionDeferred,
    SubmissionTooLarge,
    SubmissionUnknown,
)
from elmanctl.schedulers.slurm_executor import SlurmExecutor
from elmanctl.schedulers.submission import SCRIPT_NAME, task_pickle
from tests.schedulers.slurm_tools import SlurmTools

NAME = "elman-run-1a2b3c4d-s0001"
SUBMISSION = Submission(
    id="s0001",
    job_name=NAME,
    tasks=tuple(Task(index=i, evaluation=f"g000-e0{i}", attempt=1) for i in range(2)),
    resources=Resources(timeout_min=5, partition="gpu"),
    intended_at="2026-08-01T10:00:00.000Z",
)
JOBS = [LiveJob(job_id=f"7_{i}", submission="s0001", task_index=i, job_name=NAME) for i in range(3)]
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
        return self.executor.poll([], [SUBMISSION]).found["s0001"]

    def reports(self, jobs: Sequence[LiveJob] = JOBS) -> Mapping[str, JobReport]:
        return self.executor.poll(jobs, []).reports


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
    with pytest.raises(SubmissionError) as raised:
        slurm.submit()
    assert raised.value.message == words
    assert not isinstance(raised.value, SubmissionUnknown)
    assert raised.value.hint


def test_sbatch_that_is_absent_refuses(slurm: Setup) -> None:
    with pytest.raises(SubmissionError, match="cannot run `sbatch`") as raised:
        slurm.submit()
    assert not isinstance(raised.value, SubmissionUnknown)


def test_sbatch_that_is_no_program_refuses_for_good(slurm: Setup) -> None:
    slurm.tools.answer("sbatch", "4711\n")
    program = slurm.tools.folder / "sbatch"
    text = program.read_text(encoding="utf-8")
    # A shell would run it all the same.
    program.write_text(text.removeprefix("#!/bin/sh\n"), encoding="utf-8")
    with pytest.raises(SubmissionError, match="Exec format error") as refused:
        slurm.submit()
    assert not isinstance(refused.value, SubmissionDeferred)


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


@pytest.mark.parametrize(
    "words",
    ["Submitted batch job 4711 on cluster a", "Welcome to cluster 2!\n4711", "4711\n4712", ""],
)
def test_success_without_a_plain_id_is_no_refusal(slurm: Setup, words: str) -> None:
    slurm.tools.answer("sbatch", f"{words}\n")
    with pytest.raises(SubmissionUnknown) as raised:
        slurm.submit()
    assert raised.value.is_taken
    assert words in raised.value.message


def test_banner_of_a_wrapper_is_shown_once(slurm: Setup, caplog: pytest.LogCaptureFixture) -> None:
    for job_id in range(4711, 4714):
        slurm.tools.answer("sbatch", f"Welcome to cluster 2!\n{job_id}\n")
        with pytest.raises(SubmissionUnknown):
            slurm.submit()
    warnings = [one for one in caplog.records if one.levelname == "WARNING"]
    assert len(warnings) == 1 and "Welcome to cluster 2!" in warnings[0].getMessage()


FAILED = "sbatch: error: Batch job submission failed: "


# What no controller says that has a word of its own for it.
UNCERTAIN = {
    "Unspecified error": SubmissionError,
    "Resource temporarily unavailable": SubmissionDeferred,
    "Slurm backup controller in standby mode": SubmissionDeferred,
    "Required partition not available (inactive or drain)": SubmissionDeferred,
}


@pytest.mark.parametrize("words", UNCERTAIN)
@pytest.mark.parametrize("listed", [True, False])
def test_words_that_leave_a_doubt_are_a_refusal_once_no_job_has_the_name(
    slurm: Setup, listed: bool, words: str
) -> None:
    slurm.tools.answer("sbatch", stderr=f"{FAILED}{words}\n", code=1)
    slurm.tools.answer("squeue", ROW.format(id=12, name=NAME if listed else "other"))
    if listed:
        assert slurm.submit() == "12"
        return
    with pytest.raises(SubmissionError) as raised:
        slurm.submit()
    assert words in raised.value.message
    assert type(raised.value) is UNCERTAIN[words]


@pytest.mark.parametrize("words", UNCERTAIN)
def test_words_that_leave_a_doubt_are_no_refusal_while_squeue_is_silent(
    slurm: Setup, words: str
) -> None:
    slurm.tools.answer("sbatch", stderr=f"{FAILED}{words}\n", code=1)
    slurm.tools.answer("squeue", stderr="slurm_load_jobs error: Unable to contact\n", code=1)
    with pytest.raises(SubmissionUnknown):
        slurm.submit()


def test_limit_on_submitted_jobs_is_a_refusal_for_now_that_names_the_setting(slurm: Setup) -> None:
    slurm.tools.answer("sbatch", stderr=f"sbatch: error: AssocMaxSubmitJobLimit\n{POLICY}", code=1)
    with pytest.raises(SubmissionDeferred) as raised:
        slurm.submit()
    assert raised.value.is_limit
    assert raised.value.hint is not None and "search.max_jobs" in raised.value.hint
    assert "partition" not in raised.value.hint


POLICY = f"{FAILED}Job violates accounting/QOS policy (job submit limit, user's size)\n"


def test_policy_without_a_reason_is_about_the_number_of_jobs_once_one_was_taken(
    slurm: Setup,
) -> None:
    slurm.tools.answer("squeue")
    slurm.tools.answer("sbatch", "4711\n")
    slurm.executor.submit(ONE, slurm.folder)
    slurm.tools.answer("sbatch", stderr=POLICY, code=1)
    with pytest.raises(SubmissionDeferred):
        slurm.executor.submit(ONE, slurm.folder)


@pytest.mark.parametrize(
    ("tasks", "queue", "waits"),
    [
        (2, "", True),
        (1, "7|PENDING|Priority||7|0|0|other\n", True),
        (1, "7|COMPLETED|None|n1|7|0|0|other\n", False),
        (1, "", False),
        (1, None, True),
    ],
)
def test_policy_without_a_reason_is_for_now_while_it_may_be_about_the_number_of_jobs(
    slurm: Setup, tasks: int, queue: str | None, waits: bool
) -> None:
    """Old releases name no limit: what no job may ask for is refused with the same words."""
    slurm.tools.answer("sbatch", stderr=POLICY, code=1)
    if queue is None:
        slurm.tools.answer("squeue", stderr="slurm_load_jobs error\n", code=1)
    else:
        slurm.tools.answer("squeue", queue)
    with pytest.raises(SubmissionError) as raised:
        slurm.executor.submit(replace(SUBMISSION, tasks=SUBMISSION.tasks[:tasks]), slurm.folder)
    assert isinstance(raised.value, SubmissionDeferred) is waits


def test_words_that_nobody_sorted_refuse_for_now_what_was_taken_before(slurm: Setup) -> None:
    slurm.tools.answer("squeue")
    slurm.tools.answer("sbatch", "4711\n")
    slurm.submit()
    slurm.tools.answer("sbatch", stderr=f"sbatch: error: no\n{FAILED}Unspecified error", code=1)
    avoiding = replace(SUBMISSION.resources, exclude=("n1",))
    with pytest.raises(SubmissionDeferred):
        slurm.executor.submit(replace(SUBMISSION, resources=avoiding), slurm.folder)
    larger = replace(SUBMISSION.resources, mem_gb=999.0)
    with pytest.raises(SubmissionError) as raised:
        slurm.executor.submit(replace(SUBMISSION, resources=larger), slurm.folder)
    assert not isinstance(raised.value, SubmissionDeferred)


@pytest.mark.parametrize("code", [1, 255])
def test_options_that_sbatch_itself_refuses_end_a_search(slurm: Setup, code: int) -> None:
    slurm.tools.answer("squeue")
    slurm.tools.answer("sbatch", stderr="sbatch: error: Invalid --mail-type value\n", code=code)
    with pytest.raises(SubmissionError) as raised:
        slurm.submit()
    assert type(raised.value) is SubmissionError


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


ROW = "{id}_0|RUNNING|None|n1|{id}|0|0|{name}\n"


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


REFUSED_ARRAY = "sbatch: error: Batch job submission failed: Invalid job array specification\n"


def config(limit: int, parameters: str = "(null)") -> str:
    return f"MaxArraySize            = {limit}\nSchedulerParameters     = {parameters}\n"


def test_array_limit_is_asked_for_when_an_array_is_refused_and_then_remembered(
    slurm: Setup,
) -> None:
    slurm.tools.answer("sbatch", stderr=REFUSED_ARRAY, code=1)
    slurm.tools.answer("scontrol", config(4))
    assert slurm.executor.tasks_per_submission == 1001
    with pytest.raises(SubmissionTooLarge, match="Invalid job array"):
        slurm.submit()
    # Nothing more is submitted until the next look.
    assert slurm.executor.tasks_per_submission == 0
    slurm.executor.poll([], [])
    assert slurm.executor.tasks_per_submission == 4
    slurm.executor.poll([], [])
    assert [call[0] for call in slurm.tools.calls] == ["sbatch", "scontrol"]


def test_array_limit_takes_the_place_of_accounting_in_one_look(slurm: Setup) -> None:
    slurm.tools.answer("sbatch", stderr=REFUSED_ARRAY, code=1)
    slurm.tools.answer("scontrol", config(1001, "bf_continue,max_array_tasks=3"))
    slurm.tools.answer("squeue")
    slurm.tools.answer("sacct")
    with pytest.raises(SubmissionTooLarge):
        slurm.submit()
    # Two commands; of the jobs nothing is concluded.
    assert slurm.reports() == {}
    assert [call[0] for call in slurm.tools.calls[1:]] == ["squeue", "scontrol"]
    assert slurm.executor.tasks_per_submission == 3
    assert len(slurm.reports()) == 3


def test_array_that_is_refused_though_the_limit_allows_it_is_halved(slurm: Setup) -> None:
    slurm.tools.answer("sbatch", stderr=REFUSED_ARRAY, code=1)
    slurm.tools.answer("scontrol", config(1001))
    with pytest.raises(SubmissionTooLarge):
        slurm.submit()
    slurm.executor.poll([], [])
    with pytest.raises(SubmissionTooLarge):
        slurm.submit()
    assert slurm.executor.tasks_per_submission == 1
    assert slurm.tools.called("scontrol") == 1


def test_array_limit_that_cannot_be_asked_is_tried_out(slurm: Setup) -> None:
    slurm.tools.answer("sbatch", stderr=REFUSED_ARRAY, code=1)
    with pytest.raises(SubmissionTooLarge):
        slurm.submit()
    slurm.executor.poll([], [])
    assert slurm.executor.tasks_per_submission == 1


ONE = replace(SUBMISSION, tasks=SUBMISSION.tasks[:1])


def test_array_of_one_that_is_refused_means_that_there_are_none(slurm: Setup) -> None:
    slurm.tools.answer("sbatch", stderr=REFUSED_ARRAY, code=1)
    assert slurm.executor.has_arrays
    with pytest.raises(SubmissionTooLarge):
        slurm.executor.submit(ONE, slurm.folder)
    assert (slurm.executor.has_arrays, slurm.executor.tasks_per_submission) == (False, 1)
    # A job of its own that is refused with these words is refused for good.
    with pytest.raises(SubmissionError) as raised:
        slurm.executor.submit(replace(ONE, is_array=False), slurm.folder)
    assert not isinstance(raised.value, SubmissionTooLarge)


def test_cluster_that_says_that_it_has_no_arrays_is_believed(slurm: Setup) -> None:
    slurm.tools.answer("sbatch", stderr=REFUSED_ARRAY, code=1)
    slurm.tools.answer("scontrol", config(0))
    with pytest.raises(SubmissionTooLarge):
        slurm.submit()
    slurm.executor.poll([], [])
    assert (slurm.executor.has_arrays, slurm.executor.tasks_per_submission) == (False, 1)


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
    monkeypatch.setattr(slurm_executor, "SBATCH_TIMEOUT_S", 0.3)
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
    monkeypatch.setattr(slurm_executor, "SBATCH_TIMEOUT_S", 0.0)
    monkeypatch.setattr(slurm_executor, "_KILLED_S", 0.1)
    monkeypatch.setattr(slurm_executor, "signal", SimpleNamespace(SIGKILL=0))
    with pytest.raises(EnvironmentNotReady, match=rf"cannot be killed: \[{orphan.pid}\]"):
        slurm.find()
    assert slurm.tools.called("squeue") == 0


def listed(*rows: str) -> str:
    """Return squeue's answer: `id|state|reason|node`, and what ended with `|code|derived`."""
    lines = []
    for row in rows:
        job_id, raw, reason, node, *codes = row.split("|")
        own, derived = codes or ("0", "0")
        lines.append(f"{job_id}|{raw}|{reason}|{node}|7|{own}|{derived}|{NAME}\n")
    return "".join(lines)


def test_while_squeue_is_down_nothing_is_told_but_its_own_words(slurm: Setup) -> None:
    slurm.tools.answer("squeue", stderr="slurm_load_jobs error: Unable to contact\n", code=1)
    with pytest.raises(EnvironmentNotReady) as raised:
        slurm.reports()
    assert raised.value.message == "`squeue` failed: slurm_load_jobs error: Unable to contact"
    assert slurm.tools.called("sacct") == 0


def test_jobs_that_squeue_lists_as_alive_need_no_accounting(slurm: Setup) -> None:
    slurm.tools.answer(
        "squeue", listed("7_0|RUNNING|None|n1", "7_1|PENDING|Priority|", "7_2|COMPLETING|None|n2")
    )
    reports = slurm.reports()
    assert reports["7_0"].state is JobState.RUNNING
    assert reports["7_0"].node == "n1"
    assert (reports["7_1"].state, reports["7_1"].reason) == (JobState.PENDING, "Priority")
    assert reports["7_2"].state is JobState.RUNNING
    assert slurm.tools.called("sacct") == 0


def test_how_a_job_ended_comes_from_squeue_while_it_is_listed_there(slurm: Setup) -> None:
    """Codes are squeue's: the status of wait(2), that of the step second."""
    slurm.tools.answer(
        "squeue",
        listed(
            "7_0|FAILED|NonZeroExitCode|n1|768|768",
            "7_1|FAILED|NonZeroExitCode|n1|256|125",
            "7_2|OUT_OF_MEMORY|OutOfMemory|n2|125|125",
        ),
    )
    reports = slurm.reports()
    seen = {job_id: (r.state, r.exit_code, r.signal) for job_id, r in reports.items()}
    assert seen == {
        "7_0": (JobState.ENDED, 3, None),
        "7_1": (JobState.ENDED, 1, 125),
        "7_2": (JobState.ENDED, 0, 125),
    }
    assert [call[0] for call in slurm.tools.calls] == ["squeue"]


def test_how_a_job_ended_that_left_squeue_comes_from_accounting_by_its_name(slurm: Setup) -> None:
    slurm.tools.answer("squeue", listed("7_1|RUNNING|None|n1"))
    slurm.tools.answer(
        "sacct",
        f"7_0|FAILED|3:0|3:0|n1|NonZeroExitCode|{NAME}\n7_1|RUNNING|0:0|0:0|n1|None|{NAME}\n"
        f"7_2|OUT_OF_MEMORY|0:125|0:125|n2|OutOfMemory|{NAME}\n",
    )
    reports = slurm.reports()
    assert (reports["7_0"].state, reports["7_0"].exit_code) == (JobState.ENDED, 3)
    assert reports["7_1"].state is JobState.RUNNING
    assert (reports["7_2"].raw, reports["7_2"].node) == ("OUT_OF_MEMORY", "n2")
    assert [slurm.tools.called(name) for name in ("squeue", "sacct")] == [1, 1]
    call = slurm.tools.calls[1]
    assert call[call.index("--name") + 1] == NAME


def test_job_that_neither_command_knows_has_vanished(slurm: Setup) -> None:
    slurm.tools.answer("squeue")
    slurm.tools.answer("sacct")
    reports = slurm.reports()
    assert {report.state for report in reports.values()} == {JobState.VANISHED}


@pytest.mark.parametrize("raw", ["RUNNING", "PENDING"])
def test_job_that_accounting_takes_for_alive_has_not_vanished(slurm: Setup, raw: str) -> None:
    """Though squeue does not list it: for whatever reason, and accounting may lag behind."""
    slurm.tools.answer("squeue", listed("7_0|COMPLETED|None|n1"))
    slurm.tools.answer("sacct", f"7_1|{raw}|0:0|0:0|n1|None|{NAME}\n")
    reports = slurm.reports()
    assert (reports["7_0"].state, reports["7_0"].raw) == (JobState.ENDED, "COMPLETED")
    assert reports["7_1"].state.value == raw.lower()
    assert reports["7_1"].is_unlisted
    assert not reports["7_0"].is_unlisted
    slurm.tools.answer("sacct", f"7_1|NODE_FAIL|1:0|0:0|n1|None|{NAME}\n")
    report = slurm.reports()["7_1"]
    assert (report.state, report.raw, report.is_unlisted) == (JobState.ENDED, "NODE_FAIL", False)


def test_task_that_vanished_is_told_from_a_whole_array_that_did(slurm: Setup) -> None:
    slurm.tools.answer("squeue", listed("7_0|PENDING|Priority|"))
    slurm.tools.answer("sacct", f"7_[0]|PENDING|0:0|0:0|None assigned|None|{NAME}\n")
    reports = slurm.reports()
    assert (reports["7_1"].state, reports["7_1"].has_siblings) == (JobState.VANISHED, True)
    # What is left when each waiting task was cancelled alone is one record of the array.
    slurm.tools.answer("squeue", listed("7|CANCELLED|Priority|"))
    slurm.tools.answer("sacct")
    assert [report.has_siblings for report in slurm.reports().values()] == [True] * 3
    slurm.tools.answer("squeue")
    slurm.tools.answer("sacct", f"7_0|COMPLETED|0:0|0:0|n1|None|{NAME}\n")
    assert slurm.reports()["7_2"].has_siblings
    slurm.tools.answer("sacct", "7_0|COMPLETED|0:0|0:0|n1|None|another\n")
    assert not any(report.has_siblings for report in slurm.reports().values())


def test_end_that_squeue_tells_half_is_completed_by_accounting(slurm: Setup) -> None:
    """As under `enable_stepmgr`: what ended the step never reaches slurmctld."""
    slurm.tools.answer(
        "squeue",
        listed("7_0|FAILED|NonZeroExitCode|n1|256|0", "7_1|FAILED|NonZeroExitCode|n2|35072|0"),
    )
    slurm.tools.answer(
        "sacct",
        f"7_0|FAILED|1:0|0:125|n1|None|{NAME}\n7_1|FAILED|137:0|0:9|n2|None|{NAME}\n",
    )
    reports = slurm.reports(JOBS[:2])
    seen = {job: (r.raw, r.exit_code, r.signal, r.node, r.reason) for job, r in reports.items()}
    assert seen == {
        "7_0": ("FAILED", 1, 125, "n1", "NonZeroExitCode"),
        "7_1": ("FAILED", 137, 9, "n2", "NonZeroExitCode"),
    }
    assert [call[0] for call in slurm.tools.calls] == ["squeue", "sacct"]


def test_accounting_says_who_cancelled_a_job_that_left_no_log_on_its_node(slurm: Setup) -> None:
    slurm.tools.answer(
        "squeue", listed("7_0|CANCELLED|None|n1", "7_1|CANCELLED|None|n2", "7_2|CANCELLED|None|")
    )
    slurm.tools.answer(
        "sacct", "".join(f"7_{i}|CANCELLED by 0|0:0|0:0|n1|None|{NAME}\n" for i in range(3))
    )
    slurm.folder.mkdir(parents=True)
    slurm.executor.log(JOBS[1]).touch()
    reports = slurm.reports()
    assert [reports[f"7_{i}"].raw for i in range(3)] == [
        "CANCELLED by 0",
        "CANCELLED",
        "CANCELLED",
    ]


def test_end_that_squeue_tells_half_waits_for_accounting_but_not_for_ever(slurm: Setup) -> None:
    slurm.tools.answer("squeue", listed("7_0|FAILED|NonZeroExitCode|n1|256|0"))
    slurm.tools.answer("sacct", f"7_0|RUNNING|0:0|0:0|n1|None|{NAME}\n")
    assert slurm.reports(JOBS[:1])["7_0"].state is JobState.RUNNING
    assert slurm.reports(JOBS[:1])["7_0"].exit_code == 1


def test_end_that_squeue_tells_half_waits_longer_while_accounting_is_silent(slurm: Setup) -> None:
    slurm.tools.answer("squeue", listed("7_0|FAILED|NonZeroExitCode|n1|256|0"))
    slurm.tools.answer("sacct", stderr="sacct: error: slurmdbd: Connection refused\n", code=1)
    waiting = [slurm.reports(JOBS[:1])["7_0"].state for _ in range(4)]
    assert waiting == [JobState.RUNNING] * 4
    assert slurm.reports(JOBS[:1])["7_0"].exit_code == 1


def test_end_that_squeue_tells_half_is_all_there_is_without_accounting(slurm: Setup) -> None:
    slurm.tools.answer("squeue", listed("7_0|FAILED|NonZeroExitCode|n1|256|0"))
    slurm.tools.answer("sacct", stderr=NO_ACCOUNTING, code=1)
    assert slurm.reports(JOBS[:1])["7_0"].exit_code == 1


def test_without_accounting_squeue_alone_tells_how_jobs_ended(slurm: Setup) -> None:
    slurm.tools.answer(
        "squeue", listed("7_0|FAILED|NonZeroExitCode|n1|256|9", "7_1|RUNNING|None|n1")
    )
    slurm.tools.answer("sacct", stderr=NO_ACCOUNTING, code=1)
    reports = slurm.reports()
    assert (reports["7_0"].state, reports["7_0"].raw) == (JobState.ENDED, "FAILED")
    assert (reports["7_0"].exit_code, reports["7_0"].signal) == (1, 9)
    assert reports["7_1"].state is JobState.RUNNING
    assert (reports["7_2"].state, reports["7_2"].reason) == (JobState.VANISHED, None)


def test_jobs_of_others_are_not_reported(slurm: Setup) -> None:
    slurm.tools.answer("squeue", ROW.format(id=99, name="other") + listed("7_0|RUNNING|None|n1"))
    assert set(slurm.reports(JOBS[:1])) == {"7_0"}


def test_no_more_jobs_are_queued_than_allowed(slurm: Setup) -> None:
    assert slurm.executor.free_slots([]) == [None] * 3
    assert slurm.executor.free_slots([None, None]) == [None]
    assert slurm.executor.free_slots([None] * 5) == []


def test_cancelling_nothing_asks_nobody(slurm: Setup) -> None:
    slurm.executor.cancel([])
    assert slurm.tools.calls == []


def test_log_of_a_job_is_where_the_script_sends_it(slurm: Setup) -> None:
    assert slurm.executor.log(JOBS[1]) == slurm.folder / "7_1_0_log.out"


def test_nodes_that_waiting_jobs_avoid_are_changed_in_one_call(slurm: Setup) -> None:
    slurm.tools.answer("scontrol")
    resources = Resources(timeout_min=5, extra={"exclude": "old[1-3]"}, exclude=("n1",))
    slurm.executor.avoid(JOBS[:2], resources)
    slurm.executor.avoid(JOBS[2:], Resources(timeout_min=5))
    assert slurm.tools.calls == [
        ["scontrol", "update", "JobId=7_0,7_1", "ExcNodeList=old[1-3],n1"],
        ["scontrol", "update", "JobId=7_2", "ExcNodeList="],
    ]
