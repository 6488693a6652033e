"""What a request may ask for: its arguments, checked before anything is done.

A request is a file that another version, or another member of the group, may have written.  What
the loop cannot act on is answered with an error; put on record, it would stop every controller.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from elmanctl.errors import UsageError

_LONGEST_NAME = 300


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(name, str) and len(name) <= _LONGEST_NAME for name in value
    )


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= sys.maxsize


def _is_amount(value: object) -> bool:
    # False for NaN and for what only Python's whole numbers can hold.
    return type(value) in (int, float) and 0 < value <= sys.maxsize  # type: ignore[operator]


_ARGUMENTS: Mapping[str, Mapping[str, Callable[[object], bool]]] = {
    "requeue": {
        "evaluations": _is_names,
        "kinds": _is_names,
        "mem_gb": _is_amount,
        "timeout_min": lambda value: _is_count(value) and bool(value),
        "exclude": _is_names,
        "force": _is_flag,
        "skip_deterministic": _is_flag,
    },
    "cancel": {"all": _is_flag, "evaluations": _is_names},
    "clean": {
        "kinds": _is_names,
        "keep_best": _is_count,
        "keep_last": _is_count,
        "keep_failed_logs": _is_flag,
    },
}


def check_arguments(command: str, arguments: Mapping[str, Any]) -> None:
    """Raise UsageError for a command that nobody knows, or for what it cannot be asked.

    An argument that is not known is refused too: it may narrow what is to be done.
    """
    if command not in _ARGUMENTS:
        raise UsageError(f"no request named `{command[:_LONGEST_NAME]}`")
    for key, value in arguments.items():
        is_fit = _ARGUMENTS[command].get(key)
        if is_fit is None:
            raise UsageError(
                f"`{command}` knows no argument `{key[:_LONGEST_NAME]}`",
                hint="is the run's controller of another version of elmanctl?",
            )
        if value is not None and not is_fit(value):
            raise UsageError(f"`{command}` cannot have {repr(value)[:60]} as `{key}`")
