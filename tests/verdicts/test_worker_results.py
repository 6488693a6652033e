"""Verdicts on results of workers: whole, damaged, absent."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.codec import decode, encode
from elmanctl.errors import LedgerCorrupt
from elmanctl.ledger.records import EvidenceSource, Verdict, VerdictKind
from elmanctl.schedulers.executor import JobReport, JobState
from elmanctl.verdicts.judge import judge
from elmanctl.verdicts.log_tail import LogTail
from elmanctl.verdicts.observation import Observation
from tests.verdicts.observed import ended, log


def result_of(kind: object, **rest: Any) -> dict[str, Any]:
    return {"verdict": {"kind": kind, "evidence": [{"text": "it says so", "line": 7}]}, **rest}


@pytest.mark.parametrize("kind", VerdictKind)
def test_workers_own_word_beats_everything_else(kind: VerdictKind) -> None:
    seen = Observation(
        result=result_of(kind.value, loss=1.5),
        result_file="evaluations/g000-e00/attempt-1/result.json",
        report=ended("OUT_OF_MEMORY", 0, 125),
        log=log("CUDA error"),
        cancel_requested=True,
        stop_requested=True,
    )
    verdict = judge(seen)
    assert verdict.kind is kind
    quote, *others = verdict.evidence
    assert {other.source for other in others} <= {EvidenceSource.SCHEDULER, EvidenceSource.LOG}
    assert (quote.source, quote.text, quote.line) == (EvidenceSource.RESULT, "it says so", 7)
    assert quote.file == "evaluations/g000-e00/attempt-1/result.json"


def test_worker_that_nobody_asked_to_stop_is_not_believed() -> None:
    verdict = judge(Observation(result=result_of("stopped", steps=10)))
    assert verdict.kind is VerdictKind.UNDETERMINED
    assert verdict.summary == "the worker says stopped, and was not asked to stop"


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_job_without_a_result_was_stopped_unless_a_user_cancelled_it(is_cancelled: bool) -> None:
    verdict = judge(
        Observation(
            report=ended("CANCELLED by 1000", 0, 15),
            stop_requested=True,
            cancel_requested=is_cancelled,
        )
    )
    assert verdict.kind is (VerdictKind.CANCELLED if is_cancelled else VerdictKind.STOPPED)
    assert verdict.evidence[0].source is EvidenceSource.CONTROLLER


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
