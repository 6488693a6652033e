import importlib
import math
import random
from pathlib import Path
from types import ModuleType

import pytest

from elmanctl.jobs.convergence import improvement, is_look

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def noisy(level: list[float], sd: float, seed: int) -> list[float]:
    draw = random.Random(seed)
    return [each + draw.gauss(0, sd) for each in level]


def falling(nats_per_window: float, window: int, steps: int) -> list[float]:
    return [3 - nats_per_window * step / window for step in range(steps)]


def test_improvement_is_the_fall_over_a_window_and_its_error_is_how_much_that_varies() -> None:
    errors, errors_stated = [], []
    for seed in range(300):
        found = improvement(noisy(falling(0.1, 100, 400), 0.1, seed), 100)
        assert found is not None
        errors.append(found.nats - 0.1)
        errors_stated.append(found.se)
    spread = math.sqrt(sum(error**2 for error in errors) / len(errors))
    # A slope's, from 400 independent steps.
    assert spread == pytest.approx(100 * 0.1 / math.sqrt(400**3 / 12), rel=0.15)
    # Widened for the correlation that 20 parts may have by chance.
    assert spread < sum(errors_stated) / 300 < 1.5 * spread


def test_error_is_wider_where_neighbouring_steps_are_alike() -> None:
    draw = random.Random(5)
    errors, stated = [], []
    for _ in range(300):
        losses, drift = [], 0.0
        for _ in range(400):
            drift = 0.95 * drift + draw.gauss(0, 0.03)
            losses.append(2.0 + drift)
        found = improvement(losses, 100)
        assert found is not None
        errors.append(found.nats)
        stated.append(found.se)
    spread = math.sqrt(sum(error**2 for error in errors) / len(errors))
    assert spread == pytest.approx(sum(stated) / 300, rel=0.25)


def test_a_steady_fall_is_no_noise() -> None:
    found = improvement(falling(0.2, 200, 800), 200)
    assert found is not None
    assert found.nats == pytest.approx(0.2)
    assert found.se == pytest.approx(0, abs=1e-12)


def test_a_constant_loss_has_converged() -> None:
    found = improvement([2.0] * 80, 20)
    assert found is not None
    assert (found.nats, found.se) == (0.0, 0.0)
    assert found.has_converged(1e-9)


def test_of_a_long_run_the_last_quarter_counts() -> None:
    steps = falling(1.0, 100, 3000) + [-27.0] * 1000
    found = improvement(steps, 100)
    assert found is not None
    assert found.nats == pytest.approx(0)


def test_a_loss_that_still_improves_has_not_converged_however_noisy() -> None:
    for seed in range(50):
        found = improvement(noisy(falling(0.02, 200, 800), 0.05, seed), 200)
        assert found is not None
        assert not found.has_converged(0.01)


def test_a_flat_loss_converges_when_the_windows_are_long_enough_for_its_noise() -> None:
    flat = improvement(noisy([2.0] * 4000, 0.05, 1), 1000)
    short = improvement(noisy([2.0] * 80, 0.05, 1), 20)
    assert flat is not None
    assert short is not None
    assert flat.has_converged(0.01)
    assert not short.has_converged(0.01)


def test_it_is_judged_twice_a_window_once_there_are_four() -> None:
    assert [step for step in range(1, 600) if is_look(step, 100)] == [400, 450, 500, 550]
    assert improvement([1.0] * 399, 100) is None
    assert improvement([1.0] * 400, 100) is not None


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script of the measurement, imported."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("convergence")


@pytest.mark.parametrize("correlated", [0, 10])
@pytest.mark.parametrize("sd", [0.005, 0.02])
def test_few_simulated_trainings_stop_falsely_and_all_stop(
    benchmark: ModuleType, sd: float, correlated: int
) -> None:
    kind = benchmark.Kind(window=100, sd=sd, correlated=correlated, crossing=20)
    found = benchmark.measured(kind, runs=40, seed=1)
    assert benchmark.false_share(found) <= benchmark.MOST_FALSE
    assert max(found) < benchmark.MOST_LATE


def test_the_noise_of_the_simulation_has_the_spread_that_it_names(benchmark: ModuleType) -> None:
    draw = benchmark.np.random.default_rng(3)
    for correlated in (0, 10, 50):
        kind = benchmark.Kind(window=100, sd=0.01, correlated=correlated, crossing=20)
        means = [benchmark.noise(kind, 100, draw).mean() for _ in range(1000)]
        assert benchmark.np.std(means) == pytest.approx(0.01, rel=0.1)
