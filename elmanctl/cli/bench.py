"""`bench`: benchmarks of kernels and training steps, tuning, reports."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, BadParameter, Option

from elmanctl.bench.machine import CPU_LABEL, require_device
from elmanctl.bench.report import Report, check_out, read_reports
from elmanctl.cli.completion import one_of
from elmanctl.cli.context import JsonFlag, command_group
from elmanctl.cli.output import Column, hint, print_json, print_table, say
from elmanctl.constants import LAUNCHES_VARIABLE
from elmanctl.errors import PartialFailure
from elmanctl.folders import as_written
from elmanctl.kernels.matrix_recurrence.splits import Split
from elmanctl.ledger.files import write_atomically

if TYPE_CHECKING:
    import torch

app = command_group("bench", "Measure kernels and training steps on a GPU")

_DEVICES = ("cuda", "cpu")

DeviceOption = Annotated[
    str,
    Option(help="cuda, or cpu for a dry run on tiny shapes", autocompletion=one_of(_DEVICES)),
]
OutOption = Annotated[
    Path | None,
    Option("-o", "--out", help="JSON to write after every row, with a .md next to it"),
]
MinutesOption = Annotated[
    float | None, Option(help="Start no new row after this many minutes", min=0.0)
]


@app.command("kernels")
def kernels(
    device: DeviceOption = "cuda",
    only: Annotated[
        list[str] | None,
        Option(help="Rows whose operation, path or size contains this; repeatable"),
    ] = None,
    minutes: MinutesOption = None,
    out: OutOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure operations: time, floor, memory, error against float64

    One process measures the peak rates of the GPU, then all implementations of all operations,
    including those of other projects. Implementations that are not installed are listed as
    missing. The exit code is 5 if a row failed or was wrong.

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
        Option(help="Rows whose model or backend contains this; repeatable"),
    ] = None,
    minutes: MinutesOption = None,
    out: OutOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure training steps of models of about 480M parameters

    It runs the worker's training loop and optimizer on the same data for all models, and reports
    tokens per second, a breakdown of the step time, memory and MFU.

    \b
    Examples:
        elmanctl bench step --out steps.json
        elmanctl bench step --only e88 --only mamba2
    """
    _run("steps", device, only, minutes, out, as_json)


@app.command("tune")
def tune(
    device: DeviceOption = "cuda",
    only: Annotated[list[str] | None, Option(help="Sizes such as 32x32; repeatable")] = None,
    out: Annotated[
        Path | None, Option("-o", "--out", help="Launch table to write, as JSON")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Tune the launch table of E88's kernels for this GPU

    Kernels are split into programs by a table that is part of elmanctl; there is no autotuning at
    run time. This command compiles and measures the other splits and writes a table for this GPU.
    A split replaces the current one if it is 3 % faster.

    \b
    Examples:
        elmanctl bench tune --out launches.json
        elmanctl bench tune --only 32x32 --out launches.json
    """
    found = _prepare(device, out)
    from elmanctl.bench.tuning import dump, sizes_to_tune, table_of, trials

    tried = []
    for trial in trials(sizes_to_tune(found, only or ()), found):
        result = "out of resources" if trial.ms is None else f"{trial.ms:.3f} ms"
        say(f"{trial.direction} {trial.label} {_format_split(trial.split)}: {result}")
        tried.append(trial)
    table = table_of(tried)
    if out is not None:
        write_atomically(out, dump(table).encode())
        hint(f"use it with `export {LAUNCHES_VARIABLE}={as_written(out)}`")
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


def _format_split(split: Split) -> str:
    registers = "" if split.registers is None else f", {split.registers} registers"
    return f"{split.heads} heads of {split.values} values in tiles of {split.keys} keys{registers}"


@app.command("report")
def report(
    files: Annotated[list[Path], Argument(help="JSON files of `bench kernels` and `step`")],
    out: OutOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Merge reports of several runs, and compare them with the targets

    All files must be of the same machine and the same commit.

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


def _prepare(device: str, out: Path | None) -> "torch.device":
    """Return the device to measure, and say so where it is only a dry run."""
    if device not in _DEVICES:
        raise BadParameter(f"{device} is not one of cuda, cpu")
    check_out(out)
    found = require_device(device)
    if device == "cpu":
        say(CPU_LABEL)
    return found


def _run(
    kind: Literal["kernels", "steps"],
    device: str,
    only: list[str] | None,
    minutes: float | None,
    out: Path | None,
    as_json: bool,
) -> None:
    found = _prepare(device, out)
    from elmanctl.bench.session import Session

    session = Session(found, out=out, minutes=minutes, say=say)
    measured = session.kernels(only or ()) if kind == "kernels" else session.steps(only or ())
    _print(measured, as_json)
    if out is not None:
        hint(f"saved in {out} and {out.with_suffix('.md')}")
    if measured.failures:
        raise PartialFailure(
            f"{len(measured.failures)} rows failed or are wrong: {measured.failures[0]}",
            hint="the others are complete; `elmanctl -vv` shows tracebacks",
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
    """Return columns with priorities for narrow terminals; notes wrap."""
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
