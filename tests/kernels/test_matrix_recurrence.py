import subprocess
import sys
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.matrix_recurrence import (
    BACKENDS,
    SUPPORTED,
    check_size,
    matrix_recurrence,
    resolve_backend,
)
from elmanctl.kernels.matrix_recurrence.checkpointed import torch_matrix_recurrence
from elmanctl.kernels.matrix_recurrence.naive import naive_matrix_recurrence
from tests.kernels.recurrences import (
    BFLOAT16_TOLERANCE,
    FLOAT32_TOLERANCE,
    FLOAT64_TOLERANCE,
    NAMES,
    assert_close,
    draw,
    exact,
    results,
)

DECAYS_AND_BLENDS: dict[str, dict[str, Any]] = {
    "decay for each head": {},
    "decay for each value": {"per_value": True},
    "blend": {"blend": True},
    "decay for each value and blend": {"per_value": True, "blend": True},
}
OPTIONAL = ("gate", "beta", "initial_state")

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "all of E88": ({}, {}),
    "linear state": ({}, {"linear_state": True}),
    "no write gate": ({"without": ("beta",)}, {}),
    "no output gate": ({"without": ("gate",)}, {}),
    "no initial state": ({"without": ("initial_state",)}, {}),
    "queries and keys as given": ({}, {"normalize": False}),
    "bare": ({"without": OPTIONAL}, {}),
    "decay for each value": ({"per_value": True}, {}),
    "blend": ({"blend": True}, {}),
    "blend of a linear state": ({"blend": True}, {"linear_state": True}),
    "decay for each value and blend": ({"per_value": True, "blend": True}, {}),
    "bare blend": ({"blend": True, "without": OPTIONAL}, {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("length", [1, 17])
def test_gradients_are_those_of_finite_differences(case: str, length: int) -> None:
    drawn, switches = CASES[case]
    arguments = draw(length, batch=1, heads=1, n_key=3, n_value=2, **drawn)
    names = list(arguments)

    def op(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        named: dict[str, Any] = dict(zip(names, tensors, strict=True))
        return torch_matrix_recurrence(**named, **switches)

    assert torch.autograd.gradcheck(op, list(arguments.values()))


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_three_segments_pass_a_projected_gradient_check(case: str) -> None:
    drawn, switches = CASES[case]
    arguments = draw(33, **drawn)
    names = list(arguments)

    def op(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        named: dict[str, Any] = dict(zip(names, tensors, strict=True))
        return torch_matrix_recurrence(**named, **switches)

    assert torch.autograd.gradcheck(op, list(arguments.values()), fast_mode=True)


@pytest.mark.parametrize("linear_state", [False, True])
@pytest.mark.parametrize("kind", DECAYS_AND_BLENDS)
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 32, 33])
def test_every_result_of_every_combination_in_float64_is_the_naive_one(
    length: int, kind: str, linear_state: bool
) -> None:
    combinations = product(
        [(), ("gate",)], [(), ("beta",)], [(), ("initial_state",)], [True, False]
    )
    for *left_out, normalize in combinations:
        arguments = draw(length, without=sum(left_out, ()), **DECAYS_AND_BLENDS[kind])
        switches = {"linear_state": linear_state, "normalize": normalize}
        assert_close(
            results(torch_matrix_recurrence, arguments, **switches),
            results(naive_matrix_recurrence, arguments, **switches),
            FLOAT64_TOLERANCE,
        )


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_result_is_the_naive_one_for_any_shape(data: st.DataObject) -> None:
    optional = st.sets(st.sampled_from(OPTIONAL))
    arguments = draw(
        data.draw(st.integers(1, 40), "length"),
        batch=data.draw(st.integers(1, 3), "batch"),
        heads=data.draw(st.integers(1, 3), "heads"),
        n_key=data.draw(st.sampled_from([4, 8, 12]), "n_key"),
        n_value=data.draw(st.integers(1, 9), "n_value"),
        without=tuple(data.draw(optional, "without")),
        per_value=data.draw(st.booleans(), "per_value"),
        blend=data.draw(st.booleans(), "blend"),
        seed=data.draw(st.integers(0, 2**32 - 1), "seed"),
    )
    switches = {"linear_state": data.draw(st.booleans(), "linear_state")}
    assert_close(
        results(matrix_recurrence, arguments, **switches),
        results(naive_matrix_recurrence, arguments, **switches),
        FLOAT64_TOLERANCE,
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, FLOAT32_TOLERANCE), (torch.bfloat16, BFLOAT16_TOLERANCE)],
)
@pytest.mark.parametrize("linear_state", [False, True])
@pytest.mark.parametrize("kind", DECAYS_AND_BLENDS)
def test_lower_precision_is_near_the_float64_truth(
    dtype: torch.dtype, tolerance: float, linear_state: bool, kind: str
) -> None:
    arguments = draw(100, n_key=16, n_value=16, dtype=dtype, **DECAYS_AND_BLENDS[kind])
    actual = results(matrix_recurrence, arguments, linear_state=linear_state)
    truth = results(naive_matrix_recurrence, exact(arguments), linear_state=linear_state)
    assert_close(actual, truth, tolerance)
    assert actual["output"].dtype == actual["d_gate"].dtype == dtype
    assert actual["final_state"].dtype == actual["d_alpha"].dtype == torch.float32


