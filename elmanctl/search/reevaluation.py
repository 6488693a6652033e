"""Re-evaluation: the last generations of a search train its best again on fresh seeds; pure.

They are paid from the budget of the search.  The optimizer is asked for nothing after them, so
nothing of them is reported to it: their losses decide which configuration is handed over.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import count

from elmanctl.ledger.payloads import ReevaluationAsked
from elmanctl.ledger.records import EvaluationPlan, evaluation_id
from elmanctl.ledger.run_state import RunState
from elmanctl.search.estimate import estimates
from elmanctl.search.stop_rules import evaluations_to_ask, searched
from elmanctl.settings import SearchSettings, Settings

# So many of the slots of a generation go to different configurations, and the others to the first
# of these once more.
_WIDTH = 0.75


def reserved_generations(search: SearchSettings, generations: int) -> int:
    """Return how many of the generations of a search train its best again: the last ones."""
    return min(math.floor(search.reevaluate * generations + 0.5), generations - 1)


def reevaluations(search: SearchSettings) -> int:
    """Return how many of the planned evaluations of a search train its best again."""
    length = planned_generations(search, search.generations)
    return reserved_generations(search, length) * search.population


def planned_generations(search: SearchSettings, generations: int) -> int:
    """Return how many of its generations a search has evaluations for."""
    if search.evaluations is None:
        return generations
    return min(generations, math.ceil(search.evaluations / search.population))


def due_reevaluation(state: RunState, settings: Settings) -> ReevaluationAsked | None:
    """Return the event that asks for the next generation; None where the optimizer is to ask it.

    It depends on the ledger and the settings alone.
    """
    search, generation = settings.search, state.generation + 1
    reserved = reserved_generations(search, planned_generations(search, state.generations))
    left = state.generations - generation
    if search.evaluations is not None:
        left = min(left, math.ceil((search.evaluations - searched(state)) / search.population))
    if left > reserved or not reserved:
        return None
    leaders = estimates(state)[: most_reevaluated(search)]
    if not leaders:
        return None
    slots = evaluations_to_ask(state, search, search.population)
    chosen = spread([each.n for each in leaders], slots)
    given: Counter[int] = Counter()
    plans = []
    for index, position in enumerate(chosen):
        evaluation = leaders[position].evaluations[0]
        used = {each.seed for each in state.same_configuration(evaluation.configuration)}
        fresh = (seed for seed in count(settings.train.seed + 1) if seed not in used)
        seed = next(seed for nth, seed in enumerate(fresh) if nth == given[position])
        given[position] += 1
        plans.append(
            EvaluationPlan(
                id=evaluation_id(generation, index),
                point=evaluation.point,
                config=evaluation.config,
                lr=evaluation.lr,
                parameters=evaluation.parameters,
                seed=seed,
                repeats=evaluation.configuration,
                reevaluates=evaluation.id,
            )
        )
    return ReevaluationAsked(generation=generation, evaluations=tuple(plans))


def most_reevaluated(search: SearchSettings) -> int:
    """Return how many configurations a generation trains again at most."""
    return math.ceil(_WIDTH * search.population)


def spread(trained: Sequence[int], slots: int) -> list[int]:
    """Return the positions that get the slots: each time the least trained, the first of equals."""
    numbers = list(trained)
    chosen = []
    for _ in range(slots):
        position = min(range(len(numbers)), key=numbers.__getitem__)
        numbers[position] += 1
        chosen.append(position)
    return chosen
