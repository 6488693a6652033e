import math
import random

import pytest

from elmanctl.jobs.convergence import improvement, is_look


def noisy(level: list[float], sd: float, seed: int) -> list[float]:
    draw = random.Random(seed)
    return [each + draw.gauss(0, sd) for each in level]


def test_improvement_is_the_difference_of_two_windows_and_its_error_that_of_the_means() -> None:
    errors, errors_stated = [], []
    for seed in range(300):
        found = improvement(noisy([2.0] * 100 + [1.9] * 100, 0.1, seed), 100)
        assert found is not None
        errors.append(found.nats - 0.1)
        errors_stated.append(found.se)
    spread = math.sqrt(sum(error**2 for error in errors) / len(errors))
    assert spread == pytest.approx(0.1 * math.sqrt(2 / 100), rel=0.15)
    assert sum(errors_stated) / 300 == pytest.approx(0.1 * math.sqrt(2 / 100), rel=0.15)


def test_a_steady_fall_is_no_noise() -> None:
    found = improvement([3 - step / 1000 for step in range(400)], 200)
    assert found is not None
    assert found.nats == pytest.approx(0.2)
    assert found.se == pytest.approx(0, abs=1e-12)


def test_a_loss_that_still_improves_has_not_converged_however_noisy() -> None:
    for seed in range(50):
        falling = noisy([3 - 0.02 * step / 200 for step in range(400)], 0.05, seed)
        found = improvement(falling, 200)
        assert found is not None
        assert not found.has_converged(0.01)


def test_a_flat_loss_converges_when_the_windows_are_long_enough_for_its_noise() -> None:
    flat = improvement(noisy([2.0] * 4000, 0.02, 1), 2000)
    short = improvement(noisy([2.0] * 40, 0.02, 1), 20)
    assert flat is not None
    assert short is not None
    assert flat.has_converged(0.01)
    assert not short.has_converged(0.01)


def test_it_is_judged_ten_times_a_window_once_there_are_two() -> None:
    assert [step for step in range(1, 500) if is_look(step, 100)] == list(range(200, 500, 10))
    assert improvement([1.0] * 199, 100) is None
