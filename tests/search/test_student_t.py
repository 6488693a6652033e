"""Student's t distribution, against closed forms and published tables."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.search.student_t import critical_value, two_sided_p

# Percentage points as printed in textbooks, by degrees of freedom, at two-sided p of 0.10, 0.05,
# 0.01 and 0.001.
TABLE = {
    1: (6.314, 12.706, 63.657, 636.619),
    2: (2.920, 4.303, 9.925, 31.599),
    3: (2.353, 3.182, 5.841, 12.924),
    4: (2.132, 2.776, 4.604, 8.610),
    5: (2.015, 2.571, 4.032, 6.869),
    10: (1.812, 2.228, 3.169, 4.587),
    30: (1.697, 2.042, 2.750, 3.646),
    120: (1.658, 1.980, 2.617, 3.373),
}


@pytest.mark.parametrize("degrees", TABLE)
def test_critical_values_are_those_of_the_tables(degrees: int) -> None:
    for p, value in zip((0.10, 0.05, 0.01, 0.001), TABLE[degrees], strict=True):
        assert critical_value(p, degrees) == pytest.approx(value, abs=6e-4)


@given(st.floats(1e-6, 1e6))
def test_p_is_that_of_the_closed_forms(t: float) -> None:
    # Through the arctangent of 1/t, and by the conjugate, no digits are lost far out.
    assert two_sided_p(t, 1) == pytest.approx(2 / math.pi * math.atan(1 / t), rel=1e-11)
    root = math.sqrt(2 + t * t)
    assert two_sided_p(t, 2) == pytest.approx(2 / (root * (root + t)), rel=1e-11)


@given(st.floats(0, 50))
def test_distribution_of_many_degrees_is_the_normal_one(t: float) -> None:
    assert two_sided_p(t, 1e8) == pytest.approx(math.erfc(t / math.sqrt(2)), rel=1e-4, abs=1e-7)


@given(st.floats(-1e3, 1e3), st.floats(0, 10), st.floats(0.5, 1e4))
def test_p_falls_with_the_distance_on_both_sides(t: float, further: float, degrees: float) -> None:
    p = two_sided_p(t, degrees)
    assert 0 <= p <= 1
    assert p == two_sided_p(-t, degrees)
    assert two_sided_p(abs(t) + further, degrees) <= p + 1e-12


@given(st.floats(1e-6, 0.999), st.floats(0.5, 1e4))
def test_critical_value_has_the_p_that_was_asked(p: float, degrees: float) -> None:
    assert two_sided_p(critical_value(p, degrees), degrees) == pytest.approx(p, rel=1e-9)


def test_ends_of_the_distribution() -> None:
    assert two_sided_p(0, 3) == 1
    assert two_sided_p(math.inf, 3) == 0
    assert 0 < two_sided_p(1e9, 3) < 1e-25
