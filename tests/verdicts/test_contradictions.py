"""Verdicts where scheduler, worker and log contradict each other."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.ledger.records import Cause, Confidence, EvidenceSource, VerdictKind
from elmanctl.schedulers.executor import JobReport, JobState
from elmanctl.verdicts.judge import judge
from elmanctl.verdicts.log_tail import LogTail
from elmanctl.verdicts.observation import Observation

_K = VerdictKind
CERTAIN, LIKELY, UNCLEAR = Confidence

STARTED = "2026-08-01T10:00:00.000Z"
VANISHED = JobReport(state=JobState.VANISHED)
GPU_OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total "
    "capacity of 79.11 GiB of which 1.56 GiB is free. "
)
NEIGHBOUR = "Process 41120 has 60.02 GiB memory in use. Including non-PyTorch memory, this process"
LOCAL_OOM = "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory"


def ended(raw: str, code: int | None = None, number: int | None = None, **rest: Any) -> JobReport:
    return JobReport(state=JobState.ENDED, raw=raw, exit_code=code, signal=number, **rest)


def log(*lines: str) -> LogTail:
    return LogTail(file="job.out", lines=lines, first_line=11)


def beat(minutes: int, *signals: tuple[str, int]) -> dict[str, Any]:
    """A last heartbeat after so many minutes, with the signals that were noted, each with its."""
    return {
        "started_at": STARTED,
        "at": f"2026-08-01T10:{minutes:02}:00.000Z",
        "phase": "training",
        "step": 7,
        "signals": [{"name": name, "at": f"2026-08-01T10:{at:02}:00.000Z"} for name, at in signals],
    }


LATE = {"heartbeat": beat(29, ("SIGUSR2", 28)), "elapsed_s": 1740.0, "limit_s": 1800.0}
EARLY = {"heartbeat": beat(5, ("SIGUSR2", 4)), "elapsed_s": 300.0, "limit_s": 1800.0}
BY_LIMIT = log("slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-08-01 DUE TO TIME LIMIT ***")

# Observation, kind, confidence, cause.
TABLE: dict[str, tuple[dict[str, Any], VerdictKind, Confidence, Cause | None]] = {
    "Slurm names the cause": ({"report": ended("TIMEOUT")}, _K.TIMEOUT, CERTAIN, None),
    "Slurm and the log do not agree": (
        {"report": ended("TIMEOUT"), "log": log("ValueError: x")}, _K.TIMEOUT, LIKELY, None,
    ),
    "Slurm's memory, and the GPU's in the log": (
        {"report": ended("OUT_OF_MEMORY", 0, 125), "log": log(GPU_OOM)},
        _K.OOM, CERTAIN, Cause.HOST,
    ),
    "cancelled by root, for the limit": (
        {"report": ended("CANCELLED by 0"), "log": BY_LIMIT}, _K.TIMEOUT, LIKELY, None,
    ),
    "cancelled by root, at the limit": (
        {"report": ended("CANCELLED by 0"), **LATE}, _K.TIMEOUT, LIKELY, None,
    ),
    "cancelled by another user": (
        {"report": ended("CANCELLED by 1001"), **EARLY}, _K.CANCELLED, CERTAIN, None,
    ),
    "cancelled by us, and the node died": (
        {"report": ended("NODE_FAIL"), "cancel_requested": True}, _K.CANCELLED, LIKELY, None,
    ),
    "preempted, with a warning": (
        {"report": ended("PREEMPTED"), **EARLY}, _K.PREEMPTED, CERTAIN, None,
    ),
    "warned early, then killed": (
        {"report": ended("FAILED", 0, 9), **EARLY}, _K.PREEMPTED, LIKELY, None,
    ),
    "warned of the limit, and killed at it": (
        {"report": ended("FAILED", 0, 9), **LATE}, _K.TIMEOUT, LIKELY, None,
    ),
    "warned of the limit, and killed before it": (
        {
            "report": ended("FAILED", 0, 9),
            "heartbeat": beat(28, ("SIGUSR2", 28)),
            "elapsed_s": 1680.0,
            "limit_s": 1800.0,
        },
        _K.KILLED, LIKELY, None,
    ),
    "killed, by the exit code": ({"report": ended("FAILED", 137)}, _K.KILLED, LIKELY, None),
    "killed, by the reason": (
        {"report": ended("FAILED", 1, reason="RaisedSignal:9(Killed)")}, _K.KILLED, LIKELY, None,
    ),
    "could not be started": (
        {"report": ended("FAILED", 1, reason="JobLaunchFailure")}, _K.NODE_FAILURE, CERTAIN, None,
    ),
    "its script was killed, in the words of Slurm 22.05": (
        {"report": ended("FAILED", 0, 9, reason="JobLaunchFailure")}, _K.KILLED, LIKELY, None,
    ),
    "its script was over its CPU time, in the words of Slurm 22.05": (
        {"report": ended("FAILED", 0, 24, reason="JobLaunchFailure")},
        _K.TIMEOUT, CERTAIN, Cause.CPU_TIME,
    ),
    "its batch folder could not be made, in the words of Slurm 22.05": (
        {"report": ended("FAILED", 15, 42, reason="JobLaunchFailure")},
        _K.NODE_FAILURE, CERTAIN, None,
    ),
    "launch failed": ({"report": ended("LAUNCH_FAILED")}, _K.NODE_FAILURE, CERTAIN, None),
    "killed while the disk was full": (
        {"report": ended("FAILED", 0, 7), "log": log("OSError: [Errno 28] No space left")},
        _K.DISK_FULL, LIKELY, None,
    ),
    "out of the GPU's memory": (
        {"report": ended("FAILED", 1), "log": log(GPU_OOM)}, _K.OOM, LIKELY, Cause.GPU,
    ),
    "out of memory for a neighbour": (
        {"report": ended("FAILED", 1), "log": log(GPU_OOM + NEIGHBOUR)},
        _K.OOM, LIKELY, Cause.NEIGHBOUR,
    ),
    "out of the host's memory": (
        {"report": ended("FAILED", 1), "log": log(LOCAL_OOM)}, _K.OOM, LIKELY, Cause.HOST,
    ),
    "broken hardware": (
        {
            "report": ended("FAILED", 1),
            "log": log("NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU", "CUDA error: unspecified"),
        },
        _K.CUDA_ERROR, LIKELY, Cause.DEVICE,
    ),
    "a program's own fault, with an Xid": (
        {
            "report": ended("FAILED", 1),
            "log": log("NVRM: Xid (PCI:0000:3b:00): 31, pid=1, MMU Fault", "CUDA error: illegal"),
        },
        _K.CUDA_ERROR, LIKELY, None,
    ),
    "an exit code and no word": ({"report": ended("FAILED", 3)}, _K.UNDETERMINED, UNCLEAR, None),
    "well, without a result": ({"report": ended("COMPLETED", 0)}, _K.UNDETERMINED, UNCLEAR, None),
    "failed where there is no room for a word": (
        {"report": ended("FAILED", 1), "free_bytes": 0}, _K.DISK_FULL, LIKELY, None,
    ),
    "vanished and silent": ({"report": VANISHED}, _K.LOST, LIKELY, None),
    "vanished and alive": (
        {"report": VANISHED, "heartbeat": beat(5), "heartbeat_age_s": 3.0, "stale_after_s": 40.0},
        _K.UNDETERMINED, UNCLEAR, None,
    ),
    "vanished and long silent": (
        {"report": VANISHED, "heartbeat": beat(5), "heartbeat_age_s": 90.0, "stale_after_s": 40.0},
        _K.LOST, LIKELY, None,
    ),
    "vanished at its limit": ({"report": VANISHED, **LATE}, _K.TIMEOUT, LIKELY, None),
    "vanished after an early warning": ({"report": VANISHED, **EARLY}, _K.PREEMPTED, LIKELY, None),
    "killed, with accounting off": (
        {"report": ended("FAILED"), "log": log("srun: error: n1: task 0: Killed")},
        _K.KILLED, LIKELY, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_observations_that_do_not_agree_are_weighed(name: str) -> None:
    seen, kind, confidence, cause = TABLE[name]
    verdict = judge(Observation(**seen))
    assert (verdict.kind, verdict.confidence, verdict.cause) == (kind, confidence, cause)
    quoted = {quote.source for quote in verdict.evidence}
    # Also what was decided against is kept.
    assert ("log" not in seen) or EvidenceSource.LOG in quoted
    assert ("report" not in seen) or quoted & {EvidenceSource.SCHEDULER, EvidenceSource.EXIT}


def test_worker_that_names_a_neighbour_says_who_it_is() -> None:
    result: dict[str, Any] = {
        "verdict": {"kind": "oom", "evidence": [{"text": GPU_OOM + NEIGHBOUR}]}
    }
    verdict = judge(Observation(result=result, result_file="result.json"))
    assert (verdict.confidence, verdict.cause) == (Confidence.CERTAIN, Cause.NEIGHBOUR)
    held = "process 41120 on the same GPU holds 60.02 GiB; 0.44 GiB were missing"
    assert verdict.evidence[1].text == held


@pytest.mark.parametrize(
    "text",
    [GPU_OOM, GPU_OOM + "Process 7 has 0.10 GiB memory in use.", "CUDA error: out of memory"],
)
def test_neighbour_is_not_blamed_for_what_would_not_have_fitted_anyway(text: str) -> None:
    verdict = judge(Observation(result={"verdict": {"kind": "oom", "evidence": [{"text": text}]}}))
    assert verdict.cause is Cause.GPU


def test_workers_exception_is_quoted_from_the_log_too() -> None:
    result: dict[str, Any] = {
        "verdict": {"kind": "invalid", "evidence": [{"text": "NotFound: no level `x`\nhint"}]}
    }
    lines = ("Traceback (most recent call last):", "elmanctl.errors.NotFound: no level `x`")
    verdict = judge(Observation(result=result, log=log(*lines), report=ended("FAILED", 1)))
    assert (verdict.evidence[1].file, verdict.evidence[1].line) == ("job.out", 12)


def test_worker_and_scheduler_that_contradict_each_other_are_both_kept() -> None:
    result: dict[str, Any] = {
        "verdict": {"kind": "python_error", "evidence": [{"text": "KeyError: 'x'"}]}
    }
    verdict = judge(Observation(result=result, report=ended("OUT_OF_MEMORY", 0, 125)))
    assert (verdict.kind, verdict.confidence) == (_K.PYTHON_ERROR, Confidence.LIKELY)
    assert "state OUT_OF_MEMORY" in verdict.evidence[-1].text


noise = st.lists(
    st.one_of(st.sampled_from(["CUDA error: x", "loss nan", GPU_OOM, "Killed"]), st.text()),
    max_size=5,
)
states = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED by 0", "PREEMPTED", "NODE_FAIL", "odd", "")
reports = st.none() | st.builds(
    JobReport,
    state=st.sampled_from(JobState),
    raw=st.sampled_from(states),
    reason=st.sampled_from([None, "TimeLimit", "RaisedSignal:9(Killed)", "RaisedSignal:", ":"]),
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 130),
)
words = st.text(max_size=4) | st.sampled_from([STARTED, "SIGUSR2"]) | st.none() | st.integers()
beats = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "started_at": words,
        "at": words,
        "phase": st.sampled_from(["done", "training", 3]),
        "signals": st.lists(
            st.fixed_dictionaries({}, optional={"name": words, "at": words}) | words, max_size=3
        )
        | words,
    },
)
seconds = st.none() | st.floats(0, 1e6)


@given(st.data(), st.sampled_from(VerdictKind), noise, reports, beats, seconds, seconds)
def test_any_mix_of_observations_gets_a_verdict(
    data: st.DataObject,
    kind: VerdictKind,
    lines: list[str],
    report: JobReport | None,
    heartbeat: dict[str, Any] | None,
    age: float | None,
    lived: float | None,
) -> None:
    loss = data.draw(st.sampled_from([1.5, float("nan"), None, "1"]))
    written: dict[str, Any] = {"verdict": {"kind": kind.value, "evidence": []}, "loss": loss}
    result = data.draw(st.sampled_from([None, written, {}]))
    seen: dict[str, Any] = {
        "result": result,
        "report": report,
        "heartbeat": heartbeat,
        "heartbeat_age_s": age,
        "stale_after_s": 40.0,
        "elapsed_s": lived,
        "limit_s": 1800.0,
    }
    verdict = judge(Observation(**seen, log=log(*lines)))
    assert verdict.evidence and verdict.confidence is not None
    if verdict.kind in (_K.DIVERGED, _K.COMPLETED):
        assert result is written
    if verdict.kind is _K.COMPLETED:
        assert loss == 1.5
    if result is not None:
        # Nothing in a log changes what the worker says.
        plain = judge(Observation(**seen))
        assert (plain.kind, plain.confidence, plain.cause) == (
            verdict.kind, verdict.confidence, verdict.cause,
        )  # fmt: skip