EXTREMES = {
    "saturated states": {"v": 1e4},
    "keys of no length": {"k": 0.0},
    "queries of no length": {"q": 0.0},
    "shut gates": {"gate": 0.0},
    "gates far below zero": {"gate": -1e4},
    "states forgotten at once": {"alpha": 0.0},
    "states never forgotten": {"alpha": 1.0},
    "nothing blended in": {"blend": 0.0},
    "all blended in": {"blend": 1.0},
}


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("per_value", [False, True])
def test_extremes_stay_finite_and_right(extreme: str, dtype: torch.dtype, per_value: bool) -> None:
    arguments = draw(33, dtype=dtype, per_value=per_value, blend="blend" in EXTREMES[extreme])
    for name, value in EXTREMES[extreme].items():
        scaled = arguments[name].detach() * value if name == "v" else None
        constant = torch.full_like(arguments[name], value)
        arguments[name] = (constant if scaled is None else scaled).requires_grad_()
    actual = results(matrix_recurrence, arguments)
    assert all(x.isfinite().all() for x in actual.values())
    assert actual["final_state"].abs().max() <= 1
    truth = results(naive_matrix_recurrence, exact(arguments))
    tolerance = FLOAT64_TOLERANCE if dtype == torch.float64 else 1e-5
    for name in ("output", "final_state", "d_v", "d_beta"):
        error = (actual[name] - truth[name]).abs().max()
        assert error <= tolerance * max(1.0, truth[name].abs().max().item()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [matrix_recurrence, naive_matrix_recurrence])
def test_blend_of_zero_leaves_the_state_exactly_as_it_was(
    function: Any, dtype: torch.dtype
) -> None:
    arguments = draw(33, dtype=dtype, blend=True)
    arguments["blend"] = torch.zeros_like(arguments["blend"]).requires_grad_()
    actual = results(function, arguments)
    assert torch.equal(actual["final_state"], arguments["initial_state"])
    for name in ("k", "v", "alpha", "beta"):
        assert not actual[f"d_{name}"].any(), name
    assert actual["d_blend"].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("per_value", [False, True])
def test_blend_of_one_computes_exactly_what_no_blend_does(
    dtype: torch.dtype, per_value: bool
) -> None:
    arguments = draw(33, dtype=dtype, per_value=per_value)
    without = results(matrix_recurrence, arguments)
    ones = torch.ones(arguments["alpha"].shape[:3], dtype=dtype, requires_grad=True)
    with_ones = results(matrix_recurrence, {**arguments, "blend": ones})
    assert with_ones["d_blend"].any()
    assert all(torch.equal(with_ones[name], without[name]) for name in without)


