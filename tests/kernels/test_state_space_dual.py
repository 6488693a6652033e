import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.state_space_dual import BACKENDS, state_space_dual
from elmanctl.kernels.state_space_dual.chunked import chunked_state_space_dual, segment_sums
from elmanctl.kernels.state_space_dual.naive import naive_state_space_dual
from elmanctl.kernels.state_space_dual.sizes import CHUNK
from elmanctl.models.mamba_ssm import load

NAMES = ("x", "step", "rate", "write", "read", "initial_state")
FLOAT64_TOLERANCE = 1e-12
FLOAT32_TOLERANCE = 2e-6
BFLOAT16_TOLERANCE = 6e-3


def draw(
    length: int,
    *,
    batch: int = 2,
    heads: int = 3,
    width: int = 4,
    keys: int = 5,
    dtype: torch.dtype = torch.float64,
    without: tuple[str, ...] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Random arguments of the op by name, steps and rates as Mamba2 starts with them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    state_dtype = torch.promote_types(dtype, torch.float32)
    tensors = {
        "x": normal(batch, length, heads, width).to(dtype),
        "step": torch.nn.functional.softplus(normal(batch, length, heads) - 2).to(state_dtype),
        "rate": torch.linspace(0.5, 16.0, heads, dtype=torch.float64).to(state_dtype),
        "write": normal(batch, length, keys).to(dtype),
        "read": normal(batch, length, keys).to(dtype),
        "initial_state": normal(batch, heads, width, keys).to(state_dtype),
    }
    return {name: t.requires_grad_() for name, t in tensors.items() if name not in without}


def results(function: Any, arguments: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Output, final state, and all gradients of a weighted sum of both."""
    output, state = function(**arguments, **options)
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (torch.randn(t.shape, generator=generator, dtype=torch.float64) * t.double()).sum()
        for t in (output, state)
    )
    gradients = torch.autograd.grad(loss, list(arguments.values()))
    named = {f"d{name}": g for name, g in zip(arguments, gradients, strict=True)}
    return {"output": output.detach(), "state": state.detach(), **named}


def assert_near(expected: dict[str, Tensor], found: dict[str, Tensor], tolerance: float) -> None:
    """Every result within a relative root mean square error."""
    assert expected.keys() == found.keys()
    for name, truth in expected.items():
        error = (found[name].double() - truth.double()).norm()
        assert error <= tolerance * truth.double().norm(), f"{name}: {error / truth.norm():.1e}"


def as_float64(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().double().requires_grad_() for name, t in arguments.items()}


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 40),
    chunk=st.integers(1, 17),
    heads=st.integers(1, 3),
    width=st.integers(1, 5),
    keys=st.integers(1, 5),
    with_state=st.booleans(),
)
def test_chunks_of_any_size_give_what_the_loop_gives(
    length: int, chunk: int, heads: int, width: int, keys: int, with_state: bool
) -> None:
    without = () if with_state else ("initial_state",)
    arguments = draw(length, heads=heads, width=width, keys=keys, without=without)
    assert_near(
        results(naive_state_space_dual, arguments),
        results(chunked_state_space_dual, arguments, chunk=chunk),
        FLOAT64_TOLERANCE,
    )


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 22])
def test_public_op_gives_what_the_loop_gives(length: int) -> None:
    arguments = draw(length)
    found = results(state_space_dual, arguments)
    assert_near(results(naive_state_space_dual, arguments), found, FLOAT64_TOLERANCE)


@pytest.mark.parametrize("length", [7, 150])
def test_float32_comes_as_near_to_float64_as_float32_can(length: int) -> None:
    arguments = draw(length, dtype=torch.float32)
    assert_near(
        results(naive_state_space_dual, as_float64(arguments)),
        results(state_space_dual, arguments),
        FLOAT32_TOLERANCE,
    )


def test_bfloat16_is_rounded_on_the_way_in_and_out_alone() -> None:
    arguments = draw(150, dtype=torch.bfloat16)
    found = results(state_space_dual, arguments)
    assert found["output"].dtype == torch.bfloat16
    assert found["state"].dtype == found["dstep"].dtype == torch.float32
    truth = results(naive_state_space_dual, as_float64(arguments))
    assert_near({"state": truth["state"]}, {"state": found["state"]}, FLOAT32_TOLERANCE)
    assert_near(truth, found, BFLOAT16_TOLERANCE)


def test_autocast_changes_nothing() -> None:
    arguments = draw(70, dtype=torch.float32)
    plain, _ = state_space_dual(**arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under, state = state_space_dual(**arguments)
    assert torch.equal(plain, under) and state.dtype == torch.float32


def test_gradcheck() -> None:
    arguments = draw(5, batch=1, heads=2, width=2, keys=2)
    assert torch.autograd.gradcheck(
        lambda *values: chunked_state_space_dual(
            **dict(zip(arguments, values, strict=True)), chunk=3
        ),
        tuple(arguments.values()),
    )


def test_sequence_in_pieces_with_its_state_is_the_whole() -> None:
    arguments = draw(100, without=("initial_state",))
    whole, final = state_space_dual(**arguments)
    state, pieces = None, []
    for piece in (slice(0, 1), slice(1, 66), slice(66, 100)):
        part = {n: t if n == "rate" else t[:, piece] for n, t in arguments.items()}
        y, state = state_space_dual(**part, initial_state=state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(state, final, rtol=1e-12, atol=1e-13)


def test_decay_to_nothing_and_no_decay_at_all() -> None:
    arguments = draw(130, heads=3)
    with torch.no_grad():
        arguments["rate"].copy_(torch.tensor([0.0, 1e4, 1e-6]))
        arguments["step"][:, ::7] = 0.0
    found = results(state_space_dual, arguments)
    assert all(t.isfinite().all() for t in found.values())
    assert_near(results(naive_state_space_dual, arguments), found, FLOAT64_TOLERANCE)


def test_small_decay_beside_a_huge_one_keeps_its_float32_digits() -> None:
    # A difference of cumulative sums near 1e5 would be off by 1e-2 here.
    decays = torch.tensor([-1e5, -1e-3, -2e-3])
    sums = segment_sums(decays)
    assert sums[2, 0].item() == pytest.approx(-3e-3, rel=1e-6)
    assert sums[2, 1].item() == pytest.approx(-2e-3, rel=1e-6)
    assert sums.diagonal().eq(0).all()
    assert sums[0, 1] == sums[1, 2] == -torch.inf


def test_positions_that_are_views_of_one_projection_are_read_as_they_are() -> None:
    mixed = torch.randn(2, 70, 3 * 4 + 2 * 5, dtype=torch.float64)
    x, write, read = mixed.split((12, 5, 5), dim=-1)
    arguments = draw(70) | {"x": x.unflatten(-1, (3, 4)), "write": write, "read": read}
    copies = {name: t.clone() for name, t in arguments.items()}
    assert torch.equal(state_space_dual(**arguments)[0], state_space_dual(**copies)[0])


def test_equal_calls_are_bitwise_equal() -> None:
    arguments = draw(130, dtype=torch.float32)
    first, second = (results(state_space_dual, arguments) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def in_packages_terms(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the references of mamba-ssm call x, dt, A, B and C, each head with its own B and C."""
    heads = arguments["x"].shape[2]
    write, read = (
        arguments[name].unsqueeze(2).expand(-1, -1, heads, -1) for name in ("write", "read")
    )
    return {
        "x": arguments["x"],
        "dt": arguments["step"],
        "A": -arguments["rate"],
        "B": write,
        "C": read,
    }


def minimal_discrete(initial_state: Tensor | None = None, **arguments: Tensor) -> Any:
    """The listing of the paper, as mamba-ssm ships it."""
    theirs = in_packages_terms(arguments)
    function = load("mamba_ssm.modules.ssd_minimal").ssd_minimal_discrete
    return function(
        theirs["x"] * theirs["dt"].unsqueeze(-1),
        theirs["A"] * theirs["dt"],
        theirs["B"],
        theirs["C"],
        16,
        None if initial_state is None else initial_state.unsqueeze(1),
    )


def step_by_step(initial_state: Tensor, **arguments: Tensor) -> Any:
    """What mamba-ssm does when it generates one position after another."""
    theirs = in_packages_terms(arguments)
    function = load("mamba_ssm.ops.triton.selective_state_update").selective_state_update_ref
    like_x, like_state = theirs["x"].shape[-1], initial_state.shape[1:]
    rate = theirs["A"][:, None, None].expand(like_state)
    state, outputs = initial_state, []
    for t in range(theirs["x"].shape[1]):
        # It writes into the state that it is given.
        state = state.clone()
        step = theirs["dt"][:, t, :, None].expand(-1, -1, like_x)
        outputs.append(
            function(state, theirs["x"][:, t], step, rate, theirs["B"][:, t], theirs["C"][:, t])
        )
    return torch.stack(outputs, dim=1), state


def test_listing_of_the_paper_gives_the_same_output_state_and_gradients() -> None:
    arguments = draw(96)
    expected = results(minimal_discrete, arguments)
    assert_near(expected, results(state_space_dual, arguments), FLOAT64_TOLERANCE)
    assert_near(expected, results(naive_state_space_dual, arguments), FLOAT64_TOLERANCE)


@torch.no_grad()
def test_mamba_ssm_generating_step_by_step_gives_the_same_output_and_state() -> None:
    arguments = draw(96)
    for found, expected in zip(
        state_space_dual(**arguments), step_by_step(**arguments), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_chunked_reference_of_mamba_ssm_gives_the_same_output_and_gradients() -> None:
    def chunk_scan(**arguments: Tensor) -> Any:
        theirs = in_packages_terms(arguments)
        function = load("mamba_ssm.ops.triton.ssd_combined").ssd_chunk_scan_combined_ref
        return function(**theirs, chunk_size=32), torch.zeros(())

    def ours(**arguments: Any) -> Any:
        return state_space_dual(**arguments)[0], torch.zeros(())

    # The reference takes its steps to float32, whatever it is given, and has no gradient where a
    # chunk decays by more than float32 can hold.
    arguments = draw(96, dtype=torch.float32, without=("initial_state",))
    with torch.no_grad():
        arguments["rate"].mul_(0.1)
    assert_near(results(chunk_scan, arguments), results(ours, arguments), 2e-5)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("x", torch.zeros(2, 7, 12, dtype=torch.float64)),
        ("x", torch.zeros(2, 7, 3, 4, dtype=torch.int64)),
        ("x", torch.zeros(2, 0, 3, 4, dtype=torch.float64)),
        ("step", torch.zeros(2, 7, 4, dtype=torch.float64)),
        ("step", torch.zeros(2, 7, 3)),
        ("rate", torch.zeros(2, dtype=torch.float64)),
        ("write", torch.zeros(2, 7, 5)),
        ("read", torch.zeros(2, 7, 6, dtype=torch.float64)),
        ("initial_state", torch.zeros(2, 3, 5, 4, dtype=torch.float64)),
        ("initial_state", torch.zeros(2, 3, 4, 5)),
        ("read", torch.zeros(2, 7, 5, dtype=torch.float64, device="meta")),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(name: str, wrong: Tensor) -> None:
    with pytest.raises(InvalidConfiguration, match=name):
        state_space_dual(**(draw(7) | {name: wrong}))


def test_unknown_backend_is_refused() -> None:
    assert BACKENDS == ("torch",)
    with pytest.raises(InvalidConfiguration, match="known: torch") as refused:
        state_space_dual(**draw(3), backend="torhc")
    assert refused.value.hint == "did you mean `torch`?"


def test_asking_for_names_does_not_import_torch() -> None:
    code = "import sys, elmanctl.kernels.state_space_dual; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
