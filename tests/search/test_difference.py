"""Differences of losses, and the tests on them."""

import math
from collections.abc import Callable, Mapping
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.search.difference import Difference, Sample, difference
from elmanctl.search.noise import pooled

# Additional hours of sleep by two drugs, of ten patients (Student, Biometrika 6, 1908, page 20).
FIRST = (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
SECOND = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)

losses = st.dictionaries(st.integers(0, 5), st.floats(-8, 8), min_size=1, max_size=6)


def sample(values: Mapping[int, float] | tuple[float, ...]) -> Sample:
    return Sample(losses=dict(values) if isinstance(values, Mapping) else dict(enumerate(values)))


def compared(one: Sample, other: Sample, *, paired: bool = True) -> Difference:
    return difference(one, other, pooled([one, other]), has_same_data_order=paired)


def test_paired_test_gives_the_published_numbers() -> None:
    found = compared(sample(FIRST), sample(SECOND))
    assert found.test == "paired t" and found.se is not None
    assert found.nats == pytest.approx(-1.58) and found.degrees_of_freedom == 9
    assert found.nats / found.se == pytest.approx(-4.0621, abs=5e-5)
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert found.half_interval == pytest.approx(2.4598858 - 1.58, abs=5e-8)
    assert found.is_within_noise is False


def test_welchs_test_gives_the_published_numbers() -> None:
    found = compared(sample(FIRST), sample(SECOND), paired=False)
    assert found.test == "Welch t" and found.se is not None
    assert found.nats / found.se == pytest.approx(-1.8608, abs=5e-5)
    assert found.degrees_of_freedom == pytest.approx(17.776, abs=5e-4)
    assert found.p == pytest.approx(0.07939, abs=5e-6)
    assert found.half_interval == pytest.approx(1.58 + 0.2054832, abs=5e-8)
    assert found.is_within_noise is True


def test_other_seeds_are_not_paired() -> None:
    one, other = sample({1: 2.0, 2: 2.1}), sample({1: 2.2, 3: 2.4})
    assert compared(one, other).test == "Welch t"
    assert compared(one, sample({2: 2.2, 1: 2.4})).test == "paired t"


def test_one_seed_has_no_p_and_the_error_of_the_noise() -> None:
    one, several = sample({1: 2.5}), sample({1: 2.0, 2: 2.2, 3: 2.4})
    found = compared(one, several)
    assert (found.p, found.test, found.degrees_of_freedom) == (None, None, 2)
    assert found.nats == pytest.approx(0.3)
    assert found.se == pytest.approx(0.2 * math.sqrt(1 + 1 / 3))
    # 4.303 is the quantile of two degrees of freedom.
    assert found.half_interval == pytest.approx(4.303 * 0.2 * math.sqrt(4 / 3), rel=1e-4)
    alone = compared(one, sample({1: 2.0}))
    assert (alone.se, alone.p, alone.is_within_noise) == (None, None, None)


def test_noise_is_pooled_by_degrees_of_freedom() -> None:
    noise = pooled([sample({1: 1.0, 2: 3.0}), sample({1: 5.0}), sample((0.0, 1.0, 2.0))])
    assert noise is not None and (noise.degrees, noise.configurations) == (3, 2)
    # Sums of squares 2 and 2, over 1 + 2 degrees.
    assert noise.sd == pytest.approx(math.sqrt(4 / 3))
    assert pooled([sample({1: 1.0}), sample({1: 2.0})]) is None


def test_samples_without_a_spread_are_told_apart_or_the_same() -> None:
    one, other = sample((2.0, 2.0)), sample((3.0, 3.0))
    for paired in (True, False):
        assert compared(one, other, paired=paired).p == 0
        assert compared(one, other, paired=paired).is_within_noise is False
        assert compared(one, sample((2.0, 2.0)), paired=paired).p == 1
        assert compared(one, sample((2.0, 2.0)), paired=paired).is_within_noise is True


@given(losses, losses, st.booleans())
def test_difference_is_symmetric(
    one: dict[int, float], other: dict[int, float], paired: bool
) -> None:
    there = compared(sample(one), sample(other), paired=paired)
    back = compared(sample(other), sample(one), paired=paired)
    assert back.nats == -there.nats
    assert back.test == there.test
    for name in ("se", "degrees_of_freedom", "p", "half_interval"):
        here, same = getattr(back, name), getattr(there, name)
        assert here is same is None or here == pytest.approx(same, rel=1e-9)


@given(losses, losses, st.booleans())
def test_what_the_interval_includes_the_test_does_not_reject(
    one: dict[int, float], other: dict[int, float], paired: bool
) -> None:
    found = compared(sample(one), sample(other), paired=paired)
    if found.p is not None and abs(found.p - 0.05) > 1e-6:
        assert found.is_within_noise is (found.p > 0.05)


@given(losses, st.floats(-5, 5), st.booleans())
def test_difference_to_a_shifted_sample_is_the_shift(
    one: dict[int, float], shift: float, paired: bool
) -> None:
    shifted = {seed: loss + shift for seed, loss in one.items()}
    found = compared(sample(shifted), sample(one), paired=paired)
    assert found.nats == pytest.approx(shift, abs=1e-9)


def paired(draw: Callable[[int], Sample]) -> Difference:
    return compared(draw(3), draw(3))


def unpaired(draw: Callable[[int], Sample]) -> Difference:
    return compared(draw(3), draw(5), paired=False)


def single(draw: Callable[[int], Sample]) -> Difference:
    one, other = draw(1), draw(3)
    return difference(one, other, pooled([one, other, draw(3)]), has_same_data_order=True)


@pytest.mark.parametrize("drawn", [paired, unpaired, single])
def test_equal_configurations_are_beyond_noise_one_time_in_twenty(
    drawn: Callable[[Callable[[int], Sample]], Difference],
) -> None:
    random = Random(13)

    def draw(n: int) -> Sample:
        return sample(tuple(random.gauss(2.0, 0.01) for _ in range(n)))

    rate = sum(drawn(draw).is_within_noise is False for _ in range(4000)) / 4000
    # Three standard deviations of the count.  Welch's test is an approximation.
    assert 0.04 < rate < 0.06 if drawn is not unpaired else 0.03 < rate < 0.06