def test_head_that_is_not_blended_in_at_a_position_skips_it() -> None:
    arguments = draw(40, batch=1, heads=1, blend=True)
    chosen = torch.arange(40) % 3 == 0
    arguments["blend"] = chosen.double()[None, :, None].requires_grad_()
    _, skipping = matrix_recurrence(**arguments)
    short = {name: x if name == "initial_state" else x[:, chosen] for name, x in arguments.items()}
    _, chosen_alone = matrix_recurrence(**short)
    assert torch.equal(skipping, chosen_alone)


def test_decays_of_all_values_that_are_equal_are_the_decay_of_the_head() -> None:
    arguments = draw(33)
    per_head = results(matrix_recurrence, arguments)
    alpha = arguments["alpha"].detach()[..., None].repeat(1, 1, 1, 3).requires_grad_()
    per_value = results(matrix_recurrence, {**arguments, "alpha": alpha})
    per_value["d_alpha"] = per_value["d_alpha"].sum(-1)
    assert_close(per_value, per_head, FLOAT64_TOLERANCE)


def test_decay_of_the_one_value_of_a_head_keeps_its_shape() -> None:
    arguments = draw(17, n_value=1, per_value=True)
    actual = results(matrix_recurrence, arguments)
    assert actual["d_alpha"].shape == (2, 17, 2, 1)
    assert_close(actual, results(naive_matrix_recurrence, arguments), FLOAT64_TOLERANCE)


