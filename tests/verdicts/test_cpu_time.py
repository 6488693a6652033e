"""A limit on CPU time, however it is reported: a timeout with a cause of its own."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from elmanctl.ledger.records import Cause, Confidence, State, Verdict, VerdictKind
from elmanctl.schedulers.executor import JobReport, JobState
from elmanctl.settings import RetrySettings
from elmanctl.verdicts import classify_log
from elmanctl.verdicts.breaker import Failure, tripped
from elmanctl.verdicts.judge import judge
from elmanctl.verdicts.log_tail import LogTail
from elmanctl.verdicts.observation import Observation
from elmanctl.verdicts.policy import Baseline, Group, PastAttempt, decide

NOTED = {
    "started_at": "2026-08-01T10:00:00.000Z",
    "at": "2026-08-01T10:05:00.000Z",
    "signals": [{"name": "SIGXCPU", "at": "2026-08-01T10:05:00.000Z"}],
}
TRAINING = "model with 1,204 parameters\nstep 10 loss 4.1\nstep 20 loss 3.2\n"


def ended(raw: str, code: int | None = None, number: int | None = None) -> JobReport:
    return JobReport(state=JobState.ENDED, raw=raw, exit_code=code, signal=number, node="n1")


def log(text: str) -> LogTail:
    return LogTail(file="7_0_0_log.out", lines=text.splitlines())


@pytest.mark.parametrize(
    ("known", "confidence"),
    [
        ({"report": ended("FAILED", None, 24)}, Confidence.CERTAIN),
        ({"report": ended("FAILED", 152)}, Confidence.CERTAIN),
        ({"report": ended("ended", 152), "heartbeat": NOTED}, Confidence.CERTAIN),
        ({"report": ended("FAILED", 1), "heartbeat": NOTED}, Confidence.CERTAIN),
        (
            {
                "report": ended("FAILED", 1),
                "log": log(f"{TRAINING}srun: error: n1: task 0: CPU time limit exceeded"),
            },
            Confidence.LIKELY,
        ),
        (
            {"report": JobReport(state=JobState.VANISHED), "heartbeat": NOTED},
            Confidence.LIKELY,
        ),
    ],
)
def test_limit_on_cpu_time_is_a_timeout_of_its_own(
    known: dict[str, Any], confidence: Confidence
) -> None:
    verdict = judge(Observation(**known))
    assert (verdict.kind, verdict.cause) == (VerdictKind.TIMEOUT, Cause.CPU_TIME)
    assert verdict.confidence is confidence
    assert "CPU" in verdict.evidence[0].text + verdict.evidence[1].text
    assert "ulimit -t" in verdict.evidence[-1].text


def test_other_ends_have_another_cause() -> None:
    killed = judge(Observation(report=ended("FAILED", None, 9), heartbeat=NOTED))
    assert (killed.kind, killed.cause) == (VerdictKind.KILLED, None)
    late = judge(Observation(report=ended("TIMEOUT", 0)))
    assert (late.kind, late.cause) == (VerdictKind.TIMEOUT, None)
    text = "slurmstepd: error: *** JOB 1 ON n1 CANCELLED AT 2026-01-24 DUE TO TIME LIMIT ***"
    assert classify_log(TRAINING + text).cause is None


@pytest.mark.parametrize(
    "line",
    [
        "srun: error: n1: task 0: CPU time limit exceeded",
        "srun: error: n1: task 0: CPU time limit exceeded (core dumped)",
        "/var/spool/slurmd/job9/slurm_script: line 12: 77 CPU time limit exceeded python fit.py",
        "CPU time limit exceeded",
        "Cputime limit exceeded (core dumped)",
        "zsh: cpu limit exceeded  python fit.py",
        "SIGXCPU received",
        "srun: error: n1: task 0: Exited with exit code 152",
        "  exitcode  : -24 (pid: 33)",
        "RuntimeError: DataLoader worker (pid 3) is killed by signal: CPU time limit exceeded. ",
    ],
)
def test_words_for_it_are_known(line: str) -> None:
    verdict = classify_log(f"{TRAINING}{line}\n")
    assert (verdict.kind, verdict.cause) == (VerdictKind.TIMEOUT, Cause.CPU_TIME)


def test_it_is_not_tried_again_and_stops_a_search_that_only_meets_it() -> None:
    verdict = judge(Observation(report=ended("FAILED", None, 24)))
    decision = decide([PastAttempt(verdict=verdict)], RetrySettings(), Baseline(can_move=True))
    assert decision.close is State.FAILED
    row = [Failure(verdict=verdict, node="n1")] * 3
    found = tripped(row, 3, can_move=True)
    assert found is not None and found.group is Group.CODE
    late = Verdict(kind=VerdictKind.TIMEOUT)
    assert tripped([Failure(verdict=late)] * 3, 3, can_move=True) is None


def test_bash_and_the_kernel_write_what_the_rules_know(tmp_path: Path) -> None:
    """A true process at a true limit, under a true shell."""
    script = tmp_path / "job.sh"
    busy = f"{sys.executable} -c 'while True: pass'"
    script.write_text(f"{busy}\necho the code is $?\n", encoding="utf-8")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (1, 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    done = subprocess.run(
        ["bash", str(script)], preexec_fn=limit, capture_output=True, text=True, check=False
    )
    assert f"the code is {128 + signal.SIGXCPU}" in done.stdout
    verdict = classify_log(TRAINING + done.stderr)
    assert (verdict.kind, verdict.cause) == (VerdictKind.TIMEOUT, Cause.CPU_TIME)


def test_worker_at_its_limit_leaves_no_image_of_its_memory(tmp_path: Path) -> None:
    """Python's own action would be a core file as large as its memory, in the job's folder."""
    code = """
import os, resource, signal
from elmanctl.jobs.heartbeat import Heartbeat
from elmanctl.jobs.signals import signals_noted
from pathlib import Path
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
with Heartbeat(Path("beat.json"), interval_s=60.0, job_id=None, restart=0) as beat:
    with signals_noted(beat):
        os.kill(os.getpid(), signal.SIGXCPU)
        signal.pause()
"""
    # Python's own classes for processes do not say whether there was a core file.
    inside = f"import os; os.chdir({str(tmp_path)!r})\n{code}"
    worker = os.posix_spawn(sys.executable, [sys.executable, "-c", inside], os.environ)
    _, status = os.waitpid(worker, 0)
    assert os.WTERMSIG(status) == signal.SIGXCPU
    assert not os.WCOREDUMP(status)
    assert [path.name for path in tmp_path.iterdir()] == ["beat.json"]
