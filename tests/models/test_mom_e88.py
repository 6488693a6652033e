import copy
import math
import weakref
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.configs.mom_e88 import MomE88Config
from elmanctl.models.mom_e88 import MomE88Layer
from elmanctl.models.params import count_parameters
from tests.models.layers import (
    assert_autocast_trains,
    assert_computes,
    assert_decay_starts_in_range,
    assert_fills,
    build_model,
    count,
    is_reached,
    randomized,
    selective_decay,
    silu,
    state_in_bfloat16,
    xavier_bound,
)

STUDY = "study-2026-01"
BASE: dict[str, Any] = {"dim": 12, "depth": 2, "n_heads": 4, "top_k": 2, "n_state": 4}

SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one at a time": {"top_k": 1},
    "all at once": {"top_k": 4},
    "wide values": {"expansion": 1.5},
    "no gate": {"use_gate": False},
    "sigmoid gate": {"gate_activation": "sigmoid"},
}
BOTH = pytest.mark.parametrize("variant", ["documented", STUDY])


def make_config(**changes: Any) -> MomE88Config:
    return MomE88Config.decode({**BASE, **changes})


def make_layer(**changes: Any) -> Any:
    return randomized(MomE88Layer(make_config(**changes), "torch"))


def equations(layer: MomE88Layer, x: Tensor) -> Tensor:
    """MoM-E88 of one sequence [T, dim] in evaluation, position by position."""
    config, weights = layer.config, dict(layer.named_parameters())
    study = config.variant == STUDY
    memories: dict[int, Tensor] = {}
    rows = []
    for now in x:
        p = torch.exp(weights["router.weight"] @ now)
        p = p / p.sum()
        ranked = sorted(range(config.n_heads), key=lambda head: -p[head].item())[: config.top_k]
        o, g = torch.zeros(2, config.head_values).double()
        for rank, head in enumerate(ranked):
            q, k = (part(weights, name, head, config.n_state, now) for name in ("query", "key"))
            v = part(weights, "value", head, config.head_values, now)
            q, k = (vector / (vector.norm() + (1e-6 if study else 0.0)) for vector in (q, k))
            place = rank if study else head
            state = memories.get(place, torch.zeros(config.n_state, config.head_values).double())
            delta = v - state.T @ k
            state = torch.tanh(
                selective_decay(weights, "decay", head, now) * state + torch.outer(k, delta)
            )
            memories[place] = state
            weight = p[head] / p[ranked].sum()
            o = o + weight * (state.T @ q)
            if config.use_gate:
                gates = weights["gate.weight"] @ now
                g = g + weight * gates[head * config.head_values :][: config.head_values]
        if config.use_gate:
            o = o * (g if config.gate_activation == "silu" else 1.0) * torch.sigmoid(g)
        rows.append(weights["out.weight"] @ o)
    return torch.stack(rows)


def part(weights: Mapping[str, Tensor], name: str, head: int, width: int, x: Tensor) -> Tensor:
    return silu(weights[f"{name}.weight"][head * width :][:width] @ x)


@BOTH
@pytest.mark.parametrize("switch", SWITCHES)
def test_layer_computes_its_equations(switch: str, variant: str) -> None:
    assert_computes(make_layer(variant=variant, **SWITCHES[switch]).eval(), equations)


