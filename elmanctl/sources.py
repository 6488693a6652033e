"""Sources of settings: files, presets, resource templates; each a flat table of values."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from elmanctl.constants import ASYNCHRONOUS
from elmanctl.errors import ConfigError, NotFound, meant
from elmanctl.settings import PATH_KEYS, SECTIONS, TEMPLATE_KEYS, SearchSettings, flat

# Settings are written by hand.
_LARGEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One place that sets values: `values` maps `section.key` to a value, `text` is for lines.

    `path` is the file that was found without being named; `faults` are names in it that are
    none, left out of the values.
    """

    name: str
    values: Mapping[str, Any]
    text: str = ""
    path: Path | None = None
    faults: tuple[ConfigError, ...] = ()

    def where(self, key: str) -> str:
        """Return where `key` was set, with the line for a file."""
        line = _line_of(self.text, key)
        return f"`{self.name}` line {line}" if line else f"`{self.name}`"


def read_file(path: Path) -> Source:
    """Return the values of one TOML file; what is no section is among the faults."""
    try:
        text = _text_of(path)
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        quotes = 'text goes in quotes, as in `partition = "gpu"`'
        hint = quotes if "Invalid value" in str(exc) else None
        raise ConfigError(f"cannot read `{path}`: {exc}", hint=hint) from exc
    source = Source(name=path.name, values={}, text=text)
    faults = []
    known = {}
    sections = [*SECTIONS, "model"]
    for section, table in data.items():
        if section not in sections:
            faults.append(unknown_key(source, section, sections, "section"))
        elif not isinstance(table, dict):
            text = f"{source.where(section)}: `{section}` is a section, not a value"
            faults.append(ConfigError(text))
        else:
            known[section] = table
    values = {
        # A path in a file means the same wherever a command is started.
        key: str(path.parent / Path(value).expanduser())
        if key in PATH_KEYS and isinstance(value, str)
        else value
        for key, value in flat(known)
    }
    return replace(source, values=values, path=path, faults=tuple(faults))


def _text_of(path: Path) -> str:
    """Return what a file of settings holds; raises ConfigError.

    What has another size or sort may be a trap for every command that is started in its folder.
    """
    if path.exists() and not path.is_file():
        raise ConfigError(f"cannot read `{path}`: it is not a regular file")
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise ConfigError(f"cannot read `{path}`: it is larger than {_LARGEST_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read `{path}`: {exc}") from exc


def preset_source(name: str) -> Source:
    """Return the values of a preset that ships with elmanctl; raises NotFound."""
    return _shipped("preset", name)


def protocol_source(name: str) -> Source:
    """Return the settings of a protocol that ships with elmanctl, or of a file NAME.toml.

    Raises NotFound without one, ConfigError for a file with other settings than those of [train].
    """
    if not name.endswith(".toml"):
        return _shipped("protocol", name)
    path = Path(name).expanduser()
    if not path.exists():
        raise NotFound(f"no protocol file: {path}")
    source = read_file(path)
    faults = [
        ConfigError(f"{source.where(key)}: `{key}` is no part of a protocol, which is all [train]")
        for key in source.values
        if not key.startswith("train.")
    ]
    return replace(source, path=None, faults=(*source.faults, *faults))


def optimizer_sources(search: SearchSettings) -> list[Source]:
    """Return the defaults that come with the optimizer that is chosen, none for most."""
    names = [search.optimizer, *[f"{search.optimizer}-from-best"] * search.start_from_best]
    known = tables("optimizer")
    return [_shipped("optimizer", name) for name in names if name in known]


def mode_sources(search: SearchSettings) -> list[Source]:
    """Return the defaults that come with the mode that is chosen, none for generations.

    An asynchronous search has as many points in flight as its optimizer learns from at a time.
    """
    if search.mode != ASYNCHRONOUS:
        return []
    values = {"search.max_jobs": search.population}
    return [Source(name=f"{ASYNCHRONOUS} mode", values=values)]


def _shipped(what: str, name: str) -> Source:
    known = tables(what)
    if name not in known:
        hint = meant(name, known, f"{what}s: {', '.join(known)}")
        raise NotFound(f"no {what} named `{name}`", hint=hint)
    return Source(name=f"{what} {name}", values=dict(flat(known[name])))


def tables(what: str) -> dict[str, Any]:
    """Return the presets or protocols that ship with elmanctl, by name."""
    text = resources.files("elmanctl").joinpath(f"{what}s.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def template_names(folders: Iterable[Path]) -> list[str]:
    """Return the names of the resource templates in these folders and of those that ship."""
    return sorted({*_templates_in(folders), *_shipped_templates()})


def _templates_in(folders: Iterable[Path]) -> dict[str, Path]:
    """Return the files of the user's templates by name; of two, that of the first folder."""
    paths: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.toml")) if folder.is_dir() else ():
            paths.setdefault(path.stem, path)
    return paths


def _shipped_templates() -> dict[str, Traversable]:
    there = resources.files("elmanctl.sbatch_templates").iterdir()
    return {file.name.removesuffix(".toml"): file for file in there if file.name.endswith(".toml")}


def template_source(name: str, folders: Iterable[Path]) -> Source:
    """Return the values of a resource template, looked for in the user's folders first.

    Raises NotFound, naming the templates there are, ConfigError for a key that is no resource.
    """
    paths, shipped = _templates_in(folders), _shipped_templates()
    known = {*paths, *shipped}
    if name not in known:
        hint = meant(name, known, f"templates: {', '.join(sorted(known))}")
        raise NotFound(f"no resource template named `{name}`", hint=hint)
    text = _text_of(paths[name]) if name in paths else shipped[name].read_text(encoding="utf-8")
    source = Source(name=f"template {name}", values={}, text=text)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"cannot read the template `{name}`: {exc}") from exc
    faults = [
        unknown_key(source, key, TEMPLATE_KEYS, "key") for key in table if key not in TEMPLATE_KEYS
    ]
    held = {key: value for key, value in table.items() if key in TEMPLATE_KEYS}
    values = {f"slurm.{key}": value for key, value in held.items() if key != "summary"}
    return replace(source, values=values, path=paths.get(name), faults=tuple(faults))


def unknown_key(source: Source, key: str, known: Iterable[str], what: str) -> ConfigError:
    """Return the error for a name that is not among the known ones, with the nearest of them."""
    names = list(known)
    hint = meant(key, names, f"known: {', '.join(names)}")
    return ConfigError(f"{source.where(key)}: unknown {what} `{key}`", hint=hint)


def _line_of(text: str, key: str) -> int | None:
    """Return the line where a TOML text sets `section.key`, or opens the section."""
    section, _, name = key.partition(".")
    current = ""
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\s*([\w.-]+)", line)
        if header:
            current = header.group(1)
            if current == key:
                return number
        elif current == section and name and re.match(rf"\s*[\"']?{re.escape(name)}\b", line):
            return number
        elif not current and re.match(rf"\s*{re.escape(section)}\b", line):
            return number
    return None
