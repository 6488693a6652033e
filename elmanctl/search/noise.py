"""Noise of a loss: the spread of one configuration over several training seeds."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from elmanctl.ledger.records import Evaluation, State
from elmanctl.ledger.run_state import RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """The losses of one configuration on several seeds; `sd` is the sample's, in nats."""

    evaluations: tuple[str, ...]
    mean: float
    sd: float

    @property
    def n(self) -> int:
        """How many losses there are, at least 2."""
        return len(self.evaluations)


def noise_estimates(state: RunState) -> dict[str, Noise]:
    """Return the noise of every configuration with two or more losses, by its first evaluation."""
    found = {first: noise_of(state.same_configuration(first)) for first in state.repeats}
    return {first: noise for first, noise in found.items() if noise is not None}


def noise_for(state: RunState, evaluation: Evaluation) -> Noise | None:
    """Return the noise of an evaluation's configuration, None with fewer than two losses."""
    return noise_of(state.same_configuration(evaluation.repeats or evaluation.id))


def noise_of(same: Iterable[Evaluation]) -> Noise | None:
    """Return the mean and spread of the measured losses; answered repeats do not count."""
    measured = [
        (each.id, each.loss)
        for each in same
        if each.state is State.COMPLETED and each.answer is None and each.loss is not None
    ]
    losses = [loss for _, loss in measured]
    if len(losses) < 2:
        return None
    mean = math.fsum(losses) / len(losses)
    squares = math.fsum((loss - mean) ** 2 for loss in losses)
    return Noise(
        evaluations=tuple(name for name, _ in measured),
        mean=mean,
        sd=math.sqrt(squares / (len(losses) - 1)),
    )
