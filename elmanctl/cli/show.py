"""The `show` and `logs` commands: one evaluation in detail; they write nothing."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Context, Option

from elmanctl.cli import rows
from elmanctl.cli.completion import evaluation_names, run_or_evaluation_names
from elmanctl.cli.confirmation import (
    confirmation_data,
    describe_confirmed,
    describe_estimate,
    describe_noise,
    estimate_data,
)
from elmanctl.cli.context import JsonFlag, chosen_run, known_runs, load_readable, runs_folder
from elmanctl.cli.costs import spared_hours
from elmanctl.cli.log_follower import Follower
from elmanctl.cli.output import print_json, print_line, shown_count, write_raw
from elmanctl.cli.saved import show_saved
from elmanctl.cli.sweep_view import branch_lines, sweep_data
from elmanctl.codec import encode
from elmanctl.errors import NotFound, UsageError
from elmanctl.ledger.files import open_regular
from elmanctl.ledger.records import Attempt, Evaluation, State
from elmanctl.ledger.run_state import RunState
from elmanctl.run.paths import RunPaths
from elmanctl.run.saved_file import MODEL_FILE, locate_model
from elmanctl.search.compared_items import find_item
from elmanctl.search.confirmation import best_of, standing
from elmanctl.search.explanation import place_of
from elmanctl.search.export import export_attempt
from elmanctl.search.kept_models import describe_model, model_path
from elmanctl.search.noise import noise_for
from elmanctl.search.selection import find_evaluation

RunOrEvaluation = Annotated[
    str,
    Argument(help="Run, or evaluation of the newest run", autocompletion=run_or_evaluation_names),
]
RunOrEvaluationOrFile = Annotated[
    str,
    Argument(
        help="Run, evaluation of the newest run, or file of a model or checkpoint",
        autocompletion=run_or_evaluation_names,
    ),
]
EvaluationArgument = Annotated[
    str | None,
    Argument(help="Evaluation: g012-e03, 12.3, a job id, or best", autocompletion=evaluation_names),
]

_BLOCK_BYTES = 1 << 16

# The longest tail that is read, e.g. of a log without line breaks.
_TAIL_LIMIT_BYTES = 64 << 20

# The shown keys of a result, with their labels.
_SHOWN_OF_RESULT = {
    **{"val_loss": "held-out", "val_loss_se": "± documents", "bits_per_byte": "bits/byte"},
    **{
        "last100_loss": "last 100",
        "steps": "steps",
        "tokens": "tokens",
        "tokens_per_s": "tokens/s",
    },
    **{"micro_batch": "micro-batch", "backend": "backend", "device": "device"},
    **{"precision": "precision", "fingerprint": "fingerprint"},
}


def show(
    ctx: Context,
    run_or_evaluation: RunOrEvaluationOrFile,
    evaluation: EvaluationArgument = None,
    tail: Annotated[int, Option(help="Lines of the log to show")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """Show one evaluation: result, parameters, attempts, failure, log tail

    Of a file, or of a folder with a model, it shows what is written in the file itself; neither
    the run nor torch is needed.

    \b
    Examples:
        elmanctl show best
        elmanctl show e88-480m g012-e03
        elmanctl show ./model.safetensors
    """
    if evaluation is None and (file := _saved_file(run_or_evaluation)) is not None:
        show_saved(file, as_json=as_json)
        return
    paths, found, chosen = find_shown(ctx, run_or_evaluation, evaluation)
    if as_json:
        attempts = [
            {**export_attempt(attempt), "resources": _resources(found, attempt)}
            for attempt in chosen.attempts
        ]
        run = {"run": found.run["name"], **rows.origin_data(found.run)}
        noise = noise_for(found, chosen)
        row = rows.with_progress(rows.evaluation_row(chosen), paths, chosen)
        row = {**run, **row, "noise": noise and asdict(noise)}
        shown = standing(found)
        row |= confirmation_data(found, shown) | sweep_data(found)
        if shown.noise is not None:
            row["protocol_noise"] = asdict(shown.noise)
        row["excluded_nodes"] = rows.excluded_rows(found)
        model = model_path(paths, found, chosen)
        if model is not None:
            row["model_file"] = str(model)
        print_json({**row, "attempts": attempts})
        return
    _print_evaluation(paths, found, chosen)
    log = log_path(paths, chosen.last_attempt) if chosen.attempts else None
    if log is not None and log.exists() and tail > 0:
        print_line(f"\nlog ({log})")
        for line in _last_lines(log, tail):
            print_line(f"  {line}")


def logs(
    ctx: Context,
    run_or_evaluation: RunOrEvaluation,
    evaluation: EvaluationArgument = None,
    follow: Annotated[
        bool, Option("-f", "--follow", help="Print new lines until the attempt ends")
    ] = False,
    tail: Annotated[int | None, Option("-n", "--tail", help="Print only the last lines")] = None,
    attempt: Annotated[int | None, Option(help="Attempt; default: the newest", min=1)] = None,
) -> None:
    """Print or follow the log of an evaluation

    \b
    Examples:
        elmanctl logs g000-e01
        elmanctl logs e88-480m g012-e03 -f
    """
    paths, _, chosen = find_shown(ctx, run_or_evaluation, evaluation)
    number = attempt or len(chosen.attempts)
    if chosen.answer is not None and not chosen.attempts:
        by = chosen.answer.by
        raise NotFound(
            f"{chosen.id} has no log: it repeats {by} and had no job",
            hint=f"`elmanctl logs {paths.folder.name} {by}` shows the log of the original",
        )
    if not 1 <= number <= len(chosen.attempts):
        raise NotFound(
            f"{chosen.id} has no attempt {number}" if attempt else f"{chosen.id} has no log yet",
            hint=f"it has {len(chosen.attempts)} attempts",
        )
    log = log_path(paths, chosen.attempts[number - 1])
    if not log.exists() and not follow:
        raise NotFound(f"no log at {log}", hint="the job has not started, or the log was cleaned")
    if tail is not None and log.exists():
        for line in _last_lines(log, tail):
            print_line(line)
    start = log.stat().st_size if tail is not None and log.exists() else 0
    follower = Follower(paths, chosen.id, number, log)
    for text in follower.read(start, follow=follow):
        write_raw(text)


def find_shown(
    ctx: Context, first: str, second: str | None
) -> tuple[RunPaths, RunState, Evaluation]:
    """Return an evaluation that was named alone, after its run, or as RUN/EVAL.

    Raises UsageError for a run alone, NotFound for a name that is none.
    """
    run, name = (None, first) if second is None else (first, second)
    if second is None and "/" in first:
        found = find_item(first, runs_folder(ctx))
        if isinstance(found, Path):
            raise NotFound(f"{found} is no run", hint=f"`elmanctl compare {first}` shows its loss")
        paths, evaluation = found
        if evaluation is None:
            raise _is_run(ctx, paths.folder.name)
        name = evaluation
    elif second is None and first in known_runs(ctx):
        raise _is_run(ctx, first)
    else:
        paths = chosen_run(ctx, run)
    state = load_readable(paths)
    return paths, state, find_evaluation(state, name)


def _is_run(ctx: Context, run: str) -> UsageError:
    typed = f"elmanctl {ctx.info_name}"
    return UsageError(
        f"`{run}` is a run: name an evaluation of it",
        hint=f"e.g. `{typed} {run} best`; `elmanctl status {run}` lists them",
    )


def _saved_file(text: str) -> Path | None:
    """Return the saved file that the argument names, None if it names an evaluation.

    It has the ending of such a file, or is a path with a slash.
    """
    path = Path(text)
    if path.suffix == Path(MODEL_FILE).suffix:
        return path
    is_path = "/" in text and path.exists() and not RunPaths(path).ledger.is_file()
    return locate_model(path) if is_path else None


def _print_evaluation(paths: RunPaths, found: RunState, chosen: Evaluation) -> None:
    row = rows.with_progress(rows.evaluation_row(chosen), paths, chosen)
    print_line(f"{chosen.id} of {found.run['name']}: {row['state']}")
    if row["progress"]:
        print_line(f"  progress    {rows.progress_line(row['progress'])}")
    print_line(f"  search      {rows.start_line(found.run)}")
    if row["loss"] is not None:
        entropy = found.run["data"]["unigram_nats"]
        loss = f"{row['loss']:.4f} nats/byte, {rows.loss_quantity(chosen)}"
        print_line(f"  loss        {loss} (unigram entropy {entropy:.4f})")
    if chosen.state is State.STOPPED:
        told = found.reported.get(chosen.id)
        if told is not None:
            print_line(f"  reported    {told:.4f} nats/byte to the optimizer, by its prediction")
    print_line(f"  corpus      {rows.corpus_line(found.run)}")
    for line in _confirmation_lines(found, chosen):
        print_line(line)
    for line in branch_lines(found, chosen):
        print_line(line)
    if chosen.replaces:
        print_line(f"  replaces    {chosen.replaces}")
    if chosen.reevaluates:
        print_line(f"  retrains    {chosen.reevaluates}: same configuration, fresh seed")
    elif chosen.answer:
        print_line(f"  repeats     {chosen.answer.by}: same configuration and seed, no job")
    elif chosen.repeats:
        print_line(f"  repeats     {chosen.repeats}: same configuration")
    noise = noise_for(found, chosen)
    if noise is not None:
        print_line(f"  noise       mean {noise.mean:.4f}, sd {noise.sd:.4f} of {noise.n} seeds")
    print_line(f"  parameters  {shown_count(chosen.parameters)}")
    print_line(f"  seed        {chosen.seed}")
    if chosen.state is State.COMPLETED and (model := describe_model(paths, found, chosen)):
        print_line(f"  model       {model}")
    print_line("config")
    values = chosen.hyperparameters
    width = max(map(len, values))
    for key, value in values.items():
        print_line(f"  {key:<{width}} {json.dumps(value)}")
    for attempt in chosen.attempts:
        _print_attempt(paths, chosen, attempt)
        requested = _resources(found, attempt)
        if "mem_gb" in requested:
            print_line(f"  memory      {requested['mem_gb']:g} GB requested")
        if attempt.state is State.STOPPED:
            print_line(f"  saved       about {spared_hours(found, attempt)}")
        if "exclude" in requested:
            print_line(f"  excluded    {', '.join(requested['exclude'])}")
    excluded = rows.excluded_line(rows.excluded_rows(found))
    if excluded:
        print_line(excluded)


def _confirmation_lines(found: RunState, chosen: Evaluation) -> list[str]:
    """Return the lines on what an evaluation confirms, or on how it was confirmed."""
    if chosen.confirms:
        return [f"  confirms    {chosen.confirms}: same configuration, fresh seed"]
    shown = standing(found)
    own = [each for each in shown.confirmed if each.evaluation == chosen.id]
    lines = [f"  confirmed   {describe_confirmed(each)}" for each in own]
    if shown.winner is not None and shown.winner.evaluation == chosen.id:
        lines += ["  winner      the lowest mean of the confirmed configurations"]
    if not own and chosen == best_of(found, shown):
        estimate = estimate_data(found)
        what = "the lowest loss of the search, on one seed"
        if estimate is not None and estimate["n"] > 1:
            what = f"the best of the search, {describe_estimate(estimate)}"
        lines += [f"  confirmed   not confirmed: {what}"]
    is_measured = noise_for(found, chosen) is not None
    if shown.noise is not None and (lines or is_measured):
        lines += [f"  protocol    {describe_noise(shown.noise)}"]
    return lines


def _print_attempt(paths: RunPaths, chosen: Evaluation, attempt: Attempt) -> None:
    elapsed = rows.shown_elapsed(attempt.elapsed_s)
    parts = [f"job {attempt.job_id}" if attempt.job_id else "no job", attempt.node, elapsed]
    print_line(f"attempt {attempt.number}: {attempt.state} ({', '.join(p for p in parts if p)})")
    print_line(f"  folder      {paths.attempt(chosen.id, attempt.number).folder}")
    if attempt.result is not None:
        for key, label in _SHOWN_OF_RESULT.items():
            value = attempt.result.get(key)
            if value is not None:
                shown = f"{value:.0f}" if key == "tokens_per_s" else value
                print_line(f"  {label:<11} {shown}")
        if attempt.result.get("validation_s"):
            cost_s = attempt.result["validation_s"]
            print_line(f"  validation  {cost_s:.1f} s, outside the time budget")
        for line in _memory_lines(attempt.result):
            print_line(line)
        convergence = rows.convergence_of(attempt)
        if convergence is not None:
            print_line(f"  converged   {rows.describe_convergence(convergence)}")
        if attempt.result.get("skipped_updates"):
            print_line(f"  skipped     {attempt.result['skipped_updates']} updates, not finite")
        _print_origin(attempt.result)
    if attempt.stop is not None:
        print_line(f"  stop        {rows.describe_stop(attempt.stop)}")
    if attempt.verdict is not None and attempt.state is not State.COMPLETED:
        print_line(f"  verdict     {rows.describe_verdict(attempt.verdict)}")
        for quote in attempt.verdict.evidence:
            print_line(f"    {quote.source}: {quote.text}{place_of(quote)}")


def _resources(found: RunState, attempt: Attempt) -> dict[str, Any]:
    """Return the resources that the attempt's job requested."""
    requested: dict[str, Any] = encode(found.submissions[attempt.submission].resources)
    return requested


