"""Views of a foreground search: a live display on a terminal, one line per event elsewhere."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from elmanctl import clock
from elmanctl.cli import output
from elmanctl.cli.rows import describe_config, searched_names, shown_elapsed
from elmanctl.cli.scheduler_status import live_row
from elmanctl.ledger.payloads import ConfirmationAsked
from elmanctl.ledger.records import CONFIRMATION, Evaluation, State, Verdict, VerdictKind
from elmanctl.ledger.run_state import RunState
from elmanctl.models.params import format_count
from elmanctl.schedulers.scheduler_note import SchedulerNote, read_note
from elmanctl.search.costs import confirmations_to_ask, evaluations_left
from elmanctl.search.session import Session

# Heartbeats are read for the display at most this often.
_REDRAW_S = 1.0

# The same trouble is reported again after this time without it.
_REPEAT_TROUBLE_S = 3600.0


class PlainView:
    """Prints one line on stderr for each attempt that ends and each generation that completes."""

    def __init__(self) -> None:
        self._trouble: str | None = None
        self._trouble_at = 0.0

    def __enter__(self) -> "PlainView":
        return self

    def __exit__(self, *error: object) -> None:
        """Do nothing: there is no display to close."""

    def refresh(self, session: Session, trouble: str | None) -> None:
        """Report trouble with the scheduler once; it may come and go."""
        now = time.monotonic()
        if trouble and (trouble != self._trouble or now - self._trouble_at > _REPEAT_TROUBLE_S):
            output.say(f"warning: {trouble}")
            self._trouble = trouble
        if trouble:
            self._trouble_at = now

    def judged(self, evaluation: Evaluation, verdict: Verdict) -> None:
        """Report how an attempt ended."""
        output.say(judged_line(evaluation, verdict))

    def generation_done(self, session: Session, generation: int) -> None:
        """Report a completed generation."""
        output.say(generation_line(session.state, generation))

    def confirmation_asked(self, asked: ConfirmationAsked) -> None:
        """Report that the best are trained again."""
        output.say(confirmation_line(asked))


class LiveView:
    """A display that redraws itself, with a permanent line for each completed generation."""

    def __init__(self, session: Session) -> None:
        from rich.live import Live

        self._console = output.console(sys.stderr)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._drawn = 0.0
        self._since = time.monotonic()
        self._done_before = _settled(session.state)

    def __enter__(self) -> "LiveView":
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def refresh(self, session: Session, trouble: str | None) -> None:
        """Redraw the current generation."""
        if time.monotonic() - self._drawn < _REDRAW_S:
            return
        self._drawn = time.monotonic()
        self._live.update(self._picture(session, trouble), refresh=True)

    def judged(self, evaluation: Evaluation, verdict: Verdict) -> None:
        """Print a permanent line for an attempt that did not complete."""
        if verdict.kind is not VerdictKind.COMPLETED:
            self._live.console.print(
                output.printable(judged_line(evaluation, verdict)), style="red", markup=False
            )

    def generation_done(self, session: Session, generation: int) -> None:
        """Print a permanent line for a completed generation."""
        self._live.console.print(generation_line(session.state, generation), markup=False)

    def confirmation_asked(self, asked: ConfirmationAsked) -> None:
        """Print a permanent line that the best are trained again."""
        self._live.console.print(confirmation_line(asked), markup=False)

    def _picture(self, session: Session, trouble: str | None) -> Any:
        from rich.console import Group
        from rich.text import Text

        left = self._time_left(session)
        lines = [Text(headline(session) + (f"  about {left} left" if left else ""), style="bold")]
        if trouble:
            lines.append(Text(output.printable(trouble), style="yellow"))
        names = searched_names(session.run)
        columns = [
            *output.columns("EVAL", "STATE"),
            *output.columns("LOSS", "STEP", right=True),
            *output.columns(*(name.upper() for name in names), right=True, dispensable=3),
            output.Column("PARAMS", right=True, dispensable=4),
            output.Column("ELAPSED", right=True, dispensable=2, may_be_empty=True),
            output.Column("REASON", dispensable=1, wraps=True, may_be_empty=True),
        ]
        note = read_note(session.paths.scheduler)
        rows = [_live_cells(session, one, names, note) for one in _current(session.state)]
        return Group(*lines, output.build_table(columns, rows, self._console.width))

    def _time_left(self, session: Session) -> str | None:
        done = _settled(session.state) - self._done_before
        if done < 1:
            return None
        rest = evaluations_left(session.state, session.settings.search.population)
        each_s = (time.monotonic() - self._since) / done
        return clock.format_rough(rest * each_s) if rest > 0 else None


def make_view(session: Session) -> PlainView | LiveView:
    """Return the view that fits stderr."""
    return LiveView(session) if output.is_terminal(sys.stderr) else PlainView()


def headline(session: Session) -> str:
    """Return one line: generation, evaluations done, running, failed, and the best loss."""
    state = session.state
    counts = state.counts()
    population = session.settings.search.population
    total = state.generations * population + state.totals.get("confirmations", 0)
    total += confirmations_to_ask(state, population)
    running = sum(1 for _, attempt in state.live_attempts() if attempt.state is State.RUNNING)
    waiting = len(state.live_attempts()) - running
    best = state.best()
    stage = f"generation {max(0, state.generation) + 1} of {state.generations}"
    if _is_confirming(state):
        stage = "confirming the best"
    text = (
        f"{state.run['name']}  {stage}"
        f"  {counts[State.COMPLETED]}/{total} done  {running} running  {waiting} queued"
        f"  {counts[State.FAILED]} failed"
    )
    return f"{text}  best {output.format_loss(best.loss)} ({best.id})" if best else text


def judged_line(evaluation: Evaluation, verdict: Verdict) -> str:
    """Return one line on how an attempt ended."""
    last = evaluation.last_attempt
    number = last.number if last else 0
    if verdict.kind is VerdictKind.COMPLETED and last and last.result:
        return (
            f"{evaluation.id} completed: loss {last.result['loss']:.4f}, "
            f"{format_count(evaluation.parameters)} parameters, {last.result.get('steps')} steps"
        )
    return f"{evaluation.id} attempt {number} {verdict.kind}: {verdict.summary}"


def generation_line(state: RunState, generation: int) -> str:
    """Return one line on a generation that was reported to the optimizer."""
    reported = [state.evaluations[name] for name, _ in state.told[generation]]
    # A diverged evaluation is reported by its rank and has no loss.
    losses = [evaluation.loss for evaluation in reported if evaluation.loss is not None]
    repeats = sum(evaluation.answer is not None for evaluation in reported)
    parts = [
        f"{len(reported)} evaluated" + (f" ({repeats} repeats)" if repeats else ""),
        f"best {min(losses):.4f}" if losses else "none completed",
    ]
    best = state.best()
    if best is not None:
        parts.append(f"best so far {output.format_loss(best.loss)} ({best.id})")
    return f"g{generation:03}: {', '.join(parts)}"


def confirmation_line(asked: ConfirmationAsked) -> str:
    """Return one line on what is trained again."""
    names = list(dict.fromkeys(str(plan.confirms) for plan in asked.evaluations))
    seeds = len({plan.seed for plan in asked.evaluations})
    return f"confirming {', '.join(names)} on {output.counted(seeds, 'fresh seed')}"


def _current(state: RunState) -> list[Evaluation]:
    newest = CONFIRMATION if _is_confirming(state) else state.generation
    return [
        e for e in state.evaluations.values() if e.generation == newest or not e.state.is_finished
    ]


def _is_confirming(state: RunState) -> bool:
    return state.totals.get("confirmations", 0) > state.totals.get("confirmations_decided", 0)


def _settled(state: RunState) -> int:
    return sum(e.state.is_finished for e in state.evaluations.values())


def _live_cells(
    session: Session, evaluation: Evaluation, names: Sequence[str], note: SchedulerNote | None
) -> list[str | None]:
    """Return a row: a live evaluation by its heartbeat, a finished one by its result."""
    row = live_row(session.paths, evaluation, note)
    values = evaluation.hyperparameters
    return [
        evaluation.id,
        row["state"],
        output.format_loss(row["progress"]["loss"] if row["progress"] else row["loss"]),
        None if row["step"] is None else str(row["step"]),
        *(describe_config(values.get(name)) for name in names),
        format_count(evaluation.parameters),
        shown_elapsed(row["elapsed_s"]),
        row["reason"],
    ]
