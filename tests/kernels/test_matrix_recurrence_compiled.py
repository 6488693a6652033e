"""The matrix recurrence as Triton compiles it, executed, against the float64 loop.

The operators run as on a GPU, but for the launches: each is compiled for a GPU and executed by the
machine of `ptx`.  So the fast tanh, Gluon's layouts and the exchange of values between lanes are
tested where there is no GPU, and each missing barrier is a fault.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from elmanctl.kernels.launch import Launch
from elmanctl.kernels.matrix_recurrence.naive import naive_matrix_recurrence
from elmanctl.kernels.matrix_recurrence.triton import Flags, Tensors, triton_matrix_recurrence
from tests.kernels.machines import Machines, compiling, launches_taken_over
from tests.kernels.tritons import ASIDE, PINNED, VERSIONS
from tests.long import LONG

MAIN_TEST = "test_compiled_kernels_compute_outputs_and_gradients"

# Two segments of every backend, the last of them short.
STEPS = 19

# Root mean square of the error over that of the truth.
EXACT = 2e-6
ROUNDED = 6e-3  # bfloat16 results; the states of a segment kept in 16 bits
PERTURBED = 2e-3  # on top of it, a tanh with the relative error of the hardware's

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Setting:
    """What one kernel is compiled for; `given` are the tensors that may be left out."""

    n_key: int = 32
    n_value: int = 32
    dtype: str = "bf16"
    backend: str = "triton"
    given: tuple[str, ...] = ("gate",)
    per_value: bool = False
    batch: int = 1
    flags: dict[str, Any] = field(default_factory=dict)

    @property
    def heads(self) -> int:
        """Those of a few values come several to a program, which these do not fill."""
        return 3 if self.n_value % 32 else 2

    @property
    def options(self) -> Flags:
        usual = Flags(
            linear_state=False,
            normalize=True,
            activate=True,
            self_gate=False,
            read_all=True,
            fast=self.dtype == "bf16",
            eps=1e-12,
            checkpoint_dtype="fp16" if self.backend == "gluon" else "fp32",
            backend=self.backend,
        )
        return usual._replace(**self.flags)


# As E88 trains, in every size; then what else the operation has, each once.
SETTINGS = {
    "8": Setting(8, 8),
    "16": Setting(16, 16),
    "24": Setting(24, 24),
    "32": Setting(),
    "48": Setting(48, 48),
    "64": Setting(64, 64),
    "16-gluon": Setting(16, 16, backend="gluon"),
    "32-gluon": Setting(backend="gluon"),
    "64-gluon": Setting(64, 64, backend="gluon"),
    "32-fp32": Setting(dtype="fp32"),
    "32-write-gate": Setting(given=("gate", "beta", "initial_state")),
}
OF_THE_PINNED = {
    # Gluon has no interpreter, in which the other kernel is given several sequences.
    "32-write-gate-gluon": Setting(
        given=("gate", "beta", "initial_state"), batch=2, backend="gluon"
    ),
    "32-blend": Setting(given=("gate", "beta", "blend")),
    "32-routed": Setting(given=("gate", "written"), flags={"read_all": False}),
    "32-e75": Setting(
        dtype="fp32", given=(), per_value=True, flags={"self_gate": True, "fast": True}
    ),
    "32-linear": Setting(flags={"linear_state": True, "activate": False}),
    "32-bf16-checkpoints": Setting(flags={"checkpoint_dtype": "bf16"}),
    "32x64": Setting(32, 64),
    "64x32": Setting(64, 32),
}
OF_THE_OTHERS = ("16", "32", "64", "32-gluon", "32-fp32")
LONG_SETTINGS = {
    f"{n}-{dtype}-{'fast' if fast else 'exact'}": Setting(n, n, dtype, flags={"fast": fast})
    for n in (8, 16, 24, 32, 40, 48, 56, 64)
    for dtype in DTYPES
    for fast in (False, True)
}

RUNS = [
    *((PINNED, name, 90) for name in SETTINGS | OF_THE_PINNED),
    *(
        (version, name, 90)
        for version in ASIDE
        for name in SETTINGS
        if LONG or name in OF_THE_OTHERS
    ),
    *((PINNED, name, 80) for name in ("32", "32-gluon")),
    *((version, name, 90) for name in LONG_SETTINGS for version in VERSIONS if LONG),
]
ALL = SETTINGS | OF_THE_PINNED | LONG_SETTINGS


def random_inputs(setting: Setting) -> dict[str, Tensor]:
    """Arguments by name; q, k, v and gate are views of what one projection would write."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    heads = setting.heads
    steps = (setting.batch, STEPS, heads)
    sizes = {"q": setting.n_key, "k": setting.n_key, "v": setting.n_value, "gate": setting.n_value}
    together = normal(setting.batch, STEPS, heads * sum(sizes.values())).to(DTYPES[setting.dtype])
    parts = together.split([heads * size for size in sizes.values()], dim=2)
    projected = {
        name: part.unflatten(2, (heads, size))
        for (name, size), part in zip(sizes.items(), parts, strict=True)
    }
    made = projected | {
        "alpha": torch.sigmoid(normal(*steps, *[setting.n_value] * setting.per_value) + 2),
        "beta": torch.sigmoid(normal(*steps)),
        "blend": torch.sigmoid(normal(*steps)),
        "written": normal(*steps) > 0,
        "initial_state": torch.tanh(normal(setting.batch, heads, setting.n_key, setting.n_value)),
    }
    always = ("q", "k", "v", "alpha")
    return {name: x for name, x in made.items() if name in (*always, *setting.given)}


