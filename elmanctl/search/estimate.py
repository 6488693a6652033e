"""Estimates of the configurations of a search from noisy losses, and the order they give; pure.

The lowest of many losses is low partly by luck, and a configuration that was trained on one seed
alone is the likeliest to have had it.  Configurations are therefore ranked by the upper end of the
standard error of their mean, mean + sd / sqrt(n), behind those of no divergence those that
diverged on one of their seeds.  The noise is that of the repeats alone, so that confirmations do
not change which configurations are to be confirmed.
"""

import math
from collections import defaultdict
from dataclasses import dataclass

from elmanctl.ledger.records import Evaluation, State, VerdictKind
from elmanctl.ledger.run_state import RunState
from elmanctl.search.noise import PooledNoise, noise_of_repeats, pooled


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The losses of a configuration over the seeds of a search, in nats a byte.

    `evaluations` are the completed ones, the lowest loss first, and `mean` is that of their losses.
    `se` is its standard error by the noise of repeats, None where nothing is known of that.
    `diverged` is the number of seeds on which it diverged.
    """

    evaluations: tuple[Evaluation, ...]
    mean: float
    se: float | None
    diverged: int = 0

    @property
    def n(self) -> int:
        """The number of losses."""
        return len(self.evaluations)

    @property
    def rank(self) -> tuple[int, float]:
        """What configurations are sorted by."""
        return (self.diverged, self.mean + (self.se or 0.0))


def by_estimate(state: RunState) -> list[Evaluation]:
    """Return the completed evaluations as `ranked` does, those of the best configuration first.

    In a run without repeats that is the order of `ranked` itself.
    """
    if not state.repeats:
        return state.ranked()
    return [each for estimate in estimates(state) for each in estimate.evaluations]


def estimates(state: RunState) -> list[Estimate]:
    """Return the estimate of each configuration with a loss, the best first."""
    noise = pooled(noise_of_repeats(state))
    same: defaultdict[str, list[Evaluation]] = defaultdict(list)
    for evaluation in state.ranked():
        same[evaluation.configuration].append(evaluation)
    found = [_estimate(state, members, noise) for members in same.values()]
    return sorted(found, key=lambda each: each.rank)


def ties(found: list[Estimate]) -> list[Estimate]:
    """Return the configurations that noise does not tell from the best one of these, best first.

    Their means differ by at most the standard error of the difference.
    """
    return [
        each
        for each in found[1:]
        if each.se is not None
        and found[0].se is not None
        and each.diverged == found[0].diverged
        and each.mean - found[0].mean <= math.hypot(each.se, found[0].se)
    ]


def _estimate(state: RunState, members: list[Evaluation], noise: PooledNoise | None) -> Estimate:
    losses = [each.loss for each in members if each.loss is not None]
    diverged = [
        each
        for each in state.same_configuration(members[0].configuration)
        if each.state is State.FAILED
        and each.answer is None
        and each.verdict_kind is VerdictKind.DIVERGED
    ]
    return Estimate(
        evaluations=tuple(members),
        mean=math.fsum(losses) / len(losses),
        se=None if noise is None else noise.sd / math.sqrt(len(losses)),
        diverged=len(diverged),
    )
