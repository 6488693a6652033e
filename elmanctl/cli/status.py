"""The `status` command: all runs, or the evaluations of one; reads ledgers, writes nothing."""

from collections.abc import Sequence
from typing import Annotated, Any

from typer import Argument, Context, Exit, Option

from elmanctl import clock
from elmanctl.cli import output
from elmanctl.cli.completion import one_of, run_names
from elmanctl.cli.confirmation import confirmation_data, estimate_data
from elmanctl.cli.context import JsonFlag, chosen_run, load_brief, load_readable, runs_folder
from elmanctl.cli.costs import cost_data, noise_data
from elmanctl.cli.rows import (
    describe_config,
    excluded_rows,
    origin_data,
    searched_names,
    shown_elapsed,
    shown_state,
)
from elmanctl.cli.run_head import STOPPED, facts, headline
from elmanctl.cli.scheduler_status import current_note, live_row, note_data
from elmanctl.cli.sweep_view import sweep_data, sweep_lines
from elmanctl.constants import RESEED
from elmanctl.errors import LedgerCorrupt, LedgerError, NotFound, UsageError, meant
from elmanctl.folders import as_written
from elmanctl.ledger.disk import space_of
from elmanctl.ledger.holder import is_gone
from elmanctl.ledger.lease import read_holder
from elmanctl.ledger.records import Evaluation, RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.ledger.summary import RunSummary, summarize
from elmanctl.models.params import format_count
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.scheduler_note import SchedulerNote
from elmanctl.search.confirmation import Standing, standing
from elmanctl.search.costs import confirmations_to_ask, effective_setting, planned
from elmanctl.search.disk_forecast import forecast
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.selection import list_runs, list_single_evaluations, no_runs_in

# The states of an evaluation with a live job.
_LIVE = (State.SUBMITTED, State.RUNNING)

_STATES = (*(state.value for state in State), "waiting")