def test_gradient_of_a_gate_far_below_zero_is_not_lost_in_a_division() -> None:
    arguments = draw(20)
    arguments["gate"] = torch.full_like(arguments["gate"], -80.0).requires_grad_()
    actual = results(matrix_recurrence, arguments)["d_gate"]
    truth = results(naive_matrix_recurrence, arguments)["d_gate"]
    assert truth.abs().max() > 0
    torch.testing.assert_close(actual, truth, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("name", NAMES)
def test_one_gradient_alone_is_the_same_as_among_all(name: str) -> None:
    among_all = results(matrix_recurrence, draw(20, blend=True))[f"d_{name}"]
    arguments = draw(20, blend=True)
    for other, tensor in arguments.items():
        tensor.requires_grad_(other == name)
    output, final_state = matrix_recurrence(**arguments)
    weights = torch.Generator().manual_seed(1)
    first = torch.randn(output.shape, generator=weights, dtype=torch.float64)
    second = torch.randn(final_state.shape, generator=weights, dtype=torch.float64)
    ((output * first).sum() + (final_state * second).sum()).backward()
    torch.testing.assert_close(arguments[name].grad, among_all, rtol=1e-13, atol=1e-15)
    assert all(x.grad is None for other, x in arguments.items() if other != name)


def test_final_state_alone_sends_gradients_back() -> None:
    arguments = draw(20, without=("gate",), blend=True)
    _, final_state = matrix_recurrence(**arguments)
    _, truth = naive_matrix_recurrence(**arguments)
    inputs = [arguments[name] for name in NAMES if name not in ("q", "gate")]
    for actual, expected in zip(
        torch.autograd.grad(final_state.sum(), inputs),
        torch.autograd.grad(truth.sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


def test_state_given_on_continues_the_sequence() -> None:
    arguments = draw(37, without=("initial_state",), blend=True)
    whole, last = matrix_recurrence(**arguments)
    first, state = matrix_recurrence(**{name: x[:, :19] for name, x in arguments.items()})
    rest = {name: x[:, 19:] for name, x in arguments.items()}
    second, end = matrix_recurrence(**rest, initial_state=state)
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole)
    torch.testing.assert_close(end, last)


def test_views_of_a_joint_projection_are_accepted() -> None:
    joint = torch.randn(2, 20, 3, 12, dtype=torch.float64, requires_grad=True)
    q, k, v = joint.split(4, dim=-1)
    alpha = torch.full((2, 20, 3), 0.9, dtype=torch.float64)
    (actual,) = torch.autograd.grad(matrix_recurrence(q, k, v, alpha)[0].sum(), joint)
    (truth,) = torch.autograd.grad(naive_matrix_recurrence(q, k, v, alpha)[0].sum(), joint)
    torch.testing.assert_close(actual, truth)


def test_tensors_given_are_left_as_they_were() -> None:
    arguments = draw(20, blend=True)
    copies = {name: x.detach().clone() for name, x in arguments.items()}
    results(matrix_recurrence, arguments)
    assert all(torch.equal(arguments[name], copies[name]) for name in NAMES)


@pytest.mark.parametrize("without", [(), ("gate",)])
def test_output_shares_no_memory_with_what_is_kept_for_the_gradient(
    without: tuple[str, ...],
) -> None:
    def gradients(overwrite: bool) -> tuple[Tensor, ...]:
        arguments = draw(1, batch=1, heads=1, without=without)
        pair = matrix_recurrence(**arguments)
        if overwrite:
            with torch.no_grad():
                for x in pair:
                    x.fill_(7.0)
        ones = tuple(torch.ones_like(x) for x in pair)
        return torch.autograd.grad(pair, list(arguments.values()), ones)

    pairs = zip(gradients(overwrite=False), gradients(overwrite=True), strict=True)
    assert all(torch.equal(before, after) for before, after in pairs)


@pytest.mark.parametrize("kind", DECAYS_AND_BLENDS)
def test_nothing_is_read_from_memory_that_was_never_written(kind: str) -> None:
    arguments = draw(33, dtype=torch.float32, **DECAYS_AND_BLENDS[kind])
    plain = results(matrix_recurrence, arguments)
    torch.use_deterministic_algorithms(True)  # fills every new tensor with NaN
    try:
        assert torch.empty(3).isnan().all()
        poisoned = results(matrix_recurrence, arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(plain[name], poisoned[name]) for name in plain)


@pytest.mark.parametrize("kind", DECAYS_AND_BLENDS)
def test_states_are_kept_once_in_sixteen_positions(kind: str) -> None:
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        matrix_recurrence(
            **draw(65, batch=1, heads=1, n_key=16, n_value=16, **DECAYS_AND_BLENDS[kind])
        )
    states = [x for x in kept if x.shape[-2:] == (16, 16)]
    assert [x.shape[0] for x in states] == [5]


@pytest.mark.parametrize("kind", DECAYS_AND_BLENDS)
def test_autocast_leaves_the_recurrence_in_float32(kind: str) -> None:
    drawn = DECAYS_AND_BLENDS[kind]
    arguments = draw(33, n_key=16, n_value=16, dtype=torch.float32, **drawn)
    plain = results(matrix_recurrence, arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = results(matrix_recurrence, arguments)
    assert all(torch.equal(plain[name], inside[name]) for name in plain)


@pytest.mark.parametrize("kind", DECAYS_AND_BLENDS)
def test_gradient_can_be_taken_twice(kind: str) -> None:
    arguments = draw(33, **DECAYS_AND_BLENDS[kind])
    output, _ = matrix_recurrence(**arguments)
    inputs = list(arguments.values())
    first = torch.autograd.grad(output.sum(), inputs, retain_graph=True)
    second = torch.autograd.grad(output.sum(), inputs)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_second_derivatives_are_refused() -> None:
    arguments = draw(3)
    output, _ = matrix_recurrence(**arguments)
    (gradient,) = torch.autograd.grad(output.square().sum(), arguments["v"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_linear_state_reaches_the_computation() -> None:
    arguments = draw(5)
    squashed, _ = matrix_recurrence(**arguments)
    linear, _ = matrix_recurrence(**arguments, linear_state=True)
    assert (squashed - linear).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("n_state", "around"),
    [(30, "28 and 32"), (0, "4"), (66, "64 and 72"), (127, "96 and 128"), (256, "128")],
)
def test_unsupported_size_names_its_neighbours(n_state: int, around: str) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        check_size("auto", n_state)
    assert caught.value.message == (
        f"n_state={n_state} is not supported by the torch backend; nearest supported: {around}"
    )


def test_supported_sizes_pass() -> None:
    for backend in BACKENDS:
        for n_state in SUPPORTED[backend]:
            check_size(backend, n_state)
    assert {16, 24, 32, 48, 64, 72, 80, 88, 96, 128} <= set(SUPPORTED["torch"])


def test_op_refuses_an_unsupported_size() -> None:
    with pytest.raises(InvalidConfiguration, match="n_state=6 is not supported"):
        matrix_recurrence(**draw(3, n_key=6))


def test_unknown_backend_names_the_known_ones() -> None:
    with pytest.raises(InvalidConfiguration, match="known: auto, torch") as caught:
        matrix_recurrence(**draw(3), backend="torhc")
    assert caught.value.hint == "did you mean `torch`?"
    assert resolve_backend("auto") == resolve_backend("torch") == "torch"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "k"])
def test_wrong_shape_is_refused_by_name(name: str) -> None:
    arguments = draw(5, blend=True)
    arguments[name] = arguments[name][:, :1]
    with pytest.raises(InvalidConfiguration, match=rf"^{name} has shape .*, expected "):
        matrix_recurrence(**arguments)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "k"])
