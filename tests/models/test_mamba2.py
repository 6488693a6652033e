import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.configs.mamba2 import Mamba2Config
from elmanctl.models.mamba_ssm import load
from elmanctl.models.params import flops_per_token, solve_dim, state_size
from tests.models import cases

make_config = partial(cases.make_config, "mamba2")
make_layer = partial(cases.make_layer, "mamba2")
new_layer = partial(cases.new_layer, "mamba2")
SIZES = {"plain": {}, **cases.SWITCHES["mamba2"]}


# Our names of the weights, and the package's.
NAMES = {
    "in_proj.weight": "in_proj.weight",
    "conv.conv.weight": "conv1d.weight",
    "conv.conv.bias": "conv1d.bias",
    "step_bias": "dt_bias",
    "log_rate": "A_log",
    "skip": "D",
    "norm.weight": "norm.weight",
    "out_proj.weight": "out_proj.weight",
}


def package_layer(config: Mamba2Config) -> Any:
    layer: Any = load("mamba_ssm.modules.mamba2").Mamba2(
        config.dim,
        d_state=config.d_state,
        d_conv=config.d_conv,
        expand=config.expand,
        headdim=config.head_dim,
        use_mem_eff_path=False,
    )
    return layer


@pytest.fixture
def package_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the layer of mamba-ssm on the package's own references in plain torch."""
    module = load("mamba_ssm.modules.mamba2")
    reference = load("mamba_ssm.ops.triton.ssd_combined").ssd_chunk_scan_combined_ref
    norms = load("mamba_ssm.ops.triton.layernorm_gated")

    def scan(*tensors: Tensor, chunk_size: int, **options: Any) -> Tensor:
        told = {name: options[name] for name in ("D", "z", "dt_bias", "dt_softplus")}
        y: Tensor = reference(*tensors, chunk_size=8, **told)
        return y

    monkeypatch.setattr(module, "mamba_chunk_scan_combined", scan)
    monkeypatch.setattr(norms, "rmsnorm_fn", norms.rms_norm_ref)
    for name in ("causal_conv1d_fn", "causal_conv1d_update", "selective_state_update"):
        monkeypatch.setattr(module, name, None)


def both_layers(**changes: Any) -> tuple[Any, Any]:
    """Return our layer and the package's with equal weights, in float64."""
    ours = make_layer(**changes)
    theirs = package_layer(ours.config).double()
    weights = ours.state_dict()
    theirs.load_state_dict({NAMES[name]: weight for name, weight in weights.items()})
    return ours, theirs


@pytest.mark.usefixtures("package_on_cpu")
@pytest.mark.parametrize("size", SIZES)
def test_layer_of_mamba_ssm_gives_the_same_output_and_gradients(size: str) -> None:
    ours, theirs = both_layers(**SIZES[size])
    u = torch.randn(2, 24, ours.config.dim, dtype=torch.float64)
    weight = torch.randn(2, 24, ours.config.dim, dtype=torch.float64)
    found, expected = ours(u)[0], theirs(u)
    # The references of the package take steps and norms to float32.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for layer, y in ((ours, found), (theirs, expected)):
        (weight * y).sum().backward()
        assert all(p.grad is not None for p in layer.parameters())
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        expected = gradients[NAMES[name]]
        assert (parameter.grad - expected).norm() < 1e-5 * expected.norm(), name


