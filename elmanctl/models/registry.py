"""Which model families exist, and where their configuration and their code are."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from elmanctl.constants import INSTALL_TRAIN
from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration, NotFound
from elmanctl.models.backends import resolve_backend
from elmanctl.models.config import DOCUMENTED, STUDY, VARIANTS, FamilyConfig, refuse_unknown
from elmanctl.models.levels import Grammar, Level, nearest_level
from elmanctl.models.levels import parse_level as parse_by_grammar
from elmanctl.models.study import translate

# The command line lists families and must not wait for torch.
if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A kind of model; everything it names as `module:name` is imported when it is used.

    `config` is its FamilyConfig, which holds sizes and checks.  `layer` is called with the
    configuration and the name of a backend and returns the modules of one layer: one module, or a
    list where a layer takes several steps of the residual stream.  `backends` are its
    implementations, the fastest first.  `spellings` are other names of it in levels with the
    settings they stand for, `letters` what may follow any of its names.
    """

    name: str
    summary: str
    config: str
    layer: str
    model: str = "elmanctl.models.lm:LanguageModel"
    backends: tuple[str, ...] = ("torch",)
    spellings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    letters: Mapping[str, str] = field(default_factory=dict)

    def load_config(self) -> type[FamilyConfig]:
        """Import and return the class of the configuration."""
        found: type[FamilyConfig] = _load(self.config)
        return found

    def load_layer(self) -> "Callable[..., nn.Module | list[nn.Module]]":
        """Import and return what makes the modules of one layer."""
        made: Callable[..., nn.Module | list[nn.Module]] = _load(self.layer)
        return made

    def load_model(self) -> "Callable[..., nn.Module]":
        """Import and return the class of the whole model."""
        model: Callable[..., nn.Module] = _load(self.model)
        return model

    @property
    def grammar(self) -> Grammar:
        """How levels of this family are spelled."""
        names = {self.name: {}, **self.spellings}
        return Grammar(family=self.name, names=names, letters=self.letters)


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="e88",
            summary="Nonlinear recurrence of matrix states with a delta-rule write",
            config="elmanctl.models.configs.e88:E88Config",
            layer="elmanctl.models.e88:E88Layer",
            backends=("triton", "gluon", "torch"),
            letters={"h": "n_heads", "n": "n_state"},
        ),
        Family(
            name="e90",
            summary="E88 with a fast and a slow state in each head",
            config="elmanctl.models.configs.e90:E90Config",
            layer="elmanctl.models.e90:E90Layer",
            backends=("triton", "gluon", "torch"),
            letters={"h": "n_heads"},
        ),
        Family(
            name="e75",
            summary="Matrix states with a gate for each row, read by themselves",
            config="elmanctl.models.configs.e75:E75Config",
            layer="elmanctl.models.e75:E75Layer",
            backends=("triton", "torch"),
            letters={"h": "n_heads", "n": "n_state"},
            spellings={"e75pc": {"post_conv": True}},
        ),
        Family(
            name="e87",
            summary="Blocks of memory of which a router writes a few",
            config="elmanctl.models.configs.e87:E87Config",
            layer="elmanctl.models.e87:E87Layer",
            backends=("triton", "torch"),
            spellings={"87": {}},
            letters={"b": "n_blocks", "k": "top_k", "n": "n_state"},
        ),
        Family(
            name="mom-e88",
            summary="E88 memories of which a router writes and reads a few",
            config="elmanctl.models.configs.mom_e88:MomE88Config",
            layer="elmanctl.models.mom_e88:MomE88Layer",
            backends=("triton", "torch"),
            letters={"h": "n_heads", "k": "top_k", "n": "n_state"},
        ),
        Family(
            name="mamba2",
            summary="Mamba2: selective state space, scalar decay for each head",
            config="elmanctl.models.configs.mamba2:Mamba2Config",
            layer="elmanctl.models.mamba2:Mamba2Layer",
            backends=("mamba-ssm", "torch"),
        ),
        Family(
            name="fla-gdn",
            summary="Gated delta net: linear delta rule with a decay",
            config="elmanctl.models.configs.gated_delta_net:GatedDeltaNetConfig",
            layer="elmanctl.models.gated_delta_net:GatedDeltaNetLayer",
            backends=("fla", "torch"),
            letters={"h": "n_heads"},
        ),
        Family(
            name="transformer",
            summary="Pre-norm transformer: rotary attention and SwiGLU",
            config="elmanctl.models.configs.transformer:TransformerConfig",
            layer="elmanctl.models.transformer:make_layer",
            letters={"h": "n_heads"},
        ),
        Family(
            name="mingru",
            summary="MinGRU: a gate and a candidate that do not see the state",
            config="elmanctl.models.configs.min_rnn:MinGRUConfig",
            layer="elmanctl.models.min_rnn:MinGRULayer",
            backends=("triton", "torch"),
        ),
        Family(
            name="minlstm",
            summary="MinLSTM: two gates that do not see the state",
            config="elmanctl.models.configs.min_rnn:MinLSTMConfig",
            layer="elmanctl.models.min_rnn:MinLSTMLayer",
            backends=("triton", "torch"),
        ),
        Family(
            name="gru",
            summary="GRU between two projections",
            config="elmanctl.models.configs.gru_lstm:GRUConfig",
            layer="elmanctl.models.gru_lstm:GRULayer",
            backends=("cudnn", "torch"),
        ),
        Family(
            name="lstm",
            summary="LSTM between two projections",
            config="elmanctl.models.configs.gru_lstm:LSTMConfig",
            layer="elmanctl.models.gru_lstm:LSTMLayer",
            backends=("cudnn", "torch"),
        ),
        Family(
            name="e1",
            summary="Elman network with a gate beside it",
            config="elmanctl.models.configs.elman:E1Config",
            layer="elmanctl.models.elman:E1Layer",
        ),
        Family(
            name="e0",
            summary="Elman network with a gate behind it",
            config="elmanctl.models.configs.elman:E0Config",
            layer="elmanctl.models.elman:E0Layer",
        ),
        Family(
            name="e42",
            summary="Linear Elman network with tied weights",
            config="elmanctl.models.configs.elman:E42Config",
            layer="elmanctl.models.elman:E42Layer",
        ),
    )
}


