"""Everything that is printed: tables, JSON, questions, errors; the only import of rich.

stdout holds what was asked for, stderr all talk.  On a terminal tables are rich tables; elsewhere
lines of tab-separated fields with a header, complete words and nothing cut.  Names, logs and errors
come from files that anybody may have written, so control characters are shown and never obeyed.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from elmanctl.errors import ElmanError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

JSON_VERSION = 1

MISSING = "–"

# A column of prose is wrapped down to this, or to its longest word: Slurm's reasons have up to 30
# letters, and paths are cut.
_NARROWEST_PROSE = 20
_LONGEST_WORD = 30

# One colour a meaning; the words alone say it too.
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


# What moves the cursor, starts a command of the terminal, or turns the direction of writing.
_CONTROLS = (
    *(code for code in range(0x20) if code not in b"\t\n"),
    *range(0x7F, 0xA0),
    *(0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),
)
_SHOWN = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CONTROLS}
_IN_JSON = {code: f"\\u{code:04x}" for code in _CONTROLS if code >= 0x7F}

# Colours and returns to the start of a line are what logs are made of.
_OF_LOGS = re.compile(r"\x1b\[[0-9;]*m|\r")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table; on a narrow terminal those of a high `dispensable` go first.

    One that `may_be_empty` is left out on a terminal where no row has a value for it.
    """

    name: str
    right: bool = False
    dispensable: int = 0
    wraps: bool = False
    may_be_empty: bool = False


@dataclass
class _Options:
    color: str = "auto"
    quiet: bool = False


_options = _Options()


def configure(*, color: str, quiet: bool) -> None:
    """Set what the global options ask for."""
    _options.color, _options.quiet = color, quiet


def is_terminal(stream: TextIO | None = None) -> bool:
    """Whether a stream (stdout by default) is a terminal that can be drawn on."""
    return (stream or sys.stdout).isatty() and os.environ.get("TERM") != "dumb"


def console(stream: TextIO | None = None) -> "Console":
    """Return a rich console on a stream, with colour as the user wants it."""
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
    """Return a text with control characters written out, as in `\\x1b`; tabs and newlines stay."""
    return text.translate(_SHOWN)


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str | None]]) -> None:
    """Print rows; a missing value is a dash on a terminal and empty elsewhere."""
    if is_terminal():
        _print_rich(columns, list(rows))
        return
    print("\t".join(column.name for column in columns))
    for row in rows:
        print("\t".join(_plain(cell) for cell in row))


def _plain(cell: str | None) -> str:
    if cell is None:
        return ""
    # A figure of `bench` knows its digits beside what people read.
    text = str(getattr(cell, "plain", cell))
    return printable(text.replace("\t", " ").replace("\n", " "))


def _print_rich(columns: Sequence[Column], rows: Sequence[Sequence[str | None]]) -> None:
    screen = console()
    screen.print(build_table(columns, rows, screen.width))


def build_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str | None]], width: int
) -> "Table":
    """Return a rich table of what fits into `width`; only prose is wrapped, nothing is cut."""
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

    The most dispensable go first, from the right, the first column never: names stay whole.
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
    """Print one JSON document and nothing else; a mapping gets the format's version."""
    document = {"version": JSON_VERSION, **data} if isinstance(data, Mapping) else data
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    print(text.translate(_IN_JSON))


def print_line(text: str = "") -> None:
    """Print one line of data."""
    print(printable(text))


def write_raw(text: str) -> None:
    """Write a log to stdout as it is, at once; to a terminal only what cannot harm it."""
    if is_terminal():
        kept = [*_OF_LOGS.findall(text), ""]
        parts = _OF_LOGS.split(text)
        text = "".join(printable(part) + mark for part, mark in zip(parts, kept, strict=True))
    sys.stdout.write(text)
    sys.stdout.flush()


def say(text: str) -> None:
    """Tell the user something on stderr, unless asked to be quiet."""
    if not _options.quiet:
        print(printable(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Warn the user on stderr."""
    print(f"{_tag('warning', 'yellow')} {printable(text)}", file=sys.stderr, flush=True)


def print_error(error: ElmanError) -> None:
    """Print an error and its hint on stderr."""
    print(f"{_tag('error', 'red')} {printable(error.message)}", file=sys.stderr)
    if error.hint:
        text = printable(error.hint)
        print(f"\n{_tag('hint', 'cyan')} {text}", file=sys.stderr, flush=True)


def hint(text: str) -> None:
    """Name the next command on stderr."""
    if not _options.quiet:
        print(f"{_tag('hint', 'cyan')} {printable(text)}", file=sys.stderr, flush=True)


def _tag(word: str, colour: str) -> str:
    codes = {"red": "31", "yellow": "33", "cyan": "36"}
    if _wants_color(sys.stderr):
        return f"\x1b[{codes[colour]}m{word}:\x1b[0m"
    return f"{word}:"


def confirm(question: str, *, yes: bool) -> bool:
    """Return whether to go on; asks on a terminal, the default answer is no.

    Raises UsageError when nobody can be asked.
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
    """Write a size in decimal units: 812 B, 4.1 MB, 41.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size_bytes) < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def shown_bytes(size_bytes: int) -> str:
    """Write a size for a table on stdout: readable on a terminal, all digits elsewhere."""
    return format_bytes(size_bytes) if is_terminal() else str(size_bytes)


def told_bytes(size_bytes: int) -> str:
    """Write a size for a sentence on stdout: readable on a terminal, all digits elsewhere."""
    return format_bytes(size_bytes) if is_terminal() else f"{size_bytes} bytes"


def shown_count(count: int) -> str:
    """Write a whole number for stdout: in groups of three on a terminal, plain elsewhere."""
    return f"{count:,}" if is_terminal() else str(count)


def format_loss(loss: float | None) -> str | None:
    """Write a loss with four decimals."""
    return None if loss is None else f"{loss:.4f}"
