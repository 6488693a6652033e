"""From a point of the optimizer to a configuration that is on budget, or a reason why not.

The parameter budget is met here, before anything is submitted: `dim` is solved for each point.
A point that cannot be built is asked again at no cost and never told to the optimizer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.params import count_parameters, parse_count, solve_dim
from elmanctl.models.registry import decode_config
from elmanctl.settings import Settings
from elmanctl.space.preflight import Preflight
from elmanctl.space.space import LEARNING_RATE, SearchSpace

# Refusals cost milliseconds; this many in one generation mean a space that holds next to nothing.
MAX_REFUSED = 1_000

_NUMBERS = re.compile(r"\d[\d.,]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A point with the configuration it stands for and that model's exact parameter count.

    `config` holds the model's fields; the learning rate, `lr`, is none of them.
    """

    point: tuple[float, ...]
    config: Mapping[str, Any]
    lr: float
    parameters: int


class PointSource(Protocol):
    """The part of an optimizer that candidates are made with."""

    def ask(self, count: int) -> list[tuple[float, ...]]:
        """Return `count` new points."""


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
        """Return the candidate at a point.

        Raises InvalidConfiguration for a point off the budget or a model that cannot be built.
        """
        search = self._settings.search
        values = self._space.values(point)
        self._space.check(values)
        lr = float(values.pop(LEARNING_RATE, self._settings.train.lr))
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
        # Again, for what is limited by `dim` or by a setting that nobody named.
        self._space.check({**values, **config})
        parameters = count_parameters(level, config)
        self._check_budget(parameters)
        self._preflight.check(model)
        return Candidate(point=tuple(point), config=config, lr=lr, parameters=parameters)

    def _check_budget(self, parameters: int) -> None:
        if self._target is None:
            return
        tolerance = self._settings.search.tolerance
        if abs(parameters - self._target) > tolerance * self._target:
            raise InvalidConfiguration(
                f"{parameters:,} parameters are not within {tolerance:.1%} of {self._target:,}"
            )


def ask_candidates(
    source: PointSource, builder: CandidateBuilder, count: int
) -> tuple[list[Candidate], int]:
    """Return `count` candidates and how many points were refused on the way.

    Raises InvalidConfiguration with the most frequent reason when the space holds too few.
    """
    candidates: list[Candidate] = []
    refusals: dict[str, list[InvalidConfiguration]] = {}
    refused = 0
    points = source.ask(count)
    while True:
        for point in points:
            try:
                candidates.append(builder.build(point))
            except InvalidConfiguration as exc:
                refused += 1
                # The same reason has other numbers at every point.
                refusals.setdefault(_NUMBERS.sub("#", exc.message), []).append(exc)
                if refused >= MAX_REFUSED:
                    raise _nothing_left(refused, list(refusals.values())) from exc
        if len(candidates) >= count:
            return candidates, refused
        points = source.ask(1)


def _nothing_left(
    refused: int, refusals: Sequence[Sequence[InvalidConfiguration]]
) -> InvalidConfiguration:
    """Say the two most frequent reasons: what is off the budget hides what would not run anyway."""
    first, *others = sorted(refusals, key=len, reverse=True)
    second = others[0] if others else ()
    also = f"; {len(second)} times: {second[-1].message}" if second else ""
    hints = [example.hint for example in (first[-1], *second[-1:]) if example.hint]
    return InvalidConfiguration(
        f"{refused} points cannot be built; most often: {first[-1].message}{also}",
        hint="; ".join(hints) or "widen `--tolerance`, or change the axes or `--params`",
    )
