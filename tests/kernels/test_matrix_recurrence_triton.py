"""The kernels of the matrix recurrence against the float64 loop, on a GPU or in the interpreter.

Every new tensor is full of NaN beforehand, so no number can pass that no kernel has written.
"""

from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elmanctl.kernels.matrix_recurrence import launches, matrix_recurrence
from elmanctl.kernels.matrix_recurrence import triton as operators
from elmanctl.kernels.matrix_recurrence.naive import naive_matrix_recurrence
from tests.kernels.interpreted import DEVICE
from tests.kernels.recurrences import (
    BFLOAT16_TOLERANCE,
    FLOAT32_TOLERANCE,
    FLOAT64_TOLERANCE,
    NAMES,
    assert_close,
    draw,
    exact,
    results,
    widen_tiles,
)

TOLERANCES = {torch.float32: FLOAT32_TOLERANCE, torch.bfloat16: BFLOAT16_TOLERANCE}


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def infinities_as_on_a_gpu() -> Iterator[None]:
    """The interpreter computes in numpy, which warns where exp is too large to be a number."""
    with np.errstate(over="ignore"):
        yield


@pytest.fixture(autouse=True)
def few_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        widen_tiles(monkeypatch)


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints at every second position, so that three have two segments, one of them short."""
    for module in (launches, operators):
        monkeypatch.setattr(module, "CHECKPOINT_EVERY", 2)


def draw_small(length: int = 3, **differing: Any) -> dict[str, Any]:
    small = {"batch": 1, "heads": 1, "n_key": 16, "n_value": 16, "dtype": torch.float32}
    return draw(length, device=DEVICE, **{**small, **differing})


def draw_written(arguments: dict[str, Tensor]) -> Tensor:
    shape = arguments["alpha"].shape[:3]
    chosen = torch.rand(shape, generator=torch.Generator().manual_seed(2)) > 0.4
    return chosen.to(DEVICE)


def computed(arguments: dict[str, Tensor], **switches: Any) -> dict[str, Tensor]:
    return results(matrix_recurrence, arguments, backend="triton", tanh="exact", **switches)


def truth(arguments: dict[str, Tensor], **switches: Any) -> dict[str, Tensor]:
    if "written" in switches:
        switches["written"] = switches["written"].cpu()
    return results(naive_matrix_recurrence, exact(arguments), **switches)


def check(arguments: dict[str, Tensor], **switches: Any) -> dict[str, Tensor]:
    """Hold all results to the float64 loop; return them."""
    dtype = arguments["k"].dtype
    actual = computed(arguments, **switches)
    assert_close(actual, truth(arguments, **switches), TOLERANCES[dtype])
    states = ("final_state", "d_alpha", "d_beta", "d_blend", "d_initial_state")
    assert {name: x.dtype for name, x in actual.items()} == {
        name: torch.float32 if name in states else dtype for name in actual
    }
    return actual


OPTIONS = (
    *("beta", "blend", "written", "gate", "initial_state", "per_value"),
    *("self_gate", "linear_state", "activation", "normalize", "bfloat16"),
)
# Every option with and without every other.  With 2 for `written`, what is not is not read either.
MIXTURES = (
    "100011 00110",
    "010100 11001",
    "002111 10011",
    "111000 00101",
    "102110 01100",
    "111011 11010",
    "012001 00000",
    "001100 11110",
)


def mix(mixture: str) -> dict[str, int]:
    return dict(zip(OPTIONS, map(int, mixture.replace(" ", "")), strict=True))


def draw_mixture(mixture: str, **sizes: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arguments and switches of the op."""
    mixed = mix(mixture)
    arguments = draw_small(
        without=tuple(name for name in ("beta", "gate", "initial_state") if not mixed[name]),
        per_value=bool(mixed["per_value"]),
        blend=bool(mixed["blend"]),
        **sizes,
    )
    switches: dict[str, Any] = {
        name: bool(mixed[name]) for name in ("self_gate", "linear_state", "normalize")
    }
    switches["activation"] = "silu" if mixed["activation"] else None
    if mixed["written"]:
        switches["written"] = draw_written(arguments)
        switches["read"] = "all" if mixed["written"] == 1 else "written"
    return arguments, switches


