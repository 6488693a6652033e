import importlib.util
import math
import sys
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.models.backends import BACKENDS, resolve_backend
from elmanctl.models.configs.gated_delta_net import GatedDeltaNetConfig
from elmanctl.models.params import count_parameters, solve_dim
from elmanctl.models.registry import decode_config
from tests.models import cases
from tests.models.layers import (
    assert_decay_starts_in_range,
    assert_fills,
    build_model,
)

make_config = partial(cases.make_config, "fla-gdn")
make_layer = partial(cases.make_layer, "fla-gdn")
STUDY: dict[str, Any] = {"variant": "study-2026-01", "expansion": 2.0}


SIZES = {
    "plain": (3, 4, 6),
    "other width than dim": (2, 5, 10),
    "one head": (1, 8, 12),
    "narrow values": (3, 4, 1),
    "no convolution": (3, 4, 6),
    "long convolution": (3, 4, 6),
    "study": (1, 12, 24),
}


@pytest.mark.parametrize("switch", SIZES)
def test_state_has_the_heads_keys_and_values_of_the_configuration(switch: str) -> None:
    settings = {"plain": {}, **cases.SWITCHES["fla-gdn"]}[switch]
    _, state = make_layer(**settings)(torch.randn(2, 19, 12, dtype=torch.float64))
    assert state.memory.shape == (2, *SIZES[switch])


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"dim": 1920}, (15, 128, 256)),
        ({"dim": 64}, (1, 64, 128)),
        ({"dim": 3}, (1, 8, 16)),
        ({"dim": 895}, (6, 144, 288)),
        ({"dim": 1920, "n_heads": 19}, (19, 96, 192)),
        ({"dim": 1920, "head_dim": 96}, (15, 96, 192)),
        ({"dim": 1920, "n_heads": 24, "head_dim": 64, "expansion": 1.0}, (24, 64, 64)),
    ],
)
def test_sizes_of_heads_follow_from_the_width_unless_they_are_set(
    settings: dict[str, Any], sizes: tuple[int, int, int]
) -> None:
    config = GatedDeltaNetConfig(depth=1, **settings)
    assert (config.heads, config.head_keys, config.head_values) == sizes
    assert config.layer_state_size(512) == math.prod(sizes)


@pytest.mark.parametrize("settings", [{}, {"n_heads": 7}, {"head_dim": 40}], ids=str)
@pytest.mark.parametrize("expansion", [0.125, 2.0, 16.0])
def test_count_grows_with_every_step_of_the_width(
    settings: dict[str, Any], expansion: float
) -> None:
    counts = [
        count_parameters("fla-gdn", {"dim": dim, "depth": 1, "expansion": expansion, **settings})
        for dim in [*range(1, 1300, 3), *range(2600, 2720)]
    ]
    assert all(low < high for low, high in pairwise(counts))


def test_study_has_a_convolution_in_any_case() -> None:
    sizes: dict[str, Any] = {"dim": 768, "depth": 20, "expansion": 1.0}
    config = GatedDeltaNetConfig(**sizes, variant="study-2026-01", use_conv=False)
    assert count_parameters("fla-gdn", config.encode()) == 59_566_576
    assert config.has_conv


def test_heads_of_the_study_are_as_many_as_divide_the_width() -> None:
    heads = {dim: make_config(dim=dim, **STUDY).heads for dim in (64, 100, 1000, 1920, 1936)}
    assert heads == {64: 1, 100: 1, 1000: 5, 1920: 15, 1936: 11}


def test_width_of_the_study_is_solved_for_in_steps_of_128() -> None:
    settings = {"depth": 17, "variant": "study-2026-01", "expansion": 2.0}
    found = solve_dim("fla-gdn", settings, target=503_382_782, tolerance=0.0, multiple_of=1)
    assert found == 1920


def test_level_sets_the_heads() -> None:
    config = decode_config("fla-gdnh5", {"dim": 64, "depth": 1})
    assert isinstance(config, GatedDeltaNetConfig)
    assert (config.heads, config.head_keys) == (5, 8)


@pytest.mark.parametrize("variant", ["documented", "study-2026-01"])
def test_values_that_are_no_whole_number_are_refused(variant: Any) -> None:
    with pytest.raises(InvalidConfiguration, match=r"128 keys.* gives it 166\.4 values") as caught:
        GatedDeltaNetConfig(dim=128, depth=1, expansion=1.3, variant=variant)
    assert "1.296875 (166) and 1.3046875 (167)" in str(caught.value.hint)
    for expansion in (1.296875, 1.3046875):
        GatedDeltaNetConfig(dim=128, depth=1, expansion=expansion, variant=variant)
    with pytest.raises(InvalidConfiguration, match="gives it 0 values"):
        GatedDeltaNetConfig(dim=128, depth=1, expansion=0.0, variant=variant)


def test_values_almost_whole_are_refused_but_rounding_is_not_held_against_them() -> None:
    with pytest.raises(InvalidConfiguration, match="positive integer"):
        make_config(expansion=1.50001)
    assert make_config(head_dim=25, expansion=1.16).head_values == 29


