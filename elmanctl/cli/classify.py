"""The `classify` command: classify how training runs ended, from their logs alone."""

import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

from typer import Argument

from elmanctl.cli.context import JsonFlag
from elmanctl.cli.output import Column, print_json, print_table
from elmanctl.errors import NotFound, os_errors_as
from elmanctl.ledger.records import Verdict
from elmanctl.verdicts.logs.classifier import classify_parts

_SUFFIXES = (".log", ".out", ".err", ".txt")
_STDIN = "-"

# The evidence is at the beginning of a log or at its end.
_HEAD_BYTES = 1 << 20
_TAIL_BYTES = 4 << 20
_BLOCK_BYTES = 1 << 18

_COLUMNS = (Column("FILE"), Column("KIND"), Column("EVIDENCE", wraps=True))


def classify(
    files: Annotated[
        list[str],
        Argument(metavar="FILE...", help="Logs, folders of logs, or - for standard input"),
    ],
    as_json: JsonFlag = False,
) -> None:
    """Classify how training runs ended, from their logs alone

    The evidence is a line of the log, with its number. In a folder, files ending in .log, .out,
    .err and .txt are read; in a very long file, the first 1 MiB and the last 4 MiB.

    \b
    Examples:
        elmanctl classify train.log
        elmanctl classify ~/runs/logs --json
    """
    verdicts = [(name, _verdict(name)) for name in _named(files)]
    if as_json:
        print_json({"logs": [_data(name, verdict) for name, verdict in verdicts]})
        return
    print_table(_COLUMNS, [(name, verdict.kind, _evidence(verdict)) for name, verdict in verdicts])


def _named(files: list[str]) -> Iterator[str]:
    for name in files:
        path = Path(name)
        if name == _STDIN or (path.exists() and not path.is_dir()):
            yield name
        elif path.is_dir():
            yield from _logs_in(path)
        else:
            raise NotFound(f"no such file: {name}")


def _logs_in(folder: Path) -> list[str]:
    with os_errors_as(NotFound, f"cannot read {folder}"):
        found = [path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file()]
    if not found:
        raise NotFound(f"no logs in {folder}", hint=f"their names end in {', '.join(_SUFFIXES)}")
    return [str(path) for path in sorted(found)]


def _verdict(name: str) -> Verdict:
    if name == _STDIN:
        return classify_parts(read_ends(sys.stdin.buffer))
    with os_errors_as(NotFound, f"cannot read {name}"), Path(name).open("rb") as stream:
        return classify_parts(read_ends(stream))


def read_ends(
    stream: BinaryIO, head_bytes: int = _HEAD_BYTES, tail_bytes: int = _TAIL_BYTES
) -> Iterator[tuple[int, str]]:
    """Yield the beginning and the end of a stream, each with the number of its first line."""
    head = stream.read(head_bytes)
    kept: deque[bytes] = deque()
    kept_bytes, dropped_lines, is_cut = 0, 0, False
    while block := stream.read(_BLOCK_BYTES):
        kept.append(block)
        kept_bytes += len(block)
        while kept_bytes - len(kept[0]) >= tail_bytes:
            gone = kept.popleft()
            kept_bytes -= len(gone)
            dropped_lines += gone.count(b"\n")
            is_cut = True
    tail = b"".join(kept)
    if not is_cut:
        yield 1, (head + tail).decode(errors="replace")
        return
    yield 1, head.decode(errors="replace")
    yield head.count(b"\n") + dropped_lines + 1, tail.decode(errors="replace")


def _evidence(verdict: Verdict) -> str | None:
    if not verdict.evidence:
        return None
    quote = verdict.evidence[0]
    return quote.text if quote.line is None else f"{quote.line}: {quote.text}"


def _data(name: str, verdict: Verdict) -> dict[str, object]:
    return {
        "file": name,
        **{key: getattr(verdict, key) for key in ("kind", "confidence", "cause")},
        "evidence": [{"line": quote.line, "text": quote.text} for quote in verdict.evidence],
    }
