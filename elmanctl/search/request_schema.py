"""Arguments of the commands `requeue`, `cancel`, `clean` and `set`, as a request carries them.

A request file may come from another version or another user.  It is decoded strictly before
anything is done: a bad value in the ledger would stop every controller of the run, and an unknown
argument may narrow what the command affects.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from elmanctl.codec import decode, json_field
from elmanctl.errors import UsageError

_LONGEST_NAME = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class RequeueRequest:
    """Evaluations, or all failures of some kinds, and what their next attempts change."""

    evaluations: tuple[str, ...] = json_field(default=(), omit=True)
    kinds: tuple[str, ...] = json_field(default=(), omit=True)
    mem_gb: float | None = json_field(default=None, omit=True)
    timeout_min: int | None = json_field(default=None, omit=True)
    exclude: tuple[str, ...] = json_field(default=(), omit=True)
    force: bool = json_field(default=False, omit=True)
    skip_deterministic: bool = json_field(default=False, omit=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequest:
    """Evaluations, or with `all` the whole run."""

    all: bool = json_field(default=False, omit=True)
    evaluations: tuple[str, ...] = json_field(default=(), omit=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanRequest:
    """Kinds of files, all by default, and a retention policy in place of the run's own."""

    kinds: tuple[str, ...] = json_field(default=(), omit=True)
    keep_best: int | None = json_field(default=None, omit=True)
    keep_last: int | None = json_field(default=None, omit=True)
    keep_failed_logs: bool | None = json_field(default=None, omit=True)
    keep_models: int | None = json_field(default=None, omit=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRequest:
    """New settings by `section.key`."""

    changes: Mapping[str, object]


AnyRequest = RequeueRequest | CancelRequest | CleanRequest | SetRequest

_REQUESTS: Mapping[str, type[AnyRequest]] = {
    "requeue": RequeueRequest,
    "cancel": CancelRequest,
    "clean": CleanRequest,
    "set": SetRequest,
}


def decode_request(command: str, arguments: Mapping[str, object]) -> AnyRequest:
    """Return the request for a command; raise UsageError for an invalid one."""
    if command not in _REQUESTS:
        raise UsageError(f"no request named `{command[:_LONGEST_NAME]}`")
    try:
        request = decode(_REQUESTS[command], arguments, command, UsageError)
    except UsageError as exc:
        hint = "is the run's controller of another version of elmanctl?"
        raise UsageError(exc.message[:_LONGEST_NAME], hint=hint) from exc
    lists = [value for value in arguments.values() if isinstance(value, list | tuple)]
    if any(len(name) > _LONGEST_NAME for names in lists for name in names):
        raise UsageError(f"`{command}` takes names of at most {_LONGEST_NAME} characters")
    return request
