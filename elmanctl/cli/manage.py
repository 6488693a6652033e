"""`init`, `cancel`, `requeue`, `clean`, `config`, `completion`: changing and setting up."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from elmanctl.cli.complete import evaluation_names
from elmanctl.cli.context import (
    DryRunFlag,
    JsonFlag,
    RunArgument,
    RunOption,
    YesFlag,
    resolve_settings,
    run_to_change,
)
from elmanctl.cli.output import (
    Column,
    confirm,
    format_bytes,
    hint,
    print_json,
    print_line,
    print_table,
    say,
)
from elmanctl.cli.remote import act_on_run
from elmanctl.cli.template import commented_config
from elmanctl.constants import COMPLETION_VARIABLE, CONFIG_NAME, PROGRAM
from elmanctl.errors import PartialFailure, UsageError
from elmanctl.ledger.records import Evaluation
from elmanctl.ledger.state import load_run
from elmanctl.search.actions import last_kind
from elmanctl.search.cleaning import plan_cleaning
from elmanctl.search.selection import select_failed, select_named

Evaluations = Annotated[
    list[str] | None, typer.Argument(help="Evaluations", autocompletion=evaluation_names)
]


def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the new elman.toml")] = Path(),
    model: Annotated[str, typer.Option(help="Model that you mean to search")] = "e88",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file")] = False,
) -> None:
    """Write a commented elman.toml

    Every setting stands in it with its meaning and default, commented out.

    \b
    Examples:
        elmanctl init
        elmanctl init ~/study --model e88
    """
    from elmanctl.models.registry import find_family

    name = find_family(model).name
    path = folder / CONFIG_NAME
    if path.exists() and not force:
        raise UsageError(f"{path} exists", hint="pass `--force` to replace it")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(commented_config(), encoding="utf-8")
    print_line(str(path))
    hint(
        f"set your partition in it, then "
        f"`elmanctl search {name} --params 480M --train-minutes 10 --dry-run`"
    )


def cancel(
    ctx: typer.Context,
    names: Evaluations = None,
    run: RunOption = None,
    everything: Annotated[
        bool, typer.Option("--all", help="The whole run: it stops for good")
    ] = False,
    dry_run: DryRunFlag = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Cancel evaluations or a whole run

    Jobs are ended and their evaluations closed as cancelled; nothing is told to the optimizer.

    \b
    Examples:
        elmanctl cancel g003-e01 g003-e02
        elmanctl cancel --run e88-480m --all
    """
    paths = run_to_change(ctx, run, whole_name=everything)
    state = load_run(paths.folder).state
    if everything == bool(names):
        raise UsageError("name evaluations to cancel, or pass `--all`")
    chosen = (
        [e for e in state.evaluations.values() if not e.state.is_finished]
        if everything
        else select_named(state, names or [])
    )
    if dry_run:
        _print_chosen(chosen, as_json=as_json)
        return
    question = f"cancel {len(chosen)} evaluations of {state.run['name']}?"
    if everything and not confirm(question, yes=yes):
        return
    answer = act_on_run(paths, "cancel", {"all": everything, "evaluations": [e.id for e in chosen]})
    if as_json:
        print_json(answer)
        return
    print_table(
        [Column(name="EVAL"), Column(name="JOB"), Column(name="RESULT")],
        [[row["evaluation"], row["job"], row["result"]] for row in answer["cancelled"]],
    )
    if answer.get("error"):
        raise PartialFailure(
            f"the evaluations are closed, but their jobs may still run: {answer['error']}",
            hint="end them with scancel",
        )


