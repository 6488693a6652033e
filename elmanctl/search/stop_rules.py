"""Stop rules of a search: the most evaluations, and generations without an improvement; pure.

An improvement is noise-aware where the settings say so: a drop of the best loss that is small
beside the spread of one configuration over training seeds is none.
"""

from collections.abc import Sequence

from elmanctl.constants import RESEED
from elmanctl.errors import ConfigError
from elmanctl.ledger.records import CONFIRMATION
from elmanctl.ledger.run_state import RunState
from elmanctl.search.noise import noise_of_search
from elmanctl.settings import SearchSettings


def stop_reason(state: RunState, search: SearchSettings, branches: int = 1) -> str | None:
    """Return why a search ends after the generations that are done, None if it goes on.

    Of a sweep each of the `branches` has to stop improving.
    """
    trained = searched(state)
    if search.evaluations is not None and trained >= search.evaluations:
        return f"{trained} evaluations are trained, as many as `search.evaluations` allows"
    reasons = [stall(state, search, turns_of(state, branch)) for branch in range(branches)]
    if None in reasons:
        return None
    return reasons[0] if branches == 1 else f"of every branch of the sweep, {reasons[-1]}"


def turns_of(state: RunState, branch: int) -> list[int]:
    """Return the generations of a branch of a sweep, in order."""
    return [g for g in range(state.generation + 1) if state.turns.get(g, 0) == branch]


def stall(state: RunState, search: SearchSettings, generations: Sequence[int]) -> str | None:
    """Return that the best loss of these generations stopped improving, None if not.

    Those that are not done yet are left out.
    """
    generations = [generation for generation in generations if generation in state.told]
    if not search.patience or len(generations) < max(search.min_generations, 1):
        return None
    threshold = smallest_improvement(state, search)
    stalled = stalled_generations(best_losses(state, generations), threshold)
    if stalled < search.patience:
        return None
    drop = f"improved by less than {threshold:.2g} nats" if threshold else "did not improve"
    where = "the last generation" if stalled == 1 else f"each of the last {stalled} generations"
    return f"the best loss {drop} in {where}"


def wider_rule(state: RunState, search: SearchSettings, branches: int = 1) -> str | None:
    """Return the options of `resume` with which a stopped search goes on.

    None where no rule of the settings ended it: optimizers may have criteria of their own.
    """
    if stop_reason(state, search, branches) is None:
        return None
    options = [f"--set search.patience={2 * search.patience}"]
    if search.evaluations is not None and searched(state) >= search.evaluations:
        options = [f"--set search.evaluations={search.evaluations + 2 * search.population}"]
    is_last = state.generation + 1 >= state.generations
    return " ".join([*options, *[f"--generations {state.generations + 2}"] * is_last])


def describe_stop_rules(search: SearchSettings) -> str | None:
    """Return the rules that may end a search before its last generation; None without any."""
    rules = []
    if search.evaluations is not None:
        rules.append(f"after {search.evaluations} evaluations")
    if search.patience:
        least = [f"{search.min_improvement:g} nats"] * (search.min_improvement > 0)
        least += [f"{search.min_improvement_sd:g} sd of the noise"] * (
            search.min_improvement_sd > 0
        )
        drop = f" by {' and '.join(least)}" if least else ""
        floor = (
            f", but not before {search.min_generations} are done" if search.min_generations else ""
        )
        many = f"{search.patience} generations in a row do"
        many = "a generation does" if search.patience == 1 else many
        rules.append(f"when {many} not improve the best loss{drop}{floor}")
    return " or ".join(rules) or None


def check_stop_rules(search: SearchSettings) -> None:
    """Raise ConfigError for rules of which one cannot have an effect."""
    idle = [
        key
        for key in ("min_generations", "min_improvement", "min_improvement_sd")
        if getattr(search, key) and not search.patience
    ]
    if idle:
        raise ConfigError(
            f"`search.{idle[0]}` means nothing without `search.patience`",
            hint="pass `--patience 3`, say",
        )
    if search.min_improvement_sd and search.repeats != RESEED:
        raise ConfigError(
            "`search.min_improvement_sd` needs the noise, and no repeat is trained to show it",
            hint="add `--set search.repeats=reseed`, or set `search.min_improvement` in nats",
        )


def searched(state: RunState) -> int:
    """Return how many evaluations of the search ever had a job; confirmations are none of them."""
    confirmations = state.generation_members(CONFIRMATION)
    return state.trained - sum(bool(e.attempts) for e in confirmations)


def evaluations_to_ask(state: RunState, search: SearchSettings, most: int) -> int:
    """Return how many points may be asked: `most`, or what `search.evaluations` has left."""
    if search.evaluations is None:
        return most
    return max(0, min(most, search.evaluations - searched(state)))


def smallest_improvement(state: RunState, search: SearchSettings) -> float:
    """Return the drop of the best loss that counts as an improvement, in nats.

    Before any configuration has two losses the noise is unknown, and `min_improvement` counts
    alone.
    """
    if not search.min_improvement_sd:
        return search.min_improvement
    noise = noise_of_search(state)
    of_noise = 0.0 if noise is None else search.min_improvement_sd * noise.sd
    return max(search.min_improvement, of_noise)


def best_losses(state: RunState, generations: Sequence[int]) -> list[float | None]:
    """Return the lowest loss of each of some generations, None for one without any."""
    return [
        min((e.loss for e in state.generation_members(g) if e.loss is not None), default=None)
        for g in generations
    ]


def stalled_generations(losses: Sequence[float | None], threshold: float) -> int:
    """Return how many generations at the end did not improve the best loss by `threshold`.

    `losses` are the lowest of each generation, in nats a byte.  The first generation has nothing
    to improve on, and is never counted.
    """
    stalled, best = 0, None
    for number, loss in enumerate(losses):
        improves = loss is not None and (best is None or best - loss >= max(threshold, 1e-12))
        stalled = 0 if improves or number == 0 else stalled + 1
        if loss is not None and (best is None or loss < best):
            best = loss
    return stalled
