"""Slurm's states, the parsing of its tables, and its silence."""

from pathlib import Path

import pytest

from elmanctl.errors import EnvironmentNotReady
from elmanctl.ledger.records import VerdictKind
from elmanctl.schedulers.executor import JobReport, JobState
from elmanctl.schedulers.sbatch_answer import Outcome
from elmanctl.schedulers.slurm import Slurm, SlurmSilent
from elmanctl.schedulers.slurm_output import (
    STATES,
    expand_array,
    job_state,
    parse_array_limit,
    parse_sacct,
    parse_squeue,
)
from elmanctl.verdicts.judge import judge
from elmanctl.verdicts.observation import Observation
from tests.schedulers.slurm_tools import SlurmTools

# The job state codes of squeue(1), and the flags that newer versions show as states.
LIVE = {
    "COMPLETING": JobState.RUNNING,
    "CONFIGURING": JobState.PENDING,
    "EXPEDITING": JobState.RUNNING,
    "PENDING": JobState.PENDING,
    "POWER_UP_NODE": JobState.RUNNING,
    "RECONFIG_FAIL": JobState.RUNNING,
    "REQUEUED": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "REQUEUE_HOLD": JobState.PENDING,
    "RESIZING": JobState.RUNNING,
    "RESV_DEL_HOLD": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "SPECIAL_EXIT": JobState.PENDING,
    "STAGE_OUT": JobState.RUNNING,
    "STOPPED": JobState.RUNNING,
    "SUSPENDED": JobState.RUNNING,
    "UPDATE_DB": JobState.RUNNING,
}
ENDED = [
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "LAUNCH_FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
]
FORMS = ["{}", "{}+", "{} by 0", "{} by 4294967294", " {} "]


def test_every_state_is_known() -> None:
    assert {**LIVE, **dict.fromkeys(ENDED, JobState.ENDED)} == STATES


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "expected"), LIVE.items())
def test_live_state_never_ends_a_job(name: str, expected: JobState, form: str) -> None:
    assert job_state(form.format(name)) is expected


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ENDED)
def test_final_state_ends_a_job_whatever_follows_its_name(name: str, form: str) -> None:
    assert job_state(form.format(name)) is JobState.ENDED


@pytest.mark.parametrize("text", ["", " ", "+", "FINISHED", "completed", "COMPLETED_SOMEHOW", "?"])
def test_state_that_nobody_has_heard_of_counts_as_alive(text: str) -> None:
    assert job_state(text) is JobState.RUNNING


SQUEUE = """\
7_0  |RUNNING   |None|gpu-01|7|0    |0  |elman-run-ab12-s0001  |
7_1  |PENDING   |Priority||7|0|0|elman-run-ab12-s0001  |
7_2|COMPLETED|None|gpu-02|7|0|9|elman-run-ab12-s0001|
8|PENDING|(Nodes required for job are DOWN, DRAINED)||8|0|0|a|name|with bars   |
9_0|FAILED|NonZeroExitCode|gpu-[03-04]|9|256|125|elman-other
"""


def test_squeue_lists_state_reason_node_and_array_of_every_task() -> None:
    rows = parse_squeue(SQUEUE)
    assert [(row.job_id, row.array_id) for row in rows] == [
        ("7_0", "7"),
        ("7_1", "7"),
        ("7_2", "7"),
        ("8", "8"),
        ("9_0", "9"),
    ]
    assert [row.report.state for row in rows] == [
        JobState.RUNNING,
        JobState.PENDING,
        JobState.ENDED,
        JobState.PENDING,
        JobState.ENDED,
    ]
    assert [row.report.reason for row in rows] == [
        None,
        "Priority",
        None,
        "(Nodes required for job are DOWN, DRAINED)",
        "NonZeroExitCode",
    ]
    assert [row.report.node for row in rows] == ["gpu-01", None, "gpu-02", None, "gpu-[03-04]"]


