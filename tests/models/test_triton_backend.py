"""Models on our own kernels against the same models on backend `torch`.

Kernels run in Triton's interpreter where there is no GPU, which takes seconds for what a GPU does
in no time: models are tiny, and all tests but one have a whole state in one tile.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.matrix_recurrence import triton as op
from elmanctl.kernels.matrix_recurrence.routing import write_mask
from elmanctl.models.backends import resolve_backend
from elmanctl.models.config import DOCUMENTED, STUDY, FamilyConfig
from elmanctl.models.memory import activation_bytes
from elmanctl.models.registry import decode_config
from tests.kernels.interpreted import DEVICE
from tests.kernels.recurrences import widen_tiles
from tests.models.layers import build_model, saved_bytes

TOLERANCE = 1e-5
FAMILIES = ("e88", "e90", "e75", "e87", "mom-e88")

SMALL: dict[str, dict[str, Any]] = {
    "e88": {"n_heads": 2, "n_state": 16},
    "e90": {"n_heads": 2, "k_fast": 16, "k_slow": 16},
    "e75": {"n_heads": 2, "n_state": 16},
    "e87": {"n_blocks": 3, "top_k": 2, "n_state": 16},
    "mom-e88": {"n_heads": 3, "top_k": 2, "n_state": 16, "router_noise": 0.0},
}

# How many positions come first, and how many go on from their state.
PIECES = (2, 17)

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "e88": ("e88", DOCUMENTED, {}),
    "e88 with all additions": (
        "e88",
        DOCUMENTED,
        {"use_conv": True, "write_gate": True, "value_residual": True, "output_norm": True},
    ),
    "e88 with tied keys, gate outside": (
        "e88",
        DOCUMENTED,
        {"tie_kv": True, "value_residual": True, "gate_activation": "sigmoid"},
    ),
    "e88, linear, with wide values": (
        "e88",
        DOCUMENTED,
        {"n_heads": 1, "expansion": 1.5, "linear_state": True},
    ),
    "e88 of the study": ("e88", STUDY, {"n_heads": 1, "linear_state": True}),
    "e90": ("e90", DOCUMENTED, {}),
    "e90 of the study": ("e90", STUDY, {"k_slow": 32, "expansion": 0.53}),
    "e75": ("e75", DOCUMENTED, {"use_conv": True}),
    "e75, convolved after": ("e75", DOCUMENTED, {"n_heads": 1, "post_conv": True}),
    "e75 of the study": ("e75", STUDY, {"n_heads": 1, "post_conv": True, "expansion": 2.0}),
    "e87": ("e87", DOCUMENTED, {}),
    "e87 of the study": ("e87", STUDY, {"use_conv": True}),
    "mom-e88": ("mom-e88", DOCUMENTED, {}),
    "mom-e88, one at a time": ("mom-e88", DOCUMENTED, {"top_k": 1, "use_gate": False}),
    "mom-e88 of the study": ("mom-e88", STUDY, {}),
}


def small_config(family: str, variant: str = DOCUMENTED, **changes: Any) -> FamilyConfig:
    return decode_config(family, {"dim": 16, "depth": 1, **SMALL[family], **changes}, variant)


def make_model(config: FamilyConfig, backend: str) -> Any:
    """A model whose every parameter is random, on the device of the tests, in training."""
    model = build_model(config, seed=0, backend=backend, device=DEVICE)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.to(DEVICE).train()


def draw_bytes(*shape: int) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(2)).to(DEVICE)


def tensors_of(state: Any) -> list[Tensor]:
    """All tensors of the states of all layers."""
    if isinstance(state, Tensor):
        return [state]
    return [] if state is None else [tensor for part in state for tensor in tensors_of(part)]


def results(model: Any, pieces: tuple[int, ...]) -> dict[str, Any]:
    """Logits, state, and gradients of the loss, of bytes that are read in pieces."""
    tokens = draw_bytes(1, sum(pieces) + 1)
    state, logits = None, []
    added: Tensor | float = 0.0
    for piece in torch.split(tokens[:, :-1], list(pieces), dim=1):
        found, state = model(piece, state)
        logits.append(found)
        added = added + model.auxiliary_loss()
    joined = torch.cat(logits, dim=1)
    (F.cross_entropy(joined.flatten(0, 1), tokens[:, 1:].flatten()) + added).backward()
    states = {f"state {n}": x.detach() for n, x in enumerate(tensors_of(state))}
    return {
        "logits": joined.detach(),
        **states,
        **{f"d_{name}": p.grad for name, p in model.named_parameters()},
    }


def assert_equal_on_both(config: FamilyConfig, pieces: tuple[int, ...]) -> None:
    actual, expected = (results(make_model(config, b), pieces) for b in ("triton", "torch"))
    assert actual.keys() == expected.keys()
    for name, truth in expected.items():
        assert truth.any(), name
        error = (actual[name] - truth).norm() / truth.norm()
        assert error <= TOLERANCE, f"{name}: {error:.1e}"


@pytest.fixture
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        widen_tiles(monkeypatch)


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize("case", CASES)
def test_model_computes_what_it_computes_on_torch(case: str) -> None:
    family, variant, changes = CASES[case]
    assert_equal_on_both(small_config(family, variant, **changes), PIECES)


def test_model_computes_the_same_by_the_tiles_of_a_gpu() -> None:
    assert_equal_on_both(small_config("e88", n_heads=1), (5,))


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_keep_less_for_the_gradient_than_is_estimated(family: str) -> None:
    thin, deep = (small_config(family, depth=depth) for depth in (1, 2))
    kept = [saved_bytes(make_model(config, "triton"), 1, 32) for config in (thin, deep)]
    estimated = activation_bytes(deep, 32) - activation_bytes(thin, 32)
    assert 0.5 * estimated < kept[1] - kept[0] < 0.8 * estimated


Call = dict[str, Any]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What the kernels were given, by name, one entry a call."""
    noted: list[Call] = []
    launched = op.triton_matrix_recurrence

    def note(tensors: op.Tensors, flags: op.Flags) -> tuple[Tensor, Tensor]:
        noted.append({**tensors._asdict(), "flags": flags})
        return launched(tensors, flags)

    monkeypatch.setattr(op, "triton_matrix_recurrence", note)
    return noted


