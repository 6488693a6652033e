"""The study's optimizer against a script that runs pycma as the study did."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from elmanctl.search.optimizers.port import Differs, Point, Problem, SelfEnding
from elmanctl.search.optimizers.pycma import load_cma
from elmanctl.search.optimizers.registry import start_optimizer
from elmanctl.search.optimizers.study import Study
from elmanctl.space.axis import Axis
from elmanctl.space.space import SearchSpace
from tests.search.optimizers.problems import CASES, every, loss, problem

# The study's axes of E88: whole numbers, a list, a multiple of 128, yes or no, and a logarithm.
AXES = {
    "n_heads": {"kind": "int", "low": 32, "high": 160},
    "n_state": {"kind": "choice", "values": [16, 32, 48, 64]},
    "dim": {"kind": "int", "low": 1024, "high": 3072, "multiple_of": 128},
    "use_gate": {"kind": "bool"},
    "lr": {"kind": "log", "low": 1e-5, "high": 1e-3},
}
SPACE = SearchSpace(
    model="e88", name="test", axes=tuple(Axis.decode(name, table) for name, table in AXES.items())
)
BEST = {"n_heads": 83, "n_state": 32, "dim": 1920, "use_gate": True, "lr": 6.4e-4}


def decoded(x: Sequence[float]) -> dict[str, object]:
    """Decode a point of the unit cube by the study's rules."""
    a, b, c, d, e = (min(max(float(value), 0.0), 1.0) for value in x)
    state = 16 + b * (64 - 16)
    return {
        "n_heads": round(32 + a * (160 - 32)),
        "n_state": min((16, 32, 48, 64), key=lambda known: abs(known - state)),
        "dim": round((1024 + c * (3072 - 1024)) / 128) * 128,
        "use_gate": d >= 0.5,
        "lr": 10 ** (-5 + e * (-3 - -5)),
    }


def objective(values: dict[str, object], *, broken: bool) -> float | None:
    """A loss of rounded values, so that it has ties; None for a skipped point, if some are."""
    heads, dim, lr = (
        float(str(values["n_heads"])),
        float(str(values["dim"])),
        float(str(values["lr"])),
    )
    if broken and heads * dim > 90 * 1920:
        return None
    return round(
        1.3 + ((heads - 90) / 50) ** 2 + (dim / 2048 - 1) ** 2 + abs(np.log10(lr) + 3.5), 2
    )


def by_script(x0: list[float], sigma: float, seed: int, *, broken: bool) -> list[dict[str, object]]:
    """Return what the study's loop would train, in order, with those that it would skip."""
    before = np.random.get_state()
    options = {"bounds": [0, 1], "popsize": 8, "maxiter": 12, "seed": seed, "verbose": -9}
    strategy = load_cma().CMAEvolutionStrategy(x0, sigma, {**options, "signals_filename": ""})
    tried = []
    while not strategy.stop():
        xs = strategy.ask()
        configurations = [decoded(x) for x in xs]
        tried += configurations
        losses = [objective(each, broken=broken) for each in configurations]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            strategy.tell(xs, [10.0 if each is None else each for each in losses])
    np.random.set_state(before)
    return tried


def by_us(
    start: Point, sigma: float, seed: int, *, broken: bool, generations: int = 12
) -> list[dict[str, object]]:
    """Return the same, valid or not, from the optimizer behind the port."""
    optimizer = Study(
        Problem(
            coordinates=SPACE.coordinates,
            start=start,
            sigma=sigma,
            population=8,
            seed=seed,
            budget=8 * generations,
        )
    )
    tried = []

    def is_valid(point: Point) -> bool:
        tried.append(SPACE.values(point))
        return objective(tried[-1], broken=broken) is not None

    for _ in range(generations):
        points = optimizer.ask(8, is_valid)
        values = [objective(SPACE.values(point), broken=broken) for point in points]
        optimizer.report([(p, v) for p, v in zip(points, values, strict=True) if v is not None])
        if optimizer.ending is not None:
            break
    return tried


@pytest.mark.parametrize("broken", [False, True], ids=["all valid", "some skipped"])
@pytest.mark.parametrize("seed", [1, 42])
@pytest.mark.parametrize("from_best", [False, True], ids=["middle", "best"])
def test_it_tries_what_the_script_tries(from_best: bool, seed: int, broken: bool) -> None:
    x0, sigma, start = [0.5] * 5, 0.3, SPACE.centre
    if from_best:
        x0 = [(83 - 32) / 128, (32 - 16) / 48, (1920 - 1024) / 2048, 1.0]
        x0.append((np.log10(6.4e-4) + 5) / 2)
        sigma, start = 0.15, SPACE.point(BEST)
    script = by_script(x0, sigma, seed, broken=broken)
    ours = by_us(start, sigma, seed, broken=broken)
    assert len(ours) == len(script) >= 8
    assert broken is any(objective(each, broken=broken) is None for each in script)
    for one, other in zip(ours, script, strict=True):
        # The study took decimal logarithms, and this program natural ones.
        assert one.pop("lr") == pytest.approx(other.pop("lr"), rel=1e-9)
        assert one == other


def test_equal_losses_end_it_by_a_criterion_of_pycma() -> None:
    optimizer = start_optimizer("study", problem(CASES["three integers"], population=8))
    assert isinstance(optimizer, SelfEnding)
    assert optimizer.ask(8, lambda point: False) == [] and optimizer.ending is None
    optimizer.report([])
    assert optimizer.ending is not None and "tolfun" in optimizer.ending


@pytest.mark.parametrize("name", CASES)
def test_replayed_it_goes_on_with_the_same_points_in_any_order_of_reports(name: str) -> None:
    setting = problem(CASES[name], population=8)

    def some(point: Point) -> bool:
        return int(sum(point) * 1000) % 4 != 1

    rng = np.random.RandomState(3)
    optimizer, exchanges = Study(setting), []
    for _ in range(6):
        refused = 0

        def counting(point: Point, is_valid: Callable[[Point], bool] = some) -> bool:
            nonlocal refused
            refused += not is_valid(point)
            return is_valid(point)

        points = optimizer.ask(8, counting)
        results = [(point, loss(point)) for point in points]
        optimizer.report([results[i] for i in rng.permutation(len(results))])
        exchanges.append((points, refused, results))
    again = Study(setting)
    for points, refused, results in exchanges:
        again.replay(points, refused)
        again.report(results)
    assert again.ask(8, every) == optimizer.ask(8, every)
    with pytest.raises(Differs):
        Study(problem(CASES[name], population=8, seed=6)).replay(*exchanges[0][:2])


def test_global_generator_of_numpy_neither_matters_nor_moves() -> None:
    np.random.seed(7)
    before = np.random.get_state(legacy=False)["state"]["key"].tolist()
    first = by_us(SPACE.centre, 0.3, 5, broken=False, generations=3)
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == before
    np.random.seed(8)
    assert by_us(SPACE.centre, 0.3, 5, broken=False, generations=3) == first
