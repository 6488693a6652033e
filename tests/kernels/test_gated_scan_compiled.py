"""MinGRU and MinLSTM as Triton compiles them, executed, against the float64 loop.

The operators run as on a GPU, but for the launches: each is compiled for a GPU and executed by the
machine of `ptx`.  So the approximate exponential and inverse and the scan over the segments of a
tile are tested where there is no GPU, and each missing barrier is a fault.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from elmanctl.kernels.launch import Launch
from elmanctl.kernels.minimal_scan import gated_scan, launches, triton
from elmanctl.kernels.minimal_scan.sizes import Tile
from tests.kernels.machines import NEW, VERSIONS, Machines, compiling
from tests.kernels.test_gated_scan import (
    LONG,
    NARROW,
    WIDE,
    Case,
    assert_close,
    draw,
    results,
    truth,
)

MAIN_TEST = "test_compiled_kernels_compute_states_and_gradients"

# The tiles of many, of some and of few channels, forward and backward.
TILES = {"many": (WIDE, NARROW), "some": (Tile(32, 8, 8),) * 2, "few": (LONG, LONG)}

BF16 = Case(1, 128, 64, dtype=torch.bfloat16)
SETTINGS: dict[str, tuple[str, str, Case]] = {
    "mingru": ("mingru", "many", BF16),
    "minlstm": ("minlstm", "many", BF16),
    "mingru-ragged": ("mingru", "many", replace(BF16, length=70, width=65)),
}
OF_THE_NEW: dict[str, tuple[str, str, Case]] = {
    "minlstm-fp32": ("minlstm", "many", replace(BF16, dtype=torch.float32)),
    "mingru-some": ("mingru", "some", replace(BF16, has_initial=False, out=torch.float32)),
    "mingru-few": ("mingru", "few", replace(BF16, length=256, width=16)),
    "minlstm-few-ragged": ("minlstm", "few", Case(1, 300, 15)),
}
ALL = SETTINGS | OF_THE_NEW
RUNS = [
    *((version, name, 90) for name in SETTINGS for version in VERSIONS),
    *((NEW, name, 90) for name in OF_THE_NEW),
    (NEW, "mingru", 80),
]
RESULTS = {
    "forward": {"p_hidden", "p_checkpoints", "p_final"},
    "backward": {"p_d_scores", "p_d_initial"},
}


def arguments_of(name: str) -> dict[str, Tensor]:
    cell, _, case = ALL[name]
    return {name: x.cpu() for name, x in draw(case, cell).items()}


def computed(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Results and gradients by the operators, whose launches a test has taken over."""
    cell, channels, case = ALL[name]

    def tile(*_: Any, is_backward: bool, **__: Any) -> Tile:
        return TILES[channels][is_backward]

    monkeypatch.setattr(launches, "choose_tile", tile)
    monkeypatch.setattr(triton, "INTERPRETED", True)
    return results(gated_scan, arguments_of(name), cell=cell, dtype=case.out, backend="triton")


@pytest.fixture(scope="module")
def machines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machines]:
    """The compilers, at work on all that the tests will launch, in the order of the tests."""
    wanted = [
        tuple(item.callspec.params[one] for one in ("version", "name", "architecture"))
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == MAIN_TEST
    ]
    with compiling(tmp_path_factory.mktemp("machines")) as made, pytest.MonkeyPatch.context() as p:
        for version, name, architecture in wanted:

            def expect(launch: Launch, _: tuple[int, ...], **__: Any) -> None:
                made.expect(launch, architecture, versions=[version])  # noqa: B023 - called at once

            p.setattr(Launch, "__call__", expect)
            computed(name, p)
        p.undo()
        yield made


def take_over_launches(
    monkeypatch: pytest.MonkeyPatch,
    machines: Machines,
    version: str,
    architecture: int,
    **settings: Any,
) -> list[str]:
    """Have launches executed by the machine from now on; their kernels' names are noted."""
    launched: list[str] = []

    def execute(launch: Launch, grid: tuple[int, ...], **arguments: Any) -> None:
        name = launch.kernel.__name__
        launched.append(name)
        machines.run(
            version, launch, architecture, grid, arguments, empty=RESULTS[name], **settings
        )

    monkeypatch.setattr(Launch, "__call__", execute)
    return launched


@pytest.mark.timeout(900)  # for the compiler, on a machine that has other work
@pytest.mark.parametrize(("version", "name", "architecture"), RUNS)
def test_compiled_kernels_compute_states_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
    machines: Machines,
    version: str,
    name: str,
    architecture: int,
) -> None:
    launched = take_over_launches(monkeypatch, machines, version, architecture)
    found = computed(name, monkeypatch)
    assert launched == ["forward", "backward"]
    assert_close(found, truth(arguments_of(name), ALL[name][0]))


@pytest.mark.timeout(900)
def test_errors_of_the_approximate_instructions_do_not_grow(
    monkeypatch: pytest.MonkeyPatch, machines: Machines
) -> None:
    rng = np.random.default_rng(0)
    seen = set()

    def perturb(instruction: str, value: np.ndarray) -> np.ndarray:
        # What PTX promises of the two: 2^-22 and one unit in the last place.
        seen.add(instruction)
        return value * (1 + 2.0**-22 * rng.uniform(-1, 1, value.shape))

    take_over_launches(monkeypatch, machines, NEW, 90, perturb=perturb)
    found = computed("minlstm-fp32", monkeypatch)
    assert seen == {"ex2", "rcp"}
    assert_close(found, truth(arguments_of("minlstm-fp32"), "minlstm"))