@pytest.mark.usefixtures("package_on_cpu")
@torch.no_grad()
def test_mamba_ssm_generating_step_by_step_gives_what_pieces_with_a_state_give() -> None:
    ours, theirs = both_layers()
    u = torch.randn(2, 20, 12, dtype=torch.float64)
    conv_state, memory = theirs.allocate_inference_cache(2, 20)
    expected = [theirs.step(u[:, t : t + 1], conv_state, memory)[0] for t in range(20)]
    state: Any = None
    found = []
    for piece in (slice(0, 1), slice(1, 3), slice(3, 20)):
        y, state = ours(u[:, piece], state)
        found.append(y)
    torch.testing.assert_close(torch.cat(found, 1), torch.cat(expected, 1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state.memory, memory, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_weights_start_as_those_of_mamba_ssm_from_the_same_seed(size: str) -> None:
    config = make_config(**SIZES[size])
    torch.manual_seed(5)
    ours = dict(new_layer(**SIZES[size]).named_parameters())
    torch.manual_seed(5)
    theirs = dict(package_layer(config).named_parameters())
    assert {NAMES[name] for name in ours} == set(theirs)
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[NAMES[name]], rtol=1e-5, atol=0)


def test_decay_starts_in_the_range_of_the_package() -> None:
    layer = new_layer(dim=1000, expand=8, d_state=1)
    rate, step = layer.log_rate.exp(), F.softplus(layer.step_bias)
    assert 1 <= rate.min() < 1.1 and 15.9 < rate.max() <= 16 * (1 + 1e-6)
    assert rate.mean().item() == pytest.approx(8.5, abs=0.5)
    assert 1e-3 * (1 - 1e-3) <= step.min() < 1.1e-3 and 0.09 < step.max() <= 0.1 * (1 + 1e-5)
    assert step.log().mean().item() == pytest.approx(math.log(1e-2), abs=0.15)
    assert torch.equal(layer.skip, torch.ones(1000))


@pytest.mark.parametrize(
    "change", [{"d_state": 6}, {"expand": 4}, {"head_dim": 16}, {"d_conv": 3}], ids=str
)
def test_every_size_reaches_count_and_state(change: dict[str, Any]) -> None:
    base, changed = make_config(dim=16), make_config(dim=16, **change)
    assert base.layer_parameters() != changed.layer_parameters()
    same_state = bool(change.keys() & {"head_dim", "d_conv"})
    assert (base.layer_state_size(64) == changed.layer_state_size(64)) == same_state


def test_sizes_of_the_studys_best() -> None:
    config = {"dim": 1792, "depth": 25}
    assert state_size("mamba2", config) == 3584 * 64
    # Twice the weights of the projections and the convolution, and five per entry of the state.
    projections = 1792 * (2 * 3584 + 2 * 64 + 56) + 3584 * 1792
    layer = 2 * (projections + 4 * (3584 + 128)) + 5 * 3584 * 64 + 3 * 3584
    assert flops_per_token("mamba2", config) == 25 * layer + 2 * 256 * 1792


@pytest.mark.parametrize(
    ("settings", "divisor"),
    [
        ({}, 32),
        ({"expand": 1}, 64),
        ({"expand": 8, "head_dim": 8}, 1),
        ({"expand": 6, "head_dim": 16}, 8),
        ({"expand": 3, "head_dim": 128}, 128),
        ({"expand": 1.5}, 1),
        ({"head_dim": 0}, 1),
    ],
)
def test_dims_come_in_steps_that_make_whole_heads(settings: dict[str, Any], divisor: int) -> None:
    assert Mamba2Config.dim_divisor(settings) == divisor


def test_solving_for_a_dim_says_what_is_wrong_with_the_rest() -> None:
    found = solve_dim("mamba2", {"depth": 2}, target=10**6, tolerance=0.2, multiple_of=1)
    assert found % 32 == 0
    with pytest.raises(InvalidConfiguration, match="`expand` must be a whole number"):
        solve_dim("mamba2", {"depth": 2, "expand": 1.5}, target=10**6, tolerance=0.1)


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_step_rate_and_state_are_float32_whatever_the_weights_are(how: str) -> None:
    layer = new_layer()
    if how == "weights":
        layer = layer.bfloat16()
    u = torch.randn(2, 70, 12).to(layer.skip.dtype)
    scan, seen = layer._scan, []

    def watched(x: Tensor, step: Tensor, rate: Tensor, *rest: Tensor, **options: Any) -> Any:
        seen.append((x.dtype, step.dtype, rate.dtype))
        return scan(x, step, rate, *rest, **options)

    layer._scan = watched
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        y, state = layer(u)
        y, state = layer(u, state)
    assert y.dtype == torch.bfloat16 and y.isfinite().all()
    assert seen == 2 * [(torch.bfloat16, torch.float32, torch.float32)]
    assert state.memory.dtype == torch.float32