def requeue(
    ctx: typer.Context,
    names: Evaluations = None,
    run: RunOption = None,
    failed: Annotated[bool, typer.Option("--failed", help="Every failed evaluation")] = False,
    kind: Annotated[
        str | None, typer.Option(help="With --failed: only these verdicts, e.g. oom,timeout")
    ] = None,
    mem: Annotated[
        float | None, typer.Option(help="Memory in GB for the new attempt", min=0.001)
    ] = None,
    timeout_min: Annotated[
        int | None, typer.Option(help="Time limit in minutes for the new attempt", min=1)
    ] = None,
    dry_run: DryRunFlag = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Submit failed evaluations again

    A new attempt is added to each evaluation; earlier attempts and their logs are kept.

    \b
    Examples:
        elmanctl requeue --failed
        elmanctl requeue g012-e03 --run e88-480m --mem 80
        elmanctl requeue --failed --kind oom --dry-run
    """
    paths = run_to_change(ctx, run)
    state = load_run(paths.folder).state
    if failed == bool(names):
        raise UsageError("name evaluations to queue again, or pass `--failed`")
    kinds = kind.split(",") if kind else []
    chosen = select_failed(state, kinds=kinds) if failed else select_named(state, names or [])
    if dry_run or not chosen:
        _print_chosen(chosen, as_json=as_json)
        return
    if failed and not confirm(f"submit {len(chosen)} evaluations again?", yes=yes):
        return
    changes = {"mem_gb": mem, "timeout_min": timeout_min}
    arguments: dict[str, Any] = {
        "evaluations": [e.id for e in chosen],
        **{key: value for key, value in changes.items() if value is not None},
    }
    answer = act_on_run(paths, "requeue", arguments)
    if as_json:
        print_json(answer)
        return
    print_table(
        [Column(name="EVAL"), Column(name="WAS"), Column(name="ATTEMPT"), Column(name="JOB")],
        [
            [row["evaluation"], row["was"], str(row["attempt"]), row.get("job")]
            for row in answer["requeued"]
        ],
    )
    if not answer.get("by_controller"):
        hint(f"collect the results with `elmanctl resume {state.run['name']}`")


def clean(
    ctx: typer.Context,
    run: RunArgument = None,
    keep_best: Annotated[
        int, typer.Option(help="Evaluations, best first, of which all is kept", min=0)
    ] = 3,
    kind: Annotated[str | None, typer.Option(help="Only these kinds: metrics,logs,pickles")] = None,
    dry_run: DryRunFlag = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove metrics, logs and pickles that are no longer needed

    The ledger, all results, unfinished evaluations and the best ones are never touched.

    \b
    Examples:
        elmanctl clean --dry-run
        elmanctl clean e88-480m --keep-best 10 --yes
    """
    paths = run_to_change(ctx, run)
    state = load_run(paths.folder).state
    kinds = kind.split(",") if kind else []
    plan = plan_cleaning(paths, state, keep_best=keep_best, kinds=kinds)
    total_bytes = sum(item.size_bytes for item in plan)
    if dry_run:
        rows: list[dict[str, Any]] = [
            {
                "path": str(item.path.relative_to(paths.folder)),
                "size_bytes": item.size_bytes,
                "kind": item.kind,
                "evaluation": item.evaluation,
            }
            for item in plan
        ]
        if as_json:
            print_json({"removable": rows, "freed_bytes": total_bytes})
            return
        print_table(
            [
                Column(name="PATH"),
                Column(name="SIZE", right=True),
                Column(name="KIND"),
                Column(name="EVAL"),
            ],
            [[r["path"], format_bytes(r["size_bytes"]), r["kind"], r["evaluation"]] for r in rows],
        )
        say(f"would free {format_bytes(total_bytes)} in {len(plan)} files")
        return
    question = f"remove {len(plan)} files of {state.run['name']}, {format_bytes(total_bytes)}?"
    if plan and not confirm(question, yes=yes):
        return
    answer = act_on_run(paths, "clean", {"keep_best": keep_best, "kinds": kinds})
    if as_json:
        print_json(answer)
        return
    print_line(f"freed {format_bytes(answer['freed_bytes'])} in {answer['files']} files")


def config(
    ctx: typer.Context,
    show_origin: Annotated[
        bool, typer.Option("--show-origin", help="Show where each value was set")
    ] = False,
    preset: Annotated[str | None, typer.Option(help="As `search --preset` would see it")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show settings and where each came from

    \b
    Examples:
        elmanctl config --show-origin
    """
    resolved = resolve_settings(ctx, {}, preset)
    rows = [
        {
            "key": f"{section}.{key}",
            "value": value,
            "from": resolved.origins.get(f"{section}.{key}", "default"),
        }
        for section, table in resolved.settings.encode().items()
        for key, value in table.items()
    ]
    if as_json:
        print_json({"settings": rows})
        return
    columns = [Column(name="KEY"), Column(name="VALUE")]
    columns += [Column(name="FROM")] if show_origin else []
    print_table(columns, [_config_cells(row, show_origin=show_origin) for row in rows])


def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh or fish")],
) -> None:
    """Print the shell completion script

    \b
    Examples:
        eval "$(elmanctl completion bash)"
        elmanctl completion fish > ~/.config/fish/completions/elmanctl.fish
    """
    from typer._completion_shared import get_completion_script

    if shell not in ("bash", "zsh", "fish"):
        raise UsageError(f"no completion for `{shell}`", hint="bash, zsh and fish are supported")
    print_line(
        get_completion_script(prog_name=PROGRAM, complete_var=COMPLETION_VARIABLE, shell=shell)
    )


def _print_chosen(chosen: list[Evaluation], *, as_json: bool) -> None:
    rows: list[dict[str, Any]] = [
        {
            "evaluation": e.id,
            "state": e.state.value,
            "was": last_kind(e),
            "attempts": len(e.attempts),
        }
        for e in chosen
    ]
    if as_json:
        print_json({"evaluations": rows})
        return
    print_table(
        [Column(name="EVAL"), Column(name="STATE"), Column(name="WAS"), Column(name="ATTEMPTS")],
        [[r["evaluation"], r["state"], r["was"], str(r["attempts"])] for r in rows],
    )


def _config_cells(row: Mapping[str, Any], *, show_origin: bool) -> list[str | None]:
    value = row["value"]
    text = None if value is None else str(list(value) if isinstance(value, tuple) else value)
    return [row["key"], text, *([row["from"]] if show_origin else [])]
