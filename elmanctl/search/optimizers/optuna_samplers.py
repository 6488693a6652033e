"""Optuna's samplers: the tree-structured Parzen estimator and a Gaussian process.

Reference of the first: Watanabe, "Tree-Structured Parzen Estimator", arXiv 2304.11127.

A sampler that is made again with the same seed repeats itself, or goes on with other points than
the first one would have.  Here sampler and study are made for each ask, with a seed of its own and
from the history.
"""

from collections.abc import Callable, Iterator
from typing import Any

from elmanctl.search.optimizers.history import History
from elmanctl.search.optimizers.model_based import clipped, seed_of
from elmanctl.search.optimizers.port import Point, Problem
from elmanctl.search.optimizers.unit_cube import levels

# Attempts at one point; the GP takes long and says nearly the same again.
_TPE_ATTEMPTS = 16
_GP_ATTEMPTS = 2


class Study:
    """A study of Optuna that holds a history: values are those of completed trials."""

    def __init__(
        self,
        problem: Problem,
        history: History,
        make_sampler: Callable[[int], Any],
        attempts: int,
    ) -> None:
        optuna = _optuna()
        self._attempts = attempts
        self._distributions = _distributions(problem)
        sampler = make_sampler(seed_of(problem, len(history.points)))
        self._study = optuna.create_study(sampler=sampler)
        states = optuna.trial.TrialState
        self._running, self._failed = states.RUNNING, states.FAIL
        numbers = sorted(history.values)
        values = dict(zip(numbers, clipped([history.values[n] for n in numbers]), strict=True))
        for number, point in enumerate(history.points):
            if number in values:
                self._add(point, state=states.COMPLETE, values=[float(values[number])])
            else:
                self.add(point)

    def points(self, number: int) -> Iterator[Point]:
        """Yield points that the sampler suggests."""
        for _ in range(self._attempts):
            trial = self._study.ask(self._distributions)
            # Samplers pass over failed trials: a point that is chosen is added as one of its own.
            self._study.tell(trial, state=self._failed)
            yield tuple(float(trial.params[name]) for name in self._distributions)

    def add(self, point: Point) -> None:
        """Add a point as a running trial, near which TPE and the GP suggest no other."""
        self._add(point, state=self._running)

    def _add(self, point: Point, **how: Any) -> None:
        params = dict(zip(self._distributions, point, strict=True))
        create = _optuna().trial.create_trial
        trial = create(params=params, distributions=self._distributions, **how)
        self._study.add_trial(trial)


def tpe(problem: Problem, history: History) -> Study:
    """Return a study whose sampler is TPE by the defaults of Optuna 5, multivariate."""
    make = _optuna().samplers.TPESampler
    # The history begins with points that fill the space.
    return Study(problem, history, lambda seed: make(seed=seed, n_startup_trials=1), _TPE_ATTEMPTS)


def gp(problem: Problem, history: History) -> Study:
    """Return a study whose sampler is Optuna's Gaussian process by its defaults."""
    make = _optuna().samplers.GPSampler
    return Study(problem, history, lambda seed: make(seed=seed, n_startup_trials=1), _GP_ATTEMPTS)


def _distributions(problem: Problem) -> dict[str, Any]:
    """Return the distribution of each coordinate; names sort as the coordinates do."""
    found: dict[str, Any] = {}
    kinds = _optuna().distributions
    for index, coordinate in enumerate(problem.coordinates):
        if coordinate.integer:
            values = levels(coordinate)
            found[f"{index:06}"] = kinds.IntDistribution(values[0], values[-1])
        else:
            found[f"{index:06}"] = kinds.FloatDistribution(coordinate.low, coordinate.high)
    return found


def _optuna() -> Any:
    import optuna

    # Else it writes a line for each new study.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
