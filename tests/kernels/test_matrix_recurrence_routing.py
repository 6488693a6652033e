"""Heads that are written at some positions: how these are listed, and that no other is touched."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.matrix_recurrence import matrix_recurrence
from elmanctl.kernels.matrix_recurrence.naive import naive_matrix_recurrence
from elmanctl.kernels.matrix_recurrence.routing import max_checkpoints, packed_positions, write_mask
from tests.kernels.interpreted import DEVICE
from tests.kernels.recurrences import (
    FLOAT32_TOLERANCE,
    assert_close,
    draw,
    exact,
    results,
    widen_tiles,
)

EVERY = 16


@pytest.fixture(autouse=True)
def few_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        widen_tiles(monkeypatch)


def draw_numbers(length: int, *, batch: int, heads: int, each: int, seed: int = 0) -> Tensor:
    """The numbers of `each` heads at every position, int64 [B, T, each]."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(batch, length, heads, generator=generator)
    return scores.topk(each).indices.to(DEVICE)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_places_list_each_head_by_itself(data: st.DataObject) -> None:
    batch, length, heads = (data.draw(st.integers(1, most)) for most in (3, 40, 4))
    each = data.draw(st.integers(0, heads))
    every = data.draw(st.sampled_from([1, 2, 3, 16]))
    numbers = draw_numbers(
        length, batch=batch, heads=heads, each=each, seed=data.draw(st.integers(0, 2**32 - 1))
    )
    mask = write_mask(numbers, heads)
    if data.draw(st.booleans(), "some left out"):
        mask = mask & (torch.rand(mask.shape, device=DEVICE) < 0.5)
    places = packed_positions(mask, every)
    assert places.shape == (batch, heads, 2 + length) and places.dtype == torch.int32
    assert ((places[..., 2:] >= 0) & (places[..., 2:] < length)).all()
    n_checkpoints = 0
    for sequence in range(batch):
        for head in range(heads):
            count, first, *positions = places[sequence, head].tolist()
            assert positions[:count] == mask[sequence, :, head].nonzero().flatten().tolist()
            assert first == n_checkpoints
            n_checkpoints += -(-count // every)
    assert n_checkpoints <= max_checkpoints(mask.shape, each, every)


def test_room_for_checkpoints_is_that_of_what_is_written() -> None:
    shape = torch.Size((16, 512, 40))
    assert max_checkpoints(shape, 8, EVERY) == 16 * (512 * 8 + 15 * 40) // EVERY
    # No more than every head could need.
    assert max_checkpoints(shape, 40, EVERY) == 16 * 40 * 512 // EVERY
    assert max_checkpoints(torch.Size((1, 3, 2)), 2, EVERY) == 2
    assert max_checkpoints(torch.Size((1, 3, 1)), 0, EVERY) == 1


def test_mask_of_numbers_marks_each_once() -> None:
    numbers = torch.tensor([[[2, 0], [1, 1]]])
    mask = write_mask(numbers, 3)
    assert mask.tolist() == [[[True, False, True], [False, True, False]]]
    assert write_mask(mask, 3) is mask


def draw_routed(length: int, *, each: int = 1, **differing: Any) -> dict[str, Any]:
    shape = {"batch": 2, "heads": 3, "n_key": 16, "n_value": 8, "dtype": torch.float32}
    return draw(length, device=DEVICE, **{**shape, **differing})


def computed(arguments: dict[str, Tensor], written: Tensor, **switches: Any) -> dict[str, Tensor]:
    return results(
        matrix_recurrence, arguments, written=written, read="written", backend="triton", **switches
    )


def numbers_for(arguments: dict[str, Tensor], each: int) -> Tensor:
    batch, length, heads, _ = arguments["k"].shape
    return draw_numbers(length, batch=batch, heads=heads, each=each)


# Lengths around a segment of the head that is written everywhere, and of one that hardly ever is.
CASES: dict[str, tuple[int, int, dict[str, Any], dict[str, Any]]] = {
    "one position": (1, 1, {}, {}),
    "one head of three": (40, 1, {"without": ("beta", "initial_state")}, {}),
    "two heads of three, blended": (20, 2, {"batch": 1, "blend": True}, {"activation": "silu"}),
    "all heads": (17, 3, {"batch": 1, "without": ("gate",)}, {"linear_state": True}),
    "decay for each value": (
        18,
        1,
        {"batch": 1, "per_value": True},
        {"self_gate": True, "normalize": False},
    ),
    "two programs a head": (9, 2, {"batch": 1, "n_value": 24}, {"activation": "silu"}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("is_mask", [False, True], ids=["numbers", "mask"])
def test_every_result_is_the_naive_one(case: str, is_mask: bool) -> None:
    length, each, drawn, switches = CASES[case]
    arguments = draw_routed(length, **drawn)
    numbers = numbers_for(arguments, each)
    mask = write_mask(numbers, arguments["k"].shape[2])
    truth = results(
        naive_matrix_recurrence, exact(arguments), written=mask.cpu(), read="written", **switches
    )
    found = computed(arguments, mask if is_mask else numbers, **switches)
    assert_close(found, truth, FLOAT32_TOLERANCE)


def test_heads_have_any_number_of_positions() -> None:
    arguments = draw_routed(35, batch=1, heads=5, without=("beta", "gate"))
    mask = torch.zeros(1, 35, 5, dtype=torch.bool, device=DEVICE)
    for head, count in enumerate((0, 1, 16, 17, 35)):
        chosen = torch.randperm(35, generator=torch.Generator().manual_seed(head))[:count]
        mask[0, chosen.to(DEVICE), head] = True
    truth = results(naive_matrix_recurrence, exact(arguments), written=mask.cpu(), read="written")
    found = computed(arguments, mask)
    assert_close(found, truth, FLOAT32_TOLERANCE)
    assert torch.equal(found["final_state"][:, 0], arguments["initial_state"][:, 0])


def test_positions_that_are_not_written_are_never_looked_at() -> None:
    arguments = draw_routed(21, batch=1, blend=True)
    numbers = numbers_for(arguments, 1)
    left_out = ~write_mask(numbers, 3)
    expected = computed(arguments, numbers)
    spoilt = {}
    for name, x in arguments.items():
        spoilt[name] = x.detach().clone()
        if name != "initial_state":
            spoilt[name][left_out] = torch.nan
        spoilt[name].requires_grad_()
    found = computed(spoilt, numbers)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for name, x in found.items():
        if x.shape[:3] == left_out.shape:
            assert not x[left_out].any(), name


def test_nothing_is_left_unwritten_and_all_is_the_same_each_time() -> None:
    arguments = draw_routed(20, batch=1)
    numbers = numbers_for(arguments, 1)
    plain = computed(arguments, numbers)
    torch.use_deterministic_algorithms(True)  # fills every new tensor with NaN
    try:
        assert torch.empty(3, device=DEVICE).isnan().all()
        again = computed(arguments, numbers)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_states_are_kept_for_the_positions_that_are_written() -> None:
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    arguments = draw_routed(33, batch=1, heads=8)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        matrix_recurrence(
            **arguments, written=numbers_for(arguments, 2), read="written", backend="triton"
        )
    n_states = [x.shape[-2] for x in kept if x.shape[-1] == 16 * 8]
    assert n_states == [(33 * 2 + 8 * 15) // 16]  # and not 8 times 3


def test_numbers_are_a_mask_on_every_backend_and_when_all_is_read() -> None:
    arguments = draw_routed(5, batch=1)
    numbers = numbers_for(arguments, 2)
    for backend in ("torch", "triton"):
        for read in ("all", "written"):
            as_numbers, as_mask = (
                results(matrix_recurrence, arguments, written=x, read=read, backend=backend)
                for x in (numbers, write_mask(numbers, 3))
            )
            assert all(torch.equal(as_numbers[name], as_mask[name]) for name in as_mask)


def test_numbers_of_another_shape_are_refused() -> None:
    arguments = draw_routed(5)
    numbers = numbers_for(arguments, 2)
    with pytest.raises(InvalidConfiguration, match=r"written has shape .*, expected \[2, 5, 2\]"):
        matrix_recurrence(**arguments, written=numbers[:, :4])
    with pytest.raises(InvalidConfiguration, match=r"written is torch.int32, expected torch.bool"):
        matrix_recurrence(**arguments, written=numbers.int().repeat(1, 1, 2)[..., :3])


def test_compiled_operation_keeps_and_computes_the_same() -> None:
    arguments = draw_routed(3, batch=1)
    numbers = numbers_for(arguments, 1)

    def op(**tensors: Any) -> tuple[Tensor, Tensor]:
        return matrix_recurrence(**tensors, written=numbers, read="written", backend="triton")

    plain = results(op, arguments)
    compiled = results(torch.compile(op, backend="aot_eager", fullgraph=True), arguments)
    assert all(torch.equal(compiled[name], plain[name]) for name in plain)