@pytest.mark.parametrize(
    ("own", "derived", "expected"),
    [
        ("0", "0", (0, None)),
        ("768", "768", (3, None)),
        ("9", "0", (0, 9)),
        ("2304", "9", (9, 9)),
        ("256", "125", (1, 125)),
        # In case a later version writes them as sacct does.
        ("1:0", "0:9", (1, 9)),
        ("?", "", (None, None)),
    ],
)
def test_squeue_tells_exit_code_and_signal_of_what_ended(
    own: str, derived: str, expected: tuple[int | None, int | None]
) -> None:
    (row,) = parse_squeue(f"7_0|FAILED|None|n1|7|{own}|{derived}|a|\n")
    assert (row.report.exit_code, row.report.signal) == expected
    (alive,) = parse_squeue(f"7_0|RUNNING|None|n1|7|{own}|{derived}|a|\n")
    assert (alive.report.exit_code, alive.report.signal) == (None, None)


def test_bars_in_a_job_name_belong_to_the_name() -> None:
    assert parse_squeue(SQUEUE)[3].name == "a|name|with bars"


@pytest.mark.parametrize("length", range(len(SQUEUE.splitlines()[0])))
def test_squeue_line_that_was_cut_short_tells_of_no_other_job(length: int) -> None:
    whole, cut = SQUEUE.splitlines()[1], SQUEUE.splitlines()[0][:length]
    rows = parse_squeue(f"{whole}\n{cut}")
    assert rows[0].job_id == "7_1"
    assert [row.job_id for row in rows[1:]] in ([], ["7_0"])


# JobID|State|ExitCode|DerivedExitCode|NodeList|Reason|JobName, as `sacct -X -n -P` answers.
SACCT = """\
7_0|COMPLETED|0:0|0:0|gpu-01|None|a|b
7_1|FAILED|1:0|1:0|gpu-02|NonZeroExitCode|a|b
7_2|CANCELLED by 1000|0:0|0:0|None assigned|None|a|b
7_3|OUT_OF_MEMORY|0:125|0:125|gpu-01|OutOfMemory|a|b
7_4|FAILED|137:0|0:9|gpu-02|NonZeroExitCode|a|b
7_5|NODE_FAIL|1:0|0:0|gpu-03|NodeDown|a|b
7_6|TIMEOUT|0:0|0:0|gpu-03|TimeLimit|a|b
7_[7-8%2]|PENDING|0:0|0:0|None assigned|Priority|a|b
"""


def by_job(text: str) -> dict[str, JobReport]:
    return {row.job_id: row.report for row in parse_sacct(text)}


def test_sacct_tells_whose_job_it_is() -> None:
    rows = parse_sacct(SACCT)
    assert {(row.array_id, row.name) for row in rows} == {("7", "a|b")}


def test_sacct_tells_state_exit_code_signal_node_and_reason() -> None:
    reports = by_job(SACCT)
    seen = {k: (r.raw, r.exit_code, r.signal, r.node, r.reason) for k, r in reports.items()}
    assert seen == {
        "7_0": ("COMPLETED", 0, None, "gpu-01", None),
        "7_1": ("FAILED", 1, None, "gpu-02", "NonZeroExitCode"),
        "7_2": ("CANCELLED by 1000", 0, None, None, None),
        "7_3": ("OUT_OF_MEMORY", 0, 125, "gpu-01", "OutOfMemory"),
        "7_4": ("FAILED", 137, 9, "gpu-02", "NonZeroExitCode"),
        "7_5": ("NODE_FAIL", 1, None, "gpu-03", "NodeDown"),
        "7_6": ("TIMEOUT", 0, None, "gpu-03", "TimeLimit"),
        "7_7": ("PENDING", 0, None, None, "Priority"),
        "7_8": ("PENDING", 0, None, None, "Priority"),
    }
    live = {job_id for job_id, report in reports.items() if report.state is not JobState.ENDED}
    assert live == {"7_7", "7_8"}


def test_newest_line_of_a_job_is_the_one_that_counts() -> None:
    text = "7_0|NODE_FAIL|1:0|0:0|gpu-01|None|a\n7_0|COMPLETED|0:0|0:0|gpu-02|None|a\n"
    assert by_job(text)["7_0"].raw == "COMPLETED"


@pytest.mark.parametrize("length", range(len("7_0|COMPLETED|0:0|0:0|n1|None")))
def test_sacct_line_that_was_cut_short_tells_nothing(length: int) -> None:
    assert parse_sacct("7_0|COMPLETED|0:0|0:0|n1|None"[:length]) == []


