"""The commented elman.toml that `init` writes, made from the settings themselves."""

from dataclasses import MISSING, fields
from typing import Any

from elmanctl.settings import SECTIONS

_HEAD = """\
# Settings of elmanctl.  Rank: flag > --preset > environment > this file > default.
# In the environment search.population is ELMAN_SEARCH_POPULATION.
# A line that is commented out shows the default.

[model]
# Fields of the model's configuration that stay fixed, see `elmanctl models e88`.
# use_gate = true
"""


def commented_config() -> str:
    """Return the text of an elman.toml in which every setting is explained and commented out."""
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
    if value is None:
        return "..."
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return "{}" if isinstance(value, dict) else str(value)