def parse_level(text: str) -> Level:
    """Return the family of a level and the settings that it fixes.

    Raises NotFound for an unknown name, InvalidConfiguration for a malformed level; both say what
    is nearest.
    """
    grammars = tuple(family.grammar for family in FAMILIES.values())
    try:
        return parse_by_grammar(text, grammars)
    except (NotFound, InvalidConfiguration) as exc:
        ours, _ = translate(text, {})
        if ours == text:
            raise
        # What is nearest in letters may be another model.
        raise type(exc)(
            exc.message,
            hint=f"the study of 2026 had this level, of `{ours}`; choose variant {STUDY} for it",
        ) from exc


def find_family(level: str) -> Family:
    """Return the family of a level; raise as `parse_level` does."""
    return FAMILIES[parse_level(level).family]


def decode_config(
    level: str, data: Mapping[str, object], variant: str = DOCUMENTED
) -> FamilyConfig:
    """Return the configuration that a level and plain data describe.

    `variant` may also stand in `data`.  Under `study-2026-01` the study's own spellings of levels
    and settings are understood, and its level outranks its settings; otherwise a setting that
    contradicts the level is an error.
    Raises NotFound on an unknown level, InvalidConfiguration on a setting that cannot be used; if
    a number of the level is at fault, the hint is the nearest level that can be built.
    """
    family, settings = resolve_level(level, data, variant)
    try:
        return family.load_config().decode(settings)
    except InvalidConfiguration as exc:
        near = _nearest_level(level, data, settings["variant"], exc.message)
        if near is None:
            raise
        hints = [exc.hint, f"the nearest level is `{near}`"]
        message = "; ".join(hint for hint in hints if hint)
        raise InvalidConfiguration(exc.message, hint=message) from exc


def _nearest_level(level: str, data: Mapping[str, object], variant: str, fault: str) -> str | None:
    """The nearest level that can be built, where the fault is one of the level's numbers."""
    # Levels of the study have other grammars.
    if variant == STUDY:
        return None
    parsed = parse_level(level)
    grammar = FAMILIES[parsed.family].grammar
    for setting in grammar.letters.values():
        if setting in parsed.settings and re.search(rf"\b{setting}\b", fault):
            return nearest_level(parsed, grammar, setting, lambda other: _can_be(other, data))
    return None


def _can_be(level: str, data: Mapping[str, object]) -> bool:
    try:
        family, settings = resolve_level(level, data)
        family.load_config().decode(settings)
    except InvalidConfiguration:
        return False
    return True


def resolve_level(
    level: str, data: Mapping[str, object], variant: str = DOCUMENTED
) -> tuple[Family, dict[str, Any]]:
    """Return the family of a level and all that level and data say together, not yet checked.

    Raises as `decode_config` does for a level, and for what contradicts it.
    """
    settings = dict(data)
    told = settings.pop("variant", variant)
    refuse_unknown("variant", told, VARIANTS)
    # The default is no word against the configuration's own.
    if variant not in (DOCUMENTED, told):
        raise InvalidConfiguration(f"`variant` is `{told}` in the configuration, not `{variant}`")
    if told == STUDY:
        level, settings = translate(level, settings)
    parsed = parse_level(level)
    family = FAMILIES[parsed.family]
    name = settings.pop("level", family.name)
    if not isinstance(name, str) or name.casefold() != family.name:
        raise InvalidConfiguration(f"a configuration of {name!r} was given for {family.name}")
    for setting, value in parsed.settings.items():
        if settings.get(setting, value) != value:
            raise InvalidConfiguration(
                f"`{setting}` is {settings[setting]}, but level `{level}` says {value}",
                hint=f"leave one of them out: {family.grammar.describe()}",
            )
    implied = family.load_config().complete_level(parsed.settings)
    return family, {**implied, **settings, **parsed.settings, "level": family.name, "variant": told}


def build_model(
    config: FamilyConfig, *, seed: int, backend: str = "auto", device: str = "cpu"
) -> "nn.Module":
    """Return a new model on the CPU in float32; equal seeds give equal models.

    `device` is where it will run, cpu or cuda, which decides what `auto` picks; the model's
    attribute `backend` says what that was.  The random state of the caller is left as it was.
    Raises InvalidConfiguration when the backend does not compute this model, EnvironmentNotReady
    when it cannot run here.
    """
    try:
        import torch
    except ImportError as exc:
        raise EnvironmentNotReady("torch is not installed here", hint=INSTALL_TRAIN) from exc

    family = FAMILIES[config.level]
    chosen = resolve_backend(family.name, family.backends, backend, config, device)
    model_class = family.load_model()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return model_class(config, backend=chosen)


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as exc:
        # A family that is one file needs torch to count.
        if exc.name != "torch":
            raise
        raise EnvironmentNotReady(
            f"`{path}` needs torch, which is not installed here",
            hint=INSTALL_TRAIN,
        ) from exc
