"""Report of measurements on one machine, as JSON and as Markdown.

Both files are rewritten after every row, so an interrupted benchmark keeps all finished rows.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from elmanctl.bench import tables
from elmanctl.bench.targets import judge_targets
from elmanctl.errors import NotFound, UsageError
from elmanctl.ledger.files import write_atomically

VERSION = 1

_LISTS = ("ceilings", "products", "kernels", "steps")

# Fields of the machine that must match for reports to be merged.
_SAME = ("device", "name", "commit", "launches", "torch", "triton", "driver")


@dataclass(slots=True, kw_only=True)
class Report:
    """Rows measured so far, as plain data, and the machine they were measured on.

    `products_alone_ms` is the time of all matrix products of a step on their own, by model.
    """

    machine: Mapping[str, Any]
    ceilings: list[dict[str, Any]] = field(default_factory=list)
    products: list[dict[str, Any]] = field(default_factory=list)
    kernels: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    products_alone_ms: dict[str, float] = field(default_factory=dict)

    def add(self, kind: str, row: object) -> None:
        """Add a row to one of the lists ceilings, products, kernels or steps."""
        assert kind in _LISTS and is_dataclass(row) and not isinstance(row, type)
        getattr(self, kind).append(_plain(asdict(row)))

    @property
    def targets(self) -> list[dict[str, Any]]:
        """All targets with their verdicts from these rows."""
        return [asdict(found) for found in judge_targets(self.machine, self.kernels, self.steps)]

    @property
    def failures(self) -> list[str]:
        """Descriptions of the rows that failed or are wrong; missing rows are neither."""
        failures = []
        for row in self.kernels:
            if row["status"] == "failed" or row["is_wrong"]:
                why = row["reason"] or row["note"]
                failures.append(f"{row['operation']} {row['path']} {row['size']}: {why}")
        failures += [
            f"{row['model']} {row['backend']}: {row['reason']}"
            for row in self.steps
            if row["status"] == "failed"
        ]
        return failures

    def tables(self) -> list[tables.Table]:
        """Return all tables, targets first, including those without rows."""
        return [
            tables.target_table(self.targets),
            tables.ceiling_table(self.ceilings),
            tables.product_table(self.products),
            tables.kernel_table(self.kernels),
            tables.step_table(self.steps, self.products_alone_ms),
        ]

    def document(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        lists = {name: getattr(self, name) for name in _LISTS}
        alone = {"products_alone_ms": self.products_alone_ms}
        return {"machine": self.machine, "targets": self.targets, **lists, **alone}

    def markdown(self) -> str:
        """Return the report as Markdown."""
        title = f"Measured on {self.machine['name']}"
        return tables.markdown_of(title, tables.machine_lines(self.machine), self.tables())

    def write(self, path: Path) -> None:
        """Write JSON to `path` and Markdown next to it, each atomically."""
        document = {"version": VERSION, **self.document()}
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
        write_atomically(path.with_suffix(".md"), self.markdown().encode())


def check_out(path: Path | None) -> None:
    """Raise UsageError for an output path that its own Markdown would overwrite."""
    if path is not None and path.suffix == ".md":
        raise UsageError(
            f"{path} is the JSON file; its Markdown is written next to it", hint="name a file.json"
        )


def read_reports(paths: Sequence[Path]) -> Report:
    """Merge several reports.

    Raises NotFound for a missing file, UsageError for one that is not a report, or is of another
    machine or other code than the first.
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
        # Each process measures its own ceilings; the first ones are shown.
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
        raise UsageError(f"{path} is not a report of `elmanctl bench`")
    names = ("machine", *_LISTS, "products_alone_ms")
    return Report(**{name: data[name] for name in names})


def _plain(value: Any) -> Any:
    """Convert to JSON-compatible data, with None for numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