@BOTH
def test_gradients_are_those_of_the_equations(variant: str) -> None:
    layer = make_layer(variant=variant).eval()
    x = torch.randn(1, 9, 12, dtype=torch.float64, requires_grad=True)
    wanted = [x, *layer.parameters()]
    for gradient, expected in zip(
        torch.autograd.grad(layer(x)[0].square().sum(), wanted),
        torch.autograd.grad(equations(layer, x[0]).square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-10)


def test_two_pieces_give_the_whole_of_the_study_too() -> None:
    layer = make_layer(variant=STUDY).eval()
    x = torch.randn(2, 19, 12, dtype=torch.float64)
    whole, last = layer(x)
    first, state = layer(x[:, :8])
    second, after = layer(x[:, 8:], state)
    torch.testing.assert_close(torch.cat((first, second), 1), whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(after, last, rtol=1e-10, atol=1e-12)


def test_memories_that_are_not_chosen_stay_as_they_are() -> None:
    layer = make_layer().eval()
    x = torch.randn(1, 1, 12, dtype=torch.float64)
    before = torch.randn(1, 4, 4, 4, dtype=torch.float64)
    _, after = layer(x, before)
    chosen = (layer.router(x)).topk(2).indices.flatten().tolist()
    changed = [head for head in range(4) if not torch.equal(before[0, head], after[0, head])]
    assert changed == sorted(chosen)


@pytest.mark.parametrize("switch", SWITCHES)
def test_count_of_the_study_is_that_of_the_built_model(switch: str) -> None:
    config = make_config(variant=STUDY, **SWITCHES[switch])
    assert count(config) == sum(p.numel() for p in build_model(config, seed=0).parameters())


@pytest.mark.parametrize(
    "change",
    [
        *({"dim": 16}, {"depth": 3}, {"n_heads": 5}, {"top_k": 3}, {"n_state": 8}),
        *({"expansion": 0.5}, {"use_gate": False}, {"gate_activation": "sigmoid"}),
        {"variant": STUDY},
    ],
    ids=str,
)
def test_every_setting_reaches_the_model(change: dict[str, Any]) -> None:
    assert is_reached(make_config(), make_config(**change))


def test_top_k_reaches_the_state_of_the_study_alone() -> None:
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    for variant, sizes in (("documented", [4, 4]), (STUDY, [2, 3])):
        told, found = [], []
        for top_k in (2, 3):
            layer = make_layer(variant=variant, top_k=top_k, expansion=1.5)
            told.append(layer.config.layer_state_size(5))
            found.append(tuple(layer(x)[1].shape))
        assert told == [memories * 4 * 6 for memories in sizes]
        assert found == [(3, memories, 4, 6) for memories in sizes]


@pytest.mark.parametrize(
    ("dim", "depth", "n_heads", "top_k", "n_state", "count"),
    [
        (128, 31, 256, 72, 48, 197_309_952),
        (2048, 9, 101, 17, 64, 482_027_290),
        (2944, 14, 60, 9, 48, 482_532_112),
        (3840, 12, 40, 8, 64, 479_528_640),
        (7936, 9, 34, 8, 48, 476_652_644),
    ],
)
@BOTH
def test_counts_are_those_of_the_study(
    variant: str, dim: int, depth: int, n_heads: int, top_k: int, n_state: int, count: int
) -> None:
    sizes = {"dim": dim, "depth": depth, "n_heads": n_heads, "top_k": top_k, "n_state": n_state}
    assert count_parameters("mom-e88", sizes, variant) == count


@pytest.mark.parametrize(
    ("changes", "said", "hint"),
    [
        ({"top_k": 5}, "`top_k` is 5, but there are 4 heads", "from 1 to 4"),
        ({"top_k": 0}, "`top_k` is 0", None),
        ({"n_state": 5}, "n_state=5 is not supported", None),
        ({"expansion": 1.1}, r"17(\.6)? values .* cannot be divided evenly", "1.0 and 1.25"),
        ({"expansion": 0.0}, "0 values", "0.25"),
        ({"balance_weight": 1.5}, "`balance_weight` is 1.5", None),
        ({"router_noise": -0.1}, "`router_noise` is -0.1", None),
    ],
)
@BOTH
def test_what_cannot_be_built_is_refused(
    variant: str, changes: dict[str, Any], said: str, hint: str | None
) -> None:
    with pytest.raises(InvalidConfiguration, match=said) as caught:
        make_config(variant=variant, **changes)
    assert hint is None or hint in str(caught.value.hint)


def test_expansion_is_cut_in_the_study_alone() -> None:
    # 16 keys and 20.32 values, of which 20 could be shared out to 4 heads.
    uneven = {"expansion": 1.27}
    with pytest.raises(
        InvalidConfiguration, match=r"20\.32 values .* evenly among 4 heads"
    ) as caught:
        make_config(**uneven)
    assert caught.value.hint == "the nearest valid expansions are 1.25 and 1.5"
    assert make_config(**uneven, variant=STUDY).head_values == 5
    assert make_config(expansion=1.25).head_values == 5


def test_top_k_must_be_told() -> None:
    with pytest.raises(InvalidConfiguration, match="needs the setting `top_k`"):
        MomE88Config.decode({name: value for name, value in BASE.items() if name != "top_k"})


def test_projections_start_within_their_own_xavier_bounds() -> None:
    layer = MomE88Layer(make_config(dim=64, n_heads=16, n_state=16, expansion=2.0), "torch")
    outputs = {
        **{"router": 16, "query": 256, "key": 256, "value": 512},
        **{"decay.projection": 16, "gate": 512},
    }
    bounds = {f"{name}.weight": xavier_bound(64, n) for name, n in outputs.items()}
    bounds["out.weight"] = xavier_bound(64, 32)
    weights = dict(layer.named_parameters())
    assert set(weights) == {*bounds, "decay.log_rate", "decay.step_bias"}
    assert_fills(bounds, weights, 0.98)


def test_decay_starts_in_the_range_of_the_study() -> None:
    assert_decay_starts_in_range(MomE88Layer(make_config(n_heads=2000), "torch").decay)


def test_balance_loss_is_its_formula() -> None:
    layer = make_layer(router_noise=0.0, balance_weight=0.5)
    x = torch.randn(3, 7, 12, dtype=torch.float64)
    layer(x)
    scores = [layer.router.weight @ position for position in x.flatten(0, 1)]
    exponentials = [torch.exp(score) for score in scores]
    shares = torch.stack([each / each.sum() for each in exponentials]).sum(0) / 21
    small = sum(torch.log(each.sum()) ** 2 for each in exponentials) / 21
    expected = 0.5 * (4 * shares.square().sum() + 0.001 * small)
    torch.testing.assert_close(layer.auxiliary_loss, expected, rtol=1e-12, atol=0)


def test_balance_loss_trains_the_router_alone_towards_equal_use() -> None:
    layer = make_layer(router_noise=0.0, balance_weight=1.0)
    x = 1 + 0.5 * torch.randn(2, 9, 12, dtype=torch.float64)
    losses = []
    for _ in range(200):
        layer.zero_grad()
        layer(x)
        layer.auxiliary_loss.backward()
        assert [name for name, p in layer.named_parameters() if p.grad is not None] == [
            "router.weight"
        ]
        losses.append(layer.auxiliary_loss.item())
        with torch.no_grad():
            layer.router.weight -= 0.05 * layer.router.weight.grad
    assert losses[0] > 1.05 and losses[-1] < 1.01


def test_balance_loss_reaches_the_gradients_of_a_model_once_for_each_layer() -> None:
    tokens = torch.randint(256, (2, 21))
    plain, balanced = (
        build_model(make_config(balance_weight=weight, router_noise=0.0), seed=0)
        for weight in (0.0, 0.25)
    )
    losses = [model.loss(tokens).item() for model in (plain, balanced)]
    assert losses[0] == losses[1] and plain.auxiliary_loss() == 0.0
    added = balanced.auxiliary_loss()
    assert added.item() == pytest.approx(sum(m.auxiliary_loss.item() for m in balanced.layers))
    assert added.item() == pytest.approx(2 * 0.25, rel=0.2)  # 1 is the least of H sum f^2


def test_balance_loss_of_a_pass_is_not_left_for_the_next() -> None:
    model = build_model(make_config(), seed=0)
    tokens = torch.randint(256, (2, 21))
    first = model.loss(tokens) + model.auxiliary_loss()
    first.backward()
    assert (model.loss(tokens[:1]) + model.auxiliary_loss()).item() != first.item()
    model.eval()
    assert model.auxiliary_loss() == 0.0
    model.loss(tokens)
    assert model.auxiliary_loss() == 0.0
    model.train()
    assert model.auxiliary_loss() == 0.0
    with torch.no_grad():
        model.loss(tokens)
    assert not model.auxiliary_loss().requires_grad


def test_evaluation_keeps_no_graph_of_the_training_before() -> None:
    layer = make_layer()
    layer(torch.randn(1, 3, 12, dtype=torch.float64))
    loss = weakref.ref(layer.auxiliary_loss)
    assert loss() is not None
    layer.eval()
    assert loss() is None


def test_copy_of_a_model_in_training_has_no_loss_of_its_own_yet() -> None:
    layer = make_layer()
    layer(torch.randn(1, 3, 12, dtype=torch.float64))
    again = copy.deepcopy(layer)
    assert again.auxiliary_loss == 0.0 and layer.auxiliary_loss > 0
    assert torch.equal(again.router.weight, layer.router.weight)


def test_study_never_trained_by_the_balance_loss() -> None:
    model = build_model(make_config(variant=STUDY, balance_weight=1.0), seed=0)
    model.loss(torch.randint(256, (2, 21)))
    assert model.auxiliary_loss() == 0.0


@BOTH
def test_router_is_noisy_in_training_alone(variant: str) -> None:
    noisy, quiet = (make_layer(variant=variant, router_noise=noise) for noise in (0.5, 0.0))
    quiet.load_state_dict(noisy.state_dict())
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    exact = quiet(x)[0]
    first, second = noisy(x)[0], noisy(x)[0]
    assert not torch.equal(first, second) and not torch.equal(first, exact)
    assert torch.equal(noisy.eval()(x)[0], exact) and torch.equal(quiet.eval()(x)[0], exact)


def test_noise_has_the_deviation_that_is_set() -> None:
    layer = make_layer(router_noise=0.25, balance_weight=1.0)
    with torch.no_grad():
        layer.router.weight.zero_()
    layer(torch.zeros(64, 512, 12, dtype=torch.float64))
    # With noise e alone: f = 1/H, and logsumexp(e) is log H + mean(e) + var/2 to second order.
    from_noise = (layer.auxiliary_loss.item() - 1.0) / 1e-3 - math.log(4) ** 2
    expected = (math.log(4) + 0.5 * 0.25**2 * 3 / 4) ** 2 + 0.25**2 / 4 - math.log(4) ** 2
    assert from_noise == pytest.approx(expected, rel=0.1)


def test_top_1_leaves_the_router_to_the_balance_loss() -> None:
    for weight in (0.0, 0.1):
        model = build_model(make_config(top_k=1, balance_weight=weight), seed=0)
        (model.loss(torch.randint(256, (2, 21))) + model.auxiliary_loss()).backward()
        moved = model.layers[0].router.weight.grad.abs().max() > 1e-9
        assert moved == bool(weight)


@BOTH
@pytest.mark.parametrize("switch", SWITCHES)
def test_weights_in_bfloat16_run_and_keep_their_state_in_float32(switch: str, variant: str) -> None:
    layer = MomE88Layer(make_config(variant=variant, **SWITCHES[switch]), "torch")
    assert state_in_bfloat16(layer).dtype == torch.float32


@BOTH
@pytest.mark.parametrize("switch", SWITCHES)
def test_autocast_trains_every_switch(switch: str, variant: str) -> None:
    assert_autocast_trains(make_config(variant=variant, router_noise=0.0, **SWITCHES[switch]))


def test_flops_count_the_memories_that_are_chosen() -> None:
    # Router and decay of 4 heads; queries, keys, values and gate of 4 by 4; one head's output.
    matrices = 12 * (4 + 4 + 4 * 16 + 4)
    for top_k in (1, 3):
        for variant in ("documented", STUDY):
            chosen = 8 * top_k * 4 * 4 + 2 * 2 * top_k * 4
            config = make_config(top_k=top_k, variant=variant)
            assert config.layer_flops(64) == 2 * matrices + chosen
