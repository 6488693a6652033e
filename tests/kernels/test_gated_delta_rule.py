import inspect
import math
import warnings
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.gated_delta_rule import fla_chunked, gated_delta_rule
from elmanctl.kernels.gated_delta_rule.chunked import chunked_gated_delta_rule
from elmanctl.kernels.gated_delta_rule.naive import naive_gated_delta_rule
from elmanctl.kernels.third_party import import_third_party
from elmanctl.models.backends import BACKENDS

Rule = Callable[..., tuple[Tensor, Tensor]]


def make_inputs(
    batch: int = 2,
    length: int = 150,
    heads: int = 2,
    n_key: int = 8,
    n_value: int = 12,
    *,
    rate: float = 1.0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Inputs of the rule with gradients; `rate` is about how fast a state decays."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    made = {
        "q": draw(batch, length, heads, n_key),
        "k": draw(batch, length, heads, n_key),
        "v": draw(batch, length, heads, n_value),
        "log_decay": -rate * draw(batch, length, heads).exp(),
        "beta": draw(batch, length, heads).sigmoid(),
        "initial_state": draw(batch, heads, n_key, n_value),
    }
    return {name: x.to(dtype).requires_grad_() for name, x in made.items()}


def results(rule: Rule, inputs: dict[str, Any], **settings: Any) -> dict[str, Tensor]:
    """Output, final state, and the gradients of a sum in which both have weights of their own."""
    output, state = rule(**inputs, **settings)
    generator = torch.Generator().manual_seed(99)
    total = torch.zeros(())
    for x in (output, state):
        weights = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        total = total + (x * weights).sum()
    gradients = torch.autograd.grad(total, list(inputs.values()))
    named = {f"d{name}": x for name, x in zip(inputs, gradients, strict=True)}
    return {"output": output, "state": state, **named}


def distance(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    apart = {name: distance(found[name], expected[name]) for name in expected}
    assert all(x <= tolerance for x in apart.values()), apart  # false for what is not a number


@pytest.fixture(scope="module")
def fla() -> ModuleType:
    """The reference implementations of flash-linear-attention, which must be installed."""
    with warnings.catch_warnings():
        for message, category in (
            ("Triton is not supported on current platform", UserWarning),
            ("Flash Attention is not installed", ImportWarning),
            ("`torch.jit.script_method` is deprecated", DeprecationWarning),
        ):
            warnings.filterwarnings("ignore", message, category)
        return import_third_party("fla.ops.gated_delta_rule.naive")


@pytest.mark.parametrize("function", ["naive_recurrent", "naive_chunk"])
@pytest.mark.parametrize("rule", [naive_gated_delta_rule, chunked_gated_delta_rule])
def test_rule_is_that_of_flash_linear_attention(fla: ModuleType, rule: Rule, function: str) -> None:
    theirs = getattr(fla, f"{function}_gated_delta_rule")

    def reference(
        q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, initial_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
        output, state = theirs(
            q=q,
            k=k,
            v=v,
            g=log_decay,
            beta=beta,
            initial_state=initial_state,
            output_final_state=True,
        )
        return output, state

    inputs = make_inputs(length=70, rate=0.3, dtype=torch.float32)
    assert_near(results(rule, inputs), results(reference, inputs), 3e-6)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 150])
@pytest.mark.parametrize("rate", [1e-3, 1.0, 30.0])
def test_chunks_agree_with_the_time_loop(length: int, rate: float) -> None:
    inputs = make_inputs(length=length, rate=rate)
    expected = results(naive_gated_delta_rule, inputs)
    for chunk in (1, 16, 64):
        assert_near(results(chunked_gated_delta_rule, inputs, chunk=chunk), expected, 1e-11)


def test_chunks_agree_without_an_initial_state() -> None:
    inputs = make_inputs()
    del inputs["initial_state"]
    expected = results(naive_gated_delta_rule, inputs)
    assert_near(results(chunked_gated_delta_rule, inputs), expected, 1e-11)


@pytest.mark.parametrize("rate", [1e-3, 1.0, 1e3])
def test_chunks_lose_little_in_float32(rate: float) -> None:
    exact = make_inputs(rate=rate)
    rounded = {name: x.detach().float().requires_grad_() for name, x in exact.items()}
    expected = results(naive_gated_delta_rule, exact)
    assert_near(results(chunked_gated_delta_rule, rounded), expected, 3e-6)


def test_small_decays_behind_a_large_one_are_kept() -> None:
    inputs = make_inputs(rate=1e-3)
    with torch.no_grad():
        inputs["log_decay"][:, ::20] = -1e6
    rounded = {name: x.detach().float().requires_grad_() for name, x in inputs.items()}
    expected = results(naive_gated_delta_rule, inputs)
    assert_near(results(chunked_gated_delta_rule, rounded), expected, 3e-6)


def test_decay_to_nothing_forgets_all_before_it() -> None:
    inputs = make_inputs(length=70)
    with torch.no_grad():
        inputs["log_decay"][:, 40] = -math.inf
    found = results(chunked_gated_delta_rule, inputs)
    later = {
        name: x.detach() if name == "initial_state" else x.detach()[:, 40:]
        for name, x in inputs.items()
    }
    later["initial_state"] = torch.zeros_like(later["initial_state"])
    output, state = naive_gated_delta_rule(**later)
    assert distance(found["output"][:, 40:], output) < 1e-12
    assert distance(found["state"], state) < 1e-12
    assert all(x.isfinite().all() for x in found.values())


