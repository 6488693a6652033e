"""`init`, `cancel`, `config`, `completion`: changing and setting up."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from elmanctl.cli.complete import model_names, one_of, presets, run_or_evaluation_names
from elmanctl.cli.context import (
    DryRunFlag,
    JsonFlag,
    RunOption,
    YesFlag,
    load_readable,
    parted,
    resolve_settings,
    run_to_change,
)
from elmanctl.cli.output import (
    Column,
    confirm,
    hint,
    print_json,
    print_line,
    print_table,
    warn,
)
from elmanctl.cli.remote import act_on_run
from elmanctl.cli.template import commented_config
from elmanctl.constants import COMPLETION_VARIABLE, CONFIG_NAME, PROGRAM
from elmanctl.errors import EnvironmentNotReady, PartialFailure, UsageError
from elmanctl.ledger.records import Evaluation
from elmanctl.search.actions import to_cancel
from elmanctl.search.cancelled_jobs import Now
from elmanctl.search.requeue import last_kind
from elmanctl.search.selection import select_named
from elmanctl.verdicts.policy import shown_rules

_SHELLS = ("bash", "zsh", "fish")

Names = Annotated[
    list[str] | None,
    typer.Argument(
        help="Run, then evaluations; default the only run not finished",
        autocompletion=run_or_evaluation_names,
    ),
]


def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the new elman.toml")] = Path(),
    model: Annotated[
        str, typer.Option(help="Model that you mean to search", autocompletion=model_names)
    ] = "e88",
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(commented_config(), encoding="utf-8")
    except OSError as exc:
        raise EnvironmentNotReady(
            f"cannot write {Path(exc.filename or path).absolute()}: {exc.strerror}",
            hint="name a folder of yours: `elmanctl init FOLDER`",
        ) from exc
    print_line(str(path))
    hint(
        f"set your partition in it, then "
        f"`elmanctl search {name} --params 480M --train-minutes 10 --dry-run`"
    )


def cancel(
    ctx: typer.Context,
    names: Names = None,
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
    The scheduler is asked afterwards: jobs that are still there are named, and the exit code is 5.

    \b
    Examples:
        elmanctl cancel g003-e01 g003-e02
        elmanctl cancel e88-480m --all
    """
    run, evaluations = parted(ctx, run, names or [])
    if everything and evaluations:
        raise UsageError(
            f"`--all` takes the whole name of a run and no evaluations, not `{evaluations[0]}`",
            hint="`elmanctl status` lists the runs",
        )
    paths = run_to_change(ctx, run, whole_name=everything)
    state = load_readable(paths)
    if not (everything or evaluations):
        raise UsageError(
            "name evaluations to cancel, or pass `--all`",
            hint=f"`elmanctl cancel {state.run['name']} --all` ends the whole run for good",
        )
    chosen = to_cancel(state) if everything else select_named(state, evaluations)
    if dry_run:
        _print_chosen(chosen, as_json=as_json)
        return
    question = f"cancel {len(chosen)} evaluations of {state.run['name']}?"
    if everything and not confirm(question, yes=yes):
        return
    answer = act_on_run(paths, "cancel", {"all": everything, "evaluations": [e.id for e in chosen]})
    if as_json:
        print_json(answer)
    else:
        keys = ("evaluation", "job", "result", "now")
        print_table(
            [Column(name=name) for name in ("EVAL", "JOB", "RESULT", "JOB NOW")],
            [[row[key] for key in keys] for row in answer["cancelled"]],
        )
    _refuse_jobs_left(answer)


def _refuse_jobs_left(answer: Mapping[str, Any]) -> None:
    """Raise PartialFailure where jobs go on that were cancelled, or where nobody knows."""
    error = f": {answer['error']}" if answer.get("error") else ""
    there = answer["still_there"]
    if there:
        jobs = ", ".join(f"{row['job']} {row['now']}" for row in there)
        raise PartialFailure(
            f"the evaluations are closed, but of their jobs {len(there)} are still there: "
            f"{jobs}{error}",
            hint=f"end them with `scancel {' '.join(str(row['job']) for row in there)}`",
        )
    lost = [row["evaluation"] for row in answer["cancelled"] if row["now"] == Now.UNKNOWN]
    if lost:
        why = answer["unknown"] or "the scheduler did not say"
        raise PartialFailure(
            f"the evaluations are closed, but whether the jobs of {', '.join(lost)} have ended is "
            f"not known: {why}{error}",
            hint="look with `squeue --me`, and end them with scancel",
        )


def config(
    ctx: typer.Context,
    show_origin: Annotated[
        bool, typer.Option("--show-origin", help="Show where each value was set")
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(help="As `search --preset` would see it", autocompletion=presets),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show settings, where each came from, and what follows each verdict

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
    policy = shown_rules(resolved.settings.retry)
    if resolved.sbatch is not None:
        for line in (
            *resolved.sbatch.unused,
            *(fault.message for fault in resolved.sbatch.refused),
        ):
            warn(line)
    if as_json:
        print_json({"settings": rows, "policy": policy})
        return
    columns = [Column(name="KEY"), Column(name="VALUE")]
    columns += [Column(name="FROM")] if show_origin else []
    print_table(columns, [_config_cells(row, show_origin=show_origin) for row in rows])
    print_line("")
    names = ("VERDICT", "CASE", "TOLD", "AGAIN", "WITH", "COUNTS AS")
    print_table(
        [Column(name=name, right=name == "AGAIN") for name in names],
        [
            [
                *(row["verdict"], row["case"], row["told"]),
                *(str(row["again"]), row["change"], row["group"]),
            ]
            for row in policy
        ],
    )


def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh or fish", autocompletion=one_of(_SHELLS))],
) -> None:
    """Print the shell completion script

    \b
    Examples:
        eval "$(elmanctl completion bash)"
        elmanctl completion fish > ~/.config/fish/completions/elmanctl.fish
    """
    from typer._completion_shared import get_completion_script

    if shell not in _SHELLS:
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
    if isinstance(value, bool):
        # As elman.toml spells it.
        text = str(value).lower()
    return [row["key"], text, *([row["from"]] if show_origin else [])]
