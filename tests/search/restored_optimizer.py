"""Restored optimizers in a separate process, as after a kill of the controller.

Reads a JSON list of (dump in base64, told points, values, way of asking) on stdin; for each one
loads the optimizer, tells, asks, and writes the points it got as one JSON list.
"""

import base64
import json
import sys

import numpy as np

from elmanctl.search.optimizer import CmaOptimizer

Point = tuple[float, ...]


def is_refused(point: Point) -> bool:
    """Refuse about a third of all points, by their digits alone."""
    return int(sum(point) * 1000) % 3 == 1


def ask_all(optimizer: CmaOptimizer, count: int) -> list[Point]:
    """Ask as a search does when every point can be built."""
    return optimizer.ask(count)


def ask_buildable(optimizer: CmaOptimizer, count: int) -> list[Point]:
    """Ask as a search does that refuses points: those are asked again, one at a time."""
    points = [point for point in optimizer.ask(count) if not is_refused(point)]
    while len(points) < count:
        points += [point for point in optimizer.ask(1) if not is_refused(point)]
    return points


WAYS = {"all": ask_all, "buildable": ask_buildable}


if __name__ == "__main__":
    np.random.seed(int(sys.argv[1]))
    answers = []
    for dump, points, values, way in json.load(sys.stdin):
        np.random.random(7)
        optimizer = CmaOptimizer.load(base64.b64decode(dump))
        optimizer.tell(points, values)
        answers.append(WAYS[way](optimizer, len(points)))
    json.dump(answers, sys.stdout)
