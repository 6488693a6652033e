"""Verdicts on observations of an attempt, with their evidence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.codec import decode, encode
from elmanctl.errors import LedgerCorrupt
from elmanctl.ledger.records import Cause, Confidence, EvidenceSource, Verdict, VerdictKind
from elmanctl.run.paths import RunPaths
from elmanctl.run.progress import elapsed_s, heartbeat_age_s, read_table
from elmanctl.schedulers.executor import JobReport, JobState
from elmanctl.verdicts import classify_log
from elmanctl.verdicts.judge import judge
from elmanctl.verdicts.log_tail import LogTail, read_log_tail
from elmanctl.verdicts.observation import Observation, observe
from elmanctl.verdicts.policy import Change, rule_of

BEAT = {"at": "2026-08-01T10:05:00.000Z", "phase": "training", "step": 120}


def ended(raw: str, code: int | None = None, number: int | None = None) -> JobReport:
    return JobReport(state=JobState.ENDED, raw=raw, exit_code=code, signal=number, node="n1")


def log(*lines: str) -> LogTail:
    return LogTail(file="submissions/s0001/7_0_0_log.out", lines=lines, first_line=101)


VANISHED = JobReport(state=JobState.VANISHED)


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


def result_of(kind: object, **rest: Any) -> dict[str, Any]:
    return {"verdict": {"kind": kind, "evidence": [{"text": "it says so", "line": 7}]}, **rest}


# As srun of Slurm 22.05 puts it while slurmctld is down, and as other versions do.
NO_SCHEDULER = {
    "down": (
        "srun: error: Unable to confirm allocation for job 28: "
        "Unable to contact slurm controller (connect failure)",
        "srun: Check SLURM_JOB_ID environment variable. Expired or invalid job 28",
    ),
    "down, without `error`": ("srun: Unable to contact slurm controller",),
    "slow": (
        "srun: error: Unable to create step for job 28: Socket timed out on send/recv operation",
    ),
    "forgot the job": (
        "srun: error: Unable to confirm allocation for job 28: Invalid job id specified",
        "srun: Check SLURM_JOB_ID environment variable. Expired or invalid job 28",
    ),
}


# As srun of several versions puts it when what it gets from options or variables does not fit.
BAD_ARGUMENTS = {
    "exclusive": (
        "srun: fatal: SLURM_MEM_PER_CPU, SLURM_MEM_PER_GPU, and SLURM_MEM_PER_NODE are mutually "
        "exclusive.",
    ),
    "started by its path": ("/opt/slurm/bin/srun: unrecognized option '--nonsense'",),
    "exclusive options": ("srun: error: --exact and --whole are mutually exclusive.",),
    "binding": (
        "srun: error: CPU binding outside of job step allocation, allocated CPUs are: 0x3.",
        "srun: error: Task launch for StepId=7.0 failed on node n1: "
        "Unable to satisfy cpu bind request",
        "srun: error: Application launch failed: Unable to satisfy cpu bind request",
        "srun: Job step aborted",
    ),
    "no option": ("srun: unrecognized option '--gpu-count=2'", 'Try "srun --help" for more'),
    "no value": ("srun: option '--mem' requires an argument",),
    "value": ("srun: error: Invalid --gpu-bind argument: nearest",),
    "specification": ("srun: error: Invalid --distribution specification",),
    "variable": ("srun: error: Invalid argument (many) for environment variable: SLURM_WAIT",),
    "two variables": (
        "srun: fatal: cpus-per-task set by two different environment variables "
        "SLURM_CPUS_PER_TASK=2 != SLURM_TRES_PER_TASK=cpu:1",
    ),
    "devices": (
        "srun: error: Unable to create step for job 7: Invalid generic resource (gres) "
        "specification",
    ),
    "memory": (
        "srun: error: Unable to create step for job 7: Memory required by task is not available",
    ),
    "processors": (
        "srun: error: Unable to create step for job 7: More processors requested than permitted",
    ),
    "allocation": (
        "srun: error: Unable to allocate resources: Invalid Trackable RESource (TRES) "
        "specification",
    ),
    "nodes": ("srun: error: Only allocated 1 nodes asked for 2",),
    "number": ('srun: error: Invalid numeric value "two" for --ntasks.',),
    "mpi": ("srun: error: Invalid MPI type 'openmpi', --mpi=list for acceptable types",),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
@pytest.mark.parametrize("report", [ended("FAILED", 1), VANISHED])
def test_srun_that_refuses_its_own_options_is_no_fault_of_the_node(
    name: str, report: JobReport
) -> None:
    lines = BAD_ARGUMENTS[name]
    verdict = judge(Observation(report=report, log=log(*lines)))
    assert (verdict.kind, verdict.cause) == (VerdictKind.ENVIRONMENT, Cause.ARGUMENTS)
    assert verdict.summary in lines
    assert rule_of(verdict).change is Change.NONE
    assert "slurm.setup" in verdict.evidence[-1].text
    assert decode(Verdict, encode(verdict), "verdict", LedgerCorrupt) == verdict
    assert classify_log("\n".join(lines)).cause is Cause.ARGUMENTS


@pytest.mark.parametrize(
    "line",
    [
        "srun: error: Unable to create step for job 7: Job credential revoked",
        "srun: error: task 0 launch failed: Error configuring interconnect",
        "srun: error: n1: task 0: Exited with exit code 1",
        "srun: error: Unable to confirm allocation for job 28: Invalid job id specified",
        "srun: fatal: Can not execute python3",
        'srun: error: Unable to resolve "n7": Unknown host',
    ],
)
def test_other_words_of_srun_do_not_speak_of_its_options(line: str) -> None:
    verdict = judge(Observation(report=ended("FAILED", 1), log=log(line)))
    assert verdict.cause is not Cause.ARGUMENTS


@pytest.mark.parametrize("name", NO_SCHEDULER)
@pytest.mark.parametrize("report", [ended("FAILED", 1), VANISHED])
def test_scheduler_that_did_not_answer_its_job_is_no_fault_of_the_node(
    name: str, report: JobReport
) -> None:
    verdict = judge(Observation(report=report, log=log(*NO_SCHEDULER[name])))
    assert (verdict.kind, verdict.cause) == (VerdictKind.ENVIRONMENT, Cause.SCHEDULER)
    assert verdict.confidence is Confidence.LIKELY
    # What srun advises after it says nothing of why.
    assert verdict.summary == NO_SCHEDULER[name][0]
    assert decode(Verdict, encode(verdict), "verdict", LedgerCorrupt) == verdict


@pytest.mark.parametrize(
    "line",
    [
        "srun: error: Unable to create step for job 28: Invalid generic resource (gres) specified",
        "srun: fatal: Could not establish a configuration source",
        "bash: line 3: module: command not found",
    ],
)
def test_what_a_node_lacks_is_not_taken_for_an_outage(line: str) -> None:
    verdict = judge(Observation(report=ended("FAILED", 1), log=log(line)))
    assert (verdict.kind, verdict.cause) == (VerdictKind.ENVIRONMENT, None)


@pytest.mark.parametrize("kind", VerdictKind)
def test_workers_own_word_beats_everything_else(kind: VerdictKind) -> None:
    seen = Observation(
        result=result_of(kind.value, loss=1.5),
        result_file="evaluations/g000-e00/attempt-1/result.json",
        report=ended("OUT_OF_MEMORY", 0, 125),
        log=log("CUDA error"),
        cancel_requested=True,
    )
    verdict = judge(seen)
    assert verdict.kind is kind
    quote, *others = verdict.evidence
    assert {other.source for other in others} <= {EvidenceSource.SCHEDULER, EvidenceSource.LOG}
    assert (quote.source, quote.text, quote.line) == (EvidenceSource.RESULT, "it says so", 7)
    assert quote.file == "evaluations/g000-e00/attempt-1/result.json"


BAD_RESULTS: list[dict[str, Any]] = [
    {},
    {"loss": 1.0},
    {"verdict": None, "loss": 1.0},
    {"verdict": "completed", "loss": 1.0},
    {"verdict": {"kind": "well done"}, "loss": 1.0},
    {"verdict": {"kind": ["completed"]}, "loss": 1.0},
    {"verdict": {}, "loss": 1.0},
    result_of("completed"),
    result_of("completed", loss=None),
    result_of("completed", loss="1.0"),
    result_of("completed", loss=True),
    result_of("completed", loss=float("nan")),
    result_of("completed", loss=float("inf")),
]


@pytest.mark.parametrize("result", BAD_RESULTS)
def test_result_without_a_verdict_or_its_loss_is_undetermined(result: dict[str, Any]) -> None:
    verdict = judge(Observation(result=result, result_file="result.json"))
    assert verdict.kind is VerdictKind.UNDETERMINED
    assert verdict.evidence[0].file == "result.json"


@pytest.mark.parametrize("evidence", [None, [], "text", [3], [{"line": 3}]])
def test_verdict_without_evidence_of_the_workers_is_quoted_as_its_word(evidence: object) -> None:
    verdict = judge(Observation(result={"verdict": {"kind": "diverged", "evidence": evidence}}))
    assert verdict.kind is VerdictKind.DIVERGED
    assert verdict.summary == "the worker says diverged"


_WORDS = ("nan", "NaN loss", "diverged", "inf", "loss nan at step 3", "CUDA error", "Killed", "")
_STATES = ("", "COMPLETED", "FAILED", "CANCELLED by 0", "NODE_FAIL", "diverged", "ended", "TIMEOUT")
reports = st.one_of(
    st.none(),
    st.builds(
        JobReport,
        state=st.sampled_from(JobState),
        raw=st.one_of(st.sampled_from(_STATES), st.text(max_size=12)),
        reason=st.one_of(st.none(), st.text(max_size=8)),
        node=st.one_of(st.none(), st.just("n1")),
        exit_code=st.one_of(st.none(), st.integers(0, 255)),
        signal=st.one_of(st.none(), st.integers(1, 130)),
    ),
)
lines = st.lists(st.one_of(st.sampled_from(_WORDS), st.text(max_size=30)), max_size=6)
seconds = st.one_of(st.none(), st.floats(0, 1e6))
beats = st.one_of(
    st.none(),
    st.fixed_dictionaries({"at": st.text(max_size=5), "loss": st.sampled_from([None, "nan", 3.0])}),
)
observations = st.builds(
    Observation,
    report=reports,
    log=st.one_of(st.none(), st.builds(LogTail, file=st.just("job.out"), lines=lines)),
    heartbeat=beats,
    cancel_requested=st.booleans(),
    elapsed_s=seconds,
    limit_s=seconds,
)


@given(observations)
def test_without_the_workers_own_result_nothing_ever_diverged_or_completed(
    seen: Observation,
) -> None:
    verdict = judge(seen)
    assert verdict.kind not in (VerdictKind.DIVERGED, VerdictKind.COMPLETED, VerdictKind.INVALID)
    assert verdict.evidence


results = st.dictionaries(
    st.sampled_from(["verdict", "loss", "steps"]),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.floats(), st.sampled_from([*VerdictKind, "x"])),
        lambda inner: st.dictionaries(st.sampled_from(["kind", "evidence", "text"]), inner),
        max_leaves=6,
    ),
)


@given(results, observations)
def test_any_result_gets_a_verdict_that_a_ledger_can_hold(
    result: dict[str, Any], seen: Observation
) -> None:
    verdict = judge(Observation(result=result, report=seen.report, log=seen.log))
    assert decode(Verdict, encode(verdict), "verdict", LedgerCorrupt) == verdict
    if verdict.kind is VerdictKind.COMPLETED:
        assert isinstance(result["loss"], float)


def test_of_several_faults_in_a_log_the_last_one_decides() -> None:
    lines = ("CUDA error: first", "ValueError: then", "step 9")
    verdict = judge(Observation(report=ended("FAILED", 1), log=log(*lines)))
    assert verdict.kind is VerdictKind.PYTHON_ERROR
    assert verdict.evidence[0].line == 102


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path / "run")
    paths.attempt("g000-e00", 1).folder.mkdir(parents=True)
    paths.submission("s0001").mkdir(parents=True)
    return paths


def observed(run: RunPaths, report: JobReport | None) -> Observation:
    attempt = run.attempt("g000-e00", 1)
    job_log = run.submission("s0001") / "7_0_0_log.out"
    return observe(attempt, job_log, report, root=run.folder, limit_s=60.0)


@pytest.mark.parametrize("padding", [0, 100, 20_000])
def test_line_numbers_are_true_however_long_the_log(run: RunPaths, padding: int) -> None:
    """Beyond the part that is read, too, and with what some count as an end of a line."""
    lines = [f"step {i} \r progress \x0c\x1c\x85\u2028 of it" for i in range(padding)]
    lines += ["ValueError: no such thing", "bye"]
    path = run.submission("s0001") / "7_0_0_log.out"
    path.write_bytes("\n".join([*lines, ""]).encode())
    verdict = judge(observed(run, ended("FAILED", 1)))
    quote = verdict.evidence[0]
    assert quote.file == "submissions/s0001/7_0_0_log.out"
    assert quote.line == padding + 1
    assert path.read_bytes().split(b"\n")[quote.line - 1].decode() == quote.text


def test_log_of_bytes_that_are_no_text_is_read(run: RunPaths) -> None:
    path = run.submission("s0001") / "7_0_0_log.out"
    path.write_bytes(b"\xff\xfe\x00\nCUDA error: \xe9\n")
    assert judge(observed(run, ended("FAILED", 1))).kind is VerdictKind.CUDA_ERROR


def test_log_that_was_never_written_is_no_evidence(run: RunPaths) -> None:
    assert read_log_tail(run.submission("s0001") / "absent.out", run.folder) is None
    assert judge(observed(run, ended("FAILED", 1))).kind is VerdictKind.UNDETERMINED


def test_very_long_line_is_quoted_by_its_beginning(run: RunPaths) -> None:
    path = run.submission("s0001") / "7_0_0_log.out"
    path.write_text(f"ValueError: {'x' * 5000}\n", encoding="utf-8")
    assert len(judge(observed(run, ended("FAILED", 1))).summary) == 400


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"loss": NaN}', '{"loss": 1e999}', '{"a": 1, "a": 2}', "\x00"]
)
def test_result_that_is_no_strict_json_object_is_not_read(run: RunPaths, text: str) -> None:
    path = run.attempt("g000-e00", 1).result
    assert read_table(path) is None
    path.write_text(text, encoding="utf-8")
    assert read_table(path) is None
    assert judge(observed(run, ended("COMPLETED", 0))).kind is VerdictKind.UNDETERMINED


def test_time_a_worker_lived_is_taken_from_its_own_clock(run: RunPaths) -> None:
    beat = {"started_at": "2026-08-01T10:00:00.000Z", "at": "2026-08-01T10:05:00.500Z"}
    assert elapsed_s(beat) == 300.5
    for damaged in (None, {}, {"started_at": 3, "at": 4}, {**beat, "at": "yesterday"}):
        assert elapsed_s(damaged) is None


def test_age_of_a_heartbeat_is_that_of_its_file(run: RunPaths) -> None:
    attempt = run.attempt("g000-e00", 1)
    assert heartbeat_age_s(attempt, 0.0) is None
    attempt.heartbeat.write_text("{}", encoding="utf-8")
    written = attempt.heartbeat.stat().st_mtime
    assert heartbeat_age_s(attempt, written + 12.5) == 12.5