def test_equal_keys_that_overwrite_one_another_stay_exact() -> None:
    inputs = make_inputs(length=130, rate=1e-4)
    with torch.no_grad():
        inputs["k"].copy_(inputs["k"][:, :1].expand_as(inputs["k"]))
        inputs["beta"].fill_(0.999)
    rounded = {name: x.detach().float().requires_grad_() for name, x in inputs.items()}
    expected = results(naive_gated_delta_rule, inputs)
    found = results(chunked_gated_delta_rule, rounded)
    for name in ("output", "state", "dv", "dbeta", "dinitial_state"):
        assert distance(found[name], expected[name]) < 1e-5, name


def test_keys_of_length_zero_write_nothing() -> None:
    inputs = make_inputs(length=5)
    with torch.no_grad():
        inputs["k"].zero_()
    found = results(chunked_gated_delta_rule, inputs)
    decay = inputs["log_decay"].sum(1).exp()[..., None, None]
    torch.testing.assert_close(found["state"], decay * inputs["initial_state"])
    assert all(x.isfinite().all() for x in found.values())


def test_gradients_are_those_of_finite_differences() -> None:
    inputs = make_inputs(1, 5, 1, 3, 2)
    assert torch.autograd.gradcheck(
        lambda *tensors: chunked_gated_delta_rule(*tensors[:5], initial_state=tensors[5], chunk=2),
        tuple(inputs.values()),
    )


def test_chunks_are_chosen_for_torch_and_autocast_does_not_reach_them() -> None:
    inputs = make_inputs(dtype=torch.float32)
    expected = results(chunked_gated_delta_rule, inputs)

    def under_autocast(**tensors: Any) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return gated_delta_rule(**tensors)

    assert_near(results(under_autocast, inputs), expected, 0.0)


def test_bfloat16_is_computed_in_float32() -> None:
    inputs = make_inputs(dtype=torch.float32)
    half: dict[str, Any] = {
        name: x.bfloat16() if name in "qkv" else x for name, x in inputs.items()
    }
    output, state = gated_delta_rule(**half)
    single: dict[str, Any] = {name: x.float() for name, x in half.items()}
    expected, expected_state = gated_delta_rule(**single)
    assert output.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert torch.equal(state, expected_state)
    assert torch.equal(output, expected.bfloat16())


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("q", lambda x: x[..., 1:], "q has shape"),
        ("k", lambda x: x[..., :0], "no empty axis"),
        ("k", lambda x: x.long(), "floating-point"),
        ("v", lambda x: x[:, 1:], "v has shape"),
        ("v", lambda x: x.float(), "v is torch.float32"),
        ("log_decay", lambda x: x[..., None], "log_decay has shape"),
        ("beta", lambda x: x.float(), "beta is torch.float32"),
        ("initial_state", lambda x: x.mT, "initial_state has shape"),
        ("beta", lambda x: x.to("meta"), "beta is on meta"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    name: str, change: Callable[[Tensor], Tensor], told: str
) -> None:
    inputs: dict[str, Any] = {**make_inputs(length=3)}
    inputs[name] = change(inputs[name].detach())
    with pytest.raises(InvalidConfiguration, match=told):
        gated_delta_rule(**inputs)


def test_backend_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InvalidConfiguration, match="has no backend `torhc`; it has: torch, fla"):
        gated_delta_rule(**make_inputs(length=3), backend="torhc")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fla_refuses_tensors_that_its_kernels_do_not_take(dtype: torch.dtype) -> None:
    with pytest.raises(InvalidConfiguration, match="on CUDA devices in 16 or 32 bits"):
        gated_delta_rule(**make_inputs(length=3, dtype=dtype), backend="fla")


def test_every_argument_given_to_fla_is_one_that_it_has(
    fla: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It takes unknown arguments too, and ignores them.
    entry = import_third_party("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    known = inspect.signature(entry).parameters
    given: dict[str, Any] = {}

    def record(**arguments: Any) -> tuple[str, str]:
        given.update(arguments)
        return "output", "state"

    monkeypatch.setattr(fla_chunked, "_kernel", lambda: record)
    k: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, shape=(2, 5, 3, 16))
    inputs: dict[str, Any] = {**dict.fromkeys(make_inputs(length=1)), "k": k}
    found: Any = fla_chunked.fla_gated_delta_rule(**inputs)
    assert found == ("output", "state")
    assert set(given) <= set(known)
    assert given["scale"] == 0.25 and given["k"] is k
    assert given["use_qk_l2norm_in_kernel"] and given["output_final_state"]
    left = {name: p.default for name, p in known.items() if name not in given}
    assert left["state_v_first"] is False and left["use_beta_sigmoid_in_kernel"] is False


# The kernels take TF32 for some products of float32.
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-3), ("bfloat16", 2e-2)])
@pytest.mark.parametrize(("length", "n_key", "n_value"), [(150, 64, 128), (64, 24, 48)])
def test_kernels_of_fla_agree_with_torch(
    dtype: str, tolerance: float, length: int, n_key: int, n_value: int
) -> None:
    fault = BACKENDS["fla"].unavailable_reason("cuda")
    if fault:
        pytest.skip(fault)
    inputs = make_inputs(2, length, 3, n_key, n_value, rate=0.1, dtype=torch.float32)
    moved = {
        name: x.detach().to("cuda", getattr(torch, dtype) if name in "qkv" else None)
        for name, x in inputs.items()
    }
    moved = {name: x.requires_grad_() for name, x in moved.items()}
    exact = {name: x.detach().double().requires_grad_() for name, x in moved.items()}

    def on_fla(**tensors: Tensor) -> tuple[Tensor, Tensor]:
        return gated_delta_rule(**tensors, backend="fla")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what fla and Triton warn of is theirs
        found = results(on_fla, moved)
    assert_near(found, results(gated_delta_rule, exact), tolerance)
