"""Reports of jobs, as the Slurm executor makes them of squeue and sacct."""

import pytest

from elmanctl.errors import EnvironmentNotReady
from elmanctl.schedulers.executor import JobState
from tests.schedulers.executor_setup import JOBS, NAME, NO_ACCOUNTING, ROW, Setup


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
