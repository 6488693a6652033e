"""The study's own names of models and settings, for counting and rebuilding what really ran."""

from typing import Any


def translate(level: str, settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a level and settings of ours for those of the study; ours are left as they are."""
    return level, settings
