"""Live line of a foreground evaluation, from the files that its worker writes."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from elmanctl.cli import output
from elmanctl.cli.rows import shown_elapsed
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.progress import read_table
from elmanctl.run.spec import AttemptSpec

# More than one line of metrics.
_TAIL_BYTES = 4096

_REDRAWS_PER_S = 2.0
_LINE_INTERVAL_S = 60.0


@contextmanager
def watching(paths: AttemptPaths, spec: AttemptSpec) -> Iterator[None]:
    """Show a line that redraws itself on a terminal, and elsewhere one line a minute."""
    line = TrainingLine(paths, spec)
    if not output.is_terminal(sys.stderr):
        with _printed_every_minute(line):
            yield
        return
    from rich.live import Live

    with Live(
        get_renderable=line.text,
        console=output.console(sys.stderr),
        refresh_per_second=_REDRAWS_PER_S,
        transient=True,
        redirect_stdout=False,
    ):
        yield


@contextmanager
def _printed_every_minute(line: "TrainingLine") -> Iterator[None]:
    ended = threading.Event()

    def print_lines() -> None:
        while not ended.wait(_LINE_INTERVAL_S):
            output.say(str(line))

    printer = threading.Thread(target=print_lines, name="progress", daemon=True)
    printer.start()
    try:
        yield
    finally:
        ended.set()
        printer.join()


class TrainingLine:
    """The newest numbers of a training as one line."""

    def __init__(self, paths: AttemptPaths, spec: AttemptSpec) -> None:
        self._paths = paths
        self._spec = spec

    def __str__(self) -> str:
        return "  ".join(self._parts())

    def text(self) -> Any:
        """Return the line, which a narrow terminal cuts at its end."""
        from rich.text import Text

        return Text(str(self), style="bold", no_wrap=True, overflow="ellipsis")

    def _parts(self) -> Iterator[str]:
        beat = read_table(self._paths.heartbeat) or {}
        last = self._last_step()
        yield str(beat.get("phase", "starting"))
        if last is None:
            return
        elapsed_s, budget = last["elapsed_s"], self._spec.training.budget
        if budget.kind in ("steps", "tokens"):
            done = last["step"] if budget.kind == "steps" else last["tokens"]
            yield f"{budget.kind[:-1]} {done:,} of {budget.amount:,}"
            left_s = elapsed_s * (budget.amount / done - 1) if done else None
        elif budget.kind == "minutes":
            yield f"{elapsed_s / 60:.1f} of {budget.amount:g} min, step {last['step']:,}"
            left_s = budget.amount * 60 - elapsed_s
        else:
            yield f"step {last['step']:,}"
            left_s = None
        if isinstance(last.get("loss"), float):
            yield f"loss {last['loss']:.4f}"
        if held_out := beat.get("validation"):
            yield f"held out {held_out['loss']:.4f}"
        if left_s is not None:
            yield f"about {shown_elapsed(max(0.0, left_s))} left"
        if elapsed_s:
            yield f"{last['tokens'] / elapsed_s:,.0f} bytes/s"
        if saved := beat.get("checkpoint"):
            error = saved.get("error")
            yield f"no checkpoint: {error}" if error else f"checkpoint at step {saved['step']:,}"

    def _last_step(self) -> dict[str, Any] | None:
        """Return the last whole line of the metrics."""
        with suppress(OSError, ValueError), self._paths.metrics.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().rpartition(b"\n")[0].splitlines()
            if lines:
                record = json.loads(lines[-1])
                return record if isinstance(record, dict) else None
        return None
