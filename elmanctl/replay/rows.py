"""Rows of the tables of a replay."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The searches of one optimizer with one budget on one objective.

    `median`, `low` and `high`, the quartiles, are of the noise-free value of the point handed
    over, `regret` is the mean of its regrets.  The rest are means: evaluations of a search that
    were trained though they were repeats (`wasted`), repeats that were `answered` and invalid
    points `refused` at no cost, and processor time of the optimizer a generation.
    """

    source: str
    optimizer: str
    budget: int
    searches: int
    failed_searches: int
    median: float
    low: float
    high: float
    regret: float
    wasted: float
    answered: float
    refused: float
    cpu_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overall:
    """The searches of one optimizer with one budget on all objectives, beside another's.

    `ratio` is the mean regret by that of the other one on the same objectives and seeds, `p` that
    of Wilcoxon's signed-rank test on these pairs; None of an optimizer by itself, or without a
    difference.
    """

    optimizer: str
    budget: int
    pairs: int
    regret: float
    ratio: float | None
    p: float | None
