"""`status`, `show` and `logs`: looking at runs; these commands write nothing."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from elmanctl import clock
from elmanctl.cli.complete import evaluation_names, run_names, run_or_evaluation_names
from elmanctl.cli.context import JsonFlag, chosen_run, resolve_settings
from elmanctl.cli.output import (
    Column,
    format_bytes,
    format_loss,
    is_terminal,
    print_json,
    print_line,
    print_table,
    say,
    warn,
    write_raw,
)
from elmanctl.cli.rows import (
    attempt_data,
    describe_config,
    evaluation_row,
    searched_names,
    shown_elapsed,
)
from elmanctl.errors import LedgerError, NotFound, UsageError, nearest
from elmanctl.jobs.observe import read_table
from elmanctl.jobs.paths import RunPaths
from elmanctl.ledger.lease import is_gone, read_holder
from elmanctl.ledger.records import Attempt, Evaluation, RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.models.params import format_count
from elmanctl.search.selection import find_evaluation, list_runs
from elmanctl.search.session import require_run

RunOrEvaluation = Annotated[
    str,
    typer.Argument(
        help="Run, or evaluation of the newest run", autocompletion=run_or_evaluation_names
    ),
]
EvaluationArgument = Annotated[
    str | None,
    typer.Argument(
        help="Evaluation: g012-e03, 12.3, a job id, or best", autocompletion=evaluation_names
    ),
]

_FOLLOW_S = 0.5


def status(
    ctx: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(help="Run; default a list of all runs", autocompletion=run_names),
    ] = None,
    everything: Annotated[
        bool, typer.Option("-a", "--all", help="Every evaluation, not the newest generations")
    ] = False,
    state: Annotated[
        str | None, typer.Option("-s", "--state", help="Only evaluations in this state")
    ] = None,
    generation: Annotated[
        int | None, typer.Option("-g", "--generation", help="Only this generation")
    ] = None,
    exit_status: Annotated[
        bool,
        typer.Option("--exit-status", help="Exit 0 all completed, 1 any failed, 8 unfinished"),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show runs, or the evaluations of one run

    Reads the ledger only: it asks Slurm nothing and changes nothing.

    \b
    Examples:
        elmanctl status
        elmanctl status e88-480m --state failed
        elmanctl status e88-480m --all --json
    """
    if run is None:
        _status_of_all(ctx, as_json=as_json)
        return
    paths = chosen_run(ctx, run)
    found = _load(paths)
    chosen = _select(found, everything=everything, state=state, generation=generation)
    rows = [evaluation_row(evaluation) for evaluation in chosen]
    if as_json:
        print_json({"run": _run_row(paths, found), "evaluations": rows})
    else:
        _print_run(paths, found, chosen)
    if exit_status:
        raise typer.Exit(_health(found))


