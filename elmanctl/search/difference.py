"""Difference of two losses: samples over training seeds, and the test that fits them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from elmanctl.search.noise import PooledNoise, sample_sd
from elmanctl.search.student_t import critical_value, two_sided_p

Test = Literal["paired t", "Welch t"]

_INTERVAL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The losses of one configuration by training seed, at least one, in nats per byte."""

    losses: Mapping[int, float]

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.losses)

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return math.fsum(self.losses.values()) / self.n

    @property
    def sd(self) -> float | None:
        """The standard deviation of the sample, None for one seed."""
        return sample_sd(tuple(self.losses.values()))

    @property
    def se(self) -> float | None:
        """The standard error of the mean, None for one seed."""
        return None if self.sd is None else self.sd / math.sqrt(self.n)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The mean loss of one sample minus that of another, in nats per byte.

    `half_interval` is half the width of the 95% interval.  With one seed on either side there is
    no `test` and no `p`; the error is then that of the protocol's noise, None where that is unknown
    too.
    """

    nats: float
    se: float | None = None
    degrees_of_freedom: float | None = None
    half_interval: float | None = None
    test: Test | None = None
    p: float | None = None

    @property
    def is_within_noise(self) -> bool | None:
        """Whether the 95% interval includes zero, None if there is no interval."""
        return None if self.half_interval is None else abs(self.nats) <= self.half_interval


def difference(
    sample: Sample, other: Sample, noise: PooledNoise | None, *, has_same_data_order: bool
) -> Difference:
    """Return the difference of two means, `sample` minus `other`, with its error and test.

    Samples on the same seeds that read the same data in the same order are paired by seed; others
    are compared by Welch's test, which does not take their spreads for equal.
    """
    if min(sample.n, other.n) > 1:
        if has_same_data_order and sample.losses.keys() == other.losses.keys():
            return _paired(sample, other)
        return _welch(sample, other)
    nats = sample.mean - other.mean
    if noise is None:
        return Difference(nats=nats)
    se = noise.sd * math.sqrt(1 / sample.n + 1 / other.n)
    return _with_interval(nats, se, noise.degrees)


def _paired(sample: Sample, other: Sample) -> Difference:
    """Return the difference by the paired t-test: one sample of differences, seed by seed."""
    each = Sample(losses={seed: loss - other.losses[seed] for seed, loss in sample.losses.items()})
    assert each.se is not None
    return _with_interval(each.mean, each.se, each.n - 1, "paired t")


def _welch(sample: Sample, other: Sample) -> Difference:
    """Return the difference by Welch's t-test (Welch, Biometrika 34, 1947).

    The degrees of freedom are those of Satterthwaite (Biometrics Bulletin 2, 1946).
    """
    nats = sample.mean - other.mean
    variances = [(each.se or 0.0) ** 2 for each in (sample, other)]
    total = math.fsum(variances)
    if total == 0:
        return _with_interval(nats, 0.0, sample.n + other.n - 2, "Welch t")
    # As shares of the total, whose squares cannot vanish.
    shares = [variance / total for variance in variances]
    degrees = 1 / sum(
        share**2 / (each.n - 1) for share, each in zip(shares, (sample, other), strict=True)
    )
    return _with_interval(nats, math.sqrt(total), degrees, "Welch t")


def _with_interval(
    nats: float, se: float, degrees_of_freedom: float, test: Test | None = None
) -> Difference:
    p = None
    if test is not None:
        t = nats / se if se else (math.inf if nats else 0.0)
        p = two_sided_p(t, degrees_of_freedom)
    return Difference(
        nats=nats,
        se=se,
        degrees_of_freedom=degrees_of_freedom,
        half_interval=critical_value(1 - _INTERVAL, degrees_of_freedom) * se,
        test=test,
        p=p,
    )
