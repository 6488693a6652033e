"""Noise of a loss: the spread of one configuration over several training seeds."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from elmanctl.ledger.records import Evaluation, State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.summary import RunSummary


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


class Spread(Protocol):
    """The spread of one configuration over `n` seeds; `sd` is None for one seed."""

    @property
    def n(self) -> int:
        """How many losses there are."""

    @property
    def sd(self) -> float | None:
        """The sample standard deviation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledNoise:
    """The spread between seeds, pooled over configurations; `sd` is in nats a byte.

    sd^2 = sum of (n_i - 1) sd_i^2 / sum of (n_i - 1), whose divisor is `degrees` of freedom.
    """

    sd: float
    degrees: int
    configurations: int


def noise_estimates(state: RunState) -> dict[str, Noise]:
    """Return the noise of every configuration with two or more losses, by its first evaluation."""
    found = {first: noise_of(state.same_configuration(first)) for first in state.repeats}
    return {first: noise for first, noise in found.items() if noise is not None}


def noise_of_search(state: RunState) -> PooledNoise | None:
    """Return the noise of a run's losses, from repeats on other seeds and from confirmations."""
    return pooled([*noise_of_repeats(state), *noise_of_confirmations(state)])


def noise_of_repeats(state: RunState) -> list[Noise]:
    """Return the noise of every configuration with two or more losses whose mean is a low one.

    It is among the better half of the losses: those that are far from the best spread more.
    """
    found = noise_estimates(state).values()
    if not found:
        return []
    middle = statistics.median(each.loss for each in state.ranked() if each.loss is not None)
    return [each for each in found if each.mean <= middle]


def noise_of_confirmations(found: RunState | RunSummary) -> list[Noise]:
    """Return the noise of every configuration that was confirmed on two or more seeds."""
    return list(filter(None, (noise_of(again) for _, again in found.confirmed)))


def noise_for(state: RunState, evaluation: Evaluation) -> Noise | None:
    """Return the noise of an evaluation's configuration, None with fewer than two losses."""
    return noise_of(state.same_configuration(evaluation.configuration))


def noise_of(same: Iterable[Evaluation]) -> Noise | None:
    """Return the mean and spread of the measured losses; answered repeats do not count."""
    measured = [
        (each.id, each.loss)
        for each in same
        if each.state is State.COMPLETED and each.answer is None and each.loss is not None
    ]
    losses = [loss for _, loss in measured]
    sd = sample_sd(losses)
    if sd is None:
        return None
    return Noise(
        evaluations=tuple(name for name, _ in measured),
        mean=math.fsum(losses) / len(losses),
        sd=sd,
    )


def sample_sd(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation, sqrt(sum of (x - mean)^2 / (n - 1)); None below two."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def pooled(spreads: Iterable[Spread]) -> PooledNoise | None:
    """Return the noise of a protocol from the spread of several configurations; None without any.

    One seed tells nothing of it.
    """
    found = [(each.n - 1, each.sd) for each in spreads if each.sd is not None]
    degrees = sum(n for n, _ in found)
    if not degrees:
        return None
    squares = math.fsum(n * sd**2 for n, sd in found)
    return PooledNoise(sd=math.sqrt(squares / degrees), degrees=degrees, configurations=len(found))
