"""Half of the points by the Parzen estimator, half by the Gaussian process, from the same values.

The estimator stays near what was good, the process goes where it expects more; each learns from
the points of the other.
"""

from collections.abc import Iterator

from elmanctl.search.optimizers import optuna_samplers
from elmanctl.search.optimizers.gaussian_process import GaussianProcess
from elmanctl.search.optimizers.history import History
from elmanctl.search.optimizers.port import Point, Problem


class Mixture:
    """Two models that take turns, by the number of the point."""

    def __init__(self, problem: Problem, history: History) -> None:
        self._models = (
            GaussianProcess(problem, history),
            optuna_samplers.tpe(problem, history),
        )

    def points(self, number: int) -> Iterator[Point]:
        """Yield some promising points, the best first, for the point of this number."""
        return self._models[number % len(self._models)].points(number)

    def add(self, point: Point) -> None:
        """Take a newly chosen point into account, whose value is not known."""
        for model in self._models:
            model.add(point)