def run(family: str, calls: list[Call], variant: str = DOCUMENTED, **changes: Any) -> list[Call]:
    """The calls of one position of a model."""
    with torch.no_grad():
        make_model(small_config(family, variant, **changes), "triton")(draw_bytes(1, 1))
    return calls


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", [DOCUMENTED, STUDY])
def test_every_recurrence_of_a_model_runs_on_the_kernels(
    family: str, variant: str, calls: list[Call]
) -> None:
    assert len(run(family, calls, variant)) == (2 if family == "e90" else 1)


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize("family", ["e88", "e90"])
def test_queries_keys_and_values_are_read_where_they_were_projected(
    family: str, calls: list[Call]
) -> None:
    for call in run(family, calls):
        memory = {call[name].untyped_storage().data_ptr() for name in ("q", "k", "v")}
        assert len(memory) == 1
        assert call["flags"].activate and call["flags"].normalize


@pytest.mark.usefixtures("large_tiles")
def test_gate_of_e88_is_left_to_the_kernel_where_nothing_comes_between(calls: list[Call]) -> None:
    assert run("e88", calls)[-1]["gate"] is not None
    assert run("e88", calls, output_norm=True)[-1]["gate"] is None


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize("family", ["e75", "e87"])
def test_gate_of_the_read_out_is_left_to_the_kernel(family: str, calls: list[Call]) -> None:
    assert run(family, calls)[-1]["flags"].self_gate


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize("family", ["e87", "mom-e88"])
def test_what_a_router_leaves_alone_is_told_to_the_kernel(family: str, calls: list[Call]) -> None:
    call = run(family, calls)[-1]
    assert write_mask(call["written"], 3).sum(-1).tolist() == [[2]] and call["blend"] is None
    assert call["flags"].read_all == (family == "e87")


@pytest.mark.usefixtures("large_tiles")
def test_shares_of_the_study_are_of_written_blocks_alone(calls: list[Call]) -> None:
    call = run("e87", calls, STUDY)[-1]
    assert torch.equal(call["blend"] > 0, call["written"])
    assert call["written"].sum() == 2


@pytest.mark.usefixtures("large_tiles")
def test_compiled_model_is_one_graph_and_computes_the_same() -> None:
    model = make_model(small_config("e88", n_heads=1), "triton")
    tokens = draw_bytes(1, 4)
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    found = []
    for function in (model.loss, compiled):
        model.zero_grad(set_to_none=True)
        loss = function(tokens)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_takes_no_interpreted_kernel_on_a_cpu(family: str) -> None:
    assert build_model(small_config(family), seed=0, device="cpu").backend == "torch"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("e88", {"n_state": 20}, "n_state=20 .* triton backend; nearest supported: 16 and 24"),
    ("e88", {"n_state": 96}, "n_state=96 .* nearest supported: 64"),
    ("e88", {"expansion": 1.25}, "values of a head=20 .* nearest supported: 16 and 24"),
    ("e90", {"k_slow": 20}, "`k_slow`: n_state=20 .* nearest supported: 16 and 24"),
    ("e90", {"expansion": 0.75}, "`k_fast`: values of a head=12 .* supported: 8 and 16"),
    ("e87", {"n_state": 12}, "n_state=12 .* nearest supported: 8 and 16"),
    ("mom-e88", {"expansion": 0.25}, "values of a head=4 .* nearest supported: 8"),
]


@pytest.mark.parametrize(("family", "changes", "said"), REFUSED)
def test_size_without_a_kernel_is_refused_before_a_model_is_built(
    family: str, changes: dict[str, Any], said: str
) -> None:
    config = small_config(family, **changes)
    with pytest.raises(InvalidConfiguration, match=said):
        build_model(config, seed=0, backend="triton", device=DEVICE)
    assert resolve_backend(family, ("triton", "torch"), "auto", config, "cpu") == "torch"


@pytest.mark.usefixtures("large_tiles")
@pytest.mark.parametrize("case", CASES)
def test_autocast_trains_as_on_torch(case: str) -> None:
    family, variant, changes = CASES[case]
    tokens = draw_bytes(2, 200) if DEVICE == "cuda" else draw_bytes(1, 5)
    losses = []
    for backend in ("triton", "torch"):
        model = make_model(small_config(family, variant, **changes), backend)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            loss = model.loss(tokens)
        objective = loss + model.auxiliary_loss()
        objective.backward()
        losses.append(objective.item())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
