"""Views of foreground searches: a live display on a terminal, one line per event elsewhere."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from elmanctl import clock
from elmanctl.cli import output
from elmanctl.cli.confirmation import describe_estimate, estimate_data
from elmanctl.cli.rows import describe_config, describe_stop, searched_names, shown_elapsed
from elmanctl.cli.scheduler_status import live_row
from elmanctl.cli.sweep_view import branch_of
from elmanctl.ledger.payloads import ConfirmationAsked
from elmanctl.ledger.records import CONFIRMATION, Evaluation, State, Verdict, VerdictKind
from elmanctl.ledger.run_state import RunState
from elmanctl.models.params import format_count
from elmanctl.schedulers.scheduler_note import SchedulerNote, read_note
from elmanctl.search.costs import confirmations_to_ask, evaluations_left, planned
from elmanctl.search.session import Session

# Heartbeats are read for the display at most this often.
_REDRAW_S = 1.0

# The same trouble is reported again after this time without it.
_REPEAT_TROUBLE_S = 3600.0


class PlainView:
    """Prints one line on stderr for each attempt that ends and each generation that completes.

    Among several runs a line begins with the name of its run.
    """

    def __init__(self, name: str | None = None) -> None:
        self._start = "" if name is None else f"{name} "
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
            output.say(f"{self._start}warning: {trouble}")
            self._trouble = trouble
        if trouble:
            self._trouble_at = now

    def judged(self, evaluation: Evaluation, verdict: Verdict) -> None:
        """Report how an attempt ended."""
        output.say(self._start + judged_line(evaluation, verdict))

    def generation_done(self, session: Session, generation: int) -> None:
        """Report a completed generation."""
        output.say(self._start + generation_line(session.state, generation))

    def confirmation_asked(self, asked: ConfirmationAsked) -> None:
        """Report that the best are trained again."""
        output.say(self._start + confirmation_line(asked))


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
            line = output.printable(judged_line(evaluation, verdict))
            self._live.console.print(line, style=_style(verdict), markup=False)

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


class JointView:
    """A display of several searches: a line for each, and permanent ones for what happened."""

    def __init__(self, names: Sequence[str]) -> None:
        from rich.live import Live

        self._live = Live(console=output.console(sys.stderr), auto_refresh=False, transient=True)
        self._lines = dict.fromkeys(names, "")
        self._troubles: dict[str, str | None] = {}
        self._drawn = 0.0

    def __enter__(self) -> "JointView":
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def of(self, name: str) -> "JointLine":
        """Return the view of one run."""
        return JointLine(self, name)

    def show(self, name: str, line: str, trouble: str | None) -> None:
        """Redraw with a new line of one run."""
        from rich.console import Group
        from rich.text import Text

        self._lines[name], self._troubles[name] = line, trouble
        if time.monotonic() - self._drawn < _REDRAW_S:
            return
        self._drawn = time.monotonic()
        troubles = dict.fromkeys(text for text in self._troubles.values() if text)
        self._live.update(
            Group(
                *(Text(output.printable(text), style="yellow") for text in troubles),
                *(Text(text) for text in self._lines.values() if text),
            ),
            refresh=True,
        )

    def keep(self, line: str, style: str | None = None) -> None:
        """Print a permanent line."""
        self._live.console.print(output.printable(line), style=style, markup=False)


class JointLine:
    """The view of one of several runs."""

    def __init__(self, display: JointView, name: str) -> None:
        self._display = display
        self._name = name

    def refresh(self, session: Session, trouble: str | None) -> None:
        """Redraw the line of the run."""
        self._display.show(self._name, headline(session), trouble)

    def judged(self, evaluation: Evaluation, verdict: Verdict) -> None:
        """Print a permanent line for an attempt that did not complete."""
        if verdict.kind is not VerdictKind.COMPLETED:
            line = f"{self._name} {judged_line(evaluation, verdict)}"
            self._display.keep(line, _style(verdict))

    def generation_done(self, session: Session, generation: int) -> None:
        """Print a permanent line for a completed generation."""
        self._display.keep(f"{self._name} {generation_line(session.state, generation)}")

    def confirmation_asked(self, asked: ConfirmationAsked) -> None:
        """Print a permanent line that the best of the run are trained again."""
        self._display.keep(f"{self._name} {confirmation_line(asked)}")


@contextmanager
def make_views(names: Sequence[str]) -> Iterator[Mapping[str, PlainView | JointLine]]:
    """Yield the views, by the names of runs, that fit stderr."""
    if not output.is_terminal(sys.stderr):
        yield {name: PlainView(name) for name in names}
        return
    with JointView(names) as display:
        yield {name: display.of(name) for name in names}


def make_view(session: Session) -> PlainView | LiveView:
    """Return the view that fits stderr."""
    return LiveView(session) if output.is_terminal(sys.stderr) else PlainView()


def headline(session: Session) -> str:
    """Return one line: generation, evaluations done, running, failed, and the best loss."""
    state = session.state
    counts = state.counts()
    population = session.settings.search.population
    total = planned(state, population) + state.totals.get("confirmations", 0)
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
    if counts[State.STOPPED]:
        text += f"  {counts[State.STOPPED]} stopped early"
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
    if verdict.kind is VerdictKind.STOPPED and evaluation.stop is not None:
        return f"{evaluation.id} stopped early: {describe_stop(evaluation.stop)}"
    return f"{evaluation.id} attempt {number} {verdict.kind}: {verdict.summary}"


def _style(verdict: Verdict) -> str | None:
    return None if verdict.kind is VerdictKind.STOPPED else "red"


def generation_line(state: RunState, generation: int) -> str:
    """Return one line on a generation that was reported to the optimizer, or re-evaluated."""
    members = state.generation_members(generation)
    if members and all(each.reevaluates for each in members):
        return f"g{generation:03}: {_reevaluation_line(state, members)}"
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
    return f"g{generation:03}{branch_of(state, generation)}: {', '.join(parts)}"


def _reevaluation_line(state: RunState, members: Sequence[Evaluation]) -> str:
    names = {str(each.reevaluates) for each in members}
    done = sum(each.state is State.COMPLETED for each in members)
    text = f"{done} trainings of {output.counted(len(names), 'configuration')} on fresh seeds"
    estimate = estimate_data(state)
    if estimate is None:
        return text
    return f"{text}, best {estimate['evaluation']}: {describe_estimate(estimate)}"


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
