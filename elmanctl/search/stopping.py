"""Stopping rules: whether an evaluation is worth the rest of its training budget; pure.

Evaluations are compared at looks: `LOOKS` evenly spaced shares of the training budget, in the
budget's own unit.  The loss at a look is the mean training loss over the later half of what was
trained by then, as `jobs.early_stop` computes it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from elmanctl.constants import ASHA, CURVE, LOOKS
from elmanctl.ledger.records import Stop
from elmanctl.run.stopping_settings import StoppingSettings
from elmanctl.search.student_t import two_sided_p

# The losses at the looks so far, None at a look with too few steps.
Curve = Sequence[float | None]

# A prediction needs so many completed evaluations; from the second number of them on, a line
# through them takes the place of their mean difference.
_FEWEST = 4
_FEWEST_FOR_A_LINE = 8

# A prediction has to say the same at so many looks in a row.
_IN_A_ROW = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The curve of another evaluation, and its loss if it completed."""

    curve: Curve
    loss: float | None = None

    def at(self, look: int) -> float | None:
        """Return the loss at a look, counted from 1, None where it is not known."""
        return self.curve[look - 1] if look <= len(self.curve) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A final loss predicted from that at a look, and the chance of one below `best` so far."""

    at_look: float
    loss: float
    chance: float
    best: float
    compared: int


def decide(
    settings: StoppingSettings, curve: Curve, others: Sequence[Seen], *, judged: int = 0
) -> Stop | None:
    """Return why an evaluation is to be stopped at the newest look of its curve, None to go on.

    `others` are the evaluations of the same search; `judged` looks of this one were judged before.
    """
    if settings.rule == CURVE:
        return _by_prediction(settings, curve, others)
    if settings.rule == ASHA:
        return _by_rung(settings, curve, others, judged)
    return None


def predict(curve: Curve, look: int, others: Sequence[Seen]) -> Prediction | None:
    """Return the prediction of the final loss from that at a look, None with too little to go by.

    With eight completed evaluations or more it is on the least-squares line of the final losses
    over those at this look, with fewer it is the loss at the look plus their mean difference.  The
    chance is by Student's t distribution of a new observation (Draper and Smith, Applied
    Regression Analysis, section 1.4).
    """
    own = curve[look - 1] if 0 < look <= len(curve) else None
    completed = [
        (at, o.loss) for o in others if o.loss is not None and (at := o.at(look)) is not None
    ]
    if own is None or len(completed) < _FEWEST:
        return None
    xs, ys = [x for x, _ in completed], [y for _, y in completed]
    n, x_mean, y_mean = len(completed), fmean(xs), fmean(ys)
    spread = math.fsum((x - x_mean) ** 2 for x in xs)
    slope, unknowns, leverage = 1.0, 1, 0.0
    if n >= _FEWEST_FOR_A_LINE and spread > 0:
        slope = math.fsum((x - x_mean) * (y - y_mean) for x, y in completed) / spread
        unknowns, leverage = 2, (own - x_mean) ** 2 / spread
    loss = y_mean + slope * (own - x_mean)
    rest = math.fsum((y - y_mean - slope * (x - x_mean)) ** 2 for x, y in completed)
    error = math.sqrt(rest / (n - unknowns) * (1 + 1 / n + leverage))
    best = min(o.loss for o in others if o.loss is not None)
    chance = _chance_below(best, loss, error, n - unknowns)
    return Prediction(at_look=own, loss=loss, chance=chance, best=best, compared=n)


def _chance_below(best: float, loss: float, error: float, degrees_of_freedom: int) -> float:
    distance = loss - best
    if error == 0 or distance == 0:
        return 0.0 if distance > 0 else 1.0 if distance < 0 else 0.5
    tail = two_sided_p(distance / error, degrees_of_freedom) / 2
    return tail if distance > 0 else 1 - tail


def _by_prediction(settings: StoppingSettings, curve: Curve, others: Sequence[Seen]) -> Stop | None:
    """Stop what would hardly end below the best, by its prediction at two looks in a row."""
    look = len(curve)
    if look < first_look(settings):
        return None
    found: list[Prediction] = []
    for earlier in range(_IN_A_ROW):
        prediction = predict(curve, look - earlier, others)
        if prediction is None or prediction.chance >= settings.chance:
            return None
        found.append(prediction)
    return Stop(
        rule=CURVE,
        share=look / LOOKS,
        loss=found[0].at_look,
        predicted=found[0].loss,
        limit=found[0].best,
        chance=found[0].chance,
        compared=found[0].compared,
    )


def _by_rung(
    settings: StoppingSettings, curve: Curve, others: Sequence[Seen], judged: int
) -> Stop | None:
    """Stop what is not among the best of a rung that it has just reached.

    This is asynchronous successive halving (Li et al., A System for Massively Parallel
    Hyperparameter Tuning, 2020) where what does not go on at once never does: one in `eta` of
    those that have reached the rung goes on, and all while there are fewer than `eta`.
    """
    reached = [rung for rung in rungs(settings) if judged < rung <= len(curve)]
    if not reached or (own := curve[reached[-1] - 1]) is None:
        return None
    rung = reached[-1]
    losses = sorted([own, *(at for o in others if (at := o.at(rung)) is not None)])
    if len(losses) < settings.eta:
        return None
    limit = losses[int(len(losses) / settings.eta) - 1]
    if own <= limit:
        return None
    prediction = predict(curve, rung, others)
    return Stop(
        rule=ASHA,
        share=rung / LOOKS,
        loss=own,
        predicted=own if prediction is None else prediction.loss,
        limit=limit,
        compared=len(losses) - 1,
    )


def rungs(settings: StoppingSettings) -> list[int]:
    """Return the looks that are rungs of successive halving, the earliest first."""
    found, share = [first_look(settings)], settings.first * settings.eta
    while (look := round(share * LOOKS)) < LOOKS:
        found.append(look)
        share *= settings.eta
    return found


def first_look(settings: StoppingSettings) -> int:
    """Return the first look at which an evaluation may be stopped."""
    return max(1, math.ceil(settings.first * LOOKS - 1e-9))
