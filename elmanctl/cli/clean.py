"""The `clean` command: remove files of a run by its retention policy."""

from collections.abc import Sequence
from typing import Annotated

from typer import Context, Option

from elmanctl.cli import context, output
from elmanctl.cli.completion import some_of
from elmanctl.cli.run_client import act_on_run
from elmanctl.codec import encode
from elmanctl.search.cleaning import plan_cleaning, retention
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.file_owners import KINDS, OwnedFile
from elmanctl.search.request_schema import CleanRequest


def clean(
    ctx: Context,
    run: context.RunArgument = None,
    keep_best: Annotated[
        int | None,
        Option(help="Keep every file of this many best evaluations; default: 3", min=0),
    ] = None,
    keep_last: Annotated[
        int | None,
        Option(help="Keep every file of this many newest generations; default: 2", min=0),
    ] = None,
    keep_failed_logs: Annotated[
        bool | None,
        Option(
            "--keep-failed-logs/--no-keep-failed-logs",
            help="Keep the logs of failed attempts; default: yes",
        ),
    ] = None,
    keep_models: Annotated[
        int | None,
        Option(help="Keep the models of this many best evaluations; default: 1", min=0),
    ] = None,
    kind: Annotated[
        str | None,
        Option(help=f"Only these kinds: {', '.join(KINDS)}", autocompletion=some_of(KINDS)),
    ] = None,
    dry_run: context.DryRunFlag = False,
    yes: context.YesFlag = False,
    as_json: context.JsonFlag = False,
) -> None:
    """Remove metrics, logs, pickles and models that are no longer needed

    The retention policy is `[disk]` in the run's settings, overridden by the options here.
    The ledger, all results, unfinished evaluations and the best ones are always kept.

    \b
    Examples:
        elmanctl clean --dry-run
        elmanctl clean e88-480m --keep-best 10 --keep-last 0 --yes
    """
    paths = context.run_to_change(ctx, run)
    state = context.load_readable(paths)
    request = CleanRequest(
        kinds=tuple(word.strip() for word in kind.split(",")) if kind else (),
        keep_best=keep_best,
        keep_last=keep_last,
        keep_failed_logs=keep_failed_logs,
        keep_models=keep_models,
    )
    policy = retention(effective_settings(state).disk, request)
    plan = plan_cleaning(paths, state, policy, kinds=request.kinds)
    total_bytes = sum(item.size_bytes for item in plan)
    if dry_run:
        _print_plan(plan, as_json=as_json)
    else:
        files = output.counted(len(plan), "file")
        question = f"remove {files} of {state.run['name']}, {output.format_bytes(total_bytes)}?"
        if plan and not output.confirm(question, yes=yes):
            return
        answer = act_on_run(paths, "clean", encode(request))
        if as_json:
            output.print_json(answer)
            return
        files = output.counted(answer["files"], "file")
        output.print_line(f"freed {output.spelled_bytes(answer['freed_bytes'])} in {files}")
    if not plan and policy.keep_last:
        output.hint(
            f"all files of the newest {policy.keep_last} generations are kept, see `--keep-last`"
        )


def _print_plan(plan: Sequence[OwnedFile], *, as_json: bool) -> None:
    total_bytes = sum(item.size_bytes for item in plan)
    if as_json:
        rows = [
            {"path": f.name, "size_bytes": f.size_bytes, "kind": f.kind, "evaluation": f.evaluation}
            for f in plan
        ]
        output.print_json({"removable": rows, "freed_bytes": total_bytes})
        return
    output.print_table(
        [
            output.Column("PATH"),
            output.Column("SIZE", right=True),
            output.Column("KIND"),
            output.Column("EVAL"),
        ],
        [[f.name, output.shown_bytes(f.size_bytes), f.kind, f.evaluation] for f in plan],
    )
    output.say(
        f"would free {output.format_bytes(total_bytes)} in {output.counted(len(plan), 'file')}"
    )
