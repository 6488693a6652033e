"""Performance targets of the kernels, judged from measured rows; pure.

Targets are for an H100.  Results from a CPU, lower bounds and missing rows neither meet nor miss a
target.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from elmanctl.bench.shapes import E88, E88_WIDE, GDN, MAMBA2

Row = Mapping[str, Any]

MET, MISSED, NOT_MEASURED = "met", "missed", "not measured"

CARD = "H100"

_NO_GPU = "no GPU: tiny shapes on a cpu say nothing about it"

_RECURRENCE = ("matrix_recurrence", "B16 T512 H83 n32")
_FORWARD_MS, _BACKWARD_MS = 0.3, 1.1
_TOKENS_PER_S = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A target: the measured quantity, its unit, its bound as text, and the verdict."""

    name: str
    bound: str
    unit: str
    verdict: str
    value: float | None = None
    reason: str | None = None


def judge_targets(machine: Row, kernels: Sequence[Row], steps: Sequence[Row]) -> list[Target]:
    """Judge all targets from the rows of a report, as plain data."""
    found = [*_recurrence(kernels), *_speeds(steps), *_against_torch(kernels)]
    if machine.get("device") != "cuda":
        return [
            replace(target, verdict=NOT_MEASURED, value=None, reason=target.reason or _NO_GPU)
            for target in found
        ]
    name = str(machine.get("name"))
    if CARD in name:
        return found
    other = f"on {name}, not on an {CARD}"
    return [
        replace(target, reason=f"{other}; {target.reason}" if target.reason else other)
        for target in found
    ]


def _recurrence(kernels: Sequence[Row]) -> Iterator[Target]:
    operation, size = _RECURRENCE
    row = _fastest_kernel(kernels, operation, size)
    for name, key, bound in (
        ("forward", "forward_ms", _FORWARD_MS),
        ("backward", "backward_ms", _BACKWARD_MS),
    ):
        yield _at_most(f"E88 recurrence {name}, {size}", "ms", row, key, bound)


def _speeds(steps: Sequence[Row]) -> Iterator[Target]:
    for name in (E88, E88_WIDE):
        ours = _fastest(steps, name)
        yield _at_least(name, "tok/s", ours, "tokens_per_s", _TOKENS_PER_S)
        for other in (MAMBA2, GDN):
            # Plain torch does not represent a model that has its own kernels.
            theirs = _fastest([row for row in steps if row["backend"] != "torch"], other)
            yield _ratio(f"{name} over {other}", ours, theirs)


def _ratio(name: str, ours: Row | None, theirs: Row | None) -> Target:
    bound, unit = ">= 1.0", "times the tok/s"
    missing = _why_not(ours) or _why_not(theirs)
    if missing or ours is None or theirs is None:
        return Target(name=name, bound=bound, unit=unit, verdict=NOT_MEASURED, reason=missing)
    value = ours["tokens_per_s"] / theirs["tokens_per_s"]
    return Target(
        name=name,
        bound=bound,
        unit=unit,
        verdict=MET if value >= 1 else MISSED,
        value=value,
        reason=f"{_provenance(ours)} over {_provenance(theirs)}",
    )


def _against_torch(kernels: Sequence[Row]) -> Iterator[Target]:
    """Require that our kernels are not slower than plain torch, forward plus backward."""
    for row in kernels:
        if not row["is_ours"]:
            continue
        name = f"{row['operation']} {row['size']}: plain torch over {row['path']}"
        bound, unit = ">= 1.0", "times as long"
        plain = _find(kernels, operation=row["operation"], path="torch", size=row["size"])
        missing = _why_not(row) or _why_not(plain)
        if missing or plain is None:
            yield Target(name=name, bound=bound, unit=unit, verdict=NOT_MEASURED, reason=missing)
            continue
        value = plain["forward_backward_ms"] / row["forward_backward_ms"]
        cut = plain.get("bound_length")
        note = f"at least: plain torch was timed on the first {cut} positions" if cut else None
        verdict = MET if value >= 1 else NOT_MEASURED if cut else MISSED
        yield Target(name=name, bound=bound, unit=unit, verdict=verdict, value=value, reason=note)


def _at_most(name: str, unit: str, row: Row | None, key: str, bound: float) -> Target:
    return _compared(name, unit, row, key, f"<= {bound:g}", lambda value: value <= bound)


def _at_least(name: str, unit: str, row: Row | None, key: str, bound: float) -> Target:
    return _compared(name, unit, row, key, f">= {bound:,}", lambda value: value >= bound)


def _compared(name: str, unit: str, row: Row | None, key: str, bound: str, holds: Any) -> Target:
    missing = _why_not(row)
    if missing or row is None:
        return Target(name=name, bound=bound, unit=unit, verdict=NOT_MEASURED, reason=missing)
    value = float(row[key])
    return Target(
        name=name,
        bound=bound,
        unit=unit,
        verdict=MET if holds(value) else MISSED,
        value=value,
        reason=_provenance(row),
    )


def _why_not(row: Row | None) -> str | None:
    """Return why a row has no valid result, or None."""
    if row is None:
        return "the report has no such row"
    if row.get("is_wrong"):
        return f"its results are wrong: {row.get('note')}"
    return None if row["status"] == "measured" else f"{row['status']}: {row.get('reason')}"


def _provenance(row: Row) -> str:
    """Return the implementation of a row and its note."""
    name = row.get("path") or row.get("backend")
    return f"{name}: {row['note']}" if row.get("note") else str(name)


def _fastest_kernel(kernels: Sequence[Row], operation: str, size: str) -> Row | None:
    """Return the row of our fastest kernel, or of any of our kernels if none was measured."""
    rows = [
        row
        for row in kernels
        if row["is_ours"] and row["operation"] == operation and row["size"] == size
    ]
    measured = [row for row in rows if _why_not(row) is None]
    if measured:
        return min(measured, key=lambda row: float(row["forward_backward_ms"]))
    return rows[0] if rows else None


def _find(rows: Sequence[Row], **labels: str) -> Row | None:
    return next((row for row in rows if all(row[k] == v for k, v in labels.items())), None)


def _fastest(steps: Sequence[Row], model: str) -> Row | None:
    """Return the row of a model's fastest backend, or of any backend if none was measured."""
    rows = [row for row in steps if row["model"] == model]
    measured = [row for row in rows if row["status"] == "measured" and row["tokens_per_s"]]
    if measured:
        return max(measured, key=lambda row: float(row["tokens_per_s"]))
    return rows[0] if rows else None