def weights(setting: Setting) -> tuple[Tensor, Tensor]:
    """The gradients of output and final state, which bfloat16 holds."""
    generator = torch.Generator().manual_seed(1)
    heads, n_key, n_value = setting.heads, setting.n_key, setting.n_value
    shapes = (setting.batch, STEPS, heads, n_value), (setting.batch, heads, n_key, n_value)
    first, second = (torch.randn(s, generator=generator).bfloat16().double() for s in shapes)
    return first, second


def differentiated(
    output: Tensor, state: Tensor, inputs: dict[str, Tensor], setting: Setting
) -> dict[str, Tensor]:
    """Results and gradients by name."""
    first, second = weights(setting)
    total = (output * first).sum() + (state * second).sum()
    floating = {name: x for name, x in inputs.items() if x.is_floating_point()}
    gradients = torch.autograd.grad(total, list(floating.values()))
    named = {f"d_{name}": d for name, d in zip(floating, gradients, strict=True)}
    return {"output": output.detach(), "final_state": state.detach(), **named}


def with_gradients(inputs: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The same views, in another dtype if one is given, of which gradients can be asked."""
    return {
        name: (x if dtype is None else x.to(dtype)).detach().requires_grad_()
        if x.is_floating_point()
        else x
        for name, x in inputs.items()
    }


@cache
def truth(name: str) -> dict[str, Tensor]:
    setting = ALL[name]
    flags, inputs = setting.options, with_gradients(random_inputs(setting), torch.float64)
    output, state = naive_matrix_recurrence(
        **inputs,
        read="all" if flags.read_all else "written",
        activation="silu" if flags.activate else None,
        self_gate=flags.self_gate,
        linear_state=flags.linear_state,
        normalize=flags.normalize,
        eps=flags.eps,
    )
    return differentiated(output, state, inputs, setting)


def computed(setting: Setting) -> dict[str, Tensor]:
    """The same by the operators, whose launches a test has taken over."""
    inputs: dict[str, Any] = with_gradients(random_inputs(setting), None)
    given: dict[str, Any] = {name: inputs.get(name) for name in Tensors._fields}
    output, state = triton_matrix_recurrence(Tensors(**given), setting.options)
    return differentiated(output, state, inputs, setting)


def errors(found: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, float]:
    assert found.keys() == right.keys()
    return {name: float((found[name].double() - x).norm() / x.norm()) for name, x in right.items()}


def results_of(launch: Launch) -> set[str]:
    """The tensors that a kernel is given to write."""
    own = {"scratch", "stash"}
    if "backward" in launch.kernel.__name__:
        read = {"d_output", "d_final_state"}
        return {x for x in launch.pointers if x.startswith("d_")} - read | own & {*launch.pointers}
    return {"output", "final_state", "checkpoints", *own} & {*launch.pointers}


@pytest.fixture(scope="module")
def machines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machines]:
    """The compilers, at work on all that the tests will launch, in the order of the tests."""
    wanted: list[tuple[Any, ...]] = [
        tuple(item.callspec.params[one] for one in ("version", "name", "architecture"))
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == MAIN_TEST
    ]
    with compiling(tmp_path_factory.mktemp("machines")) as made:
        for version, name, architecture in wanted:

            def expect(launch: Launch, *_: Any) -> None:
                made.expect(launch, architecture, versions=[version])  # noqa: B023 - called at once

            with launches_taken_over(expect):
                computed(ALL[name])
        yield made


def executed(
    machines: Machines, version: str, name: str, architecture: int, **settings: Any
) -> dict[str, Tensor]:
    """Results and gradients as the machine computes them."""

    def execute(launch: Launch, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        told = {"empty": results_of(launch), **settings}
        machines.run(version, launch, architecture, grid, arguments, **told)

    with launches_taken_over(execute):
        return computed(ALL[name])


@pytest.mark.timeout(900)  # for the compiler, on a machine that has other work
@pytest.mark.parametrize(("version", "name", "architecture"), RUNS)
def test_compiled_kernels_compute_outputs_and_gradients(
    machines: Machines, version: str, name: str, architecture: int
) -> None:
    found = errors(executed(machines, version, name, architecture), truth(name))
    is_exact = ALL[name].dtype == "fp32" and not ALL[name].options.fast
    wrong = {x: e for x, e in found.items() if not e < (EXACT if is_exact else ROUNDED)}
    assert not wrong
    assert found["final_state"] < EXACT


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["32", "32-gluon"])
def test_relative_error_of_the_fast_tanh_does_not_grow(machines: Machines, name: str) -> None:
    rng = np.random.default_rng(0)

    def perturb(instruction: str, value: np.ndarray) -> np.ndarray:
        if instruction != "tanh":
            return value
        return value * (1 + 2.0**-11 * rng.uniform(-1, 1, value.shape))

    found = errors(executed(machines, PINNED, name, 90, perturb=perturb), truth(name))
    assert 1e-5 < found["final_state"] < PERTURBED
    assert max(found.values()) < ROUNDED + PERTURBED
