"""`bench`: how fast operations and training steps are here, beside what they could be."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from elmanctl.bench.machine import CPU_LABEL, require_device
from elmanctl.bench.report import Report, check_out, read_reports
from elmanctl.cli.completion import one_of
from elmanctl.cli.context import JsonFlag
from elmanctl.cli.output import Column, hint, print_json, print_table, say
from elmanctl.constants import LAUNCHES_VARIABLE
from elmanctl.errors import PartialFailure
from elmanctl.folders import as_written
from elmanctl.kernels.matrix_recurrence.splits import Split
from elmanctl.ledger.files import write_atomically

app = typer.Typer(
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    help="Measure kernels and training steps on a GPU",
    name="bench",
)

_DEVICES = ("cuda", "cpu")

DeviceOption = Annotated[
    str,
    typer.Option(
        help="cuda, or cpu: tiny shapes that measure nothing of a GPU",
        autocompletion=one_of(_DEVICES),
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option("-o", "--out", help="JSON to write, with a .md beside it, after every row"),
]
MinutesOption = Annotated[
    float | None, typer.Option(help="Begin no new row after so many minutes", min=0.0)
]


@app.callback()
def bench() -> None:
    """Measure kernels and training steps on a GPU"""


@app.command("kernels")
def kernels(
    device: DeviceOption = "cuda",
    only: Annotated[
        list[str] | None,
        typer.Option(help="Rows whose operation, path or size holds this; repeat for more"),
    ] = None,
    minutes: MinutesOption = None,
    out: OutOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure operations: time, floor, memory, error against float64

    Everything in one process: what the card does at its best, then every implementation of every
    operation at its sizes, beside those of other projects. What is not installed has a row that
    says so. Exit code 5 when a row failed or was wrong.

    \b
    Examples:
        elmanctl bench kernels --out kernels.json
        elmanctl bench kernels --only matrix_recurrence --only "B16 T512"
        elmanctl bench kernels --device cpu
    """
    _run("kernels", device, only, minutes, out, as_json)


@app.command("step")
def step(
    device: DeviceOption = "cuda",
    only: Annotated[
        list[str] | None,
        typer.Option(help="Rows whose model or backend holds this; repeat for more"),
    ] = None,
    minutes: MinutesOption = None,
    out: OutOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure whole training steps of models of about 480M parameters

    The worker's own training loop, with its optimizer and the same bytes for every model: tokens a
    second, where the time of a step goes, memory, and the share of the card's matrix products.

    \b
    Examples:
        elmanctl bench step --out steps.json
        elmanctl bench step --only e88 --only mamba2
    """
    _run("steps", device, only, minutes, out, as_json)


@app.command("tune")
def tune(
    device: DeviceOption = "cuda",
    only: Annotated[
        list[str] | None, typer.Option(help="Sizes such as 32x32; repeat for more")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The table to write, as JSON")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure how the kernels of E88 are best split over this GPU

    Kernels are split by a table that is part of elmanctl, and nothing is tuned when one is first
    called. This tries the other splits, a compilation each, and writes a table of its own. A split
    takes the place of the present one where it is 3 % faster.

    \b
    Examples:
        elmanctl bench tune --out launches.json
        elmanctl bench tune --only 32x32 --out launches.json
    """
    if device not in _DEVICES:
        raise typer.BadParameter(f"{device} is not one of cuda, cpu")
    check_out(out)
    found = require_device(device)
    from elmanctl.bench.tuning import dump, sizes_to_tune, table_of, trials

    if device == "cpu":
        say(CPU_LABEL)
    tried = []
    for trial in trials(sizes_to_tune(found, only or ()), found):
        told = "does not fit" if trial.ms is None else f"{trial.ms:.3f} ms"
        say(f"{trial.direction} {trial.label} {_shown_split(trial.split)}: {told}")
        tried.append(trial)
    table = table_of(tried)
    if out is not None:
        write_atomically(out, dump(table).encode())
        hint(f"`export {LAUNCHES_VARIABLE}={as_written(out)}` puts it in force")
    if as_json:
        print_json({"version": 1, "table": table})
        return
    fields = ("heads", "values", "keys", "registers")
    rows = [
        (direction, size, *(str(split[name]) if name in split else None for name in fields))
        for direction, sizes in table.items()
        for size, split in sizes.items()
    ]
    names = ("DIRECTION", "SIZE", "HEADS", "VALUES", "KEYS", "REGISTERS")
    print_table([Column(name=name, may_be_empty=True) for name in names], rows)


def _shown_split(split: Split) -> str:
    capped = "" if split.registers is None else f", {split.registers} registers"
    return f"{split.heads} heads of {split.values} values in tiles of {split.keys} keys{capped}"


@app.command("report")
def report(
    files: Annotated[list[Path], typer.Argument(help="JSON files of `bench kernels` and `step`")],
    out: OutOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Join what was measured in several runs, and compare it with the targets

    The files must be of one machine and of one commit.

    \b
    Examples:
        elmanctl bench report kernels.json steps.json
        elmanctl bench report kernels.json steps.json --out results.json
    """
    check_out(out)
    joined = read_reports(files)
    if out is not None:
        joined.write(out)
    _print(joined, as_json)


def _run(
    kind: Literal["kernels", "steps"],
    device: str,
    only: list[str] | None,
    minutes: float | None,
    out: Path | None,
    as_json: bool,
) -> None:
    if device not in _DEVICES:
        raise typer.BadParameter(f"{device} is not one of cuda, cpu")
    check_out(out)
    found = require_device(device)
    from elmanctl.bench.session import Session

    if device == "cpu":
        say(CPU_LABEL)
    session = Session(found, out=out, minutes=minutes, say=say)
    measured = session.kernels(only or ()) if kind == "kernels" else session.steps(only or ())
    _print(measured, as_json)
    if out is not None:
        hint(f"kept in {out} and {out.with_suffix('.md')}")
    if measured.failures:
        raise PartialFailure(
            f"{len(measured.failures)} rows failed or are wrong: {measured.failures[0]}",
            hint="the others are complete; `elmanctl -vv` tells where it happened",
        )


def _print(measured: Report, as_json: bool) -> None:
    if as_json:
        print_json(measured.document())
        return
    for table in measured.tables():
        if table.rows:
            say(f"{table.title}, {measured.machine.get('label') or measured.machine['name']}:")
            print_table(_columns(table.head), table.rows)


def _columns(head: tuple[str, ...]) -> list[Column]:
    """Return columns of which the last are prose and the less needed ones give way first."""
    return [
        Column(
            name=name,
            right=name not in ("NOTE", head[0]),
            wraps=name == "NOTE",
            dispensable=_DISPENSABLE.get(name, 0),
            may_be_empty=True,
        )
        for name in head
    ]


_DISPENSABLE = {
    **dict.fromkeys(("SPREAD", "GB/S", "MODEL TFLOP/S", "FROM", "TO"), 3),
    **dict.fromkeys(("MEMORY", "ERROR", "FLOOR F", "FLOOR B", "OTHER MS", "IDLE MS"), 2),
    **dict.fromkeys(("TOK/S", "PRODUCTS ALONE MS", "UNIT"), 1),
}
