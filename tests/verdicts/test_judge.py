"""Verdicts on observations of an attempt, with their evidence."""

from dataclasses import replace
from typing import Any

import pytest

from elmanctl.codec import decode, encode
from elmanctl.errors import LedgerCorrupt
from elmanctl.ledger.records import EvidenceSource, Verdict, VerdictKind
from elmanctl.schedulers.executor import JobReport, JobState
from elmanctl.verdicts.judge import judge
from elmanctl.verdicts.observation import Observation
from tests.verdicts.observed import BEAT, VANISHED, ended, log


def lost(how: str) -> dict[str, object]:
    """The heartbeat of rank 0 when another rank has ended."""
    return {**BEAT, "lost_rank": {"rank": 3, "count": 4, "node": "n2", "how": how}}


SILENT, GONE = lost("ended without a word"), lost("cannot be reached any more: timed out")
TAKEN_BACK = JobReport(state=JobState.VANISHED, has_siblings=True)

# Observation, verdict, and a part of the first evidence.
TABLE: dict[str, tuple[dict[str, Any], VerdictKind, str]] = {
    "timed out": ({"report": ended("TIMEOUT", 0)}, VerdictKind.TIMEOUT, "state TIMEOUT"),
    "past its deadline": ({"report": ended("DEADLINE")}, VerdictKind.TIMEOUT, "DEADLINE"),
    "out of memory": (
        {"report": ended("OUT_OF_MEMORY", 0, 125)},
        VerdictKind.OOM,
        "state OUT_OF_MEMORY",
    ),
    "memory, by the step's signal alone": (
        {"report": ended("FAILED", 1, 125)},
        VerdictKind.OOM,
        "signal 125",
    ),
    "node died": ({"report": ended("NODE_FAIL", 1)}, VerdictKind.NODE_FAILURE, "NODE_FAIL"),
    "node did not boot": ({"report": ended("BOOT_FAIL")}, VerdictKind.NODE_FAILURE, "BOOT_FAIL"),
    "preempted": ({"report": ended("PREEMPTED")}, VerdictKind.PREEMPTED, "PREEMPTED"),
    "cancelled by somebody": (
        {"report": ended("CANCELLED by 1000")},
        VerdictKind.CANCELLED,
        "CANCELLED by 1000",
    ),
    "revoked": ({"report": ended("REVOKED")}, VerdictKind.LOST, "REVOKED"),
    "cancelled on request": (
        {"report": ended("FAILED", 143, 15), "cancel_requested": True},
        VerdictKind.CANCELLED,
        "cancelled on request",
    ),
    "killed": ({"report": ended("FAILED", None, 9)}, VerdictKind.KILLED, "signal 9 (SIGKILL)"),
    "another rank killed": (
        {"report": ended("FAILED", 137), "heartbeat": SILENT},
        VerdictKind.KILLED,
        "signal 9 (SIGKILL)",
    ),
    "another rank gone with its node": (
        {"report": ended("NODE_FAIL", 1), "heartbeat": SILENT},
        VerdictKind.NODE_FAILURE,
        "NODE_FAIL",
    ),
    "another rank out of memory": (
        {"report": ended("OUT_OF_MEMORY", 0, 125), "heartbeat": SILENT},
        VerdictKind.OOM,
        "state OUT_OF_MEMORY",
    ),
    "another rank preempted first": (
        {"report": ended("PREEMPTED"), "heartbeat": SILENT},
        VerdictKind.PREEMPTED,
        "PREEMPTED",
    ),
    "another rank ended, and nobody says why": (
        {"report": ended("FAILED", 1), "heartbeat": SILENT},
        VerdictKind.KILLED,
        "rank 3 of 4 on n2 ended without a word",
    ),
    "another rank on a node that is silent": (
        {"report": ended("FAILED", 1), "heartbeat": GONE},
        VerdictKind.NODE_FAILURE,
        "rank 3 of 4 on n2 cannot be reached any more",
    ),
    "another rank lost without accounting": (
        {"report": VANISHED, "heartbeat": GONE},
        VerdictKind.NODE_FAILURE,
        "rank 3 of 4 on n2 cannot be reached any more",
    ),
    "another rank's own log": (
        {
            "report": ended("FAILED", 1),
            "heartbeat": SILENT,
            "log": log("Traceback (most recent call last):", "MemoryError"),
        },
        VerdictKind.OOM,
        "MemoryError",
    ),
    "killed over its limit": (
        {"report": ended("ended", 137, 9), "elapsed_s": 301.0, "limit_s": 300.0},
        VerdictKind.TIMEOUT,
        "signal 9",
    ),
    "killed well before its limit": (
        {"report": ended("ended", 137, 9), "elapsed_s": 30.0, "limit_s": 300.0},
        VerdictKind.KILLED,
        "signal 9",
    ),
    "killed after the log reported memory": (
        {"report": ended("FAILED", None, 9), "log": log("step 3", "slurmstepd: oom_kill event")},
        VerdictKind.OOM,
        "signal 9",
    ),
    "aborted by CUDA": (
        {
            "report": ended("FAILED", None, 6),
            "log": log("CUDA error: an illegal memory access was encountered"),
        },
        VerdictKind.CUDA_ERROR,
        "signal 6",
    ),
    "aborted for want of threads": (
        {
            "report": ended("FAILED", None, 6),
            "log": log(
                "terminate called after throwing an instance of 'std::system_error'",
                "  what():  Resource temporarily unavailable",
            ),
        },
        VerdictKind.ENVIRONMENT,
        "signal 6",
    ),
    "interrupted by OpenBLAS, which got no threads": (
        {
            "report": ended("FAILED", 130),
            "log": log(
                "OpenBLAS blas_thread_init: pthread_create failed for thread 2 of 4: no more",
                "Traceback (most recent call last):",
                '  File "fit.py", line 1, in <module>',
                "KeyboardInterrupt",
            ),
        },
        VerdictKind.ENVIRONMENT,
        "signal 2",
    ),
    "killed after a command that was not found": (
        {
            "report": ended("FAILED", None, 9),
            "log": log("slurm_script: line 2: module: command not found", "step 3"),
        },
        VerdictKind.KILLED,
        "signal 9",
    ),
    "interrupted after a command that was not found": (
        {
            "report": ended("FAILED", None, 2),
            "log": log("slurm_script: line 2: module: Kommando nicht gefunden", "step 3"),
        },
        VerdictKind.KILLED,
        "signal 2",
    ),
    "killed after an exception it survived": (
        {"report": ended("FAILED", None, 9), "log": log("ValueError: ignored")},
        VerdictKind.KILLED,
        "signal 9",
    ),
    "exception": (
        {"report": ended("FAILED", 1), "log": log("Traceback", "ValueError: no such thing")},
        VerdictKind.PYTHON_ERROR,
        "ValueError: no such thing",
    ),
    "exception of a package": (
        {"report": ended("FAILED", 1), "log": log("torch.cuda.OutOfMemoryError: CUDA out of")},
        VerdictKind.OOM,
        "CUDA out of",
    ),
    "import failed": (
        {"report": ended("FAILED", 1), "log": log("ModuleNotFoundError: No module named 'torch'")},
        VerdictKind.ENVIRONMENT,
        "No module named 'torch'",
    ),
    "disk full": (
        {"report": ended("FAILED", 1), "log": log("OSError: [Errno 28] No space left on device")},
        VerdictKind.DISK_FULL,
        "No space left",
    ),
    "quota": (
        {"report": ended("FAILED", 1), "log": log("OSError: [Errno 122] Disk quota exceeded: 'x'")},
        VerdictKind.DISK_FULL,
        "Disk quota",
    ),
    "invalid configuration": (
        {
            "report": ended("FAILED", 1),
            "log": log("elmanctl.errors.InvalidConfiguration: n_state=33 is not supported"),
        },
        VerdictKind.INVALID,
        "n_state=33",
    ),
    "submitit found no pickle": (
        {"report": ended("FAILED", 1), "log": log("RuntimeError: could not find submitted jobs")},
        VerdictKind.LOST,
        "could not find",
    ),
    "its node may not write to the run's folder, in any language": (
        {
            "report": ended("FAILED", 1),
            "log": log(
                "ln: Fehler: '/r/submissions/s0001/7_0_submitted.pkl': Keine Berechtigung",
                "RuntimeError: could not find submitted jobs",
            ),
        },
        VerdictKind.ENVIRONMENT,
        "Keine Berechtigung",
    ),
    "the disk of the run's folder is full": (
        {
            "report": ended("FAILED", 1),
            "log": log(
                "ln: failed: '/r/submissions/s0001/7_0_submitted.pkl': Disk quota exceeded",
                "RuntimeError: could not find submitted jobs",
            ),
        },
        VerdictKind.DISK_FULL,
        "Disk quota exceeded",
    ),
    "failed without a word": (
        {"report": ended("FAILED", 1), "log": log("step 1", "step 2")},
        VerdictKind.UNDETERMINED,
        "without a result",
    ),
    "only submitit's word": (
        {
            "report": ended("FAILED", 1),
            "log": log("submitit.core.utils.UncompletedJobError: Job 7 timed-out"),
        },
        VerdictKind.UNDETERMINED,
        "without a result",
    ),
    "well, and yet without a result": (
        {"report": ended("COMPLETED", 0), "log": log("RuntimeError: caught and logged")},
        VerdictKind.UNDETERMINED,
        "without a result",
    ),
    "failed, with accounting off": (
        {"report": ended("FAILED"), "log": log("ValueError: x")},
        VerdictKind.PYTHON_ERROR,
        "ValueError: x",
    ),
    "srun cannot reach the node's daemon": (
        {
            # As Slurm 22.05 reports it.
            "report": ended("FAILED", 233, 105),
            "log": log(
                "srun: error: Task launch for StepId=30.0 failed on node n2: "
                "Communication connection failure",
                "srun: error: Application launch failed: Communication connection failure",
                "srun: Job step aborted",
            ),
        },
        VerdictKind.NODE_FAILURE,
        "failed on node n2",
    ),
    "no log could be opened, as Slurm 22.05 says it": (
        {
            "report": replace(ended("FAILED", 15, 53), reason="JobLaunchFailure"),
            "log_path": "/r/submissions/s0001/7_0_0_log.out",
        },
        VerdictKind.NODE_FAILURE,
        "n1 could not open the job's log `/r/submissions/s0001/7_0_0_log.out`",
    ),
    "no log could be opened, as later versions say it": (
        {"report": replace(ended("FAILED", 0), reason="RaisedSignal:53(Real-time_signal_19)")},
        VerdictKind.NODE_FAILURE,
        "n1 could not open the job's log: Slurm's exit 0:53, which is no signal",
    ),
    "no log could be opened, by accounting alone": (
        {"report": ended("FAILED", 0, 53)},
        VerdictKind.NODE_FAILURE,
        "could not open the job's log",
    ),
    "no log could be opened, since the run's disk is full": (
        {"report": ended("FAILED", 0, 53), "free_bytes": 0},
        VerdictKind.DISK_FULL,
        "0 bytes are free on the run's file system",
    ),
    "its log is on the node alone": (
        {"report": ended("FAILED", 2), "log_path": "/r/7_0_0_log.out", "is_in_sight": True},
        VerdictKind.NODE_FAILURE,
        "the job ran on n1 and its log `/r/7_0_0_log.out` is not here",
    ),
    "it left a trace, though its log is gone": (
        {"report": ended("FAILED", 2), "is_in_sight": True, "left_trace": True},
        VerdictKind.UNDETERMINED,
        "without a result",
    ),
    "the node's prolog failed": (
        {"report": ended("CANCELLED by 0"), "log": log("Error running slurm prolog: 3")},
        VerdictKind.NODE_FAILURE,
        "Error running slurm prolog: 3",
    ),
    "the node's prolog failed, in other words": (
        {"report": ended("CANCELLED"), "log": log("Prolog failure on node n1")},
        VerdictKind.NODE_FAILURE,
        "Prolog failure on node n1",
    ),
    "the node's prolog failed, and there is no log, as later versions do": (
        {"report": ended("CANCELLED by 0"), "is_in_sight": True},
        VerdictKind.NODE_FAILURE,
        "Slurm, or root, cancelled it on n1 before any of it ran there",
    ),
    "cancelled by root while it ran": (
        {"report": ended("CANCELLED by 0"), "is_in_sight": True, "left_trace": True},
        VerdictKind.CANCELLED,
        "CANCELLED by 0",
    ),
    "cancelled by root before it had a node": (
        {"report": replace(ended("CANCELLED by 0"), node=None), "is_in_sight": True},
        VerdictKind.CANCELLED,
        "CANCELLED by 0",
    ),
    "cancelled before it wrote anything": (
        {"report": ended("CANCELLED by 1000"), "is_in_sight": True},
        VerdictKind.CANCELLED,
        "CANCELLED by 1000",
    ),
    "taken back": (
        {"report": TAKEN_BACK},
        VerdictKind.CANCELLED,
        "Slurm knows the other tasks of its array: this one was taken back before it began",
    ),
    "vanished after it had begun": (
        {"report": TAKEN_BACK, "has_started": True},
        VerdictKind.LOST,
        "no longer knows the job",
    ),
    "vanished and left a trace": (
        {"report": TAKEN_BACK, "left_trace": True},
        VerdictKind.LOST,
        "no longer knows the job",
    ),
    "vanished": ({"report": VANISHED}, VerdictKind.LOST, "no longer knows the job"),
    "vanished after a word": (
        {"report": VANISHED, "log": log("slurmstepd: error: DUE TO NODE FAILURE ***")},
        VerdictKind.NODE_FAILURE,
        "DUE TO NODE FAILURE",
    ),
    "vanished over its limit": (
        {"report": VANISHED, "log": log("JOB 7 CANCELLED DUE TO TIME LIMIT")},
        VerdictKind.TIMEOUT,
        "TIME LIMIT",
    ),
    "vanished by preemption": (
        {"report": VANISHED, "log": log("JOB 7 CANCELLED DUE TO PREEMPTION")},
        VerdictKind.PREEMPTED,
        "PREEMPTION",
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_what_is_seen_of_an_attempt_without_a_result_decides_its_verdict(name: str) -> None:
    seen, kind, quoted = TABLE[name]
    verdict = judge(Observation(**{"heartbeat": BEAT, **seen}))
    assert verdict.kind is kind
    assert quoted in verdict.summary
    assert decode(Verdict, encode(verdict), "verdict", LedgerCorrupt) == verdict


@pytest.mark.parametrize("name", TABLE)
def test_last_sign_of_life_is_always_among_the_evidence(name: str) -> None:
    seen, _, _ = TABLE[name]
    quotes = judge(Observation(**{"heartbeat": BEAT, **seen})).evidence
    beats = [quote.text for quote in quotes if quote.source is EvidenceSource.HEARTBEAT]
    assert len(beats) == 1
    assert beats[0].startswith("last heartbeat 2026-08-01T10:05:00.000Z: training, step 120")
    quotes = judge(Observation(**{**seen, "heartbeat": None})).evidence
    assert any("never wrote a heartbeat" in quote.text for quote in quotes)


def test_of_several_faults_in_a_log_the_last_one_decides() -> None:
    lines = ("CUDA error: first", "ValueError: then", "step 9")
    verdict = judge(Observation(report=ended("FAILED", 1), log=log(*lines)))
    assert verdict.kind is VerdictKind.PYTHON_ERROR
    assert verdict.evidence[0].line == 102
