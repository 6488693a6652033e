import copy
import math
import weakref
from functools import partial

import pytest
import torch

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.configs.mom_e88 import MomE88Config
from tests.models import cases
from tests.models.layers import (
    assert_decay_starts_in_range,
    assert_fills,
    build_model,
    xavier_bound,
)

make_config = partial(cases.make_config, "mom-e88")
make_layer = partial(cases.make_layer, "mom-e88")
STUDY = "study-2026-01"


BOTH = pytest.mark.parametrize("variant", ["documented", STUDY])


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
        MomE88Config.decode(
            {name: value for name, value in cases.BASE["mom-e88"].items() if name != "top_k"}
        )


def test_projections_start_within_their_own_xavier_bounds() -> None:
    layer = cases.new_layer("mom-e88", dim=64, n_heads=16, n_state=16, expansion=2.0)
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
    assert_decay_starts_in_range(cases.new_layer("mom-e88", n_heads=2000).decay)


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


def test_flops_count_the_memories_that_are_chosen() -> None:
    # Router and decay of 4 heads; queries, keys, values and gate of 4 by 4; one head's output.
    matrices = 12 * (4 + 4 + 4 * 16 + 4)
    for top_k in (1, 3):
        for variant in ("documented", STUDY):
            chosen = 8 * top_k * 4 * 4 + 2 * 2 * top_k * 4
            config = make_config(top_k=top_k, variant=variant)
            assert config.layer_flops(64) == 2 * matrices + chosen
