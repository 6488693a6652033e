"""Objectives of recorded searches: a surrogate with the noise, failures and refusals on record."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from elmanctl.errors import InvalidConfiguration, UsageError
from elmanctl.ledger.run_state import RunState
from elmanctl.replay.objective import Array, Objective, Surface, extent
from elmanctl.replay.recording import Recording
from elmanctl.replay.surrogate import SURROGATES, check_losses, explained, fit_trees
from elmanctl.search.effective_settings import effective_settings
from elmanctl.space.candidates import CandidateBuilder
from elmanctl.space.space import SearchSpace


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What is known of a fitted objective: `explained` is the R^2 of losses left out of the fit.

    `degrees` of freedom are those of a noise estimated from repeats, 0 for one that was given.
    """

    losses: int
    explained: float
    degrees: int


def fit_objective(
    recording: Recording,
    *,
    surrogate: str,
    noise: float | None,
    failure_share: float | None,
    run: RunState | None = None,
) -> tuple[Objective, Fit]:
    """Return the objective of a recorded search, and how well it fits.

    `noise` and `failure_share` replace those on record.  Points that are not valid are those that
    the search of `run` would refuse; without a run, those of which extra trees say so.  Raises
    UsageError for a recording without repeats where no noise is given, and for one with too few
    losses.
    """
    points = np.array([point for point, _ in recording.losses])
    losses = np.array([loss for _, loss in recording.losses])
    check_losses(recording.name, losses.tolist())
    degrees = 0
    if noise is None:
        estimate = recording.noise()
        if estimate is None:
            raise UsageError(
                f"no configuration of `{recording.name}` was trained twice: its noise is not known",
                hint="pass the standard deviation of a loss, e.g. `--noise 0.01`",
            )
        noise, degrees = estimate
    fit = SURROGATES[surrogate]
    surface: Surface = fit(recording.axes, points, losses)
    if run is not None:
        surface = _Checked(surface=surface, check=Buildable(run))
    elif recording.invalid:
        surface = _Checked(surface=surface, check=NotRefused(recording))
    best, typical = extent(surface, recording.axes, points)
    objective = Objective(
        name=recording.name,
        axes=recording.axes,
        surface=surface,
        noise=noise,
        failure_share=recording.failure_share if failure_share is None else failure_share,
        best=float(surface.values(best[None])[0]),
        typical=typical,
    )
    share = explained(fit, recording.axes, points, losses)
    return objective, Fit(losses=len(losses), explained=share, degrees=degrees)


class Buildable:
    """Whether the search of a run would train the configuration at a point."""

    def __init__(self, state: RunState) -> None:
        space = SearchSpace.decode(state.run["space"]).whole
        settings = effective_settings(state)
        self._builder = CandidateBuilder(space, settings, state.run["executor"])
        self.fingerprint = repr((state.run["space"], settings))

    def __call__(self, point: Sequence[float]) -> bool:
        try:
            self._builder.build(point)
        except InvalidConfiguration:
            return False
        return True


class NotRefused:
    """Whether a configuration would not be refused, as extra trees learn from those on record."""

    def __init__(self, recording: Recording) -> None:
        invalid = recording.invalid
        points = np.array([*invalid, *(point for point, _ in recording.losses)])
        is_invalid = np.arange(len(points)) < len(invalid)
        self._trees = fit_trees(recording.axes, points, is_invalid.astype(np.float64))
        self.fingerprint = self._trees.fingerprint

    def __call__(self, point: Sequence[float]) -> bool:
        return bool(self._trees.values(np.array([point]))[0] <= 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """A surface on which not every point is valid."""

    surface: Surface
    check: Buildable | NotRefused

    @property
    def fingerprint(self) -> str:
        return repr((self.surface.fingerprint, self.check.fingerprint))

    def values(self, points: Array) -> Array:
        return self.surface.values(points)

    def is_valid(self, point: Sequence[float]) -> bool:
        return self.check(point)
