"""The `compare` command: runs, evaluations and results of `eval`, by their losses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typer import Argument, Context, Option

from elmanctl.cli.comparison_data import comparison_data
from elmanctl.cli.comparison_tables import print_equal_budgets, print_rows
from elmanctl.cli.completion import compared_names, one_of
from elmanctl.cli.context import JsonFlag, load_readable, runs_folder
from elmanctl.cli.output import print_json, warn
from elmanctl.errors import ElmanError, UsageError, meant
from elmanctl.run.paths import RunPaths
from elmanctl.search.compared_items import find_rows
from elmanctl.search.compared_results import row_of_run
from elmanctl.search.comparison import Group, Row, compare_rows
from elmanctl.search.learning_curve import MEASURES


def compare(
    ctx: Context,
    items: Annotated[
        list[str],
        Argument(
            metavar="ITEM ITEM...",
            help="Runs, evaluations as RUN/EVAL, folders of `elmanctl eval`",
            autocompletion=compared_names,
        ),
    ],
    at: Annotated[
        str | None,
        Option(
            help="Equal budget of the second table: tokens, time or flops; default: each",
            autocompletion=one_of(MEASURES),
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare losses over seeds: runs, evaluations, results of eval

    A run stands for its winner. Results of `elmanctl eval` that differ by their seed form one row.
    Rows under another protocol are marked and ranked by themselves.

    \b
    Examples:
        elmanctl compare e88-480m mamba2-480m
        elmanctl compare e88-480m e88-480m/g002-e03
        elmanctl compare runs/eval-e88-* runs/eval-gru-* --at flops
    """
    measures = [measure for measure in MEASURES if at in (None, measure)]
    if not measures:
        hint = meant(at or "", MEASURES, f"measures: {', '.join(MEASURES)}")
        raise UsageError(f"no measure of a budget is named `{at}`", hint=hint)
    if len(items) < 2:
        raise UsageError(
            "one item has nothing to be compared with",
            hint="name another run, evaluation or folder; `elmanctl status` lists the runs",
        )
    groups = compare_rows(find_rows(items, runs_folder(ctx), load_readable), measures)
    _refuse_unlike(groups)
    if as_json:
        print_json(comparison_data(groups))
        return
    print_groups(groups)


def print_groups(groups: Sequence[Group]) -> None:
    """Print the tables of a comparison."""
    print_rows(groups)
    print_equal_budgets(groups)


def print_comparison(runs: Sequence[Path]) -> None:
    """Print the comparison of the winners of these runs, by their folders."""
    groups = compare_rows(rows_of_runs(runs))
    if groups:
        print_groups(groups)


def rows_of_runs(runs: Sequence[Path]) -> list[Row]:
    """Return a row for each run; a run without a loss gets a warning instead."""
    rows = []
    for folder in runs:
        try:
            paths = RunPaths(folder)
            rows.append(row_of_run(paths, load_readable(paths)))
        except ElmanError as exc:
            warn(exc.message)
    return rows


def _refuse_unlike(groups: Sequence[Group]) -> None:
    """Raise UsageError where no two of several rows share a protocol."""
    if len(groups) < 2 or len(groups[0].rows) > 1:
        return
    fields = dict.fromkeys(each.field for group in groups for each in group.differing)
    raise UsageError(
        f"no two of these {len(groups)} share a protocol: they differ in {', '.join(fields)}",
        hint="losses are compared under one protocol: the same corpus, budget and objective",
    )
