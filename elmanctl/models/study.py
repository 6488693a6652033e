"""The study's own names of models and settings, for counting and rebuilding what really ran.

The trainer of January 2026 took every flag with every level and read only some of them; levels
fixed sizes, and flags that said otherwise were overruled without a word.  The tables hold what it
did: the levels and what each stood for, what applied where the command line was silent, and which
flags a model read.  Printed parameter counts prove whatever changes a count.
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
    """Levels of one form: their family, what they fix, and what they imply where flags are silent.

    The named groups of `pattern` are settings that the level fixes too.
    """

    pattern: str
    family: str
    fixes: Mapping[str, Any] = field(default_factory=dict)
    implies: Mapping[str, Any] = field(default_factory=dict)


_H = r"h(?P<n_heads>[1-9][0-9]{0,5})"
_N = r"n(?P<n_state>[1-9][0-9]{0,5})"
_B = r"b(?P<n_blocks>[1-9][0-9]{0,5})"
_K = r"k(?P<top_k>[1-9][0-9]{0,5})"

# The first E88, of 20 January, and those of the 22nd, which kept the weight of a norm unused.
_FIRST = {"use_gate": True, "use_conv": True, "output_norm": True}
_GATED = {"use_gate": True, "unused_norm_weight": True}
_BARE = {"use_gate": False, "unused_norm_weight": True}

# Our names stand beside the study's, so that in the study's variant both mean the same model; the
# first match counts.
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
    # These three the trainer knew by name, and took their size from the command line.
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

# What the command line stood for where it was silent.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "e88": {"n_state": 64, **_MATRIX_STATE},
    "e90": {"k_fast": 16, "k_slow": 48, **_MATRIX_STATE},
    "e75": {"expansion": 1.0},
    "e87": {"expansion": 1.0},
    "mom-e88": {"n_state": 64, **_MATRIX_STATE},
    # Until 23 January the trainer built 128 states, whatever the command line said.
    "mamba2": {"d_state": 64, "expand": 2},
    "fla-gdn": {"expansion": 1.0},
    # The feed-forward part followed from `dim`; what the command line said changed nothing.
    "transformer": {},
    "mingru": {"expansion": 1.0},
    "minlstm": {"expansion": 1.0},
    "gru": {"expansion": 1.0},
    "lstm": {"expansion": 1.0},
    "e1": {"expansion": 1.0},
    "e0": {"expansion": 1.0},
    "e42": {"expansion": 1.0},
}

# Flags of the models, by our names.  A family that does not read one had it dropped; any other
# setting that it does not know is left for its configuration to refuse.
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
    "mingru": {"expansion"},
    "minlstm": {"expansion"},
    "gru": {"expansion"},
    "lstm": {"expansion"},
    "e1": {"expansion", "r_h_mode"},
    "e0": {"expansion", "r_h_mode"},
    "e42": {"expansion", "r_h_mode"},
}

_OUR_NAMES = {
    "mamba_d_state": "d_state",
    "mamba_expand": "expand",
    "conv_size": "d_conv",
    "decay_mode": "decay",
    "use_output_norm": "output_norm",
}

# Some flags are one of a few words for what are switches here.
_SWITCHES: Mapping[str, Mapping[Any, Mapping[str, Any]]] = {
    "output_norm_weight": {
        True: {"output_norm": True, "unused_norm_weight": False},
        False: {"output_norm": False, "unused_norm_weight": False},
        "unused weight": {"output_norm": False, "unused_norm_weight": True},
    },
    # `auto` is what each level implies by itself.
    "r_h_mode": {
        "auto": {},
        "spectral_norm": {"spectral_norm": True},
        "none": {"spectral_norm": False},
    },
}

# The command line had 0 and 1 for these.
_BOOLEANS = (
    {"use_gate", "linear_state", "use_conv", "write_gate", "output_norm", "value_residual"}
    | {"tie_kv", "unused_norm_weight", "output_norm_weight", "post_conv", "spectral_norm"}
    | {"reset_after", "two_biases"}
)

MOST_SLOTS = 32
"""How many slots a mixture of memories had at most where the command line was silent."""


def translate(level: str, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a level and settings of ours for those of the study; ours are left as they are.

    A level outranks settings that say otherwise.  Levels and settings that the study did not know
    are returned unchanged.
    Raises InvalidConfiguration when a setting stands there twice, by different names and unequal.
    """
    found = _find_spelling(level)
    if found is None:
        return level, settings
    spelling, fixed = found
    family = spelling.family
    told = _rename(level, settings, _FLAGS - _READ[family])
    complete = {**_DEFAULTS[family], **spelling.implies, **told, **fixed}
    if family == "mom-e88" and type(heads := complete.get("n_heads")) is int:
        complete.setdefault("top_k", min(MOST_SLOTS, heads))
    return family, complete


def _find_spelling(level: str) -> tuple[_Spelling, dict[str, Any]] | None:
    """The first form that a level has, and all that the level fixes."""
    folded = level.strip().casefold()
    for spelling in _SPELLINGS:
        match = re.fullmatch(spelling.pattern, folded)
        if match:
            numbers = {name: int(told) for name, told in match.groupdict().items() if told}
            return spelling, {**spelling.fixes, **numbers}
    return None


def _rename(level: str, settings: Mapping[str, Any], unread: Set[str]) -> dict[str, Any]:
    """Settings by our names, with our values, without those that are not read."""
    ours: dict[str, Any] = {}
    for flag, value in settings.items():
        name = _OUR_NAMES.get(flag, flag)
        if name in unread:
            continue
        if name in _BOOLEANS and type(value) is int and value in (0, 1):
            value = bool(value)
        words = _SWITCHES.get(name, {})
        is_word = isinstance(value, str | bool) and value in words
        for setting, meant in words[value].items() if is_word else [(name, value)]:
            if ours.setdefault(setting, meant) != meant:
                raise InvalidConfiguration(
                    f"{level}: `{flag}` is {value!r}, but `{setting}` is already {ours[setting]!r}",
                    hint="leave one of them out",
                )
    return ours
