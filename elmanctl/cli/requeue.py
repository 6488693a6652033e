"""The `requeue` command: new attempts of failed or cancelled evaluations."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from typer import Context, Option

from elmanctl.cli import context, output
from elmanctl.cli.completion import verdict_kinds
from elmanctl.cli.run_client import act_on_run
from elmanctl.codec import encode
from elmanctl.errors import UsageError
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.request_schema import RequeueRequest
from elmanctl.search.requeue import RequeuePlan, plan_requeue, select_requeueable
from elmanctl.search.selection import select_named

# The changes of a new attempt, as text.
_UNITS = {"mem_gb": "{} GB of memory", "micro_batch": "micro-batch {}", "timeout_min": "{} min"}


def requeue(
    ctx: Context,
    names: context.RunAndEvaluations = None,
    run: context.RunOption = None,
    failed: Annotated[
        bool,
        Option("--failed", help="All that failed, or were cancelled outside elmanctl"),
    ] = False,
    kind: Annotated[
        str | None,
        Option(
            help="With --failed: only these verdicts, e.g. oom,timeout",
            autocompletion=verdict_kinds,
        ),
    ] = None,
    mem: Annotated[float | None, Option(help="Memory in GB for the new attempt", min=0.001)] = None,
    timeout_min: Annotated[
        int | None, Option(help="Time limit in minutes for the new attempt", min=1)
    ] = None,
    exclude_node: Annotated[
        list[str] | None, Option(help="Node to keep the new attempts off")
    ] = None,
    force: Annotated[bool, Option("--force", help="Include deterministic failures")] = False,
    dry_run: context.DryRunFlag = False,
    yes: context.YesFlag = False,
    as_json: context.JsonFlag = False,
) -> None:
    """Requeue failed or cancelled evaluations

    Adds a new attempt to each evaluation; earlier attempts and their logs are kept. After an
    out-of-memory failure it gets more memory or smaller micro-batches, even without `--mem`.

    \b
    Examples:
        elmanctl requeue --failed
        elmanctl requeue e88-480m g012-e03 --mem 80 --exclude-node n2
        elmanctl requeue e88-480m --failed --kind oom,lost --dry-run
    """
    run, evaluations = context.split_names(ctx, run, names or [])
    if failed == bool(evaluations):
        if failed:
            raise UsageError(
                f"`--failed` takes no names, and no run is named `{evaluations[0]}`",
                hint="`elmanctl status` lists the runs",
            )
        raise UsageError(
            "name the evaluations to requeue, or pass `--failed`",
            hint="`elmanctl requeue --failed --dry-run` lists the failed ones",
        )
    if kind and not failed:
        raise UsageError("`--kind` goes with `--failed`", hint="leave it out, or the names")
    paths = context.run_to_change(ctx, run)
    state = context.load_readable(paths)
    kinds = [word.strip() for word in kind.split(",")] if kind else []
    chosen = select_requeueable(state, kinds=kinds) if failed else select_named(state, evaluations)
    request = RequeueRequest(
        evaluations=tuple(e.id for e in chosen),
        mem_gb=mem,
        timeout_min=timeout_min,
        exclude=tuple(exclude_node or ()),
        force=force,
        # Of `--failed` the others are still requeued; evaluations named one by one are all meant.
        skip_deterministic=failed,
    )
    plan = plan_requeue(state, effective_settings(state), chosen, request)
    if not (chosen or as_json):
        matching = "failed in this way" if kinds else "failed"
        output.say(f"no evaluation of {state.run['name']} {matching}: nothing to do")
        # A script gets an empty table.
        if output.is_terminal():
            return
    if dry_run or not chosen:
        _print_plan(plan, as_json=as_json)
        return
    if failed and not output.confirm(
        f"requeue {output.counted(len(plan.chosen), 'evaluation')}?", yes=yes
    ):
        return
    answer = act_on_run(paths, "requeue", encode(request))
    if as_json:
        output.print_json(answer)
        return
    _print_rows(answer["requeued"], "job")
    _warn_of_skipped(answer["refused"])
    if not answer.get("by_controller"):
        output.hint(f"collect the results with `elmanctl resume {state.run['name']}`")


def _print_plan(plan: RequeuePlan, *, as_json: bool) -> None:
    rows = [
        {**row, "state": evaluation.state.value, "attempts": len(evaluation.attempts)}
        for evaluation, row in plan.chosen
    ]
    if as_json:
        output.print_json({"evaluations": rows, "refused": dict(plan.refused)})
        return
    _print_rows(rows, "state")
    _warn_of_skipped(plan.refused)


def _print_rows(rows: Sequence[Mapping[str, Any]], key: str) -> None:
    """Print the attempts to come, with one more column between the attempt and its changes."""
    first = output.columns("EVAL", "WAS")
    last = output.columns(key.upper(), "CHANGES", "NOTE")
    cells = [
        [
            *(row["evaluation"], row["was"], str(row["attempt"]), row.get(key)),
            *(_shown_changes(row["changes"]), row["note"]),
        ]
        for row in rows
    ]
    output.print_table([*first, output.Column("ATTEMPT", right=True), *last], cells)


def _shown_changes(changes: Mapping[str, Any]) -> str | None:
    """Format the changes of a new attempt: as text on a terminal, as `key=value` elsewhere."""
    nodes = changes.get("exclude")
    known = {key: f"{changes[key]:g}" for key in _UNITS if key in changes}
    if output.is_terminal():
        words = [_UNITS[key].format(value) for key, value in known.items()]
        return ", ".join(words + ([f"not on {', '.join(nodes)}"] if nodes else [])) or None
    words = [f"{key}={value}" for key, value in known.items()]
    return " ".join(words + ([f"exclude={','.join(nodes)}"] if nodes else [])) or None


def _warn_of_skipped(refused: Mapping[str, str]) -> None:
    for name, words in refused.items():
        output.warn(f"{name} is skipped, it would fail in the same way: {words}; see `--force`")
