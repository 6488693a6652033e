"""Measure how often and how late a loss counts as converged, on simulated loss curves.

    python benchmarks/convergence.py [--runs N] [--seed N]

A loss falls as a power of the step, and its improvement over one window meets the threshold after a
known number of windows.  The noise of its steps makes the mean of 100 steps vary from seed to seed
by 0.005 to 0.02 nats; it is independent from step to step, or half of its variance is correlated
over so many steps, as it is where neighbouring steps read the same documents.  A training that
stops while the improvement is above the threshold stops falsely, and otherwise late by so many
windows.  Exits with 1 if more than 5 % of the trainings of any kind stop falsely.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from elmanctl.jobs.convergence import improvement, is_look  # noqa: E402

Losses = npt.NDArray[np.float64]

THRESHOLD = 0.01
MOST_FALSE = 0.05

WINDOWS = (100, 500, 2000)
DEVIATIONS = (0.005, 0.01, 0.02)
CORRELATED = (0, 10, 50)
CROSSINGS = (5, 20, 60)
EXPONENT = 0.5

# So many windows after the crossing a training is given up.
MOST_LATE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """The circumstances of some trainings.

    `sd` is that of the mean loss of 100 steps; half of its square is correlated over `correlated`
    steps, unless that is 0.  The improvement meets the threshold after `crossing` windows.
    """

    window: int
    sd: float
    correlated: int
    crossing: int


def curve(kind: Kind, steps: int) -> Losses:
    """Return a power of the step whose fall over a window meets the threshold at the crossing."""
    power = np.arange(1, steps + 1, dtype=np.float64) ** -EXPONENT
    end, window = kind.crossing * kind.window, kind.window
    fall = power[end - 2 * window : end - window].mean() - power[end - window : end].mean()
    return power * (THRESHOLD / fall)


def noise(kind: Kind, steps: int, draw: np.random.Generator) -> Losses:
    """Return the noise of the steps of one training."""
    independent = draw.normal(0.0, kind.sd * 10, steps)
    if not kind.correlated:
        return independent
    r = math.exp(-1 / kind.correlated)
    # Of the mean of 100 neighbours of a process with unit variance.
    of_mean = (1 + 2 * sum((1 - k / 100) * r**k for k in range(1, 100))) / 100
    correlated = np.empty(steps)
    value = draw.normal()
    for step, each in enumerate(draw.normal(0.0, math.sqrt(1 - r * r), steps).tolist()):
        value = r * value + each
        correlated[step] = value
    return (independent + correlated * kind.sd / math.sqrt(of_mean)) / math.sqrt(2)


def late(kind: Kind, draw: np.random.Generator) -> float:
    """Return how many windows after the crossing a training stops; below 0 it stops falsely."""
    steps = (kind.crossing + MOST_LATE) * kind.window
    losses = (curve(kind, steps) + noise(kind, steps, draw)).tolist()
    for step in range(1, steps + 1):
        if is_look(step, kind.window):
            found = improvement(losses[:step], kind.window)
            if found is not None and found.has_converged(THRESHOLD):
                return step / kind.window - kind.crossing
    return math.inf


def measured(kind: Kind, runs: int, seed: int) -> list[float]:
    """Return what `late` says of so many trainings."""
    draw = np.random.default_rng([seed, kind.window, kind.correlated, kind.crossing])
    return [late(kind, draw) for _ in range(runs)]


def false_share(found: list[float]) -> float:
    """Return the share of the trainings that stopped falsely."""
    return sum(each < 0 for each in found) / len(found)


def rows(runs: int, seed: int) -> Iterator[tuple[str, float]]:
    """Yield a row of the table for each window and noise, with the largest share of false stops."""
    for window, sd in product(WINDOWS, DEVIATIONS):
        found = {
            (correlated, crossing): measured(
                Kind(window=window, sd=sd, correlated=correlated, crossing=crossing), runs, seed
            )
            for correlated, crossing in product(CORRELATED, CROSSINGS)
        }
        worst = max(map(false_share, found.values()))
        mean = false_share([each for some in found.values() for each in some])
        delays = []
        for crossing in CROSSINGS:
            some = [each for key, all_ in found.items() if key[1] == crossing for each in all_]
            true = [each for each in some if each >= 0]
            delays.append(f"{np.quantile(true, 0.5):.1f} | {np.quantile(true, 0.9):.1f}")
        yield f"| {window} | {sd} | {mean:.1%} | {worst:.1%} | {' | '.join(delays)} |", worst


def main() -> int:
    """Simulate all kinds of trainings and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=200, help="trainings of each kind")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    delays = "".join(f" Delay at {each} | 90 % |" for each in CROSSINGS)
    print(f"| Window, steps | Noise, nats | False stops | Worst kind |{delays}")
    print(f"| ---: | ---: | ---: | ---: |{' ---: |' * 2 * len(CROSSINGS)}")
    worst = 0.0
    for row, share in rows(asked.runs, asked.seed):
        print(row, flush=True)
        worst = max(worst, share)
    return int(worst > MOST_FALSE)


if __name__ == "__main__":
    sys.exit(main())