def test_mixtures_have_every_pair_of_options() -> None:
    mixtures = [mix(mixture) for mixture in MIXTURES]
    for one, other in combinations(OPTIONS, 2):
        pairs = product(*({mixed[name] for mixed in mixtures} for name in (one, other)))
        assert {(mixed[one], mixed[other]) for mixed in mixtures} == set(pairs), (one, other)
    assert all({mixed[name] for mixed in mixtures} >= {0, 1} for name in OPTIONS)


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize("mixture", MIXTURES)
def test_options_compute_together_what_the_loop_computes(mixture: str) -> None:
    dtype = torch.bfloat16 if mix(mixture)["bfloat16"] else torch.float32
    arguments, switches = draw_mixture(mixture, length=3, heads=3, dtype=dtype)
    check(arguments, **switches)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_options_compute_together_what_the_loop_computes_on_backend_torch(mixture: str) -> None:
    arguments, switches = draw_mixture(mixture, length=18, batch=2, heads=3, dtype=torch.float64)
    expected = results(naive_matrix_recurrence, arguments, **switches)
    found = results(matrix_recurrence, arguments, backend="torch", **switches)
    assert_close(found, expected, FLOAT64_TOLERANCE)


SIZES = (
    *((8, 8), (16, 16), (24, 24), (32, 32), (40, 40), (48, 48), (56, 56), (64, 64)),
    *((16, 32), (32, 16), (64, 32), (32, 64), (48, 24), (16, 8), (64, 8), (32, 128)),
)


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("n_key", "n_value"), SIZES)
def test_every_size_is_computed(n_key: int, n_value: int, dtype: torch.dtype) -> None:
    check(draw_small(n_key=n_key, n_value=n_value, dtype=dtype))


@pytest.mark.parametrize(("length", "batch"), [(1, 2), (2, 2), (15, 1), (16, 1), (17, 1), (33, 1)])
def test_every_length_is_computed(length: int, batch: int) -> None:
    check(draw_small(length, batch=batch, n_value=8))


