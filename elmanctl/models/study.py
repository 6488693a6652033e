"""Translation of the study's levels and settings, to count and rebuild the models that ran.

The trainer of January 2026 accepted every flag with every level but read only some of them; levels
fixed sizes and silently overrode conflicting flags.  The tables below record that behavior: the
meaning of each level, the defaults of the command line, and the flags that each model read.
Parameter counts printed by the study verify everything that affects a count.
"""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from elmanctl.errors import InvalidConfiguration
from elmanctl.models.configs.e75 import LEVEL_STATE as STATE_OF_E75
from elmanctl.models.configs.e87 import LEVEL_STATES as STATES_OF_E87


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spelling:
    """A form of levels: its family, the settings it fixes, and the defaults it implies.

    The named groups of `pattern` are settings that the level fixes as well.
    """

    pattern: str
    family: str
    fixes: Mapping[str, Any] = field(default_factory=dict)
    implies: Mapping[str, Any] = field(default_factory=dict)


_H = r"h(?P<n_heads>[1-9][0-9]{0,5})"
_N = r"n(?P<n_state>[1-9][0-9]{0,5})"
_B = r"b(?P<n_blocks>[1-9][0-9]{0,5})"
_K = r"k(?P<top_k>[1-9][0-9]{0,5})"

# The first E88, of 20 January, and those of the 22nd, which had an unused norm weight.
_FIRST = {"use_gate": True, "use_conv": True, "output_norm": True}
_GATED = {"use_gate": True, "unused_norm_weight": True}
_BARE = {"use_gate": False, "unused_norm_weight": True}

# In the study's variant our own names work as well as the study's; the first match wins.
_SPELLINGS = (
    _Spelling(pattern="e88", family="e88"),
    _Spelling(pattern=f"e88{_H}({_N})?", family="e88", implies=_FIRST),
    _Spelling(pattern=f"e88_{_H}{_N}", family="e88", implies=_BARE),
    _Spelling(
        pattern="e88b_nonorm", family="e88", fixes={"n_heads": 16, "n_state": 32}, implies=_GATED
    ),
    _Spelling(pattern=f"e88c_{_H}{_N}", family="e88", implies=_GATED),
    _Spelling(pattern=f"e88d_{_H}", family="e88", fixes={"n_state": 32}, implies=_BARE),
    _Spelling(pattern=f"e88e_{_H}_75m", family="e88", fixes={"n_state": 32}, implies=_BARE),
    _Spelling(pattern=f"e88f_{_H}{_N}", family="e88", implies=_BARE),
    _Spelling(pattern=f"e90({_H})?", family="e90"),
    # The trainer knew these three by name and took their size from the command line.
    _Spelling(pattern=r"e75h(?P<n_heads>[248])", family="e75", implies={"n_state": 64}),
    _Spelling(pattern=f"e75{_H}", family="e75", fixes={"n_state": STATE_OF_E75}),
    _Spelling(pattern=f"e75({_H}{_N})?", family="e75"),
    _Spelling(pattern=f"e75pc({_H}{_N})?", family="e75", fixes={"post_conv": True}),
    _Spelling(pattern="87", family="e87", fixes={"n_blocks": 4, "top_k": 2, "n_state": 32}),
    _Spelling(pattern="e87", family="e87"),
    *(
        _Spelling(
            pattern=rf"e?87b(?P<n_blocks>{blocks}){_K}", family="e87", fixes={"n_state": size}
        )
        for blocks, size in STATES_OF_E87.items()
    ),
    _Spelling(pattern=f"e?87{_B}{_K}{_N}", family="e87"),
    _Spelling(pattern=f"mome88|mom|mom-e88({_H}({_K})?({_N})?)?", family="mom-e88"),
    _Spelling(pattern="mamba2", family="mamba2"),
    _Spelling(pattern=f"fla-gdn({_H})?", family="fla-gdn"),
    _Spelling(pattern=f"llama|transformer({_H})?", family="transformer"),
    _Spelling(pattern="mingru", family="mingru"),
    _Spelling(pattern="minlstm", family="minlstm"),
    _Spelling(pattern="cudagru", family="gru", fixes={"reset_after": False}),
    _Spelling(pattern="gru", family="gru", implies={"reset_after": True}),
    _Spelling(pattern="cudalstm", family="lstm", fixes={"two_biases": False}),
    _Spelling(pattern="lstm", family="lstm", implies={"two_biases": True}),
    _Spelling(pattern="e?1", family="e1", implies={"spectral_norm": True}),
    _Spelling(pattern="e?0", family="e0", implies={"spectral_norm": False}),
    _Spelling(pattern="e?42", family="e42"),
)

_MATRIX_STATE = {"expansion": 1.0, "use_gate": True, "gate_activation": "sigmoid"}