def _memory_lines(result: Mapping[str, Any]) -> list[str]:
    """Return what a worker did when memory ran out, and whether it recomputed activations."""
    shrunk = [
        f"{each['from']} to {each['to']} in "
        f"{'the validation after ' if each.get('in') else ''}step {each['step']}"
        for each in result.get("halvings", ())
        if each["from"] != each["to"]
    ]
    lines = [f"  halved      {', '.join(shrunk)}: memory ran out"] if shrunk else []
    if result.get("activation_checkpointing"):
        lines.append(f"  recomputed  activations, {result['activation_checkpointing']}")
    return lines


def _print_origin(result: Mapping[str, Any]) -> None:
    found = result.get("continued_from")
    if found:
        source = found.get("source") or f"attempt {found['attempt']}"
        print_line(f"  resumed     from {source}, step {found['step']}")
    elif result.get("not_continued"):
        print_line(f"  restarted   {result['not_continued']}")


def log_path(paths: RunPaths, attempt: Attempt | None) -> Path:
    """Return where the log of an attempt is, or was before it was cleaned."""
    assert attempt is not None
    return paths.submission(attempt.submission) / f"{attempt.job_id}_0_log.out"


def _last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a log, reading only its end."""
    if count <= 0:
        return []
    with open_regular(path) as stream:
        at = stream.seek(0, os.SEEK_END)
        data = b""
        while at > 0 and data.count(b"\n") <= count and len(data) < _TAIL_LIMIT_BYTES:
            size_bytes = min(at, max(_BLOCK_BYTES, len(data)))
            at -= size_bytes
            stream.seek(at)
            data = stream.read(size_bytes) + data
    return data.decode(errors="replace").splitlines()[-count:]
