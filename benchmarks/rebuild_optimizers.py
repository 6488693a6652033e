"""Measure what it costs to rebuild an optimizer from the points and values of a long search.

    python benchmarks/rebuild_optimizers.py [OPTIMIZER...] [--evaluations N]

Prints processor time for asking the points the first time and for the replay, of a search of six
coordinates in generations of eight.  Exits with 1 when a rebuilt one asks other points.
"""

import argparse
import sys
import time

from elmanctl.constants import GP_OPTUNA, OPTIMIZERS
from elmanctl.search.optimizers.port import Optimizer, Point, Problem
from elmanctl.search.optimizers.registry import start_optimizer
from elmanctl.space.coordinate import Coordinate

SHARE = Coordinate(low=0.0, high=1.0, integer=False)
BEST = (0.2, 0.7, 0.4, 0.6, 0.8, 0.5)
POPULATION = 8


def integer(levels: int) -> Coordinate:
    """Return the coordinate of an axis of so many values."""
    return Coordinate(low=-0.5, high=levels - 0.5, integer=True)


def problem(evaluations: int) -> Problem:
    """Return the problem of a search that starts in the middle."""
    return Problem(
        coordinates=(integer(129), integer(4), integer(29), integer(2), SHARE, SHARE),
        start=(64.0, 1.0, 14.0, 0.0, 0.5, 0.5),
        sigma=0.3,
        population=POPULATION,
        seed=3,
        budget=evaluations,
        design=3 * POPULATION,
        starts=2,
    )


def report(optimizer: Optimizer, points: list[Point], setting: Problem) -> None:
    """Report a bowl over all coordinates."""
    widths = [c.high - c.low for c in setting.coordinates]
    lows = [c.low for c in setting.coordinates]
    optimizer.report(
        [
            (
                p,
                sum(
                    ((x - a) / w - b) ** 2 for x, a, w, b in zip(p, lows, widths, BEST, strict=True)
                ),
            )
            for p in points
        ]
    )


def main() -> int:
    """Do what the usage says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # Optuna's GP takes an hour for a thousand points; its replay fits nothing.
    names = [name for name in OPTIMIZERS if name != GP_OPTUNA]
    parser.add_argument("optimizers", nargs="*", metavar="OPTIMIZER", default=names)
    parser.add_argument("--evaluations", type=int, default=1000)
    own = parser.parse_args()
    setting = problem(own.evaluations)
    print("| Optimizer | Search, s | Rebuild, s |")
    print("| --- | --- | --- |", flush=True)
    same = True
    for name in own.optimizers:
        optimizer, asked = start_optimizer(name, setting), []
        start = time.process_time()
        for _ in range(own.evaluations // POPULATION):
            asked.append(optimizer.ask(POPULATION, lambda point: True))
            report(optimizer, asked[-1], setting)
        searched = time.process_time()
        rebuilt = start_optimizer(name, setting)
        for points in asked:
            rebuilt.replay(points, 0)
            report(rebuilt, points, setting)
        done = time.process_time()
        print(f"| `{name}` | {searched - start:.2f} | {done - searched:.2f} |", flush=True)
        newest = [each.ask(1, lambda point: True) for each in (optimizer, rebuilt)]
        same &= newest[0] == newest[1]
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
