"""Cache of traces: a file of JSON lines, one for each finished search, that only grows.

Of two lines with one key the later counts.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elmanctl import codec
from elmanctl.errors import ElmanError, UsageError
from elmanctl.replay.simulation import Trace


class TraceCache:
    """Traces by key, in memory and, with a path, in a file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._traces: dict[str, Trace] = {}
        if path is not None and path.exists():
            self._read(path)

    def get(self, key: str) -> Trace | None:
        """Return the trace of a key, None if it has to be simulated."""
        return self._traces.get(key)

    def add(self, key: str, about: Mapping[str, object], trace: Trace) -> None:
        """Keep a trace; `about` says in the file what it is of."""
        self._traces[key] = trace
        if self._path is None:
            return
        line = json.dumps({"key": key, **about, "trace": codec.encode(trace)}, allow_nan=False)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _read(self, path: Path) -> None:
        try:
            whole, newline, torn = path.read_text(encoding="utf-8").rpartition("\n")
        except UnicodeDecodeError as exc:
            raise _no_trace(path, 1) from exc
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                data: dict[str, Any] = json.loads(line)
                self._traces[data["key"]] = codec.decode(Trace, data["trace"], "trace", UsageError)
            except (ValueError, KeyError, TypeError, ElmanError) as exc:
                raise _no_trace(path, number) from exc
        if torn:
            # A process that was killed while it wrote leaves half a line.
            path.write_text(whole + newline, encoding="utf-8")


def key_of(parts: Mapping[str, object]) -> str:
    """Return the key of a search that these parts decide."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _no_trace(path: Path, number: int) -> UsageError:
    return UsageError(
        f"{path} line {number} is no trace of a simulated search",
        hint="name another file for `--cache`, or remove this one",
    )
