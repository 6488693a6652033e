"""Settings from their sources: flag > environment > elman.toml > user's file > SBATCH_* > default.

A preset named by a flag stands just under the flags, and the defaults that come with an optimizer
under all that is set.  Unknown keys are refused, never ignored.
"""

import os
import tomllib
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from elmanctl import constants
from elmanctl.codec import decode, encode
from elmanctl.errors import ConfigError, Faults, NotFound, meant
from elmanctl.folders import working_folder
from elmanctl.sbatch_variables import Found, with_variables
from elmanctl.settings import (
    BUDGET_KEYS,
    SECTIONS,
    Settings,
    absent_settings,
    flat,
    setting_bounds,
)
from elmanctl.sources import (
    Source,
    mode_sources,
    optimizer_sources,
    preset_source,
    protocol_source,
    read_file,
    template_source,
    unknown_key,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The settings in force and, for each key that is not a default, where it came from.

    `files` are those that were found without being named; `warnings` are for the user; `sbatch` is
    what the variables that sbatch reads say, for commands that submit or show it.
    """

    settings: Settings
    origins: Mapping[str, str]
    files: tuple[Path, ...] = ()
    warnings: tuple[str, ...] = ()
    sbatch: Found | None = None


def resolve(
    flags: Mapping[str, Any],
    *,
    preset: str | None = None,
    config: Path | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Resolved:
    """Return the settings in force.

    `flags` maps `section.key` to a value, None meaning not given.  Raises ConfigError for an
    unknown key or a value of the wrong type, NotFound for an unknown preset or a missing file.
    """
    environ = os.environ if environment is None else environment
    sources = [
        *_files(config, folder or working_folder(), environ),
        _from_environment(environ),
        *([preset_source(preset)] if preset else []),
        Source(name="the command line", values={k: v for k, v in flags.items() if v is not None}),
    ]
    sources = _with_chosen(sources, "train.protocol", lambda name, _: protocol_source(name))
    sources = _with_chosen(
        sources,
        "slurm.template",
        lambda name, own: template_source(name, template_folders(own, folder, environ)),
    )
    sources = [*optimizer_sources(merge(sources).settings.search), *sources]
    sources = [*mode_sources(merge(sources).settings.search), *sources]
    return replace(
        _with_sbatch_variables(merge(sources), environ),
        files=tuple(source.path for source in sources if source.path is not None),
        warnings=_unknown_variables(environ),
    )


def _with_sbatch_variables(resolved: Resolved, environ: Mapping[str, str]) -> Resolved:
    """Put what sbatch would read from the environment under all that other sources set."""
    found = with_variables(resolved.settings.slurm, resolved.origins, environ)
    origins = dict(resolved.origins)
    for key, name in found.origins.items():
        section, setting = key.split(".")[:2]
        above = origins.get(f"{section}.{setting}")
        origins[f"{section}.{setting}"] = f"{above}, {name}" if above else name
    return replace(
        resolved,
        settings=replace(resolved.settings, slurm=found.slurm),
        origins=origins,
        sbatch=found,
    )


def _with_chosen(
    sources: list[Source], key: str, load: Callable[[str, Settings], Source]
) -> list[Source]:
    """Put the values of a protocol or a template just under the source that chose it by `key`."""
    for rank, source in reversed(list(enumerate(sources))):
        name = source.values.get(key)
        if name is not None:
            chosen = load(str(name), merge(sources).settings)
            return [*sources[:rank], chosen, *sources[rank:]]
    return sources


def template_folders(
    settings: Settings, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> tuple[Path, Path]:
    """Return where a user's own templates are looked for: by the settings, then at home."""
    environ = os.environ if environment is None else environment
    return (
        (folder or working_folder()) / settings.paths.templates,
        _user_folder(environ) / "sbatch_templates",
    )


def _user_folder(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME", "~")) / ".config")
    return Path(base).expanduser() / "elmanctl"


def merge(sources: Iterable[Source]) -> Resolved:
    """Return the settings of several sources, later ones first in rank."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    faults = Faults()
    for source in sources:
        for fault in source.faults:
            faults.add(fault)
        named = [key for key in BUDGET_KEYS if key in source.values]
        if len(named) > 1:
            keys = " and ".join(f"`{key}`" for key in named)
            hint = f"keep one training budget: {', '.join(BUDGET_KEYS)}"
            text = f"{source.where(named[1])}: {keys} exclude each other"
            faults.add(ConfigError(text, hint=hint))
        if named:
            for key in BUDGET_KEYS:
                values.pop(key, None)
                origins.pop(key, None)
        for key, value in source.values.items():
            with faults:
                values[key] = _checked(key, value, source)
                origins[key] = source.name
    faults.raise_any()
    return Resolved(settings=_build(values), origins=origins)


def decode_settings(data: Mapping[str, Any]) -> Settings:
    """Return the settings that `Settings.encode` wrote into a ledger.

    Bounds are for what is set now: a run that began with other ones keeps its values.
    """
    source = Source(name="the ledger", values={k: v for k, v in flat(data) if v is not None})
    values = {key: _typed(key, value, source) for key, value in source.values.items()}
    return _build(absent_settings() | values)


def parse_assignments(words: Iterable[str]) -> dict[str, Any]:
    """Read `section.key=value` words, checked as a file's values are; raise ConfigError."""
    source = Source(name="the command line", values={})
    values: dict[str, Any] = {}
    faults = Faults()
    for word in words:
        with faults:
            values |= _assigned(word, source)
    faults.raise_any()
    return values


def _assigned(word: str, source: Source) -> dict[str, Any]:
    key, equals, text = word.partition("=")
    section, dot, _ = key.partition(".")
    if not equals or not dot:
        raise ConfigError(f"`{word}` is not of the form section.key=value")
    if section not in SECTIONS:
        raise unknown_key(source, section, SECTIONS, "section")
    return {key: _checked(key, _from_text(text, _type_of(key, source), key), source)}


def _files(config: Path | None, folder: Path, environ: Mapping[str, str]) -> list[Source]:
    if config is not None:
        if not config.is_file():
            raise NotFound(f"no such configuration file: {config}")
        return [replace(read_file(config), path=None)]
    user = _user_folder(environ) / "config.toml"
    try:
        found = [user] if user.is_file() else []
    except OSError as exc:
        # As after `su` or `sudo`, which may leave HOME as it was.
        raise ConfigError(
            f"cannot look for `{user}`: {exc.strerror}",
            hint="set HOME or XDG_CONFIG_HOME to a folder of yours, or name a file with `--config`",
        ) from exc
    # As the user came here, then as the kernel: above a linked project lies another folder.
    real = folder.resolve()
    for parent in (folder, *folder.parents, real, *real.parents):
        if (parent / constants.CONFIG_NAME).is_file():
            found.append(parent / constants.CONFIG_NAME)
            break
    return [read_file(path) for path in found]


@cache
def _variables() -> dict[str, tuple[str, Any]]:
    """Return the key and the type of the setting of each environment variable."""
    return {
        f"{constants.ENVIRONMENT_PREFIX}{section}_{name}".upper(): (f"{section}.{name}", kind)
        for section, record in SECTIONS.items()
        for name, kind in typing.get_type_hints(record).items()
    }


def _from_environment(environ: Mapping[str, str]) -> Source:
    """Return the settings of the environment; a variable of a section and no key is a fault."""
    source = Source(name="the environment", values={})
    values: dict[str, Any] = {}
    faults: list[ConfigError] = []
    variables = _variables()
    for name, (key, kind) in variables.items():
        if name in environ:
            try:
                values[key] = _from_text(environ[name], kind, name)
            except ConfigError as exc:
                faults.append(exc)
    prefixes = tuple(f"{constants.ENVIRONMENT_PREFIX}{section}_".upper() for section in SECTIONS)
    for name in environ:
        if name.startswith(prefixes) and name not in {*variables, constants.LOCAL_JOB_VARIABLE}:
            faults.append(unknown_key(source, name, variables, "variable"))
    return replace(source, values=values, faults=tuple(faults))


def _unknown_variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return a warning for each variable with our prefix that nothing reads."""
    known = {
        constants.TRUST_VARIABLE,
        constants.LOCAL_JOB_VARIABLE,
        constants.COMMIT_VARIABLE,
        constants.LAUNCHES_VARIABLE,
        *constants.OTHER_VARIABLES,
        *_variables(),
    }
    warnings = []
    for name in sorted(environ):
        if name.upper().startswith(constants.ENVIRONMENT_PREFIX) and name not in known:
            near = meant(name, known)
            suffix = f"; {near}" if near else ""
            warnings.append(f"the environment variable {name} means nothing here{suffix}")
    return tuple(warnings)


def _build(values: Mapping[str, Any]) -> Settings:
    sections: dict[str, dict[str, Any]] = {name: {} for name in (*SECTIONS, "model")}
    for key, value in values.items():
        section, name = key.split(".", 1)
        sections[section][name] = value
    return Settings(
        model=sections["model"],
        **{name: record(**sections[name]) for name, record in SECTIONS.items()},
    )


def refuse_outside(values: Mapping[str, Any], where: str = "") -> None:
    """Raise ConfigError where a value of `section.key` is outside its bounds, telling of all."""
    bounds = setting_bounds()
    faults = Faults()
    for key, value in values.items():
        allowed = bounds.get(key)
        refusal = allowed and allowed.refusal(value)
        if allowed and refusal:
            hint = meant(str(value), allowed.words, f"`{key}` is {allowed.describe()}")
            faults.add(ConfigError(f"{where}`{key}` {refusal}", hint=hint))
    faults.raise_any()


def _checked(key: str, value: Any, source: Source) -> Any:
    """Return a value of the right type and within its bounds; raises ConfigError."""
    checked = _typed(key, value, source)
    refuse_outside({key: checked}, f"{source.where(key)}: ")
    return checked


def _typed(key: str, value: Any, source: Source) -> Any:
    if key.startswith("model."):
        return value
    kind = _type_of(key, source)
    try:
        return decode(kind, encode(value), key, ConfigError)
    except ConfigError as exc:
        raise ConfigError(f"{source.where(key)}: {exc.message}") from None


def _type_of(key: str, source: Source) -> Any:
    """Return the type hint of a setting; raise ConfigError for an unknown key of a section."""
    section, name = key.split(".", 1)
    hints = typing.get_type_hints(SECTIONS[section])
    if name not in hints:
        raise unknown_key(source, key, [f"{section}.{other}" for other in hints], "key")
    return hints[name]


def _from_text(text: str, kind: Any, name: str) -> Any:
    """Read a value from text: TOML where it is TOML, text and lists of names as they are."""
    if kind in (str, str | None):
        return text
    if kind == tuple[int | str, ...] and not text.lstrip().startswith("["):
        words = [word.strip() for word in text.split(",")]
        return [int(word) if word.isdecimal() else word for word in words]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return decode(kind, text, name, ConfigError)
