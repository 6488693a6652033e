"""Output: tables, JSON, prompts, warnings and errors; the only module that prints.

Results go to stdout, messages to stderr.  On a terminal tables are drawn by rich; elsewhere they
are tab-separated lines under a header, with full words and nothing truncated.  Names, logs and
errors come from files that anybody may have written, so control characters are escaped.
"""

import codecs
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, TextIO

from elmanctl.errors import ElmanError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

JSON_VERSION = 1

MISSING = "–"

# A column of prose is wrapped down to this width, or to its longest word: Slurm's reasons have up
# to 30 letters, longer words such as paths are broken.
_NARROWEST_PROSE = 20
_LONGEST_WORD = 30

# Colours only repeat what the words say.
_STYLES = {
    "completed": "green",
    "finished": "green",
    "failed": "red",
    "paused": "yellow",
    "interrupted": "yellow",
    "stopped": "yellow",
    "submitted": "yellow",
    "cancelled": "dim",
}


# Characters that move the cursor, start an escape sequence, or change the writing direction.
_CONTROLS = (
    *(code for code in range(0x20) if code not in b"\t\n"),
    *range(0x7F, 0xA0),
    *(0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),
)
_ESCAPES = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CONTROLS}
_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in _CONTROLS if code >= 0x7F}

# Logs are full of colours and carriage returns, which are harmless.
_LOG_SEQUENCES = re.compile(r"\x1b\[[0-9;]*m|\r")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; on a narrow terminal columns of a high `dispensable` are dropped first.

    One that `may_be_empty` is omitted on a terminal if no row has a value for it.
    """

    name: str
    _: KW_ONLY
    right: bool = False
    dispensable: int = 0
    wraps: bool = False
    may_be_empty: bool = False


def columns(*names: str, right: bool = False, dispensable: int = 0) -> list[Column]:
    """Return columns that are alike but for their names."""
    return [Column(name, right=right, dispensable=dispensable) for name in names]


@dataclass
class _Options:
    color: str = "auto"
    quiet: bool = False


_options = _Options()


def configure(*, color: str, quiet: bool) -> None:
    """Apply the global options."""
    _options.color, _options.quiet = color, quiet


def is_terminal(stream: TextIO | None = None) -> bool:
    """Whether a stream (stdout by default) is a terminal with cursor control."""
    return (stream or sys.stdout).isatty() and os.environ.get("TERM") != "dumb"


def console(stream: TextIO | None = None) -> "Console":
    """Return a rich console on a stream, coloured as the user asked."""
    from rich.console import Console

    target = stream or sys.stdout
    return Console(
        file=target,
        highlight=False,
        no_color=not _wants_color(target),
        force_terminal=True if is_terminal(target) else None,
    )


def _wants_color(stream: TextIO) -> bool:
    if _options.color != "auto":
        return _options.color == "always"
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or is_terminal(stream)


def printable(text: str) -> str:
    """Escape the control characters of a text, as in `\\x1b`, but tabs and newlines."""
    return text.translate(_ESCAPES)


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str | None]]) -> None:
    """Print rows; a missing value is a dash on a terminal and empty elsewhere."""
    if is_terminal():
        screen = console()
        screen.print(build_table(columns, list(rows), screen.width))
        return
    print("\t".join(column.name for column in columns))
    for row in rows:
        print("\t".join(_plain(cell) for cell in row))


def _plain(cell: str | None) -> str:
    if cell is None:
        return ""
    # A number of `bench` has all its digits in `plain`.
    text = str(getattr(cell, "plain", cell))
    return printable(text.replace("\t", " ").replace("\n", " "))


def build_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str | None]], width: int
) -> "Table":
    """Return a rich table of the columns that fit; prose is wrapped and nothing is truncated."""
    from rich.table import Table
    from rich.text import Text

    kept = _fitting(columns, rows, width)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index in kept:
        column = columns[index]
        table.add_column(
            column.name, justify="right" if column.right else "left", no_wrap=not column.wraps
        )
    for row in rows:
        cells = [MISSING if (cell := row[i]) is None else printable(str(cell)) for i in kept]
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in cells))
    return table


def _fitting(
    columns: Sequence[Column], rows: Sequence[Sequence[str | None]], width: int
) -> list[int]:
    """Return the columns that fit side by side.

    The most dispensable are dropped first, from the right; the first column, a name, never is.
    """
    widths = [
        max([len(column.name), *(len(row[i] or MISSING) for row in rows)])
        for i, column in enumerate(columns)
    ]
    for i, column in enumerate(columns):
        if column.wraps:
            words = [word for row in rows for word in (row[i] or "").split()]
            longest = max(map(len, words), default=0)
            narrowest = min(max(_NARROWEST_PROSE, longest), _LONGEST_WORD)
            widths[i] = min(widths[i], max(len(column.name), narrowest))
    kept = [
        i
        for i, column in enumerate(columns)
        if not (column.may_be_empty and all(row[i] is None for row in rows))
    ]
    for index in sorted(kept[1:], key=lambda i: (-columns[i].dispensable, -i)):
        if sum(widths[i] + 2 for i in kept) - 2 <= width:
            break
        kept.remove(index)
    return kept


def print_json(data: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print one JSON document and nothing else; an object gets the version of the format."""
    document = {"version": JSON_VERSION, **data} if isinstance(data, Mapping) else data
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    print(text.translate(_JSON_ESCAPES))


