"""Measure by how much the lowest loss of a search flatters its point, and what confirming leaves.

    python benchmarks/winners_curse.py SEARCH_HISTORIES.jsonl.gz [--simulations N]

Each line of the file is a search: `model`, and `evals` with `params`, `loss` and `status` in the
order of their proposal.  The noise of a search is estimated from the points that it evaluated
several times, among the better half: the pooled standard deviation.  A Gaussian process with that
noise is fitted to the losses of its first 120 evaluations (squared exponential; length and variance
by marginal likelihood; losses above the third quartile count as that), and its mean at the points
is taken for the truth.  Then the search is simulated: fresh noise at the same points, and the
lowest loss wins.  To confirm it, the three best different points are trained on three fresh seeds
each, and the best mean wins.  A loss flatters its point by the truth less the loss.

The points stay where they were, so a search that follows its luck is simulated too kindly.
"""

import argparse
import gzip
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

EVALUATIONS = 120
TOP = 3
SEEDS = 3

# Fewer repeats than this say nothing of the noise.
LEAST_REPEATS = 5

_LENGTHS = (0.1, 0.2, 0.4, 0.8, 1.6)
_DEVIATIONS = (0.02, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """The first evaluations of a search: the number of each one's point, and their losses.

    `places` are the different points, scaled to the unit cube.
    """

    model: str
    places: Array
    point: npt.NDArray[np.int64]
    losses: Array
    noise: float
    repeats: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the winners of simulated searches are worth, in nats."""

    flattery: float
    confirmed_flattery: float
    better: float
    worse: float
    lost: float
    confirmed_lost: float


def read_searches(path: Path) -> Iterator[Search]:
    """Yield the searches that are long enough and have points that they evaluated again."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            found = decode(json.loads(line))
            if found is not None:
                yield found


def decode(history: Mapping[str, Any]) -> Search | None:
    """Return a search, None if it is too short, out of order, or without repeats."""
    evaluations = history["evals"]
    if not history["complete"] or len(evaluations) < EVALUATIONS:
        return None
    noise, repeats = pooled_noise(evaluations)
    if repeats < LEAST_REPEATS:
        return None
    first = [each for each in evaluations[:EVALUATIONS] if each["status"] == "loss"]
    rows = [tuple(float(value) for value in each["params"].values()) for each in first]
    points = {row: number for number, row in enumerate(dict.fromkeys(rows))}
    places = np.array(list(points))
    low, high = places.min(0), places.max(0)
    return Search(
        model=history["model"],
        places=(places - low) / np.where(high > low, high - low, 1.0),
        point=np.array([points[row] for row in rows]),
        losses=np.array([each["loss"] for each in first]),
        noise=noise,
        repeats=repeats,
    )


def pooled_noise(evaluations: Sequence[Mapping[str, Any]]) -> tuple[float, int]:
    """Return the standard deviation of repeats among the better half, and its degrees."""
    groups = defaultdict(list)
    for each in evaluations:
        if each["status"] == "loss":
            groups[json.dumps(each["params"], sort_keys=True)].append(each["loss"])
    middle = np.median([loss for losses in groups.values() for loss in losses])
    good = [np.array(losses) for losses in groups.values() if np.mean(losses) <= middle]
    degrees = sum(len(losses) - 1 for losses in good)
    squares = sum(((losses - losses.mean()) ** 2).sum() for losses in good)
    return (math.sqrt(squares / degrees) if degrees else 0.0), degrees


def truth(search: Search) -> Array:
    """Return the mean of a Gaussian process at the different points."""
    losses = np.minimum(search.losses, np.quantile(search.losses, 0.75))
    count = np.bincount(search.point)
    means = np.bincount(search.point, losses) / count
    centred = means - means.mean()
    squares = ((search.places[:, None] - search.places[None]) ** 2).sum(-1)
    best, found = -math.inf, means
    for length, deviation in product(_LENGTHS, _DEVIATIONS):
        kernel = deviation**2 * np.exp(-squares / (2 * length**2))
        factor = np.linalg.cholesky(kernel + np.diag(search.noise**2 / count))
        half = np.linalg.solve(factor, centred)
        likelihood = -0.5 * half @ half - np.log(np.diag(factor)).sum()
        if likelihood > best:
            weights = np.linalg.solve(factor.T, half)
            best, found = likelihood, means.mean() + kernel @ weights
    return np.asarray(found)


def simulate(
    values: Array, point: npt.NDArray[np.int64], noise: float, simulations: int, seed: int
) -> Finding:
    """Return what winners are worth where the points have these true values [points]."""
    draw = np.random.default_rng(seed)
    told = values[point] + draw.normal(0.0, noise, (simulations, len(point)))
    lowest = np.full((simulations, len(values)), np.inf)
    np.minimum.at(lowest, (slice(None), point), told)
    top = np.argsort(lowest, axis=1)[:, :TOP]
    means = values[top] + draw.normal(0.0, noise / math.sqrt(SEEDS), top.shape)
    lone = top[:, 0]
    confirmed = np.take_along_axis(top, means.argmin(1)[:, None], 1)[:, 0]
    return Finding(
        flattery=float((values[lone] - lowest.min(1)).mean()),
        confirmed_flattery=float((values[confirmed] - means.min(1)).mean()),
        better=float((values[confirmed] < values[lone]).mean()),
        worse=float((values[confirmed] > values[lone]).mean()),
        lost=float((values[lone] - values.min()).mean()),
        confirmed_lost=float((values[confirmed] - values.min()).mean()),
    )


def main() -> int:
    """Simulate each search of a file and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--simulations", type=int, default=20_000)
    asked = parser.parse_args()
    print(
        "| Search | Evaluations | Points | Repeats | Noise, nats | Lowest flatters by "
        "| Confirmed by | A better point | A worse one | Lowest loses | Confirmed loses |"
    )
    print(f"| --- |{' ---: |' * 10}")
    for search in read_searches(asked.path):
        found = simulate(truth(search), search.point, search.noise, asked.simulations, seed=1)
        sds = [each / search.noise for each in (found.flattery, found.confirmed_flattery)]
        print(
            f"| {search.model} | {len(search.losses)} | {len(search.places)} | {search.repeats} "
            f"| {search.noise:.4f} | {found.flattery:.4f} ({sds[0]:.2f} sd) "
            f"| {found.confirmed_flattery:.4f} ({sds[1]:.2f} sd) "
            f"| {found.better:.0%} | {found.worse:.0%} "
            f"| {found.lost:.4f} | {found.confirmed_lost:.4f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
