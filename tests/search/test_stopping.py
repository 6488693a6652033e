"""Stopping rules: which evaluation is not worth the rest of its training, from losses alone."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.constants import LOOKS
from elmanctl.run.stopping_settings import StoppingSettings
from elmanctl.search.stopping import Curve, Seen, decide, first_look, predict, rungs

CURVE = StoppingSettings(rule="curve")
ASHA = StoppingSettings(rule="asha", first=0.1, eta=3.0)


def falling(final: float, looks: int = LOOKS, noise: float = 0.0, seed: int = 0) -> list[float]:
    """Return a curve that ends near a loss: higher at first, by the same for every evaluation."""
    draw = random.Random(seed)
    return [final + 2.0 / math.sqrt(look) + draw.gauss(0, noise) for look in range(1, looks + 1)]


def completed(*finals: float) -> list[Seen]:
    return [
        Seen(curve=falling(final, noise=0.001, seed=number), loss=final)
        for number, final in enumerate(finals)
    ]


def test_hopeless_evaluation_is_stopped_at_the_first_look() -> None:
    others = completed(1.0, 1.1, 1.2, 1.3, 1.4)
    stop = decide(CURVE, falling(1.5, looks=4), others)
    assert stop is not None
    assert (stop.rule, stop.share, stop.limit, stop.compared) == ("curve", 0.1, 1.0, 5)
    assert stop.predicted == pytest.approx(1.5, abs=0.01)
    assert stop.loss == pytest.approx(2.5)
    assert stop.chance is not None and stop.chance < 0.05


def test_what_may_become_the_best_goes_on() -> None:
    others = completed(1.0, 1.1, 1.2, 1.3, 1.4)
    for looks in range(1, LOOKS + 1):
        assert decide(CURVE, falling(0.99, looks=looks), others) is None


def test_nothing_is_stopped_before_the_first_look_or_without_enough_to_go_by() -> None:
    others = completed(1.0, 1.1, 1.2, 1.3)
    assert decide(CURVE, falling(9.0, looks=3), others) is None
    assert decide(CURVE, falling(9.0, looks=4), others) is not None
    assert decide(CURVE, falling(9.0, looks=4), others[:3]) is None
    live = [Seen(curve=falling(1.0)) for _ in range(9)]
    assert decide(CURVE, falling(9.0, looks=4), live) is None


def test_one_bad_look_stops_nothing() -> None:
    others = completed(1.0, 1.1, 1.2, 1.3, 1.4)
    curve = falling(1.0, looks=10)
    curve[-1] += 1.0
    assert decide(CURVE, curve, others) is None
    curve[-2] += 1.0
    assert decide(CURVE, curve, others) is not None


def test_look_without_a_loss_decides_nothing() -> None:
    others = completed(1.0, 1.1, 1.2, 1.3, 1.4)
    curve: list[float | None] = [*falling(9.0, looks=10)]
    assert decide(CURVE, [*curve[:-1], None], others) is None
    assert decide(CURVE, [*curve[:-2], None, curve[-1]], others) is None
    unknown = [Seen(curve=[None] * LOOKS, loss=1.0) for _ in range(9)]
    assert decide(CURVE, curve, unknown) is None


def test_line_through_many_evaluations_learns_that_half_of_a_lead_is_lost() -> None:
    """Where all end half as far apart as they are at a look, so will the next one."""
    others = [Seen(curve=[2.0 + place], loss=1.0 + place / 2) for place in range(8)]
    few, many = predict([12.0], 1, others[:7]), predict([12.0], 1, others)
    assert few is not None and many is not None
    assert many.loss == pytest.approx(6.0)
    assert few.loss == pytest.approx(12.0 - 2.5)
    assert (few.compared, many.compared) == (7, 8)


def test_chance_is_that_of_a_new_observation_beside_a_regression() -> None:
    """The upper 5 % point of t with 6 degrees of freedom is 1.943 (Student's table)."""
    xs = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    ys = [x + (0.1 if number % 2 else -0.1) for number, x in enumerate(xs)]
    others = [Seen(curve=[x], loss=y) for x, y in zip(xs, ys, strict=True)]
    slope = sum((x - 3.5) * y for x, y in zip(xs, ys, strict=True)) / 42
    mean = sum(ys) / 8
    rest = sum((y - mean - slope * (x - 3.5)) ** 2 for x, y in zip(xs, ys, strict=True))
    own = -0.2
    error = math.sqrt(rest / 6 * (1 + 1 / 8 + (own - 3.5) ** 2 / 42))
    prediction = predict([own], 1, others)
    assert prediction is not None
    assert prediction.loss == pytest.approx(mean + slope * (own - 3.5))
    at_five_percent = prediction.loss - 1.943 * error
    moved = [*others, Seen(curve=[], loss=at_five_percent)]
    again = predict([own], 1, moved)
    assert again is not None and again.chance == pytest.approx(0.05, abs=0.0005)


@given(st.lists(st.floats(0.5, 5.0), min_size=8, max_size=30), st.floats(0.5, 5.0))
def test_chance_is_a_probability_and_falls_with_the_loss(losses: list[float], own: float) -> None:
    others = [Seen(curve=[loss + 1.0], loss=loss) for loss in losses]
    found = [predict([at], 1, others) for at in (own, own + 0.5)]
    chances = [prediction.chance for prediction in found if prediction is not None]
    assert len(chances) == 2 and all(0.0 <= chance <= 1.0 for chance in chances)
    if min(losses) + 0.1 < max(losses):
        assert chances[1] <= chances[0] + 1e-9


def test_rungs_are_eta_times_as_far_apart() -> None:
    assert rungs(ASHA) == [4, 12, 36]
    assert rungs(StoppingSettings(rule="asha", first=0.25, eta=2.0)) == [10, 20]
    assert first_look(StoppingSettings(first=0.11)) == 5


def rung(own: float, others: list[float], judged: int = 3) -> bool:
    """Whether an evaluation is stopped at the first rung."""
    curves: list[Curve] = [[9.0, 9.0, 9.0, loss] for loss in others]
    seen = [Seen(curve=curve) for curve in curves]
    return decide(ASHA, [9.0, 9.0, 9.0, own], seen, judged=judged) is not None


def test_one_in_eta_of_those_at_a_rung_goes_on() -> None:
    assert not rung(1.0, [2.0, 3.0, 4.0, 5.0, 6.0])
    assert not rung(2.5, [2.0, 3.0, 4.0, 5.0, 6.0])
    assert rung(3.5, [2.0, 3.0, 4.0, 5.0, 6.0])


def test_first_at_a_rung_go_on() -> None:
    assert not rung(9.0, [])
    assert not rung(9.0, [1.0])
    assert rung(9.0, [1.0, 2.0])


def test_rung_is_judged_once_and_also_when_it_was_passed_between_two_heartbeats() -> None:
    others = [2.0, 3.0, 4.0, 5.0, 6.0]
    assert not rung(7.0, others, judged=4)
    seen = [Seen(curve=[9.0, 9.0, 9.0, loss]) for loss in others]
    curve = [9.0, 9.0, 9.0, 7.0, 1.0, 1.0]
    stop = decide(ASHA, curve, seen, judged=2)
    assert stop is not None
    assert (stop.share, stop.loss, stop.limit, stop.compared) == (0.1, 7.0, 3.0, 5)
    assert (stop.predicted, stop.chance) == (7.0, None)


def test_off_stops_nothing() -> None:
    assert decide(StoppingSettings(), falling(9.0, looks=9), completed(*[1.0] * 9)) is None
