"""Fitness values of a generation, as the policy table decides them."""

from dataclasses import replace
from typing import Any

import pytest

from elmanctl.ledger.records import (
    Answer,
    Attempt,
    Cause,
    Evaluation,
    State,
    Stop,
    Verdict,
    VerdictKind,
    evaluation_id,
)
from elmanctl.search.fitness import feedback_on, fitness_values, last_step
from elmanctl.verdicts import policy
from elmanctl.verdicts.policy import Feedback

CLOSED_AS = {
    VerdictKind.COMPLETED: State.COMPLETED,
    VerdictKind.CANCELLED: State.CANCELLED,
    VerdictKind.STOPPED: State.STOPPED,
}

# At the fourth look, and expected to end at 3.
STOP = Stop(rule="curve", share=0.1, loss=4.0, predicted=3.0, limit=2.0, chance=0.01, compared=8)


def evaluation(index: int, *attempts: tuple[VerdictKind, dict[str, Any] | None]) -> Evaluation:
    """Return a closed evaluation with these attempts."""
    return Evaluation(
        id=evaluation_id(0, index),
        generation=0,
        point=(float(index),),
        config={},
        lr=1e-3,
        parameters=1,
        seed=1,
        state=CLOSED_AS.get(attempts[-1][0], State.FAILED),
        attempts=tuple(
            Attempt(
                number=number,
                submission="s0001",
                task_index=index,
                state=CLOSED_AS.get(kind, State.FAILED),
                verdict=Verdict(kind=kind),
                result=result,
                stop=STOP if kind is VerdictKind.STOPPED else None,
            )
            for number, (kind, result) in enumerate(attempts, start=1)
        ),
    )


def completed(index: int, loss: float) -> Evaluation:
    return evaluation(index, (VerdictKind.COMPLETED, {"loss": loss}))


def diverged(index: int, steps: int | None) -> Evaluation:
    result = {"loss": None} if steps is None else {"loss": None, "steps": steps}
    return evaluation(index, (VerdictKind.DIVERGED, result))


def test_completed_evaluations_tell_their_loss_in_their_order() -> None:
    assert fitness_values([completed(0, 2.5), completed(1, 1.25), completed(2, 2.0)]) == [
        ("g000-e00", 2.5),
        ("g000-e01", 1.25),
        ("g000-e02", 2.0),
    ]


def stopped(index: int, curve: list[float | None] | None = None) -> Evaluation:
    return evaluation(index, (VerdictKind.STOPPED, {"loss": None, "curve": curve or []}))


def ahead(index: int, loss: float, at_look: float | None) -> Evaluation:
    """Return an evaluation that completed, with this loss where the others were stopped."""
    curve = [9.0, 9.0, 9.0, at_look, 1.0]
    return evaluation(index, (VerdictKind.COMPLETED, {"loss": loss, "curve": curve}))


def test_stopped_evaluation_tells_its_predicted_loss() -> None:
    values = dict(fitness_values([stopped(0), completed(1, 1.0), completed(2, 5.0)]))
    assert values == {"g000-e00": 3.0, "g000-e01": 1.0, "g000-e02": 5.0}


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([ahead(1, 3.5, 3.9), ahead(2, 2.0, 3.0)], 3.5),
        ([ahead(1, 3.5, 4.1)], 3.0),
        ([ahead(1, 3.5, 4.0), ahead(2, 7.0, 5.0)], 3.5),
        ([ahead(1, 3.5, None)], 3.0),
    ],
    ids=["behind-the-worst-ahead", "none-ahead", "level", "unknown"],
)
def test_stopped_evaluation_is_never_better_than_one_that_was_ahead_of_it(
    members: list[Evaluation], told: float
) -> None:
    assert dict(fitness_values([stopped(0), *members]))["g000-e00"] == told


def test_diverged_evaluation_ranks_behind_a_stopped_one() -> None:
    values = dict(fitness_values([completed(0, 2.5), stopped(1), diverged(2, 40)]))
    assert values == {"g000-e00": 2.5, "g000-e01": 3.0, "g000-e02": 4.0}


