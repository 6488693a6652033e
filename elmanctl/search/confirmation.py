"""Confirmation: losses of the best on fresh seeds, and what is left of the search values; pure.

The lowest of many noisy losses is lower than the mean of its configuration: it was chosen for
being so (the winner's curse).  The best configurations are therefore trained again on seeds that
the search did not use, the same seeds for each so that differences can be paired.  The mean over
these seeds is an unbiased estimate of each; the lowest of a few such means is still flattered, but
by far less than the lowest of all single losses.
"""

from dataclasses import dataclass

from elmanctl.ledger.records import Evaluation, State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.summary import RunSummary
from elmanctl.search.difference import Sample
from elmanctl.search.estimate import by_estimate
from elmanctl.search.noise import PooledNoise, noise_of_confirmations, noise_of_search, pooled


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """A configuration that was trained again, with its losses on fresh seeds, in nats a byte.

    `evaluation` is the one of the search, whose loss is `search_loss`.  `seeds` and `losses` are
    those of the completed confirmations; `failed` names the failed and cancelled ones, `undecided`
    the others.
    """

    evaluation: str
    search_loss: float
    seeds: tuple[int, ...]
    losses: tuple[float, ...]
    failed: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """How many fresh seeds gave a loss."""
        return len(self.losses)

    @property
    def sample(self) -> Sample | None:
        """The losses by fresh seed; None without one."""
        return Sample(losses=dict(zip(self.seeds, self.losses, strict=True))) if self.n else None

    @property
    def mean(self) -> float | None:
        """The mean loss over the fresh seeds; None without one."""
        return None if self.sample is None else self.sample.mean

    @property
    def sd(self) -> float | None:
        """The sample standard deviation over the fresh seeds; None with fewer than two."""
        return None if self.sample is None else self.sample.sd

    @property
    def se(self) -> float | None:
        """The standard error of the mean; None with fewer than two seeds."""
        return None if self.sample is None else self.sample.se

    @property
    def optimism(self) -> float | None:
        """The confirmed mean less the search value: above 0 where the search flattered it."""
        return None if self.mean is None else self.mean - self.search_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What confirmation has shown of a run so far.

    `confirmed` is in order of mean; configurations with a seed that gave no loss come last.
    `is_current` says whether the best of the search is among them, `noise` is that of the protocol.
    """

    confirmed: tuple[Confirmed, ...]
    is_current: bool
    noise: PooledNoise | None

    @property
    def undecided(self) -> int:
        """How many confirmations are not decided."""
        return sum(len(each.undecided) for each in self.confirmed)

    @property
    def failed(self) -> tuple[str, ...]:
        """The confirmations that gave no loss and are not tried again."""
        return tuple(name for each in self.confirmed for name in each.failed)

    @property
    def winner(self) -> Confirmed | None:
        """The configuration of the lowest confirmed mean, None until all of them are decided."""
        if not self.is_current or self.undecided or not self.confirmed[0].losses:
            return None
        return self.confirmed[0]


def standing(found: RunState | RunSummary) -> Standing:
    """Return what confirmation has shown of a run.

    A summary does not know the repeats of a run, so that its noise is of confirmations alone.
    """
    if isinstance(found, RunState):
        best = next((each.configuration for each in by_estimate(found)), None)
        noise = noise_of_search(found)
    else:
        best, noise = found.best_configuration, pooled(noise_of_confirmations(found))
    return Standing(
        confirmed=tuple(sorted((_confirmed(*pair) for pair in found.confirmed), key=_order)),
        is_current=best in {evaluation.configuration for evaluation, _ in found.confirmed},
        noise=noise,
    )


def best_of(state: RunState, shown: Standing) -> Evaluation | None:
    """Return the confirmed winner, or without one the first by estimate, if any."""
    if shown.winner is not None:
        return state.evaluations[shown.winner.evaluation]
    return next(iter(by_estimate(state)), None)


def _confirmed(evaluation: Evaluation, again: tuple[Evaluation, ...]) -> Confirmed:
    assert evaluation.loss is not None, "only what completed is confirmed"
    completed = [
        (e.seed, e.loss) for e in again if e.state is State.COMPLETED and e.loss is not None
    ]
    return Confirmed(
        evaluation=evaluation.id,
        search_loss=evaluation.loss,
        seeds=tuple(seed for seed, _ in completed),
        losses=tuple(loss for _, loss in completed),
        failed=tuple(e.id for e in again if e.state in (State.FAILED, State.CANCELLED)),
        undecided=tuple(e.id for e in again if not e.state.is_finished),
    )


def _order(each: Confirmed) -> tuple[bool, int, float]:
    return (each.mean is None, len(each.failed), each.mean or 0.0)