def test_exit_codes_that_are_no_numbers_are_not_known() -> None:
    (report,) = by_job("7_0|FAILED|?|:|gpu-01|None|a").values()
    assert (report.exit_code, report.signal) == (None, None)


@pytest.mark.parametrize(
    ("job_id", "tasks"),
    [
        ("7", ["7"]),
        ("7_3", ["7_3"]),
        ("7_[2]", ["7_2"]),
        ("7_[0-2,5%2]", ["7_0", "7_1", "7_2", "7_5"]),
        ("7_[0-8:4]", ["7_0", "7_4", "7_8"]),
        ("7_[0,2,4,...]", ["7_0", "7_2", "7_4"]),
        ("7_[]", []),
    ],
)
def test_line_for_several_tasks_names_each_of_them(job_id: str, tasks: list[str]) -> None:
    assert expand_array(job_id) == tasks


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmTools:
    return SlurmTools(tmp_path / "bin", monkeypatch)


def test_command_that_fails_is_silence_with_its_own_words(tools: SlurmTools) -> None:
    tools.answer("squeue", "7_0|RUN", stderr="slurm_load_jobs error: Unable to contact\n", code=1)
    with pytest.raises(SlurmSilent, match="`squeue` failed: slurm_load_jobs error: Unable"):
        Slurm().queue()


def test_command_that_fails_without_a_word_is_silence_with_its_code(tools: SlurmTools) -> None:
    tools.answer("squeue", code=7)
    with pytest.raises(SlurmSilent, match="`squeue` failed: exit code 7"):
        Slurm().queue()


def test_command_that_is_absent_is_silence(tools: SlurmTools) -> None:
    with pytest.raises(SlurmSilent, match="no `squeue` on this machine"):
        Slurm().queue()


def test_command_that_cannot_be_run_is_silence(tools: SlurmTools) -> None:
    (tools.folder / "squeue").write_text("not a program", encoding="utf-8")
    with pytest.raises(SlurmSilent, match="cannot run `squeue`"):
        Slurm().queue()


def test_command_that_hangs_is_silence_after_the_limit(tools: SlurmTools) -> None:
    tools.answer("squeue", does="exec sleep 60")
    # Heard to its end, the command would have answered.
    with pytest.raises(SlurmSilent, match="did not answer"):
        Slurm(timeout_s=0.2).queue()


def test_machine_without_sbatch_is_told_of_the_local_way(tools: SlurmTools) -> None:
    with pytest.raises(EnvironmentNotReady, match="no `sbatch`") as raised:
        Slurm().check()
    assert raised.value.hint is not None and "--local" in raised.value.hint


INVALID = (
    "sbatch: error: invalid partition specified: gup\n"
    "allocation failure: Invalid partition name specified\n"
)


def test_unknown_partition_is_refused_with_the_known_ones(tools: SlurmTools) -> None:
    tools.answer("sinfo", "cpu\ngpu\ngpu\n")
    tools.answer("sbatch", stderr=INVALID, code=1)
    Slurm().check_partition("gpu")
    Slurm().check_partition("cpu,gpu")
    # What is listed needs no second question.
    assert tools.called("sbatch") == 0
    with pytest.raises(EnvironmentNotReady, match="no partition named `gup`") as raised:
        Slurm().check_partition("cpu,gup")
    assert raised.value.hint == "partitions here: cpu, gpu"
    assert tools.calls[-1][:3] == ["sbatch", "--test-only", "--partition=cpu,gup"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("sbatch: Job 7 to start at 2026-11-30T16:00:00 using 1 processors on nodes n1", 0),
        ("allocation failure: Requested node configuration is not available", 1),
        ("allocation failure: Invalid account or account/partition combination specified", 1),
        ("sbatch: error: AssocMaxSubmitJobLimit", 1),
        ("allocation failure: Unable to contact slurm controller (connect failure)", 1),
        ("allocation failure: Required partition not available (inactive or drain)", 1),
        ("sbatch: error: lua: say what you want it for", 1),
    ],
)
@pytest.mark.parametrize("listed", ["cpu\n", None])
def test_partition_that_sinfo_does_not_list_is_left_to_sbatch(
    tools: SlurmTools, words: str, code: int, listed: str | None
) -> None:
    if listed is not None:
        tools.answer("sinfo", listed)
    tools.answer("sbatch", stderr=f"{words}\n", code=code)
    Slurm().check_partition("hidden")


