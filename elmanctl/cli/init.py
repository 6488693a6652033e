"""The `init` command: write an elman.toml in which every setting is explained."""

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from elmanctl.cli.completion import model_names
from elmanctl.cli.output import hint, print_line
from elmanctl.constants import CONFIG_NAME
from elmanctl.errors import EnvironmentNotReady, UsageError
from elmanctl.settings import SECTIONS

_HEAD = """\
# Settings of elmanctl.  Precedence: flag > --preset > environment > this file > default.
# The environment variable of search.population is ELMAN_SEARCH_POPULATION.
# Lines that are commented out show the defaults.

[model]
# Fields of the model's configuration to hold fixed, see `elmanctl models e88`.
# use_gate = true
"""


def init(
    folder: Annotated[Path, Argument(help="Folder of the new elman.toml")] = Path(),
    model: Annotated[
        str, Option(help="Model for the suggested search", autocompletion=model_names)
    ] = "e88",
    force: Annotated[bool, Option("--force", help="Replace an existing file")] = False,
) -> None:
    """Write a commented elman.toml

    It lists every setting with its meaning and default, commented out.

    \b
    Examples:
        elmanctl init
        elmanctl init ~/study --model e88
    """
    from elmanctl.models.registry import find_family

    name = find_family(model).name
    path = folder / CONFIG_NAME
    if path.exists() and not force:
        raise UsageError(f"{path} exists", hint="pass `--force` to replace it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(commented_config(), encoding="utf-8")
    except OSError as exc:
        raise EnvironmentNotReady(
            f"cannot write {Path(exc.filename or path).absolute()}: {exc.strerror}",
            hint="pass a folder you can write to: `elmanctl init FOLDER`",
        ) from exc
    print_line(str(path))
    hint(
        f"set your partition in it, then "
        f"`elmanctl search {name} --params 480M --train-minutes 10 --dry-run`"
    )


def commented_config() -> str:
    """Return the text of an elman.toml with every setting explained and commented out."""
    parts = [_HEAD]
    for section, record in SECTIONS.items():
        lines = [f"[{section}]"]
        for item in fields(record):
            default = item.default if item.default is not MISSING else {}
            bounds = item.metadata.get("bounds")
            allowed = f" ({bounds.describe()})" if bounds else ""
            lines.append(f"# {item.metadata['help']}{allowed}")
            lines.append(f"# {item.name} = {_toml(default)}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _toml(value: Any) -> str:
    # Of these values JSON has the same spelling.
    return "..." if value is None else json.dumps(value)
