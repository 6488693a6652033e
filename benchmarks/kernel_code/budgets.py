"""What the machine code of each kernel may come to: recorded once, held to ever after.

The file has, under a version of Triton, an architecture and a case, the numbers of `Record`.  The
rule is `differences`: nothing may be more than 2 % above what is on record, nor below it, since
then the record and the table in docs/kernels.md say what is no longer so; and no registers are
spilled, except where the record has, under `spills`, how many and a `reason`.
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

# Instructions that move registers to memory and back, and the bytes of a thread that they need.
SPILLED = ("local_stores", "local_loads", "stack_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One kernel under one Triton for one architecture; numbers a step are of one warp.

    `warps` is how many warps share the work of a step, `loops` what of the instructions each loop
    issues.  `spills` is empty but for an exception: the numbers of `SPILLED`, and `reason`.
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
    """Return what is on record: by version of Triton, by architecture, by case."""
    data = json.loads(file.read_text(encoding="utf-8"))
    return {
        version: {
            architecture: {case: Record(**numbers) for case, numbers in cases.items()}
            for architecture, cases in architectures.items()
        }
        for version, architectures in data.items()
    }


def dump(budgets: Budgets) -> str:
    """Return the file's text, one line a case, so that a change of a kernel is a line of a diff."""
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
    """Return what would be put on record of a kernel; spills have no reason yet."""
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
    """Return what is wrong with a kernel, as sentences; nothing where it is as it is on record."""
    spilled = {name: found.spills.get(name, 0) for name in SPILLED}
    if recorded is None:
        return [f"not on record: {HINT}", *([f"it spills: {spilled}"] if found.spills else [])]
    wrong = []
    for name in ("warps", "registers", "shared_bytes", "instructions", "shuffles", "specials"):
        before, now = getattr(recorded, name), getattr(found, name)
        if now > before * (1 + MARGIN):
            wrong.append(f"{name}: {now:g}, worse than the {before:g} on record")
        elif now < before * (1 - MARGIN):
            wrong.append(f"{name}: {now:g}, less than the {before:g} on record: {HINT}")
    excused = {name: recorded.spills.get(name, 0) for name in SPILLED}
    if any(spilled[name] > excused[name] for name in SPILLED):
        wrong.append(f"it spills: {spilled}")
    if recorded.spills and not str(recorded.spills.get("reason", "")).strip():
        wrong.append("its spills are on record without a reason")
    if recorded.spills and not found.spills:
        wrong.append(f"it no longer spills: {HINT}")
    return wrong