def test_wrong_dtype_is_refused_by_name(name: str) -> None:
    arguments = draw(5, blend=True)
    arguments[name] = arguments[name].float()
    message = rf"^{name} is torch.float32, expected torch.float64$"
    with pytest.raises(InvalidConfiguration, match=message):
        matrix_recurrence(**arguments)


def test_decay_for_each_key_is_refused() -> None:
    arguments = draw(5, n_key=4, n_value=3)
    arguments["alpha"] = torch.ones(2, 5, 2, 4, dtype=torch.float64)
    with pytest.raises(InvalidConfiguration, match=r"alpha has shape .*, expected \[2, 5, 2, 3\]"):
        matrix_recurrence(**arguments)


def test_decay_in_half_precision_is_refused() -> None:
    arguments = draw(5, dtype=torch.bfloat16)
    arguments["alpha"] = arguments["alpha"].bfloat16()
    with pytest.raises(InvalidConfiguration, match=r"alpha is torch\.bfloat16, expected"):
        matrix_recurrence(**arguments)


def test_wrong_device_is_refused_by_name() -> None:
    arguments = draw(5)
    arguments["gate"] = arguments["gate"].to("meta")
    with pytest.raises(InvalidConfiguration, match="gate is on meta, k is on cpu"):
        matrix_recurrence(**arguments)


def test_empty_sequence_and_missing_axis_are_refused() -> None:
    arguments = draw(5, without=("initial_state",))
    with pytest.raises(InvalidConfiguration, match="no empty axis"):
        matrix_recurrence(**{name: x[:, :0] for name, x in arguments.items()})
    with pytest.raises(InvalidConfiguration, match="no empty axis"):
        matrix_recurrence(**(arguments | {"v": arguments["v"][0]}))


def test_whole_numbers_are_refused() -> None:
    arguments = {name: x.detach().long() for name, x in draw(5).items()}
    with pytest.raises(InvalidConfiguration, match=r"floating-point tensor, not torch\.int64"):
        matrix_recurrence(**arguments)


def test_sizes_are_known_without_importing_torch() -> None:
    code = (
        "import sys\n"
        "from elmanctl.kernels.matrix_recurrence import SUPPORTED, check_size\n"
        "check_size('auto', 32)\n"
        "assert SUPPORTED['torch'] and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
