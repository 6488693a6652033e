"""Budgets of the kernels' machine code: recorded counts that later builds must match.

The file maps a version of Triton, an architecture and a case to the numbers of `Record`.  By the
rule in `differences`, no number may differ from the record by more than 2 % in either direction, so
that the record and the table in docs/kernels.md stay up to date; and no registers may be spilled,
unless the record lists the spills with a `reason`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.kernel_code.cases import Counted
from benchmarks.kernel_code.measure import Measured
from benchmarks.kernel_code.steps import step_cost

MARGIN = 0.02
FILE = Path(__file__).resolve().parents[2] / "tests" / "kernels" / "budgets.json"
HINT = "python -m benchmarks.kernel_code.record"

# Spill instructions, and the bytes of stack and local memory per thread.
SPILLED = ("local_stores", "local_loads", "stack_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Recorded counts of one kernel, per warp and step where applicable.

    `warps` is the number of warps that share the work of a step, `loops` the instructions by loop.
    `spills` is normally empty; an exception lists the numbers of `SPILLED` and a `reason`.
    """

    warps: int
    registers: int
    shared_bytes: int
    instructions: float
    guarded: float
    shuffles: float
    specials: float
    loops: dict[str, float]
    spills: dict[str, Any] = field(default_factory=dict)


Budgets = dict[str, dict[str, dict[str, Record]]]


def load(file: Path = FILE) -> Budgets:
    """Load the records by version of Triton, architecture and case."""
    data = json.loads(file.read_text(encoding="utf-8"))
    return {
        version: {
            architecture: {case: Record(**numbers) for case, numbers in cases.items()}
            for architecture, cases in architectures.items()
        }
        for version, architectures in data.items()
    }


def dump(budgets: Budgets) -> str:
    """Format the file with one line per case, for readable diffs."""
    versions = []
    for version, architectures in sorted(budgets.items(), reverse=True):
        parts = []
        for architecture, cases in sorted(architectures.items(), reverse=True):
            lines = [f"{json.dumps(case)}: {json.dumps(_plain(cases[case]))}" for case in cases]
            parts.append(f'  "{architecture}": {{\n    ' + ",\n    ".join(lines) + "\n  }")
        versions.append(f' "{version}": {{\n' + ",\n".join(parts) + "\n }")
    return "{\n" + ",\n".join(versions) + "\n}\n"


def _plain(record: Record) -> dict[str, Any]:
    data = asdict(record)
    if not record.spills:
        del data["spills"]
    return data


def record_of(measured: Measured, loops: Mapping[str, int | Counted], warps: int) -> Record:
    """Return a new record of a kernel; the reason for spills must be added by hand."""
    cost = step_cost(measured.loops, loops)
    spills = {name: getattr(measured, name) for name in SPILLED} if measured.spills else {}
    return Record(
        warps=warps,
        registers=measured.registers,
        shared_bytes=measured.shared_bytes,
        instructions=round(cost.instructions, 2),
        guarded=round(cost.guarded, 2),
        shuffles=round(cost.shuffles, 2),
        specials=round(cost.specials, 2),
        loops={name: round(number, 2) for name, number in cost.by_loop.items()},
        spills=spills,
    )


def differences(recorded: Record | None, found: Record) -> list[str]:
    """Return descriptions of how a kernel deviates from its record; empty if it does not."""
    spilled = {name: found.spills.get(name, 0) for name in SPILLED}
    if recorded is None:
        return [f"not recorded: {HINT}", *([f"it spills: {spilled}"] if found.spills else [])]
    wrong = []
    for name in ("warps", "registers", "shared_bytes", "instructions", "shuffles", "specials"):
        before, now = getattr(recorded, name), getattr(found, name)
        if now > before * (1 + MARGIN):
            wrong.append(f"{name}: {now:g}, worse than the recorded {before:g}")
        elif now < before * (1 - MARGIN):
            wrong.append(f"{name}: {now:g}, less than the recorded {before:g}: {HINT}")
    allowed = {name: recorded.spills.get(name, 0) for name in SPILLED}
    if any(spilled[name] > allowed[name] for name in SPILLED):
        wrong.append(f"it spills: {spilled}")
    if recorded.spills and not str(recorded.spills.get("reason", "")).strip():
        wrong.append("its spills are recorded without a reason")
    if recorded.spills and not found.spills:
        wrong.append(f"it no longer spills: {HINT}")
    return wrong
