"""A script of asks and reports for any optimizer, which this and other processes drive.

Points are refused, reports come late, out of order and of points of several asks.  As a program it
reads orders (optimizer, case, events before which it is rebuilt) as JSON on stdin, drives each
script and writes the points it asked.
"""

import json
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from elmanctl.search.optimizers.port import Optimizer, Point, Problem
from elmanctl.search.optimizers.registry import start_optimizer
from elmanctl.space.coordinate import Coordinate
from tests.search.optimizers.problems import CASES, SMALL, loss, problem, some

ONE_VALUE = Coordinate(low=-0.5, high=0.5, integer=True)
POPULATION = 4

SHAPES: dict[str, tuple[Coordinate, ...]] = {
    **CASES,
    "all categorical": (SMALL, SMALL, SMALL),
    "one axis with one value": (SMALL, ONE_VALUE),
}

# How many points to ask, or the numbers of the points to report.  There are ten values after the
# first thirteen points, from where on models choose.
Event = int | tuple[int, ...]
SCRIPT: tuple[Event, ...] = (
    *(6, (3, 1, 5), 1, (0,), 6, (2, 12, 4, 7), (10, 6, 11)),
    *(2, (14,), 1, (9, 15), 3, (13, 8, 18, 16)),
    2,
)


@dataclass(frozen=True)
class Ask:
    """Points that were asked, and how many others were refused."""

    points: tuple[Point, ...]
    refused: int


class Counted:
    """Refuses about a third of all points, and counts them."""

    def __init__(self) -> None:
        self.refused = 0

    def __call__(self, point: Point) -> bool:
        is_valid = some(point)
        self.refused += not is_valid
        return is_valid


def shape(name: str) -> Problem:
    """Return the problem of a case."""
    return problem(SHAPES[name], POPULATION)


def drive(optimizer: Optimizer, script: Iterable[Event], before: Sequence[Ask] = ()) -> list[Ask]:
    """Play events, after those in which `before` was asked; return what is asked."""
    points = [point for ask in before for point in ask.points]
    asked: list[Ask] = []
    for event in script:
        if isinstance(event, int):
            counted = Counted()
            new = optimizer.ask(event, counted)
            asked.append(Ask(tuple(new), counted.refused))
            points += new
        else:
            optimizer.report([(points[number], loss(points[number])) for number in event])
    return asked


def rebuilt(name: str, case: str, asked: Sequence[Ask], count: int) -> tuple[Optimizer, list[Ask]]:
    """Return an optimizer after the first `count` events, from the record, and what it asked."""
    optimizer = start_optimizer(name, shape(case))
    before: list[Ask] = []
    points: list[Point] = []
    for event in SCRIPT[:count]:
        if isinstance(event, int):
            before.append(asked[len(before)])
            optimizer.replay(before[-1].points, before[-1].refused)
            points += before[-1].points
        else:
            optimizer.report([(points[number], loss(points[number])) for number in event])
    return optimizer, before


def go_on(name: str, case: str, asked: Sequence[Ask], count: int) -> list[Ask]:
    """Rebuild after `count` events and play the rest; return all that was asked."""
    optimizer, before = rebuilt(name, case, asked, count)
    return before + drive(optimizer, SCRIPT[count:], before)


def encode(asked: Sequence[Ask]) -> list[list[object]]:
    """Return what was asked as plain data."""
    return [[list(map(list, ask.points)), ask.refused] for ask in asked]


def decode(data: Iterable[tuple[list[list[float]], int]]) -> list[Ask]:
    """Return what `encode` wrote."""
    return [Ask(tuple(tuple(point) for point in points), refused) for points, refused in data]


def main() -> None:
    """Answer the orders, with the global generators in a state of this process's own."""
    np.random.seed(int(sys.argv[1]))
    random.seed(int(sys.argv[1]))
    answers = []
    for name, case, data, counts in json.load(sys.stdin):
        alone = drive(start_optimizer(name, shape(case)), SCRIPT)
        np.random.random(7)
        answers.append(
            [encode(alone)] + [encode(go_on(name, case, decode(data), n)) for n in counts]
        )
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