def test_projections_and_convolution_start_as_those_of_torch() -> None:
    layer = cases.new_layer("fla-gdn", dim=64, n_heads=4, head_dim=16)
    bounds = {
        "mixed.weight": 1 / math.sqrt(64),
        "rate.weight": 1 / math.sqrt(64),
        "gate.weight": 1 / math.sqrt(64),
        "decay.projection.weight": 1 / math.sqrt(64),
        "out.weight": 1 / math.sqrt(96),
        "conv.conv.weight": 1 / math.sqrt(4),
    }
    weights = dict(layer.named_parameters())
    assert set(weights) == {*bounds, "decay.log_rate", "decay.step_bias", "norm.weight"}
    assert_fills(bounds, weights, 0.95)
    assert torch.equal(layer.norm.weight, torch.ones(24))


def test_decay_starts_in_the_range_of_the_package() -> None:
    assert_decay_starts_in_range(cases.new_layer("fla-gdn", n_heads=2000).decay)


class FakeMachine:
    """A machine with a CUDA device and the given packages."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.packages = {"fla", "triton", "einops", "torch"}
        find_spec = importlib.util.find_spec
        patch.setattr(
            importlib.util,
            "find_spec",
            lambda name: find_spec("re") if name in self.packages else None,
        )
        patch.setattr(torch.cuda, "is_available", lambda: True)
        for name in ("CUDA_HOME", "CUDA_PATH"):
            patch.delenv(name, raising=False)
        patch.setattr("shutil.which", lambda name: None)
        patch.setattr("pathlib.Path.exists", lambda path: False)
        self.set(capability=(9, 0), triton_version="3.7.1")

    def set(self, *, capability: tuple[int, int], triton_version: str) -> None:
        self._patch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        self._patch.setitem(sys.modules, "triton", SimpleNamespace(__version__=triton_version))

    def fault(self) -> str | None:
        return BACKENDS["fla"].unavailable_reason("cuda")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    return FakeMachine(monkeypatch)


def test_fla_is_usable_where_its_gradients_are_right(machine: FakeMachine) -> None:
    for capability, version in (
        ((9, 0), "3.7.1"),
        ((9, 0), "3.9.0+git1234"),
        ((9, 0), "3.3.1"),
        ((8, 0), "3.6.0"),
        ((10, 0), "3.6.0"),
    ):
        machine.set(capability=capability, triton_version=version)
        assert machine.fault() is None, (capability, version)


@pytest.mark.parametrize("version", ["3.4.0", "3.6.0", "3.7.0"])
def test_fla_is_refused_on_hopper_where_its_gradients_fail(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    machine.set(capability=(9, 0), triton_version=version)
    fault = machine.fault()
    assert fault is not None and f"triton is {version}" in fault and "3.7.1" in fault
    assert "tilelang, which is not installed" in fault and "triton 3.7.1" in BACKENDS["fla"].fix
    machine.packages.add("tilelang")
    assert "tilelang, which finds no nvcc" in str(machine.fault())
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert machine.fault() is None


def test_fla_is_refused_without_its_packages_or_a_device(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert BACKENDS["fla"].unavailable_reason("cpu") == "its kernels run on cuda, not on cpu"
    for package, told in (
        ("einops", "einops is not installed"),
        ("triton", "triton is not installed"),
        ("fla", "flash-linear-attention is not installed"),
    ):
        machine.packages.discard(package)
        assert machine.fault() == told
    machine.packages |= {"fla", "triton", "einops"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.fault() == "torch sees no CUDA device"


def test_auto_takes_fla_where_it_computes_the_model(machine: FakeMachine) -> None:
    def chosen(**changes: Any) -> str:
        return resolve_backend("fla-gdn", ("fla", "torch"), "auto", make_config(**changes), "cuda")

    assert chosen() == "fla"
    assert chosen(head_dim=264) == "torch"
    machine.set(capability=(9, 0), triton_version="3.6.0")
    assert chosen() == "torch"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"head_dim": 258, "expansion": 1.0}, "at most 256 keys per head, not 258"),
        ({"head_dim": 7, "expansion": 2.0}, "even widths, not 7 keys and 14 values"),
        ({"head_dim": 6, "expansion": 0.5}, "even widths, not 6 keys and 3 values"),
    ],
)
def test_heads_that_fla_does_not_compute_are_refused(change: dict[str, Any], told: str) -> None:
    config = make_config(**change)
    with pytest.raises(InvalidConfiguration, match=told):
        build_model(config, seed=0, backend="fla", device="cuda")
    build_model(config, seed=0, backend="torch")
    assert "256 keys" in config.backend_limits("fla") and config.backend_limits("torch") == ""


def test_fla_that_is_named_but_cannot_run_is_no_silent_fall_back() -> None:
    with pytest.raises(EnvironmentNotReady, match="`fla` cannot run here: its kernels run on cuda"):
        build_model(make_config(), seed=0, backend="fla", device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_model_on_fla_has_the_loss_and_gradients_of_the_model_on_torch() -> None:
    fault = BACKENDS["fla"].unavailable_reason("cuda")
    if fault:
        pytest.skip(fault)
    config = GatedDeltaNetConfig(dim=128, depth=2, n_heads=2, head_dim=64)
    tokens = torch.randint(256, (2, 200), device="cuda")
    seen: dict[str, tuple[float, Tensor]] = {}
    for backend in ("fla", "torch"):
        model: Any = build_model(config, seed=0, backend=backend, device="cuda").cuda()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model.loss(tokens)
        loss.backward()
        seen[backend] = loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])
    assert seen["fla"][0] == pytest.approx(seen["torch"][0], rel=2e-3)
    apart = (seen["fla"][1] - seen["torch"][1]).norm() / seen["torch"][1].norm()
    assert apart < 0.03
