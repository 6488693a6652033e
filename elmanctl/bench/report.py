"""What was measured on one machine, as JSON that programs read and as Markdown that people do.

Both files are written anew after every row: what ends a measurement leaves all the rows before it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from elmanctl.bench.tables import (
    Table,
    ceiling_table,
    kernel_table,
    machine_lines,
    markdown_of,
    product_table,
    step_table,
    target_table,
)
from elmanctl.bench.targets import judge_targets
from elmanctl.errors import NotFound, UsageError
from elmanctl.ledger.files import write_atomically

VERSION = 1

_LISTS = ("ceilings", "products", "kernels", "steps")

# What must agree for rows of several files to stand in one table.
_SAME = ("device", "name", "commit", "launches", "torch", "triton", "driver")


@dataclass(slots=True, kw_only=True)
class Report:
    """The rows measured so far, as plain data, with the machine that they are of.

    `products_alone_ms` is what all matrix products of a model's step took by themselves.
    """

    machine: Mapping[str, Any]
    ceilings: list[dict[str, Any]] = field(default_factory=list)
    products: list[dict[str, Any]] = field(default_factory=list)
    kernels: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    products_alone_ms: dict[str, float] = field(default_factory=dict)

    def add(self, kind: str, row: object) -> None:
        """Add one row of a kind: ceilings, products, kernels or steps."""
        assert kind in _LISTS and is_dataclass(row) and not isinstance(row, type)
        getattr(self, kind).append(_plain(asdict(row)))

    @property
    def targets(self) -> list[dict[str, Any]]:
        """Every target, with what these rows say of it."""
        return [asdict(found) for found in judge_targets(self.machine, self.kernels, self.steps)]

    @property
    def failures(self) -> list[str]:
        """The rows that failed or are wrong, each in one line; what is missing is neither."""
        told = []
        for row in self.kernels:
            if row["status"] == "failed" or row["is_wrong"]:
                why = row["reason"] or row["note"]
                told.append(f"{row['operation']} {row['path']} {row['size']}: {why}")
        told += [
            f"{row['model']} {row['backend']}: {row['reason']}"
            for row in self.steps
            if row["status"] == "failed"
        ]
        return told

    def tables(self) -> list[Table]:
        """Return all tables, those without rows too; the targets come first."""
        return [
            target_table(self.targets),
            ceiling_table(self.ceilings),
            product_table(self.products),
            kernel_table(self.kernels),
            step_table(self.steps, self.products_alone_ms),
        ]

    def document(self) -> dict[str, Any]:
        """Return everything as one JSON object."""
        lists = {name: getattr(self, name) for name in _LISTS}
        alone = {"products_alone_ms": self.products_alone_ms}
        return {"machine": self.machine, "targets": self.targets, **lists, **alone}

    def markdown(self) -> str:
        """Return everything as a document."""
        title = f"Measured on {self.machine['name']}"
        return markdown_of(title, machine_lines(self.machine), self.tables())

    def write(self, path: Path) -> None:
        """Write the JSON to `path` and the Markdown beside it, each whole or not at all."""
        document = {"version": VERSION, **self.document()}
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
        write_atomically(path.with_suffix(".md"), self.markdown().encode())


def check_out(path: Path | None) -> None:
    """Raise UsageError for a file whose Markdown would take its own place."""
    if path is not None and path.suffix == ".md":
        raise UsageError(
            f"{path} would be JSON, with the Markdown beside it", hint="name a file.json"
        )


def read_reports(paths: Sequence[Path]) -> Report:
    """Return the rows of several files in one report.

    Raises NotFound for a file that is missing, UsageError for one that is no report or is of
    another machine or other code than the first.
    """
    reports = [_read(path) for path in paths]
    first = reports[0]
    for path, other in zip(paths[1:], reports[1:], strict=True):
        for name in _SAME:
            ours, theirs = first.machine.get(name), other.machine.get(name)
            if ours != theirs:
                raise UsageError(
                    f"{path} was measured with {name} {theirs}, {paths[0]} with {ours}"
                )
    merged = Report(machine=first.machine)
    for report in reports:
        # Each process measures the ceilings that its own floors rest on; the first ones are shown.
        for name in ("ceilings", "products"):
            if not getattr(merged, name):
                setattr(merged, name, getattr(report, name))
        merged.kernels += report.kernels
        merged.steps += report.steps
        merged.products_alone_ms.update(report.products_alone_ms)
    return merged


def _read(path: Path) -> Report:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as exc:
        raise NotFound(f"there is no report {path}") from exc
    except ValueError as exc:
        raise UsageError(f"{path} is not JSON: {exc}") from exc
    if not isinstance(data, dict) or data.get("version") != VERSION or "kernels" not in data:
        raise UsageError(f"{path} is no report of `elmanctl bench`")
    kept = ("machine", *_LISTS, "products_alone_ms")
    return Report(**{name: data[name] for name in kept})


def _plain(value: Any) -> Any:
    """Return data that JSON can hold: a number that is not finite is None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