def status(
    ctx: Context,
    run: Annotated[
        str | None,
        Argument(help="Run; default: all runs", autocompletion=run_names),
    ] = None,
    everything: Annotated[
        bool, Option("-a", "--all", help="Every evaluation, not only the newest generations")
    ] = False,
    state: Annotated[
        str | None,
        Option(
            "-s",
            "--state",
            help="Only evaluations in this state",
            autocompletion=one_of(_STATES),
        ),
    ] = None,
    generation: Annotated[
        int | None, Option("-g", "--generation", help="Only this generation")
    ] = None,
    exit_status: Annotated[
        bool,
        Option("--exit-status", help="Exit 0 all completed, 1 any failed, 8 unfinished"),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show runs, or the evaluations of one run

    Reads the ledger only: it does not query Slurm and changes nothing. Without --all, --state or
    --generation it shows the newest two generations and unfinished evaluations, at most 1000.

    \b
    Examples:
        elmanctl status
        elmanctl status e88-480m --state failed
        elmanctl status e88-480m --all --json
    """
    if run is None:
        if exit_status or state or generation is not None:
            raise UsageError("`--state`, `--generation` and `--exit-status` need a run's name")
        _status_of_all(ctx, as_json=as_json)
        return
    paths = chosen_run(ctx, run)
    if state is not None and state not in _STATES:
        hint = meant(state, _STATES, f"states: {', '.join(_STATES)}")
        raise UsageError(f"no state named `{state}`", hint=hint)
    whole: RunState | None = None
    if everything or state is not None or generation is not None:
        whole = load_readable(paths)
        found = summarize(whole)
        chosen: Sequence[Evaluation] = _select(whole, state=state, generation=generation)
    else:
        found = load_brief(paths)
        chosen = found.page
    note = current_note(paths, found)
    if whole is None:
        whole = _where_needed(paths, found)
    shown = standing(whole or found)
    if as_json:
        rows = [live_row(paths, evaluation, note) for evaluation in chosen]
        about = {"cost": _cost(paths, found), "scheduler": note_data(note)}
        estimate = None if whole is None else estimate_data(whole)
        about |= {} if estimate is None else {"estimate": estimate}
        sweep = {} if whole is None else sweep_data(whole)
        run_row = {**_run_row(paths, found, shown), **about, **sweep}
        # The noise of repeats with other seeds takes the whole ledger.
        noise = None if whole is None else noise_data(whole)
        output.print_json({"run": run_row, "noise": noise, "evaluations": rows})
    else:
        _print_run(paths, found, chosen, note, shown, whole)
    if exit_status:
        raise Exit(_health(found))


def _status_of_all(ctx: Context, *, as_json: bool) -> None:
    runs = runs_folder(ctx)
    rows = []
    for folder in reversed(list_runs(runs)):
        paths = RunPaths(as_written(folder))
        try:
            found = load_brief(paths)
            rows.append(_run_row(paths, found, standing(_where_needed(paths, found) or found)))
        except (LedgerError, NotFound) as exc:
            output.warn(f"{folder.name}: {exc.message}")
    if as_json:
        output.print_json({"runs": rows})
        return
    singles = list_single_evaluations(runs)
    if singles:
        results = f"{output.counted(len(singles), 'result')} of `elmanctl eval`"
        output.say(f"{runs} also has {results}: see result.json in {singles[-1].name}, the newest")
    if not rows:
        output.say(no_runs_in(runs))
        return
    output.print_table(
        [
            *output.columns("RUN", "STATUS"),
            output.Column("MODEL", dispensable=3),
            *output.columns("GEN", "DONE", "RUNNING", right=True),
            output.Column("PENDING", right=True, dispensable=2),
            *output.columns("FAILED", "BEST LOSS", right=True),
            output.Column("BEST", dispensable=2),
            output.Column("DISK", right=True, dispensable=3),
            output.Column("UPDATED", dispensable=1),
            output.Column("CORPUS", dispensable=4),
        ],
        [_run_cells(row) for row in rows],
    )


def _where_needed(paths: RunPaths, found: RunSummary) -> RunState | None:
    """Return the state of a run with repeats on other seeds, or of a sweep, from all its ledger."""
    is_reseeded = effective_setting(found, "search.repeats") == RESEED
    is_repeated = is_reseeded or effective_setting(found, "search.reevaluate")
    is_sweep = bool(found.run["space"].get("sweep"))
    return load_run(paths.folder).state if is_repeated or is_sweep else None


def _cost(paths: RunPaths, state: RunSummary) -> dict[str, Any]:
    has_controller = _status(paths, state) == RunStatus.RUNNING.value
    return cost_data(state, has_controller=has_controller, now=clock.now())


def _run_row(paths: RunPaths, state: RunSummary, shown: Standing) -> dict[str, Any]:
    run = state.run
    population = int(run["optimizer"]["population"])
    searched = planned(state, population) + state.count("confirmations")
    counts = state.counts()
    running = state.count(f"live:{State.RUNNING}")
    return {
        "run": paths.folder.name,
        "status": _status(paths, state),
        "reason": state.reason,
        **({} if state.ended_by is None else {"ended_by": state.ended_by}),
        "next": state.advice,
        "model": run["model"],
        "executor": run["executor"],
        "generation": state.generation + 1,
        "generations": state.generations,
        "evaluations": state.count("evaluations"),
        # Replacements come on top of the plan.
        "planned": max(state.count("evaluations"), searched)
        + confirmations_to_ask(state, population),
        "done": counts[State.COMPLETED],
        "running": running,
        "pending": state.count("live") - running + counts[State.CREATED],
        **({"stopped_early": counts[State.STOPPED]} if counts[State.STOPPED] else {}),
        "failed": counts[State.FAILED],
        "answered": state.answered,
        "refused_share": state.refused_share,
        "cancelled": counts[State.CANCELLED],
        "best_loss": state.best[0] if state.best else None,
        "best": state.best[2] if state.best else None,
        **confirmation_data(state, shown),
        "unigram_nats": run["data"]["unigram_nats"],
        **origin_data(run),
        "size_bytes": state.size_bytes,
        "updated_at": state.last_event_at,
        "ledger": str(paths.ledger),
        "excluded_nodes": excluded_rows(state),
    }


def _run_cells(row: dict[str, Any]) -> list[str | None]:
    updated = row["updated_at"]
    if output.is_terminal():
        age_s = (clock.now() - clock.from_text(updated)).total_seconds()
        updated = f"{clock.format_rough(age_s)} ago"
    return [
        *(row["run"], row["status"], row["model"]),
        f"{row['generation']}/{row['generations']}",
        *(str(row[key]) for key in ("done", "running", "pending", "failed")),
        *(output.format_loss(row["best_loss"]), row["best"]),
        *(output.shown_bytes(row["size_bytes"]), updated, row["corpus"]),
    ]


def _status(paths: RunPaths, state: RunSummary) -> str:
    """Return the status of a run, `stopped` if it is recorded as running without a controller."""
    try:
        holder = read_holder(paths.folder)
    except LedgerCorrupt as exc:
        # Whether a controller is running is unknown; the ledger says enough without it.
        output.warn(f"{paths.folder.name}: {exc.message}; {exc.hint}")
        return state.status.value
    # A holder on another machine may be alive as far as this one can know.
    gone = holder is None or is_gone(holder) is True
    return STOPPED if state.status is RunStatus.RUNNING and gone else state.status.value


def _select(found: RunState, *, state: str | None, generation: int | None) -> list[Evaluation]:
    """Return the evaluations in a state and a generation, or in any if None."""
    chosen = list(found.evaluations.values())
    if generation is not None:
        chosen = [e for e in chosen if e.generation == generation]
    if state is not None:
        chosen = [e for e in chosen if shown_state(e) == state]
    return chosen


def _print_run(
    paths: RunPaths,
    found: RunSummary,
    chosen: Sequence[Evaluation],
    note: SchedulerNote | None,
    shown: Standing,
    whole: RunState | None,
) -> None:
    row = _run_row(paths, found, shown)
    output.say(headline(row))
    estimate = None if whole is None else estimate_data(whole)
    branches = [] if whole is None else sweep_lines(whole)
    for line in (*facts(found, row, _cost(paths, found), note, shown, estimate), *branches):
        output.say(line)
    disk = forecast(found, space_of(paths.folder, with_quota=False), effective_settings(found).disk)
    if disk is not None and disk.warning:
        output.warn(f"{disk.warning}: see `elmanctl disk {row['run']}`")
    names = searched_names(found.run)
    rows = [(live_row(paths, one, note), one) for one in chosen]
    is_live = any(row["state"] in _LIVE for row, _ in rows)
    output.print_table(
        evaluation_columns(names, is_live=is_live),
        [_evaluation_cells(row, one, names) for row, one in rows],
    )
    hidden = found.count("evaluations") - len(chosen)
    if hidden:
        output.say(
            f"{output.counted(hidden, 'more evaluation')}: `elmanctl status {row['run']} --all`"
        )


def evaluation_columns(names: Sequence[str], *, is_live: bool) -> list[output.Column]:
    """Return the columns; which ones a narrow terminal drops first depends on `is_live`.

    The reason is dropped last.  While evaluations are live, their progress is worth more than their
    configuration; in a finished run it is the other way round.
    """
    axes, job, step, elapsed = (5, 4, 3, 2) if is_live else (2, 4, 5, 3)
    return [
        *output.columns("EVAL", "STATE"),
        output.Column("JOB", dispensable=job),
        output.Column("LOSS", right=True),
        output.Column("STEP", right=True, dispensable=step, may_be_empty=True),
        *(output.Column(name.upper(), right=True, dispensable=axes) for name in names),
        output.Column("PARAMS", right=True, dispensable=7),
        output.Column("ELAPSED", right=True, dispensable=elapsed, may_be_empty=True),
        output.Column("NODE", dispensable=6, may_be_empty=True),
        output.Column("REASON", dispensable=1, wraps=True, may_be_empty=True),
    ]


def _evaluation_cells(
    row: dict[str, Any], evaluation: Evaluation, names: list[str]
) -> list[str | None]:
    exact = not output.is_terminal()
    loss = row["progress"]["loss"] if row["progress"] else row["loss"]
    values = evaluation.hyperparameters
    config = [values.get(name) for name in names]
    return [
        row["evaluation"],
        row["state"],
        row["job"],
        str(loss) if exact and loss is not None else output.format_loss(loss),
        None if row["step"] is None else str(row["step"]),
        *(str(value) if exact else describe_config(value) for value in config),
        str(row["parameters"]) if exact else format_count(evaluation.parameters),
        shown_elapsed(row["elapsed_s"]),
        row["node"],
        row["reason"],
    ]


def _health(found: RunSummary) -> int:
    counts = found.counts()
    unfinished = found.status is not RunStatus.FINISHED and found.status is not RunStatus.CANCELLED
    if counts[State.FAILED]:
        return 1
    return 8 if unfinished else 0
