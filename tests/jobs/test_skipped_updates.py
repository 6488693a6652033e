"""Updates that are not finite are skipped and counted, where that is asked for."""

import math
from collections.abc import Callable, Collection
from typing import Any

import pytest
from torch import Tensor

from elmanctl.jobs.data import ByteStream, Rows
from elmanctl.jobs.training_loop import MOST_SKIPPED_IN_A_ROW
from elmanctl.models.lm import LanguageModel
from tests.jobs.attempts import Write, interrupted, metrics, run

Poison = Callable[[Collection[int]], None]


@pytest.fixture(params=[math.nan, math.inf])
def poison(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Poison:
    """Give the losses of some steps, and their gradients, a value that is not finite."""

    def poison(steps: Collection[int]) -> None:
        rows, loss, at = ByteStream.rows, LanguageModel.loss, [0]

        def rows_of(self: ByteStream, seed: int, step: int, *shape: int, **ranks: int) -> Rows:
            at[0] = step
            return rows(self, seed, step, *shape, **ranks)

        def poisoned(self: LanguageModel, tokens: Tensor) -> Tensor:
            return loss(self, tokens) * (request.param if at[0] in steps else 1.0)

        monkeypatch.setattr(ByteStream, "rows", rows_of)
        monkeypatch.setattr(LanguageModel, "loss", poisoned)

    return poison


def test_an_update_that_is_not_finite_is_skipped_and_counted(write: Write, poison: Poison) -> None:
    poison({1, 5, 6, 12})
    paths = write(skip_nonfinite=True, checkpoint_min=0.0)
    result = run(paths)
    assert result["verdict"]["kind"] == "completed"
    assert (result["skipped_updates"], result["steps"], result["tokens"]) == (4, 12, 12 * 64)
    found = metrics(paths)
    assert [each["step"] for each in found if each["loss"] is None] == [1, 5, 6, 12]
    finite = [each["loss"] for each in found if each["loss"] is not None]
    assert result["mean_loss"] == sum(finite) / 8
    assert (result["loss_window_steps"], result["last_loss"]) == (8, finite[-1])
    # A skipped update changes nothing, and each norm is reported a step later.
    assert [each["step"] for each in found if each["update_norm"] == 0] == [2, 6, 7]


def test_it_diverges_at_the_first_one_unless_asked(write: Write, poison: Poison) -> None:
    poison({5})
    result = run(write(checkpoint_min=0.0))
    assert result["verdict"]["kind"] == "diverged"
    assert (result["divergence"]["step"], result["skipped_updates"]) == (5, 0)


@pytest.mark.parametrize("count", [MOST_SKIPPED_IN_A_ROW, MOST_SKIPPED_IN_A_ROW + 1])
def test_more_than_some_in_a_row_diverge(write: Write, poison: Poison, count: int) -> None:
    # Two runs of them: only those in a row count.
    poison([2, *range(4, 4 + count)])
    result = run(write(skip_nonfinite=True, steps=20, checkpoint_min=0.0))
    if count == MOST_SKIPPED_IN_A_ROW:
        assert result["verdict"]["kind"] == "completed"
        assert (result["skipped_updates"], result["steps"]) == (count + 1, 20)
    else:
        assert result["verdict"]["kind"] == "diverged"
        assert (result["divergence"]["step"], result["steps"]) == (4 + count - 1, 4 + count - 2)
        assert result["loss"] is None


def test_the_counts_go_on_after_an_interruption(write: Write, poison: Poison) -> None:
    asked = {"skip_nonfinite": True, "steps": 20}
    poison([1, *range(4, 4 + MOST_SKIPPED_IN_A_ROW)])
    interrupted(write(**asked), before_step=8)
    result = run(write(2, **asked))
    assert result["continued_from"]["step"] == 7
    left_alone = run(write(evaluation="g000-e99", **asked))
    for key in ("skipped_updates", "loss", "mean_loss", "steps"):
        assert result[key] == left_alone[key]
    assert result["skipped_updates"] == 1 + MOST_SKIPPED_IN_A_ROW


def test_an_interruption_does_not_begin_a_new_row(write: Write, poison: Poison) -> None:
    asked = {"skip_nonfinite": True, "steps": 20}
    poison(range(4, 20))
    interrupted(write(**asked), before_step=9)
    result = run(write(2, **asked))
    assert result["continued_from"]["step"] == 8
    assert result["verdict"]["kind"] == "diverged"
    assert result["divergence"]["step"] == 4 + MOST_SKIPPED_IN_A_ROW


def test_a_training_that_has_only_skipped_goes_on_too(write: Write, poison: Poison) -> None:
    asked: dict[str, Any] = {"skip_nonfinite": True}
    poison({1, 2})
    interrupted(write(**asked), before_step=3)
    result = run(write(2, **asked))
    assert result["continued_from"] == {"attempt": 1, "step": 2}
    assert (result["verdict"]["kind"], result["skipped_updates"]) == ("completed", 2)
    assert math.isfinite(result["loss"])
