"""`requeue`: new attempts of evaluations that failed or were cancelled."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from elmanctl.cli.completion import run_or_evaluation_names, verdict_kinds
from elmanctl.cli.context import (
    DryRunFlag,
    JsonFlag,
    RunOption,
    YesFlag,
    load_readable,
    parted,
    run_to_change,
)
from elmanctl.cli.output import (
    Column,
    confirm,
    hint,
    is_terminal,
    print_json,
    print_table,
    say,
    warn,
)
from elmanctl.cli.run_client import act_on_run
from elmanctl.errors import UsageError
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.requeue import RequeuePlan, plan_requeue, select_requeueable
from elmanctl.search.selection import select_named

# What a new attempt changes, as it is said.
_UNITS = {"mem_gb": "{} GB of memory", "micro_batch": "micro-batch {}", "timeout_min": "{} min"}


def requeue(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Run, then evaluations; without a run evaluations of the newest",
            autocompletion=run_or_evaluation_names,
        ),
    ] = None,
    run: RunOption = None,
    failed: Annotated[
        bool,
        typer.Option("--failed", help="All that failed, or were cancelled by others than elmanctl"),
    ] = False,
    kind: Annotated[
        str | None,
        typer.Option(
            help="With --failed: only these verdicts, e.g. oom,timeout",
            autocompletion=verdict_kinds,
        ),
    ] = None,
    mem: Annotated[
        float | None, typer.Option(help="Memory in GB for the new attempt", min=0.001)
    ] = None,
    timeout_min: Annotated[
        int | None, typer.Option(help="Time limit in minutes for the new attempt", min=1)
    ] = None,
    exclude_node: Annotated[
        list[str] | None, typer.Option(help="Node that the new attempts must not run on")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also what failed twice in the same way")
    ] = False,
    dry_run: DryRunFlag = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Submit failed evaluations again

    A new attempt is added to each evaluation; earlier attempts and their logs are kept. What ran
    out of memory gets more of it, or smaller micro-batches, also without `--mem`.

    \b
    Examples:
        elmanctl requeue --failed
        elmanctl requeue e88-480m g012-e03 --mem 80 --exclude-node n2
        elmanctl requeue e88-480m --failed --kind oom,lost --dry-run
    """
    run, evaluations = parted(ctx, run, names or [])
    if failed == bool(evaluations):
        if failed:
            raise UsageError(
                f"`--failed` takes no names, and no run is named `{evaluations[0]}`",
                hint="`elmanctl status` lists the runs",
            )
        raise UsageError(
            "name evaluations to queue again, or pass `--failed`",
            hint="`elmanctl requeue --failed --dry-run` shows what that would take",
        )
    if kind and not failed:
        raise UsageError("`--kind` goes with `--failed`", hint="leave it out, or the names")
    paths = run_to_change(ctx, run)
    state = load_readable(paths)
    kinds = [word.strip() for word in kind.split(",")] if kind else []
    chosen = select_requeueable(state, kinds=kinds) if failed else select_named(state, evaluations)
    asked: dict[str, Any] = {
        "evaluations": [e.id for e in chosen],
        "mem_gb": mem,
        "timeout_min": timeout_min,
        "exclude": exclude_node,
        "force": force,
        # What was named one by one is all meant; of all that failed the rest is still wanted.
        "skip_deterministic": failed,
    }
    asked = {key: value for key, value in asked.items() if value not in (None, False)}
    plan = plan_requeue(state, effective_settings(state), chosen, asked)
    if not (chosen or as_json):
        say(f"nothing of {state.run['name']} {'ended so' if kinds else 'failed'}: nothing to do")
        # A script gets the table all the same, without a row.
        if is_terminal():
            return
    if dry_run or not chosen:
        _print_plan(plan, as_json=as_json)
        return
    if failed and not confirm(f"submit {len(plan.chosen)} evaluations again?", yes=yes):
        return
    answer = act_on_run(paths, "requeue", asked)
    if as_json:
        print_json(answer)
        return
    _print_rows(answer["requeued"], [Column(name="JOB")], lambda row: [row.get("job")])
    _warn_of_refused(answer["refused"])
    if not answer.get("by_controller"):
        hint(f"collect the results with `elmanctl resume {state.run['name']}`")


def _print_plan(plan: RequeuePlan, *, as_json: bool) -> None:
    rows = [
        {
            **item.row(),
            "state": item.evaluation.state.value,
            "attempts": len(item.evaluation.attempts),
        }
        for item in plan.chosen
    ]
    if as_json:
        print_json({"evaluations": rows, "refused": dict(plan.refused)})
        return
    _print_rows(rows, [Column(name="STATE")], lambda row: [row["state"]])
    _warn_of_refused(plan.refused)


def _print_rows(rows: Sequence[Mapping[str, Any]], more: list[Column], cells: Any) -> None:
    print_table(
        [
            *(Column(name="EVAL"), Column(name="WAS"), Column(name="ATTEMPT", right=True)),
            *(*more, Column(name="CHANGES"), Column(name="NOTE")),
        ],
        [
            [
                *(row["evaluation"], row["was"], str(row["attempt"])),
                *(*cells(row), _shown_changes(row["changes"]), row["note"]),
            ]
            for row in rows
        ],
    )


def _shown_changes(changes: Mapping[str, Any]) -> str | None:
    """Return what a new attempt changes: in words on a terminal, as `key=value` elsewhere."""
    nodes = changes.get("exclude")
    if is_terminal():
        parts = [text.format(f"{changes[key]:g}") for key, text in _UNITS.items() if key in changes]
        return ", ".join([*parts, *([f"not on {', '.join(nodes)}"] if nodes else [])]) or None
    plain = [f"{key}={changes[key]:g}" for key in _UNITS if key in changes]
    return " ".join([*plain, *([f"exclude={','.join(nodes)}"] if nodes else [])]) or None


def _warn_of_refused(refused: Mapping[str, str]) -> None:
    for name, words in refused.items():
        warn(f"{name} is left alone, it would fail again as before: {words}; see `--force`")
