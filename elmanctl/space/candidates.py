"""Candidates: configurations built from the optimizer's points, within the parameter budget.

`dim` is solved for each point, before anything is submitted.  A point that cannot be built costs
nothing: another one is asked, and the optimizer never learns of it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.params import count_parameters, parse_count, solve_dim
from elmanctl.models.registry import decode_config
from elmanctl.settings import Settings
from elmanctl.space.preflight import Preflight
from elmanctl.space.space import LEARNING_RATE, SearchSpace

# A refusal costs milliseconds; so many in one generation mean that the space is nearly empty.
MAX_REFUSED = 1_000

_NUMBERS = re.compile(r"\d[\d.,]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A point, its configuration and learning rate, and the exact parameter count."""

    point: tuple[float, ...]
    config: Mapping[str, object]
    lr: float
    parameters: int


class CandidateBuilder:
    """Builds the candidates of one search.

    Raises InvalidConfiguration when neither a parameter budget nor `dim` is set.
    """

    def __init__(self, space: SearchSpace, settings: Settings, executor: str) -> None:
        self._space = space
        self._settings = settings
        self._preflight = Preflight(settings, executor)
        params = settings.search.params
        self._target = None if params is None else parse_count(params)
        self._solves_dim = "dim" not in space.values(space.middle)
        if self._solves_dim and self._target is None:
            raise InvalidConfiguration(
                "neither a parameter budget nor `dim` is set",
                hint="pass `--params 480M`, or set `dim` in `[model]` or `[search.axes]`",
            )

    def build(self, point: Sequence[float]) -> Candidate:
        """Return the candidate at a point; raise InvalidConfiguration if it cannot be trained."""
        search = self._settings.search
        values = self._space.values(point)
        self._space.check(values)
        lr = values.pop(LEARNING_RATE, self._settings.train.lr)
        assert isinstance(lr, int | float)
        level = self._space.model
        if self._solves_dim:
            assert self._target is not None
            values["dim"] = solve_dim(
                level,
                values,
                target=self._target,
                tolerance=search.tolerance,
                multiple_of=search.multiple_of,
            )
        model = decode_config(level, values)
        config = model.encode()
        # Again, now that `dim` and all defaults are known.
        self._space.check({**values, **config})
        parameters = count_parameters(level, config)
        target, tolerance = self._target, search.tolerance
        if target is not None and abs(parameters - target) > tolerance * target:
            raise InvalidConfiguration(
                f"{parameters:,} parameters are not within {tolerance:.1%} of {target:,}"
            )
        self._preflight.check(model)
        return Candidate(point=tuple(point), config=config, lr=float(lr), parameters=parameters)


class Screen:
    """The test of points for an optimizer: it builds the candidate of each and keeps it.

    Raises InvalidConfiguration, with the most frequent reasons, when nearly all are refused.
    """

    def __init__(self, builder: CandidateBuilder) -> None:
        self._builder = builder
        self._built: dict[tuple[float, ...], Candidate] = {}
        # Grouped by reason: only the numbers differ between points.
        self._refusals: dict[str, list[InvalidConfiguration]] = {}
        self.refused = 0

    def __call__(self, point: tuple[float, ...]) -> bool:
        """Whether a candidate can be built at a point."""
        try:
            self._built[point] = self._builder.build(point)
        except InvalidConfiguration as exc:
            self.refused += 1
            self._refusals.setdefault(_NUMBERS.sub("#", exc.message), []).append(exc)
            if self.refused >= MAX_REFUSED:
                raise _nothing_left(self.refused, list(self._refusals.values())) from exc
            return False
        return True

    def candidate(self, point: tuple[float, ...]) -> Candidate:
        """Return the candidate of a valid point."""
        return self._built[point]


def ask_candidates(
    ask: Callable[[int, Screen], list[tuple[float, ...]]], builder: CandidateBuilder, count: int
) -> tuple[list[Candidate], int]:
    """Return `count` candidates, and the number of points that were refused.

    Raises InvalidConfiguration as `Screen` does.
    """
    screen = Screen(builder)
    points = ask(count, screen)
    return [screen.candidate(point) for point in points], screen.refused


def _nothing_left(
    refused: int, refusals: Sequence[Sequence[InvalidConfiguration]]
) -> InvalidConfiguration:
    """Name the two most frequent reasons: a missed budget may hide one that matters more."""
    first, *others = sorted(refusals, key=len, reverse=True)
    second = others[0] if others else ()
    also = f"; {len(second)} times: {second[-1].message}" if second else ""
    hints = [example.hint for example in (first[-1], *second[-1:]) if example.hint]
    return InvalidConfiguration(
        f"{refused} points cannot be built; most often: {first[-1].message}{also}",
        hint="; ".join(hints) or "widen `--tolerance`, or change the axes or `--params`",
    )