def test_partition_that_is_for_others_is_refused_in_sbatchs_words(tools: SlurmTools) -> None:
    tools.answer("sinfo", "cpu\n")
    words = "allocation failure: User's group not permitted to use this partition\n"
    tools.answer("sbatch", stderr=words, code=1)
    with pytest.raises(EnvironmentNotReady, match=r"^User's group not permitted"):
        Slurm().check_partition("theirs")


def test_question_to_sbatch_has_the_script_and_makes_no_job(tools: SlurmTools) -> None:
    script = "#!/bin/sh\n#SBATCH --gres=gpu:9\n"
    tools.answer("sbatch", does='for last; do :; done; cat "$last" > seen')
    assert Slurm().ask(script).outcome is Outcome.ACCEPTED
    assert (tools.folder / "seen").read_text(encoding="utf-8") == script
    tools.answer("sbatch", stderr="allocation failure: Invalid qos specification\n", code=1)
    assert Slurm().ask(script).key == "slurm.extra"
    assert all(call[1] == "--test-only" for call in tools.calls)


def test_question_without_an_answer_concludes_nothing(tools: SlurmTools) -> None:
    assert Slurm().ask("#!/bin/sh\n").outcome is Outcome.PERHAPS


def test_accounting_is_asked_once_for_all_names(tools: SlurmTools) -> None:
    tools.answer("sacct", SACCT)
    rows = Slurm().accounting(["one", "two"], since="2026-08-01T09:00:00")
    assert rows[1].report.exit_code == 1
    (call,) = tools.calls
    assert call[call.index("--name") + 1] == "one,two"
    assert call[call.index("-S") + 1] == "2026-08-01T09:00:00"


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("MaxArraySize            = 1001\n", 1001),
        ("JobFileAppend = 0\nMaxArraySize = 4\nSchedulerParameters = (null)\n", 4),
        ("MaxArraySize = 5000\nSchedulerParameters = bf_max=1,max_array_tasks=300,x\n", 300),
        ("SchedulerParameters = defer\n", None),
        ("", None),
    ],
)
def test_array_limit_is_read_from_the_configuration(text: str, limit: int | None) -> None:
    assert parse_array_limit(text) == limit


# What judge makes of an end without a result or a log, by the state alone.
VERDICTS = {
    "BOOT_FAIL": VerdictKind.NODE_FAILURE,
    "CANCELLED": VerdictKind.CANCELLED,
    "COMPLETED": VerdictKind.UNDETERMINED,
    "DEADLINE": VerdictKind.TIMEOUT,
    "FAILED": VerdictKind.UNDETERMINED,
    "LAUNCH_FAILED": VerdictKind.NODE_FAILURE,
    "NODE_FAIL": VerdictKind.NODE_FAILURE,
    "OUT_OF_MEMORY": VerdictKind.OOM,
    "PREEMPTED": VerdictKind.PREEMPTED,
    "REVOKED": VerdictKind.LOST,
    "TIMEOUT": VerdictKind.TIMEOUT,
}


def test_every_state_that_ends_a_job_has_a_verdict_of_its_own() -> None:
    assert sorted(VERDICTS) == ENDED


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "kind"), VERDICTS.items())
def test_job_that_left_nothing_is_judged_by_its_state(
    name: str, kind: VerdictKind, form: str
) -> None:
    """Never as diverged: only a worker can know that."""
    report = JobReport(state=JobState.ENDED, raw=form.format(name))
    assert judge(Observation(report=report)).kind is kind


def test_cancelling_names_every_job_in_one_call(tools: SlurmTools) -> None:
    tools.answer("scancel")
    Slurm().cancel(["7_0", "7_1"])
    assert tools.calls == [["scancel", "--quiet", "7_0", "7_1"]]
