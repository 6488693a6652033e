"""Small configurations of every family: a fixed one, and a hypothesis strategy."""

from dataclasses import fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from hypothesis import reject
from hypothesis import strategies as st

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.config import VARIANTS, FamilyConfig
from elmanctl.models.registry import FAMILIES, decode_config

# One configuration of each family that trains in seconds; lr is one that learns in 150 steps.
SMALL: dict[str, dict[str, Any]] = {
    "e88": {"dim": 48, "depth": 2, "n_heads": 4, "n_state": 8, "lr": 1e-2},
    "e90": {"dim": 48, "depth": 1, "n_heads": 3, "k_fast": 4, "k_slow": 8, "lr": 1e-2},
    "e75": {"dim": 48, "depth": 2, "n_heads": 4, "n_state": 8, "lr": 1e-2},
    "e87": {"dim": 48, "depth": 2, "n_blocks": 4, "top_k": 2, "n_state": 8, "lr": 1e-2},
    "mom-e88": {"dim": 48, "depth": 1, "n_heads": 6, "top_k": 3, "n_state": 8, "lr": 1e-2},
    "mamba2": {"dim": 32, "depth": 2, "d_state": 8, "head_dim": 32, "lr": 1e-2},
    "fla-gdn": {"dim": 32, "depth": 2, "n_heads": 2, "lr": 1e-2},
    "transformer": {"dim": 48, "depth": 2, "n_heads": 3, "head_dim": 16, "lr": 1e-2},
    "mingru": {"dim": 64, "depth": 2, "expansion": 1.5, "lr": 1e-2},
    "minlstm": {"dim": 64, "depth": 2, "expansion": 1.5, "lr": 1e-2},
    "gru": {"dim": 64, "depth": 1, "lr": 1e-2},
    "lstm": {"dim": 64, "depth": 2, "lr": 1e-2},
    "e1": {"dim": 64, "depth": 2, "lr": 1e-2},
    "e0": {"dim": 64, "depth": 2, "lr": 1e-2},
    "e42": {"dim": 64, "depth": 2, "lr": 1e-2},
}

# What may be drawn for settings whose own range is too wide for a test, or too rarely right.
_RANGES: dict[str, st.SearchStrategy[Any]] = {
    "dim": st.integers(1, 3).map(lambda times: 16 * times),
    "depth": st.integers(1, 3),
    "n_heads": st.integers(1, 5),
    "n_state": st.sampled_from([8, 16, 32]),
    "k_fast": st.sampled_from([4, 8, 16]),
    "k_slow": st.sampled_from([8, 16, 24]),
    "n_blocks": st.integers(1, 5),
    "top_k": st.integers(1, 5),
    "d_state": st.sampled_from([1, 8, 16]),
    "expand": st.integers(1, 3),
    "expansion": st.sampled_from([0.5, 1.0, 1.5, 2.0]),
    "d_conv": st.integers(2, 5),
    "head_dim": st.sampled_from([8, 16]),
    "dropout": st.sampled_from([0.0, 0.1]),
    "balance_weight": st.sampled_from([0.0, 0.01]),
    "router_noise": st.sampled_from([0.0, 0.1]),
    "spectral_radius": st.sampled_from([0.5, 0.999]),
    "unused_norm_weight": st.just(False),
}


def small_config(family: str, **changes: Any) -> FamilyConfig:
    """Return the small configuration of a family with some changes."""
    settings = {name: value for name, value in SMALL[family].items() if name != "lr"}
    return decode_config(family, {**settings, **changes})


@st.composite
def drawn_configs(draw: st.DrawFn, family: str) -> FamilyConfig:
    """Draw a configuration over all settings of a family, rejecting invalid ones."""
    config_class = FAMILIES[family].load_config()
    hints = get_type_hints(config_class, include_extras=True)
    names = [f.name for f in fields(config_class) if f.name not in ("level", "variant")]
    settings = {name: draw(_values(name, hints[name])) for name in names}
    try:
        config = decode_config(family, settings, draw(st.sampled_from(VARIANTS)))
        config.check_backend("torch")
        return config
    except InvalidConfiguration:
        reject()


def _values(name: str, annotation: Any) -> st.SearchStrategy[Any]:
    if name in _RANGES:
        return _RANGES[name]
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if get_origin(annotation) is Annotated:
        kind, between = get_args(annotation)
        return (
            st.floats(between.low, between.high)
            if kind is float
            else st.integers(between.low, between.high)
        )
    assert annotation is bool, f"no range of values for `{name}`"
    return st.booleans()
