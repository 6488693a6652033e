from collections.abc import Callable
from typing import Any

import pytest

from elmanctl.codec import decode, encode
from elmanctl.errors import LedgerCorrupt
from elmanctl.ledger.events import to_plain
from elmanctl.ledger.records import (
    EvaluationPlan,
    Evidence,
    EvidenceSource,
    Verdict,
    VerdictKind,
)
from elmanctl.ledger.submissions import Resources, SubmissionIntent, Task

VERDICT = Verdict(
    kind=VerdictKind.OOM,
    evidence=(
        Evidence(source=EvidenceSource.LOG, text="out of memory", file="a.log", line=7),
        Evidence(source=EvidenceSource.SCHEDULER, text="OUT_OF_MEMORY"),
    ),
)
SUBMISSION = SubmissionIntent(
    id="s1",
    job_name="elman-s1",
    tasks=(
        Task(index=0, evaluation="g000-e00", attempt=1),
        Task(index=1, evaluation="g000-e01", attempt=2, slot=3),
    ),
    resources=Resources(mem_gb=40),
)
PLAN = EvaluationPlan(
    id="g002-e01",
    point=(0.5, 1.0),
    config={"dim": 64},
    lr=1e-3,
    parameters=10,
    seed=1,
    replaces="g002-e00",
    confirms="g001-e00",
)


def _decode(kind: type[Any], data: object, path: str) -> object:
    found: object = decode(kind, data, path, LedgerCorrupt)
    return found


@pytest.mark.parametrize("record", [VERDICT, SUBMISSION, PLAN])
def test_records_survive_encoding(record: object) -> None:
    data = to_plain(encode(record), "")
    assert _decode(type(record), data, "record") == record


def test_unknown_facts_are_left_out() -> None:
    assert encode(VERDICT)["evidence"][1] == {"source": "scheduler", "text": "OUT_OF_MEMORY"}
    assert "slot" not in encode(SUBMISSION)["tasks"][0]


def _verdict(**changes: object) -> Callable[[], object]:
    return lambda: _decode(Verdict, {"kind": "oom", "evidence": [], **changes}, "verdict")


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (_verdict(kind="sad"), "`verdict.kind` is 'sad', not one of completed, diverged"),
        (_verdict(kind=None), "`verdict.kind` must be a text, not None"),
        (_verdict(evidence={}), "`verdict.evidence` must be an array, not {}"),
        (_verdict(evidence=[3]), "`verdict.evidence[0]` must be an object, not 3"),
        (
            _verdict(evidence=[{"source": "log", "text": "x", "line": 1.5}]),
            "`verdict.evidence[0].line` must be a whole number, not 1.5",
        ),
        (
            _verdict(evidence=[{"source": "rumour", "text": "x"}]),
            "`verdict.evidence[0].source` is 'rumour'",
        ),
        (_verdict(mood="x"), "`verdict.mood` is not a known key"),
        (lambda: _decode(Verdict, [], "verdict"), "`verdict` must be an object, not []"),
        (lambda: _decode(Verdict, {"kind": "oom"}, "a.b"), "`a.b.evidence` is missing"),
        (
            lambda: _decode(EvaluationPlan, {**encode(PLAN), "point": [0.5, True]}, "plan"),
            "`plan.point[1]` must be a number, not True",
        ),
        (
            lambda: _decode(EvaluationPlan, {**encode(PLAN), "point": [10**400]}, "plan"),
            "`plan.point[0]` is too large",
        ),
        (
            lambda: _decode(
                SubmissionIntent, {**encode(SUBMISSION), "resources": [1]}, "submission"
            ),
            "`submission.resources` must be an object, not [1]",
        ),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(decode: Callable[[], object], message: str) -> None:
    with pytest.raises(LedgerCorrupt) as caught:
        decode()
    assert message in caught.value.message