# Defaults of the command line.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "e88": {"n_state": 64, **_MATRIX_STATE},
    "e90": {"k_fast": 16, "k_slow": 48, **_MATRIX_STATE},
    "e75": {"expansion": 1.0},
    "e87": {"expansion": 1.0},
    "mom-e88": {"n_state": 64, **_MATRIX_STATE},
    # Until 23 January the trainer always built 128 states and ignored the flag.
    "mamba2": {"d_state": 64, "expand": 2},
    "fla-gdn": {"expansion": 1.0},
    # The width of the feed-forward sublayer followed from `dim`; the flag had no effect.
    "transformer": {},
    **{family: {"expansion": 1.0} for family in ("mingru", "minlstm", "gru", "lstm")},
    **{family: {"expansion": 1.0} for family in ("e1", "e0", "e42")},
}

# Flags of the models, by our names.  Flags that a family does not read are dropped; its
# configuration rejects all other unknown settings.
_GATES = {"use_gate", "gate_activation"}
_FLAGS = frozenset(
    {"n_heads", "n_state", "expansion", "linear_state", "top_k", "k_fast", "k_slow"}
    | {"d_state", "expand", "decay", "write_gate", "value_residual", "r_h_mode", *_GATES}
)
_READ: Mapping[str, set[str]] = {
    "e88": {"n_heads", "n_state", "expansion", "linear_state", *_GATES}
    | {"decay", "write_gate", "value_residual"},
    "e90": {"n_heads", "k_fast", "k_slow", "expansion", *_GATES},
    "e75": {"n_heads", "n_state", "expansion"},
    "e87": {"top_k", "n_state", "expansion"},
    "mom-e88": {"n_heads", "top_k", "n_state", "expansion", *_GATES},
    "mamba2": {"d_state", "expand"},
    "fla-gdn": {"n_heads", "expansion"},
    "transformer": {"n_heads", "expansion"},
    **{family: {"expansion"} for family in ("mingru", "minlstm", "gru", "lstm")},
    **{family: {"expansion", "r_h_mode"} for family in ("e1", "e0", "e42")},
}

_OUR_NAMES = {
    "mamba_d_state": "d_state",
    "mamba_expand": "expand",
    "conv_size": "d_conv",
    "decay_mode": "decay",
    "use_output_norm": "output_norm",
}

# Flags whose values correspond to boolean settings here.
_SWITCHES: Mapping[str, Mapping[Any, Mapping[str, Any]]] = {
    "output_norm_weight": {
        True: {"output_norm": True, "unused_norm_weight": False},
        False: {"output_norm": False, "unused_norm_weight": False},
        "unused weight": {"output_norm": False, "unused_norm_weight": True},
    },
    # `auto` is the default that each level implies.
    "r_h_mode": {
        "auto": {},
        "spectral_norm": {"spectral_norm": True},
        "none": {"spectral_norm": False},
    },
}

# Flags for which the command line took 0 or 1.
_BOOLEANS = (
    {"use_gate", "linear_state", "use_conv", "write_gate", "output_norm", "value_residual"}
    | {"tie_kv", "unused_norm_weight", "output_norm_weight", "post_conv", "spectral_norm"}
    | {"reset_after", "two_biases"}
)

_MAX_TOP_K = 32
"""Maximum default of `top_k` for a mixture of memories."""


def translate(level: str, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Translate a level and settings of the study to ours, which pass through unchanged.

    A level overrides conflicting settings.  Levels and settings unknown to the study are returned
    unchanged.
    Raises InvalidConfiguration if a setting is given twice, by different names and values.
    """
    found = _find_spelling(level)
    if found is None:
        return level, settings
    spelling, fixed = found
    family = spelling.family
    renamed = _rename(level, settings, _FLAGS - _READ[family])
    complete = {**_DEFAULTS[family], **spelling.implies, **renamed, **fixed}
    if family == "mom-e88" and type(heads := complete.get("n_heads")) is int:
        complete.setdefault("top_k", min(_MAX_TOP_K, heads))
    return family, complete


def _find_spelling(level: str) -> tuple[_Spelling, dict[str, Any]] | None:
    """Return the first form that matches a level, and the settings that the level fixes."""
    folded = level.strip().casefold()
    for spelling in _SPELLINGS:
        match = re.fullmatch(spelling.pattern, folded)
        if match:
            numbers = {name: int(digits) for name, digits in match.groupdict().items() if digits}
            return spelling, {**spelling.fixes, **numbers}
    return None


def _rename(level: str, settings: Mapping[str, Any], unread: Set[str]) -> dict[str, Any]:
    """Convert settings to our names and values, dropping those that are not read."""
    ours: dict[str, Any] = {}
    for flag, value in settings.items():
        name = _OUR_NAMES.get(flag, flag)
        if name in unread:
            continue
        if name in _BOOLEANS and type(value) is int and value in (0, 1):
            value = bool(value)
        choices = _SWITCHES.get(name, {})
        is_choice = isinstance(value, str | bool) and value in choices
        for setting, converted in choices[value].items() if is_choice else [(name, value)]:
            if ours.setdefault(setting, converted) != converted:
                raise InvalidConfiguration(
                    f"{level}: `{flag}` is {value!r}, but `{setting}` is already {ours[setting]!r}",
                    hint="leave one of them out",
                )
    return ours
