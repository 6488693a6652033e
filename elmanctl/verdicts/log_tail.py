"""Tail of a job log, with the true numbers of its lines."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from elmanctl.ledger.files import open_regular

# A verdict depends on the end of a log alone.
_TAIL_BYTES = 64 * 1024

# Lines of a longer log are numbered from the start of the tail: reading it all may take minutes.
_COUNTED_BYTES = 1 << 30
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LogTail:
    """The last lines of a job's output; `first_line` is the number of the first of them."""

    file: str
    lines: Sequence[str] = ()
    first_line: int = 1


def read_log_tail(path: Path, root: Path) -> LogTail | None:
    """Return the end of a log, named relative to the run folder; None if it cannot be read."""
    try:
        with open_regular(path) as stream:
            size_bytes = os.fstat(stream.fileno()).st_size
            skipped = max(0, size_bytes - _TAIL_BYTES)
            is_counted = size_bytes <= _COUNTED_BYTES
            first_line = 1 + (_count_lines(stream, skipped) if is_counted else 0)
            stream.seek(skipped)
            # It may grow meanwhile.
            text = stream.read(2 * _TAIL_BYTES).decode(errors="replace")
    except OSError:
        # A verdict is reached without it.
        return None
    name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    if not is_counted:
        name += f" (its last {_TAIL_BYTES // 1024} KiB)"
    # splitlines would also split where no editor counts a line, e.g. at a form feed.
    return LogTail(file=name, lines=text.removesuffix("\n").split("\n"), first_line=first_line)


def _count_lines(stream: BinaryIO, end: int) -> int:
    """Count the line ends among the first `end` bytes, block by block."""
    lines = 0
    while end > 0 and (block := stream.read(min(_BLOCK_BYTES, end))):
        lines += block.count(b"\n")
        end -= len(block)
    return lines