@pytest.fixture
def as_launched(few_operations: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles as the table of launches has them."""
    monkeypatch.undo()


@pytest.mark.usefixtures("as_launched")
@pytest.mark.parametrize(("n", "heads"), [(8, 5), (16, 3), (24, 3), (32, 1), (48, 1)])
def test_states_of_many_tiles_are_computed(n: int, heads: int) -> None:
    check(draw_small(2, heads=heads, n_key=n, n_value=n))


EXTREMES: dict[str, dict[str, float]] = {
    "saturated states": {"v": 1e4},
    "keys of no length": {"k": 0.0},
    "queries of no length": {"q": 0.0},
    "shut gates": {"gate": 0.0},
    "open gates": {"gate": 80.0},
    "gates far below zero": {"gate": -80.0},
    "gates where exp is infinite": {"gate": -1e4},
    "states forgotten at once": {"alpha": 0.0},
    "states never forgotten": {"alpha": 1.0},
    "nothing written": {"beta": 0.0},
}


@pytest.mark.parametrize("extreme", EXTREMES)
def test_extremes_stay_finite_and_right(extreme: str) -> None:
    arguments = draw_small(5)
    for name, value in EXTREMES[extreme].items():
        factor = arguments[name].detach() if name == "v" else 1.0
        arguments[name] = torch.full_like(arguments[name], value).mul_(factor).requires_grad_()
    actual, expected = computed(arguments), truth(arguments)
    assert all(x.isfinite().all() for x in actual.values())
    assert actual["final_state"].abs().max() <= 1
    if extreme == "saturated states":
        # All else is what rounding leaves of numbers that cancel one another.
        kept = ("output", "final_state", "d_q", "d_gate")
        for name in (x for x in expected if x not in kept):
            assert (actual[name].cpu() - expected[name]).abs().max() < 1e-4, name
        actual, expected = ({name: x[name] for name in kept} for x in (actual, expected))
    # One unit in the last place of -80 changes its exponential by 8e-6.
    assert_close(actual, expected, 1e-5 if "gate" in EXTREMES[extreme] else FLOAT32_TOLERANCE)


def test_blend_of_zero_leaves_states_exactly_as_they_were() -> None:
    arguments = draw_small(blend=True)
    arguments["blend"] = torch.zeros_like(arguments["blend"]).requires_grad_()
    actual = check(arguments)
    assert torch.equal(actual["final_state"], arguments["initial_state"])
    assert not any(actual[f"d_{name}"].any() for name in ("k", "v", "alpha", "beta"))
    assert actual["d_blend"].all()


def test_blend_of_one_computes_exactly_what_no_blend_does() -> None:
    arguments = draw_small(blend=True)
    arguments["blend"] = torch.ones_like(arguments["blend"]).requires_grad_()
    blended = check(arguments)
    del arguments["blend"]
    plain = computed(arguments)
    assert all(torch.equal(blended[name], plain[name]) for name in ("output", "final_state"))


def test_what_is_not_written_is_never_looked_at() -> None:
    arguments = draw_small(5, blend=True, per_value=True)
    written = torch.tensor([True, False, True, False, False], device=DEVICE)[None, :, None]
    expected = computed(arguments, written=written)
    for name in ("k", "v", "alpha", "beta", "blend"):
        spoilt = arguments[name].detach().clone()
        # The gradient of the length of a key that is not a number is none.
        spoilt[~written] = 1e4 if name == "k" else torch.nan
        arguments[name] = spoilt.requires_grad_()
    actual = computed(arguments, written=written)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert not any(actual[f"d_{name}"][~written].any() for name in ("k", "v", "alpha", "blend"))


def test_what_is_not_a_number_stays_in_its_head_and_sequence() -> None:
    arguments = draw_small(2, heads=3, batch=2, n_value=8)
    expected = computed(arguments)
    with torch.no_grad():
        arguments["v"][0, 1, 1] = torch.nan
    actual = computed(arguments)
    assert actual["output"][0, 1:, 1].isnan().all()
    for name, x in actual.items():
        at_heads = x.movedim(1 if name.endswith("_state") else 2, 1)
        expected_there = expected[name].movedim(1 if name.endswith("_state") else 2, 1)
        assert torch.equal(at_heads[1], expected_there[1]), name
        assert torch.equal(at_heads[0, ::2], expected_there[0, ::2]), name


WIDTHS = {"q": 16, "k": 16, "v": 8, "gate": 8, "alpha": 8}


def draw_joint(*shape: int) -> dict[str, Any]:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return {"joint": drawn.to(DEVICE).requires_grad_()}


def slices_of_a_row(joint: Tensor) -> dict[str, Tensor]:
    """Of [B, T, 1 + H * all widths], as a projection writes it."""
    parts = joint[..., 1:].split([3 * width for width in WIDTHS.values()], -1)
    return {name: part.unflatten(-1, (3, -1)) for name, part in zip(WIDTHS, parts, strict=True)}


def heads_outermost(joint: Tensor) -> dict[str, Tensor]:
    """Of [H, T, B, 1 + all widths]."""
    parts = joint.transpose(0, 2)[..., 1:].split(list(WIDTHS.values()), -1)
    return dict(zip(WIDTHS, parts, strict=True))


@pytest.mark.parametrize(
    ("views", "shape"), [(slices_of_a_row, (2, 3, 169)), (heads_outermost, (3, 3, 2, 57))]
)
def test_views_of_a_joint_projection_are_read_as_they_lie(
    views: Any, shape: tuple[int, ...]
) -> None:
    joint = draw_joint(*shape)
    for x in views(joint["joint"]).values():
        assert x.storage_offset() % 2 and x.stride(1) % 4 and x.stride(3) == 1
    actual = results(lambda joint: matrix_recurrence(**views(joint), backend="triton"), joint)
    expected = results(lambda joint: naive_matrix_recurrence(**views(joint)), exact(joint))
    assert_close(actual, expected, FLOAT32_TOLERANCE)


def test_query_that_all_heads_share_is_read_in_its_one_place() -> None:
    def share(function: Any, joint: Tensor, **options: Any) -> Any:
        arguments = slices_of_a_row(joint)
        arguments["q"] = arguments["q"][:, :, :1].expand(-1, -1, 3, -1)
        assert arguments["q"].stride(2) == 0
        return function(**arguments, normalize=False, **options)

    joint = draw_joint(2, 3, 169)
    actual = results(lambda joint: share(matrix_recurrence, joint, backend="triton"), joint)
    expected = results(lambda joint: share(naive_matrix_recurrence, joint), exact(joint))
    assert_close(actual, expected, FLOAT32_TOLERANCE)


@pytest.mark.parametrize("given", ["output", "final_state"])
def test_gradient_may_be_one_number_for_all_and_missing_for_others(given: str) -> None:
    def add_up(function: Any, arguments: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
        output, final_state = function(**arguments, **options)
        total = (output if given == "output" else final_state).sum()
        gradients = torch.autograd.grad(
            total, list(arguments.values()), allow_unused=True, materialize_grads=True
        )
        return dict(zip(arguments, gradients, strict=True))

    arguments = draw_small(blend=True)
    actual = add_up(matrix_recurrence, arguments, backend="triton")
    assert_close(actual, add_up(naive_matrix_recurrence, exact(arguments)), FLOAT32_TOLERANCE)
    assert actual["q"].any() == actual["gate"].any() == (given == "output")


def test_two_states_of_different_size_learn_together() -> None:
    """As those of E90, of which the larger has a rate of its own."""

    def mix_states(
        function: Any, joint: Tensor, rate: Tensor, shares: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor]:
        widths = [3 * width for width in (16, 16, 32, 64, 64, 32, 1)]
        parts = [x.unflatten(-1, (3, -1)) for x in joint.split(widths, -1)]
        decay = parts.pop().sigmoid().squeeze(-1)
        fast, fast_state = function(*parts[:3], decay, **options)
        slow, slow_state = function(*parts[3:], decay, beta=rate, **options)
        mixed = shares[..., :1] * fast + shares[..., 1:] * slow
        return mixed, torch.cat((fast_state, slow_state), 2)

    arguments = draw_joint(1, 2, 3 * 225) | {
        "rate": torch.rand(1, 2, 3, device=DEVICE).requires_grad_(),
        "shares": torch.rand(1, 2, 3, 2, device=DEVICE).requires_grad_(),
    }

    def mix_computed(**arguments: Tensor) -> Any:
        return mix_states(matrix_recurrence, **arguments, backend="triton")

    def mix_true(**arguments: Tensor) -> Any:
        return mix_states(naive_matrix_recurrence, **arguments)

    assert_close(
        results(mix_computed, arguments), results(mix_true, exact(arguments)), FLOAT32_TOLERANCE
    )


def test_results_are_the_same_bits_twice() -> None:
    arguments = draw_small(2, n_key=32, n_value=64)
    first, second = computed(arguments), computed(arguments)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_one_gradient_alone_is_the_same_as_among_all() -> None:
    arguments = draw_small(1, n_value=8, blend=True)
    among_all = computed(arguments)
    for name in NAMES:
        alone = {other: x.detach().requires_grad_(other == name) for other, x in arguments.items()}
        fixed = {other: x for other, x in alone.items() if other != name}
        found = computed({name: alone[name]}, **fixed)
        assert torch.equal(found[f"d_{name}"], among_all[f"d_{name}"]), name


@pytest.mark.parametrize("first", [1, 4])
def test_state_given_on_continues_the_sequence_exactly(first: int) -> None:
    arguments = draw_small(6, without=("initial_state",), per_value=True)
    with torch.no_grad():
        whole, last = matrix_recurrence(**arguments, backend="triton")
        begun = {name: x[:, :first] for name, x in arguments.items()}
        ended = {name: x[:, first:] for name, x in arguments.items()}
        start, state = matrix_recurrence(**begun, backend="triton")
        end, final_state = matrix_recurrence(**ended, initial_state=state, backend="triton")
    assert torch.equal(torch.cat((start, end), 1), whole)
    assert torch.equal(final_state, last)


def test_initial_state_may_lie_in_any_order() -> None:
    arguments = draw_small(1, n_value=8)
    turned = arguments["initial_state"].detach().mT.contiguous().mT.requires_grad_()
    assert not turned.is_contiguous()
    check({**arguments, "initial_state": turned})


def test_tensors_given_are_left_as_they_were() -> None:
    arguments, switches = draw_mixture(MIXTURES[4], length=3)
    given = [*arguments.values(), switches["written"]]
    copies = [x.detach().clone() for x in given]
    computed(arguments, **switches)
    assert all(map(torch.equal, given, copies))


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize(("checkpoints", "tolerance"), [("bf16", 5e-3), ("fp16", 6e-4)])
def test_checkpoints_in_16_bits_cost_the_gradients_what_was_measured(
    checkpoints: str, tolerance: float
) -> None:
    arguments = draw_small(4, n_value=8)
    plain = computed(arguments)
    actual = computed(arguments, checkpoints=checkpoints)
    for name in ("output", "final_state"):
        assert torch.equal(actual[name], plain[name]), name
    assert not torch.equal(actual["d_q"], plain["d_q"])
    assert_close(actual, truth(arguments), tolerance)


@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_every_result_is_that_of_the_loop_for_any_shape_and_options(data: st.DataObject) -> None:
    def choose(*choices: Any, name: str) -> Any:
        return data.draw(st.sampled_from(choices), name)

    mixture = "".join(str(data.draw(st.integers(0, 1), name)) for name in OPTIONS[:-1])
    arguments, switches = draw_mixture(
        mixture + "0",
        length=data.draw(st.integers(1, 4), "length"),
        batch=data.draw(st.integers(1, 2), "batch"),
        heads=data.draw(st.integers(1, 2), "heads"),
        n_key=choose(8, 16, 24, 32, 40, 48, 56, 64, name="n_key"),
        n_value=8 * data.draw(st.integers(1, 4), "n_value / 8"),
        seed=data.draw(st.integers(0, 2**32 - 1), "seed"),
    )
    if not switches["normalize"]:  # as its callers do, or a few positions amplify every rounding
        for name in ("q", "k"):
            length = arguments[name].detach().square().sum(-1, keepdim=True).sqrt()
            arguments[name] = (arguments[name].detach() / (length + 0.1)).requires_grad_()
    # Of 3000 such draws on backend torch the worst was off by 5e-6.
    actual, expected = computed(arguments, **switches), truth(arguments, **switches)
    assert_close(actual, expected, 2e-5, least=1.0)
