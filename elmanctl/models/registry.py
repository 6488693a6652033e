"""Which model families exist, and where their configuration and their code are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.models.backends import resolve_backend
from elmanctl.models.config import DOCUMENTED, STUDY, VARIANTS, FamilyConfig, refuse_unknown
from elmanctl.models.levels import Grammar, Level
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
            letters={"h": "n_heads", "n": "n_state"},
        ),
    )
}


def parse_level(text: str) -> Level:
    """Return the family of a level and the settings that it fixes.

    Raises NotFound for an unknown name, InvalidConfiguration for a malformed level; both say what
    is nearest.
    """
    return parse_by_grammar(text, tuple(family.grammar for family in FAMILIES.values()))


def find_family(level: str) -> Family:
    """Return the family of a level; raise as `parse_level` does."""
    return FAMILIES[parse_level(level).family]


def decode_config(
    level: str, data: Mapping[str, object], variant: str | None = None
) -> FamilyConfig:
    """Return the configuration that a level and plain data describe.

    `variant` may also stand in `data`.  Under `study-2026-01` the study's own spellings of levels
    and settings are understood, and its level outranks its settings; otherwise a setting that
    contradicts the level is an error.
    Raises NotFound on an unknown level, InvalidConfiguration on a setting that cannot be used.
    """
    family, settings = resolve_settings(level, data, variant)
    return family.load_config().decode(settings)


def resolve_settings(
    level: str, data: Mapping[str, object], variant: str | None = None
) -> tuple[Family, dict[str, Any]]:
    """Return the family of a level and all that level and data say together, not yet checked.

    Raises as `decode_config` does for a level, and for what contradicts it.
    """
    settings = dict(data)
    told = settings.pop("variant", variant or DOCUMENTED)
    refuse_unknown("variant", told, VARIANTS)
    if variant is not None and told != variant:
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
        raise EnvironmentNotReady(
            "torch is not installed here", hint="pip install 'elmanctl[train]'"
        ) from exc

    family = FAMILIES[config.level]
    chosen = resolve_backend(family.name, family.backends, backend, config, device)
    model_class = family.load_model()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return model_class(config, backend=chosen)


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
