"""Tables of a report; pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elmanctl.bench.parts import PARTS

Row = Mapping[str, Any]


class Figure(str):
    """A formatted number with its machine-readable form `plain`, in the unit of its column."""

    plain: str

    def __new__(cls, shown: str, plain: object) -> "Figure":
        """Create a figure that displays as `shown`."""
        figure = super().__new__(cls, shown)
        figure.plain = str(plain)
        return figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Title, column heads and rows of cells, None for no value; notes are the last column."""

    title: str
    head: tuple[str, ...]
    rows: list[list[str | None]]


def ceiling_table(ceilings: Sequence[Row]) -> Table:
    """Return the table of the device's peak rates."""
    rows = [
        [
            row["name"],
            _rate(row["value"], row["unit"]),
            _share(row["spread"]),
            _clock((row["clocks"] or {}).get("clocks.sm")),
            row["reason"],
        ]
        for row in ceilings
    ]
    return Table(
        title="Ceilings", head=("CEILING", "RATE", "SPREAD", "SM CLOCK", "NOTE"), rows=rows
    )


def product_table(products: Sequence[Row]) -> Table:
    """Return the table of the matrix products of the models' linear maps."""
    rows = []
    for row in products:
        flops = 2.0 * row["tokens"] * row["n_in"] * row["n_out"]
        times = (row["forward_ms"], row["input_gradient_ms"], row["weight_gradient_ms"])
        rows.append(
            [
                f"{row['tokens']} x {row['n_in']} -> {row['n_out']}",
                *(_rate(flops / ms * 1e3, "FLOP") for ms in times),
                _number(sum(times)),
                _share(row["spread"]),
            ]
        )
    head = ("PRODUCT", "FORWARD", "BY INPUT", "BY WEIGHT", "MS", "SPREAD")
    return Table(title="Matrix products of the models", head=head, rows=rows)


def kernel_table(kernels: Sequence[Row]) -> Table:
    """Return the table of times, floors, memory and errors of the operations."""
    head = (
        *("OPERATION", "PATH", "SIZE", "FORWARD MS", "BACKWARD MS", "SPREAD"),
        *("FLOOR F", "FLOOR B", "OF FLOOR F", "OF FLOOR B", "TOK/S", "GB/S", "MEMORY", "ERROR"),
        "NOTE",
    )
    return Table(title="Operations", head=head, rows=[_kernel_cells(row) for row in kernels])


def _kernel_cells(row: Row) -> list[str | None]:
    note = [row["note"]] if row["note"] else []
    if row["status"] != "measured":
        note.insert(0, f"{row['status']}: {row['reason']}")
    at_least = ""
    if row["bound_length"]:
        at_least = ">= "
        note.insert(0, f"lower bound: only the first {row['bound_length']} positions")
    spreads = [s for s in (row["forward_spread"], row["forward_backward_spread"]) if s is not None]
    return [
        row["operation"],
        row["path"],
        row["size"],
        _prefixed(at_least, _number(row["forward_ms"])),
        _prefixed(at_least, _number(row["backward_ms"])),
        _share(max(spreads)) if spreads else None,
        _number(row["forward_floor_ms"]),
        _number(row["backward_floor_ms"]),
        _share(row["forward_fraction"]),
        _share(row["backward_fraction"]),
        _whole(row["tokens_per_s"]),
        _whole(row["bytes_per_s"], 1e9),
        _whole(row["peak_bytes"], 1e6, " MB"),
        None if row["error"] is None else f"{row['error']:.1e}",
        "; ".join(note) or None,
    ]


def step_table(steps: Sequence[Row], products_alone_ms: Mapping[str, float]) -> Table:
    """Return the table of speeds and times by part of the training steps.

    `products_alone_ms` is the time of all matrix products of a step on their own, by model.
    """
    parts = [part for part in PARTS if any(part in row["parts_ms"] for row in steps)]
    head = (
        *("MODEL", "BACKEND", "TOK/S", "STEP MS", "FROM", "TO"),
        *(f"{part.upper()} MS" for part in parts),
        *("IDLE MS", "PRODUCTS ALONE MS", "MEMORY", "MODEL TFLOP/S", "MFU", "NOTE"),
    )
    rows: list[list[str | None]] = []
    for row in steps:
        failed = None if row["status"] == "measured" else f"{row['status']}: {row['reason']}"
        alone = None if failed else products_alone_ms.get(row["model"])
        rows.append(
            [
                row["model"],
                row["backend"],
                _whole(row["tokens_per_s"]),
                *(_number(row[key]) for key in ("step_ms", "step_low_ms", "step_high_ms")),
                *(_number(row["parts_ms"].get(part)) for part in parts),
                _number(row["idle_ms"]),
                _number(alone),
                _whole(row["peak_bytes"], 1e6, " MB"),
                _number(_over(row["model_flops_per_s"], 1e12)),
                _share(row["mfu"]),
                failed or row["note"],
            ]
        )
    return Table(title="Training steps", head=head, rows=rows)


def target_table(targets: Sequence[Row]) -> Table:
    """Return the table of targets and verdicts."""
    rows: list[list[str | None]] = [
        [
            row["name"],
            Figure(row["bound"], row["bound"].replace(",", "")),
            None if row["value"] is None else _number(row["value"]),
            row["unit"],
            row["verdict"],
            row["reason"],
        ]
        for row in targets
    ]
    head = ("TARGET", "BOUND", "MEASURED", "UNIT", "VERDICT", "NOTE")
    return Table(title="Targets", head=head, rows=rows)


def machine_lines(machine: Row) -> list[tuple[str, str]]:
    """Return machine and code as pairs of name and value, with groups joined into one value."""
    lines = []
    for name, value in machine.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        if value not in (None, ""):
            lines.append((name, str(value)))
    return lines


def markdown_of(title: str, facts: Iterable[tuple[str, str]], tables: Iterable[Table]) -> str:
    """Return a Markdown document with the facts and all tables that have rows."""
    parts = [f"# {title}", "\n".join(f"- {name}: {value}" for name, value in facts)]
    for table in tables:
        if table.rows:
            parts.append(f"## {table.title}\n\n{_markdown_table(table)}")
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    prose = {"NOTE", *table.head[:1]}
    marks = [" --- " if name in prose else " ---: " for name in table.head]
    lines = [f"| {' | '.join(table.head)} |", f"|{'|'.join(marks)}|"]
    for row in table.rows:
        cells = ["" if cell is None else " ".join(cell.split()) for cell in row]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _number(value: float | None) -> str | None:
    """Format with three significant digits and all digits before the decimal point."""
    if value is None:
        return None
    return Figure(f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}", value)


def _whole(value: float | None, unit: float = 1.0, name: str = "") -> str | None:
    """Format as an integer number of units; `plain` is in units only if the column names them."""
    if value is None:
        return None
    return Figure(f"{value / unit:,.0f}{name}", value if name else value / unit)


def _share(value: float | None) -> str | None:
    return None if value is None else Figure(f"{100 * value:.1f}%", value)


def _clock(text: str | None) -> str | None:
    """Parse a clock as nvidia-smi formats it, such as `1980 MHz`."""
    return None if text is None else Figure(text, text.partition(" ")[0])


def _over(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _prefixed(prefix: str, text: str | None) -> str | None:
    if text is None:
        return None
    # The note says that it is a bound, too.
    return Figure(prefix + text, getattr(text, "plain", text))


def _rate(value: float | None, unit: str) -> str | None:
    if value is None:
        return None
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return Figure(f"{value / size:.4g} {letter}{unit}/s", value)
    return Figure(f"{value:.4g} {unit}/s", value)
