from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elmanctl.models.params import count_parameters, parameter_breakdown, solve_dim, state_size
from elmanctl.models.registry import build_model, decode_config


@st.composite
def e88_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Small configurations over every setting of E88."""
    n_state = draw(st.sampled_from([4, 8, 12]))
    tie_kv = draw(st.booleans())
    head_values = n_state if tie_kv else draw(st.integers(1, 2 * n_state))
    return {
        "dim": draw(st.integers(1, 24)),
        "depth": draw(st.integers(1, 3)),
        "n_heads": draw(st.integers(1, 5)),
        "n_state": n_state,
        "expansion": head_values / n_state,
        "decay": draw(st.sampled_from(["mamba", "simple", "none", "constant"])),
        "gate_activation": draw(st.sampled_from(["silu", "sigmoid"])),
        "d_conv": draw(st.integers(2, 5)),
        "tie_kv": tie_kv,
        **{
            switch: draw(st.booleans())
            for switch in (
                "use_gate",
                "linear_state",
                "write_gate",
                "use_conv",
                "output_norm",
                "value_residual",
            )
        },
    }


@settings(max_examples=120, deadline=None)
@given(config=e88_settings())
def test_predicted_count_is_that_of_the_built_model(config: dict[str, Any]) -> None:
    model = build_model(decode_config("e88", config), seed=0)
    parts = parameter_breakdown("e88", config)
    assert count_parameters("e88", config) == sum(p.numel() for p in model.parameters())
    built = {
        part: sum(p.numel() for name, p in model.named_parameters() if name.startswith(prefixes))
        for part, prefixes in {
            "embedding": ("embedding.",),
            "blocks": ("layers.",),
            "norms": ("norms.", "final_norm."),
            "head": ("head.",),
        }.items()
    }
    assert built == parts


@settings(max_examples=60, deadline=None)
@given(config=e88_settings(), length=st.integers(1, 20))
def test_any_model_runs_forward_and_backward(config: dict[str, Any], length: int) -> None:
    model = build_model(decode_config("e88", config), seed=0)
    tokens = torch.arange(2 * length).view(2, length) * 37 % 256
    logits, states = model(tokens)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert [state.memory[0].numel() for state in states] == [state_size("e88", config)] * config[
        "depth"
    ]


@settings(max_examples=60, deadline=None)
@given(config=e88_settings(), multiple_of=st.integers(1, 64), times=st.integers(1, 40))
def test_dim_of_a_count_is_found_again(
    config: dict[str, Any], multiple_of: int, times: int
) -> None:
    dim = multiple_of * times
    target = count_parameters("e88", {**config, "dim": dim})
    rest = {name: value for name, value in config.items() if name != "dim"}
    found = solve_dim("e88", rest, target=target, tolerance=0.0, multiple_of=multiple_of)
    assert found == dim
