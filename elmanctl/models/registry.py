"""Registry of model families: lazily imported configurations and layers, levels, model building."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from elmanctl.constants import INSTALL_TRAIN
from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration, NotFound, meant
from elmanctl.models.backends import resolve_backend
from elmanctl.models.config import DOCUMENTED, STUDY, VARIANTS, FamilyConfig
from elmanctl.models.levels import Grammar, Level, nearest_level
from elmanctl.models.levels import parse_level as parse_by_grammar
from elmanctl.models.study import translate

# The command line lists families without importing torch.
if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A model family; attributes of the form `module:name` are imported on first use.

    `config` is its FamilyConfig, with sizes and checks.  `layer` is called with a configuration and
    the name of a backend and returns one layer, initialized from torch's global generator: a
    module, or a list of modules if the layer has several residual sublayers.  `backends` are
    ordered fastest first.  `spellings` maps aliases in levels to the settings they imply, and
    `letters` the letters that may follow a name to settings.
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
        """Import the configuration class."""
        config_class: type[FamilyConfig] = _load(self.config)
        return config_class

    def load_layer(self) -> "Callable[..., nn.Module | list[nn.Module]]":
        """Import the factory of a layer's modules."""
        make_layer: Callable[..., nn.Module | list[nn.Module]] = _load(self.layer)
        return make_layer

    def load_model(self) -> "Callable[..., nn.Module]":
        """Import the class of the whole model."""
        model: Callable[..., nn.Module] = _load(self.model)
        return model

    @property
    def grammar(self) -> Grammar:
        """Grammar of this family's levels."""
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
            summary="Matrix states with a gate for each row, self-gated read-outs",
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
            layer="elmanctl.models.min_rnn:MinRNNLayer",
            backends=("triton", "torch"),
        ),
        Family(
            name="minlstm",
            summary="MinLSTM: two gates that do not see the state",
            config="elmanctl.models.configs.min_rnn:MinLSTMConfig",
            layer="elmanctl.models.min_rnn:MinRNNLayer",
            backends=("triton", "torch"),
        ),
        Family(
            name="gru",
            summary="GRU between two projections",
            config="elmanctl.models.configs.gru_lstm:GRUConfig",
            layer="elmanctl.models.gru_lstm:RecurrentLayer",
            backends=("cudnn", "torch"),
        ),
        Family(
            name="lstm",
            summary="LSTM between two projections",
            config="elmanctl.models.configs.gru_lstm:LSTMConfig",
            layer="elmanctl.models.gru_lstm:RecurrentLayer",
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

    Raises NotFound for an unknown name, InvalidConfiguration for a malformed level; the hint of
    either is the nearest valid name.
    """
    grammars = tuple(family.grammar for family in FAMILIES.values())
    try:
        return parse_by_grammar(text, grammars)
    except (NotFound, InvalidConfiguration) as exc:
        ours, _ = translate(text, {})
        if ours == text:
            raise
        # The most similar name may be another model.
        raise type(exc)(
            exc.message,
            hint=f"this is a level of `{ours}` in the study of 2026; set variant to {STUDY}",
        ) from exc


def find_family(level: str) -> Family:
    """Return the family of a level; raise as `parse_level` does."""
    return FAMILIES[parse_level(level).family]


def decode_config(
    level: str, data: Mapping[str, object], variant: str = DOCUMENTED
) -> FamilyConfig:
    """Decode a configuration from a level and plain data.

    `variant` may also be set in `data`.  Variant `study-2026-01` accepts the study's own names of
    levels and settings, and its level overrides settings; otherwise a setting that contradicts the
    level is an error.
    Raises NotFound for an unknown level, InvalidConfiguration for an invalid setting; if a number
    of the level is invalid, the hint is the nearest level that can be built.
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


def _nearest_level(level: str, data: Mapping[str, object], variant: str, error: str) -> str | None:
    """Return the nearest level that can be built, if the error is about one of its numbers."""
    # The study's levels follow other grammars.
    if variant == STUDY:
        return None
    parsed = parse_level(level)
    grammar = FAMILIES[parsed.family].grammar
    for setting in grammar.letters.values():
        if setting in parsed.settings and re.search(rf"\b{setting}\b", error):
            return nearest_level(parsed, grammar, setting, lambda other: _is_valid(other, data))
    return None


def _is_valid(level: str, data: Mapping[str, object]) -> bool:
    try:
        family, settings = resolve_level(level, data)
        family.load_config().decode(settings)
    except InvalidConfiguration:
        return False
    return True


def resolve_level(
    level: str, data: Mapping[str, object], variant: str = DOCUMENTED
) -> tuple[Family, dict[str, Any]]:
    """Return the family of a level and the merged, unvalidated settings of level and data.

    Raises like `decode_config` for an invalid level and for settings that contradict it.
    """
    settings = dict(data)
    own_variant = settings.pop("variant", variant)
    if own_variant not in VARIANTS:
        raise InvalidConfiguration(
            f"there is no variant `{own_variant}`; known: {', '.join(VARIANTS)}",
            hint=meant(str(own_variant), VARIANTS),
        )
    # The default argument does not conflict with the configuration's own variant.
    if variant not in (DOCUMENTED, own_variant):
        raise InvalidConfiguration(
            f"`variant` is `{own_variant}` in the configuration, not `{variant}`"
        )
    if own_variant == STUDY:
        level, settings = translate(level, settings)
    parsed = parse_level(level)
    family = FAMILIES[parsed.family]
    name = settings.pop("level", family.name)
    if not isinstance(name, str) or name.casefold() != family.name:
        raise InvalidConfiguration(f"the configuration is of {name!r}, not of {family.name}")
    for setting, value in parsed.settings.items():
        if settings.get(setting, value) != value:
            raise InvalidConfiguration(
                f"`{setting}` is {settings[setting]}, but level `{level}` says {value}",
                hint=f"leave one of them out: {family.grammar.describe()}",
            )
    implied = family.load_config().complete_level(parsed.settings)
    fixed = {**parsed.settings, "level": family.name, "variant": own_variant}
    return family, {**implied, **settings, **fixed}


def build_model(
    config: FamilyConfig, *, seed: int, backend: str = "auto", device: str = "cpu"
) -> "nn.Module":
    """Build a model on the CPU in float32; equal seeds give equal models.

    `device`, cpu or cuda, is where it will run, which decides the backend for `auto`; the model's
    attribute `backend` holds the choice.  The caller's random state is preserved.
    Raises InvalidConfiguration if the backend does not support this model, EnvironmentNotReady if
    it is unavailable.
    """
    try:
        import torch
    except ImportError as exc:
        raise EnvironmentNotReady("torch is not installed here", hint=INSTALL_TRAIN) from exc

    family = FAMILIES[config.level]
    backend = resolve_backend(family.name, family.backends, backend, config, device)
    model_class = family.load_model()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return model_class(config, backend=backend)


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as exc:
        # A family defined in a single file needs torch even for counting.
        if exc.name != "torch":
            raise
        raise EnvironmentNotReady(
            f"`{path}` needs torch, which is not installed here",
            hint=INSTALL_TRAIN,
        ) from exc
