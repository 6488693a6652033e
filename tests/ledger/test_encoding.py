from collections.abc import Callable
from typing import Any

import pytest

from elmanctl.errors import LedgerCorrupt
from elmanctl.ledger.encoding import (
    decode_evaluation,
    decode_submission,
    decode_verdict,
    encode_evaluation,
    encode_submission,
    encode_verdict,
)
from elmanctl.ledger.events import to_plain
from elmanctl.ledger.fields import Fields
from elmanctl.ledger.records import (
    Evaluation,
    Evidence,
    EvidenceSource,
    Submission,
    Task,
    Verdict,
    VerdictKind,
)

VERDICT = Verdict(
    kind=VerdictKind.OOM,
    evidence=(
        Evidence(source=EvidenceSource.LOG, text="out of memory", file="a.log", line=7),
        Evidence(source=EvidenceSource.SCHEDULER, text="OUT_OF_MEMORY"),
    ),
)
SUBMISSION = Submission(
    id="s1",
    job_name="elman-s1",
    tasks=(
        Task(index=0, evaluation="g000-e00", attempt=1),
        Task(index=1, evaluation="g000-e01", attempt=2, slot=3),
    ),
    resources={"mem_gb": 40},
)
EVALUATION = Evaluation(
    id="g002-e01",
    generation=2,
    point=(0.5, 1.0),
    config={"dim": 64},
    parameters=10,
    seed=1,
    replaces="g002-e00",
)


def test_records_survive_encoding() -> None:
    assert decode_verdict(to_plain(encode_verdict(VERDICT), "")) == VERDICT
    assert decode_submission(to_plain(encode_submission(SUBMISSION), "")) == SUBMISSION
    evaluation = to_plain(encode_evaluation(EVALUATION), "")
    assert decode_evaluation(evaluation, generation=2) == EVALUATION


def test_unknown_facts_are_left_out() -> None:
    encoded = encode_verdict(VERDICT)
    assert encoded["evidence"][1] == {"source": "scheduler", "text": "OUT_OF_MEMORY"}
    assert "slot" not in encode_submission(SUBMISSION)["tasks"][0]


def _verdict(**changes: object) -> Callable[[], object]:
    return lambda: decode_verdict({"kind": "oom", "evidence": [], **changes})


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
        (lambda: decode_verdict([]), "`verdict` must be an object, not []"),
        (lambda: decode_verdict({"kind": "oom"}, "a.b"), "`a.b.evidence` is missing"),
        (
            lambda: decode_evaluation(
                {**encode_evaluation(EVALUATION), "point": [0.5, True]}, generation=0
            ),
            "`evaluation.point[1]` must be a number, not True",
        ),
        (
            lambda: decode_evaluation(
                {**encode_evaluation(EVALUATION), "point": [10**400]}, generation=0
            ),
            "`evaluation.point[0]` is too large",
        ),
        (
            lambda: decode_submission({**encode_submission(SUBMISSION), "resources": [1]}),
            "`submission.resources` must be an object, not [1]",
        ),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(decode: Callable[[], object], message: str) -> None:
    with pytest.raises(LedgerCorrupt) as caught:
        decode()
    assert message in caught.value.message


def test_fields_read_each_type_and_only_that() -> None:
    data: dict[str, Any] = {"t": "x", "w": 3, "n": 1, "f": True, "m": {}, "l": [1], "none": None}
    with Fields(data, "p") as fields:
        assert (fields.text("t"), fields.whole("w"), fields.number("n")) == ("x", 3, 1.0)
        assert (fields.flag("f"), fields.mapping("m"), fields.items("l")) == (
            True,
            {},
            [("p.l[0]", 1)],
        )
        assert fields.optional_text("none") is None
    absent = Fields({}, "p")
    assert absent.optional_whole("a") is None
    assert absent.optional_number("a") is None
    assert absent.optional_mapping("a") is None
    with pytest.raises(LedgerCorrupt, match=r"`p\.f` must be true or false, not 1"):
        Fields({"f": 1}, "p").flag("f")
    with pytest.raises(LedgerCorrupt, match=r"not '.*\.\.\."):
        Fields({"w": "x" * 500}, "p").whole("w")


def test_first_error_is_not_hidden_by_unread_keys() -> None:
    with (
        pytest.raises(LedgerCorrupt, match=r"`p\.a` must be a text"),
        Fields({"a": 1, "b": 2}, "p") as f,
    ):
        f.text("a")