def test_repeat_of_a_stopped_evaluation_tells_what_that_one_does() -> None:
    answered = replace(
        completed(1, 1.0),
        attempts=(),
        state=State.STOPPED,
        answer=Answer(by="g000-e00", verdict=VerdictKind.STOPPED, stop=STOP),
    )
    values = dict(fitness_values([stopped(0), answered, ahead(2, 3.5, 3.9)]))
    assert values == {"g000-e00": 3.5, "g000-e01": 3.5, "g000-e02": 3.5}


def test_diverged_evaluation_ranks_just_behind_the_worst_loss() -> None:
    values = dict(fitness_values([completed(0, 2.5), diverged(1, 40), completed(2, 3.5)]))
    assert values == {"g000-e00": 2.5, "g000-e01": 4.5, "g000-e02": 3.5}


def test_later_divergence_is_better_than_an_earlier_one() -> None:
    values = dict(
        fitness_values([diverged(0, 10), completed(1, 2.0), diverged(2, 90), diverged(3, 50)])
    )
    assert values["g000-e01"] < values["g000-e02"] < values["g000-e03"] < values["g000-e00"]


def test_divergence_at_an_unknown_step_counts_as_the_earliest() -> None:
    values = dict(fitness_values([diverged(0, None), diverged(1, 3)]))
    assert last_step(diverged(0, None)) == 0
    assert values["g000-e01"] < values["g000-e00"]


def test_failures_that_are_no_divergence_and_cancelled_ones_are_not_told() -> None:
    spoken = (VerdictKind.COMPLETED, VerdictKind.DIVERGED, VerdictKind.STOPPED)
    silent = [kind for kind in VerdictKind if kind not in spoken]
    members = [evaluation(i, (kind, {"loss": 1.0})) for i, kind in enumerate(silent)]
    assert fitness_values(members) == []


def test_divergence_that_was_tried_again_and_completed_tells_the_loss() -> None:
    again = evaluation(
        0, (VerdictKind.DIVERGED, {"steps": 5}), (VerdictKind.COMPLETED, {"loss": 1.5})
    )
    assert feedback_on(again) is Feedback.LOSS
    assert fitness_values([again]) == [("g000-e00", 1.5)]


def test_divergence_in_an_attempt_before_the_last_is_not_told() -> None:
    again = evaluation(0, (VerdictKind.DIVERGED, {"steps": 5}), (VerdictKind.LOST, None))
    assert fitness_values([again]) == []


def test_empty_generation_tells_nothing() -> None:
    assert fitness_values([]) == []


def test_divergence_that_was_cancelled_before_its_retry_has_no_fitness() -> None:
    cancelled = replace(diverged(0, 5), state=State.CANCELLED)
    retried = replace(diverged(1, 5), state=State.CREATED)
    assert fitness_values([cancelled, retried]) == []


def test_repeat_has_the_fitness_of_the_evaluation_that_answered_it() -> None:
    answer = Answer(by="g000-e00", verdict=VerdictKind.DIVERGED, step=7)
    repeat = replace(diverged(1, None), attempts=(), answer=answer)
    unjudged = replace(repeat, answer=Answer(by="g000-e00"), state=State.CANCELLED)
    assert (feedback_on(repeat), last_step(repeat)) == (Feedback.LAST, 7)
    assert feedback_on(unjudged) is Feedback.NOTHING


def test_changed_rule_changes_what_the_optimizer_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [completed(0, 2.0), evaluation(1, (VerdictKind.OOM, {"steps": 3})), diverged(2, 9)]
    assert [name for name, _ in fitness_values(members)] == ["g000-e00", "g000-e02"]
    change_feedback(monkeypatch, VerdictKind.OOM, Cause.HOST, Feedback.LAST)
    change_feedback(monkeypatch, VerdictKind.DIVERGED, None, Feedback.NOTHING)
    assert fitness_values(members) == [("g000-e00", 2.0), ("g000-e01", 3.0)]


def change_feedback(
    monkeypatch: pytest.MonkeyPatch, kind: VerdictKind, cause: Cause | None, feedback: Feedback
) -> None:
    """Give another feedback to one rule of the policy table."""
    changed = replace(policy.rule_of(Verdict(kind=kind, cause=cause)), feedback=feedback)
    monkeypatch.setitem(policy._RULE_OF, (kind, cause), changed)
