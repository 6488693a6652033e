"""The Slurm executor against small programs that stand in for Slurm."""

from dataclasses import replace

import pytest

from elmanctl.errors import SubmissionError
from elmanctl.ledger.submissions import Resources, Task
from elmanctl.schedulers import slurm_executor
from elmanctl.schedulers.executor import SubmissionDeferred, SubmissionUnknown
from elmanctl.schedulers.submission import SCRIPT_NAME, task_pickle
from elmanctl.settings import SearchSettings, Settings
from tests.schedulers.executor_setup import JOBS, NAME, ONE, ROW, SUBMISSION, Setup


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


def test_no_more_jobs_are_queued_than_allowed(slurm: Setup) -> None:
    assert slurm.executor.free_slots([]) == [None] * 3
    task = Task(index=0, evaluation="g000-e00", attempt=1)
    assert slurm.executor.free_slots([task] * 2) == [None]
    assert slurm.executor.free_slots([task] * 5) == []
    slurm.executor.adjust(Settings(search=SearchSettings(max_jobs=7)), ())
    assert slurm.executor.free_slots([task] * 5) == [None] * 2


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