def print_line(text: str = "") -> None:
    """Print one line of data."""
    print(printable(text))


def write_raw(text: str) -> None:
    """Write a log to stdout as it is and flush; to a terminal with escape sequences escaped."""
    if is_terminal():
        kept = [*_LOG_SEQUENCES.findall(text), ""]
        parts = _LOG_SEQUENCES.split(text)
        text = "".join(printable(part) + mark for part, mark in zip(parts, kept, strict=True))
    sys.stdout.write(text)
    sys.stdout.flush()


class ByteWriter:
    """Writes bytes of any kind to stdout as they come, each time flushed.

    To a pipe as they are; on a terminal as UTF-8, with bytes that are none and control characters
    escaped.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")
        self._is_terminal = is_terminal()
        self._last = "\n"

    def write(self, data: bytes) -> None:
        """Write some bytes; on a terminal a character appears when all its bytes are there."""
        if not self._is_terminal:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        self._show(self._decoder.decode(data))

    def part(self, separator: bytes) -> None:
        """Write what parts two texts, in a pipe alone: on a terminal each begins a line."""
        if not self._is_terminal:
            self.write(separator)

    def end(self) -> None:
        """Write what is left of a character, and on a terminal end the line."""
        if self._is_terminal:
            self._show(self._decoder.decode(b"", final=True))
            self._show("" if self._last == "\n" else "\n")

    def _show(self, text: str) -> None:
        if text:
            self._last = text[-1]
            sys.stdout.write(printable(text))
            sys.stdout.flush()


def say(text: str) -> None:
    """Print a message on stderr, unless `--quiet`."""
    if not _options.quiet:
        print(printable(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    print(f"{_tag('warning', 'yellow')} {printable(text)}", file=sys.stderr, flush=True)


def print_error(error: ElmanError) -> None:
    """Print an error and its hint on stderr."""
    print(f"{_tag('error', 'red')} {printable(error.message)}", file=sys.stderr)
    if error.hint:
        text = printable(error.hint)
        print(f"\n{_tag('hint', 'cyan')} {text}", file=sys.stderr, flush=True)


def hint(text: str) -> None:
    """Print a hint, the next command to run, on stderr."""
    if not _options.quiet:
        print(f"{_tag('hint', 'cyan')} {printable(text)}", file=sys.stderr, flush=True)


def _tag(word: str, colour: str) -> str:
    codes = {"red": "31", "yellow": "33", "cyan": "36"}
    return f"\x1b[{codes[colour]}m{word}:\x1b[0m" if _wants_color(sys.stderr) else f"{word}:"


def confirm(question: str, *, yes: bool) -> bool:
    """Return whether to proceed; prompts on a terminal, with no as the default.

    Raises UsageError when not running interactively.
    """
    if yes:
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "confirmation required when not running interactively", hint="pass `--yes`"
        )
    print(f"{printable(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().casefold() in ("y", "yes")


def format_bytes(size_bytes: float) -> str:
    """Format a size in decimal units: 812 B, 4.1 MB, 41.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size_bytes) < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def shown_bytes(size_bytes: int) -> str:
    """Format a size for a table on stdout: rounded on a terminal, exact elsewhere."""
    return format_bytes(size_bytes) if is_terminal() else str(size_bytes)


def spelled_bytes(size_bytes: int) -> str:
    """Format a size for a sentence on stdout: rounded on a terminal, exact elsewhere."""
    return format_bytes(size_bytes) if is_terminal() else f"{size_bytes} bytes"


def counted(count: int, noun: str) -> str:
    """Format a count with its noun: 1 job, 2 jobs."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shown_count(count: int) -> str:
    """Format an integer for stdout: in groups of three on a terminal, plain elsewhere."""
    return f"{count:,}" if is_terminal() else str(count)


def format_loss(loss: float | None) -> str | None:
    """Format a loss with four decimals."""
    return None if loss is None else f"{loss:.4f}"
