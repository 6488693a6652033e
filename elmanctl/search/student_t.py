"""Student's t distribution, for tests on the losses of a few seeds."""

import math
from itertools import count

_EPSILON = 1e-14
# In place of a zero denominator of the continued fraction.
_TINY = 1e-300


def two_sided_p(t: float, degrees_of_freedom: float) -> float:
    """Return the probability of a value at least as far from zero as `t`.

    It is I_x(df/2, 1/2) at x = df/(df + t²), with I the regularized incomplete beta function
    (Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.1).  The degrees of
    freedom are above 0, and need not be whole.
    """
    if math.isinf(t):
        return 0.0
    squared = t * t
    # Of x and 1 - x each is computed without a difference, which would lose digits.
    whole = degrees_of_freedom + squared
    return _incomplete_beta(degrees_of_freedom / whole, squared / whole, degrees_of_freedom / 2)


def critical_value(p: float, degrees_of_freedom: float) -> float:
    """Return the `t` above 0 whose `two_sided_p` is `p`, with `p` between 0 and 1."""
    high = 1.0
    while two_sided_p(high, degrees_of_freedom) > p:
        high *= 2
    low = 0.0
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return high
        if two_sided_p(middle, degrees_of_freedom) > p:
            low = middle
        else:
            high = middle


def _incomplete_beta(x: float, rest: float, a: float) -> float:
    """Return I_x(a, 1/2), where `rest` is 1 - x.

    Each side of (a + 1)/(a + b + 2) has a continued fraction that converges fast, by
    I_x(a, b) = 1 - I_{1-x}(b, a).
    """
    b = 0.5
    if x <= 0:
        return 0.0
    if rest <= 0:
        return 1.0
    beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    factor = math.exp(a * math.log(x) + b * math.log(rest) - beta)
    if x < (a + 1) / (a + b + 2):
        return factor / a * _fraction(x, a, b)
    return 1 - factor / b * _fraction(rest, b, a)


def _fraction(x: float, a: float, b: float) -> float:
    """Return the continued fraction of the incomplete beta function.

    Its terms are those of the NIST Digital Library of Mathematical Functions, 8.17.22 and 8.17.23;
    it is evaluated from the front (Lentz, 1976, as modified by Thompson and Barnett, 1986).
    """
    c, d = 1.0, 1 / _nonzero(1 - (a + b) * x / (a + 1))
    value = d
    for m in count(1):
        step = 1.0
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _nonzero(1 + term * d)
            c = _nonzero(1 + term / c)
            step *= c * d
            value *= c * d
        if abs(step - 1) < _EPSILON:
            break
    return value


def _nonzero(number: float) -> float:
    return number if abs(number) > _TINY else _TINY