def show(
    ctx: typer.Context,
    run_or_evaluation: RunOrEvaluation,
    evaluation: EvaluationArgument = None,
    tail: Annotated[int, typer.Option(help="Lines of the log to show")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """Show one evaluation: result, parameters, attempts, failure, log tail

    \b
    Examples:
        elmanctl show best
        elmanctl show e88-480m g012-e03
    """
    paths, found, chosen = _find(ctx, run_or_evaluation, evaluation)
    if as_json:
        attempts = [attempt_data(attempt) for attempt in chosen.attempts]
        print_json({"run": found.run["name"], **evaluation_row(chosen), "attempts": attempts})
        return
    _print_evaluation(paths, found, chosen)
    log = _log_path(paths, chosen.last_attempt) if chosen.attempts else None
    if log is not None and log.exists() and tail > 0:
        print_line(f"\nlog ({log})")
        for line in _last_lines(log, tail):
            print_line(f"  {line}")


def logs(
    ctx: typer.Context,
    run_or_evaluation: RunOrEvaluation,
    evaluation: EvaluationArgument = None,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Print what is added until the attempt ends")
    ] = False,
    tail: Annotated[int | None, typer.Option("-n", "--tail", help="Only the last lines")] = None,
    attempt: Annotated[int | None, typer.Option(help="Attempt; default the newest")] = None,
) -> None:
    """Print or follow the log of an evaluation

    \b
    Examples:
        elmanctl logs g000-e01
        elmanctl logs e88-480m g012-e03 -f
    """
    paths, _, chosen = _find(ctx, run_or_evaluation, evaluation)
    number = attempt or len(chosen.attempts)
    if not 1 <= number <= len(chosen.attempts):
        raise NotFound(
            f"{chosen.id} has no attempt {number}" if attempt else f"{chosen.id} has no log yet",
            hint=f"it has {len(chosen.attempts)} attempts",
        )
    log = _log_path(paths, chosen.attempts[number - 1])
    if not log.exists() and not follow:
        raise NotFound(f"no log at {log}", hint="the job has not started, or it was cleaned")
    if tail is not None and log.exists():
        for line in _last_lines(log, tail):
            print_line(line)
    start = log.stat().st_size if tail is not None and log.exists() else 0
    for text in _read_on(paths, chosen.id, number, log, start, follow=follow):
        write_raw(text)


def _status_of_all(ctx: typer.Context, *, as_json: bool) -> None:
    runs = Path(resolve_settings(ctx, {}).settings.paths.runs).expanduser()
    rows = []
    for folder in reversed(list_runs(runs)):
        paths = RunPaths(folder.resolve())
        try:
            rows.append(_run_row(paths, _load(paths)))
        except (LedgerError, NotFound) as exc:
            warn(f"{folder.name}: {exc.message}")
    if as_json:
        print_json({"runs": rows})
        return
    if not rows:
        say(f"no runs in {runs}")
        return
    print_table(
        [
            Column(name="RUN"),
            Column(name="STATUS"),
            Column(name="MODEL", dispensable=True),
            Column(name="GEN", right=True),
            Column(name="DONE", right=True),
            Column(name="RUNNING", right=True),
            Column(name="PENDING", right=True, dispensable=True),
            Column(name="FAILED", right=True),
            Column(name="BEST LOSS", right=True),
            Column(name="BEST", dispensable=True),
            Column(name="DISK", right=True, dispensable=True),
            Column(name="UPDATED", dispensable=True),
        ],
        [_run_cells(row) for row in rows],
    )


def _run_row(paths: RunPaths, state: RunState) -> dict[str, Any]:
    run = state.run
    counts = state.counts()
    best = state.best()
    running = sum(1 for _, attempt in state.live_attempts() if attempt.state is State.RUNNING)
    return {
        "run": run["name"],
        "status": _status(paths, state),
        "reason": state.reason,
        "model": run["model"],
        "executor": run["executor"],
        "generation": state.generation + 1,
        "generations": state.generations,
        "evaluations": len(state.evaluations),
        "done": counts[State.COMPLETED],
        "running": running,
        "pending": len(state.live_attempts()) - running + counts[State.CREATED],
        "failed": counts[State.FAILED],
        "cancelled": counts[State.CANCELLED],
        "best_loss": best.loss if best else None,
        "best": best.id if best else None,
        "unigram_nats": run["data"]["unigram_nats"],
        "size_bytes": state.size_bytes,
        "updated_at": state.last_event_at,
        "ledger": str(paths.ledger),
        "start": dict(run["start"]),
        "optimizer_seed": run["optimizer"]["seed"],
    }


def _run_cells(row: dict[str, Any]) -> list[str | None]:
    moment = clock.from_text(row["updated_at"])
    updated = (
        f"{clock.format_rough((clock.now() - moment).total_seconds())} ago"
        if is_terminal()
        else row["updated_at"]
    )
    return [
        row["run"],
        row["status"],
        row["model"],
        f"{row['generation']}/{row['generations']}",
        str(row["done"]),
        str(row["running"]),
        str(row["pending"]),
        str(row["failed"]),
        format_loss(row["best_loss"]),
        row["best"],
        format_bytes(row["size_bytes"]) if is_terminal() else str(row["size_bytes"]),
        updated,
    ]


def _status(paths: RunPaths, state: RunState) -> str:
    """Return the run's status; a run that says it is running without a controller is not."""
    holder = read_holder(paths.folder)
    # Another machine's holder may be alive as far as this one can know.
    gone = holder is None or is_gone(holder) is True
    return "stopped" if state.status is RunStatus.RUNNING and gone else state.status.value


def _load(paths: RunPaths) -> RunState:
    loaded = load_run(paths.folder)
    if loaded.warning:
        warn(loaded.warning)
    require_run(paths, loaded.state)
    return loaded.state


def _select(
    found: RunState, *, everything: bool, state: str | None, generation: int | None
) -> list[Evaluation]:
    states = [*State, "waiting"]
    if state is not None and state not in states:
        near = nearest(state, states)
        raise UsageError(
            f"no state named `{state}`",
            hint=f"did you mean `{near}`?" if near else f"states: {', '.join(states)}",
        )
    chosen = list(found.evaluations.values())
    if generation is not None:
        return [e for e in chosen if e.generation == generation]
    if state is not None:
        return [e for e in chosen if evaluation_row(e)["state"] == state]
    if everything:
        return chosen
    # What a person looks for first: the newest two generations, and whatever is not done.
    return [e for e in chosen if e.generation >= found.generation - 1 or not e.state.is_finished]


def _print_run(paths: RunPaths, found: RunState, chosen: list[Evaluation]) -> None:
    row = _run_row(paths, found)
    text = (
        f"{row['run']}: {row['status']}, generation {row['generation']} of {row['generations']}, "
        f"{row['done']} of {row['evaluations']} asked are done, {row['running']} running, "
        f"{row['failed']} failed"
    )
    if row["best"]:
        text += f", best {format_loss(row['best_loss'])} ({row['best']})"
    say(text)
    if row["reason"]:
        say(f"{row['status']}: {row['reason']}")
    names = searched_names(found.run)
    columns = [
        Column(name="EVAL"),
        Column(name="STATE"),
        Column(name="JOB", dispensable=True),
        Column(name="LOSS", right=True),
        *(Column(name=name.upper(), right=True, dispensable=True) for name in names),
        Column(name="PARAMS", right=True, dispensable=True),
        Column(name="ELAPSED", right=True, dispensable=True),
        Column(name="NODE", dispensable=True),
        Column(name="REASON", dispensable=True),
    ]
    print_table(columns, [_evaluation_cells(evaluation, names) for evaluation in chosen])


def _evaluation_cells(evaluation: Evaluation, names: list[str]) -> list[str | None]:
    row = evaluation_row(evaluation)
    exact = not is_terminal()
    config = [evaluation.config.get(name) for name in names]
    return [
        row["evaluation"],
        row["state"],
        row["job"],
        str(row["loss"]) if exact and row["loss"] is not None else format_loss(row["loss"]),
        *(str(value) if exact else describe_config(value) for value in config),
        str(row["parameters"]) if exact else format_count(evaluation.parameters),
        shown_elapsed(row["elapsed_s"]),
        row["node"],
        row["reason"],
    ]


def _health(found: RunState) -> int:
    counts = found.counts()
    unfinished = found.status is not RunStatus.FINISHED and found.status is not RunStatus.CANCELLED
    if counts[State.FAILED]:
        return 1
    return 8 if unfinished else 0


def _find(
    ctx: typer.Context, first: str, second: str | None
) -> tuple[RunPaths, RunState, Evaluation]:
    run, name = (None, first) if second is None else (first, second)
    paths = chosen_run(ctx, run)
    found = _load(paths)
    return paths, found, find_evaluation(found, name)


def _print_evaluation(paths: RunPaths, found: RunState, chosen: Evaluation) -> None:
    row = evaluation_row(chosen)
    print_line(f"{chosen.id} of {found.run['name']}: {row['state']}")
    if row["loss"] is not None:
        entropy = found.run["data"]["unigram_nats"]
        print_line(f"  loss        {row['loss']:.4f} nat a byte (unigram entropy {entropy:.4f})")
    if chosen.replaces:
        print_line(f"  replaces    {chosen.replaces}")
    print_line(f"  parameters  {chosen.parameters:,}")
    print_line(f"  seed        {chosen.seed}")
    print_line("config")
    for key, value in chosen.config.items():
        print_line(f"  {key:<15} {json.dumps(value)}")
    for attempt in chosen.attempts:
        _print_attempt(paths, chosen, attempt)


def _print_attempt(paths: RunPaths, chosen: Evaluation, attempt: Attempt) -> None:
    elapsed = shown_elapsed(attempt.elapsed_s)
    parts = [f"job {attempt.job_id}" if attempt.job_id else "no job", attempt.node, elapsed]
    print_line(f"attempt {attempt.number}: {attempt.state} ({', '.join(p for p in parts if p)})")
    print_line(f"  folder      {paths.attempt(chosen.id, attempt.number).folder}")
    if attempt.result is not None:
        for key in ("steps", "tokens", "tokens_per_s", "device", "precision", "fingerprint"):
            if key in attempt.result:
                print_line(f"  {key:<11} {attempt.result[key]}")
    if attempt.verdict is not None and attempt.state is not State.COMPLETED:
        print_line(f"  verdict     {attempt.verdict.kind}")
        for quote in attempt.verdict.evidence:
            place = f" [{quote.file}:{quote.line}]" if quote.file and quote.line else ""
            print_line(f"    {quote.source}: {quote.text}{place}")


def _log_path(paths: RunPaths, attempt: Attempt | None) -> Path:
    assert attempt is not None
    return paths.submission(attempt.submission) / f"{attempt.job_id}_0_log.out"


def _last_lines(path: Path, count: int) -> list[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-count:] if count > 0 else []


def _read_on(
    paths: RunPaths, evaluation: str, number: int, log: Path, start: int, *, follow: bool
) -> Iterator[str]:
    """Yield what is in a log from `start`, and on as it grows until the attempt has a result."""
    offset = start
    attempt = paths.attempt(evaluation, number)
    while True:
        ended = read_table(attempt.result) is not None or _is_finished(paths, evaluation, number)
        if log.exists():
            with log.open("rb") as stream:
                stream.seek(offset)
                data = stream.read()
            offset += len(data)
            if data:
                yield data.decode(errors="replace")
        if not follow or ended:
            return
        time.sleep(_FOLLOW_S)


def _is_finished(paths: RunPaths, evaluation: str, number: int) -> bool:
    attempts = load_run(paths.folder).state.evaluations[evaluation].attempts
    return any(attempt.number == number and attempt.state.is_finished for attempt in attempts)
