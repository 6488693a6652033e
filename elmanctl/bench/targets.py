"""Performance targets of the kernels, judged from measured rows; pure.

Targets are for an H100.  Results from a CPU, lower bounds and missing rows neither meet nor miss a
target.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    ours = [row for row in kernels if row["is_ours"]]
    same = [row for row in ours if (row["operation"], row["size"]) == (operation, size)]
    fastest = _best(same, "forward_backward_ms", min)
    for name, key, bound in (
        ("forward", "forward_ms", _FORWARD_MS),
        ("backward", "backward_ms", _BACKWARD_MS),
    ):
        yield _at_most(f"E88 recurrence {name}, {size}", "ms", fastest, key, bound)


def _speeds(steps: Sequence[Row]) -> Iterator[Target]:
    def fastest(model: str, without: str | None = None) -> Row | None:
        rows = [row for row in steps if row["model"] == model and row["backend"] != without]
        return _best(rows, "tokens_per_s", max)

    for name in (E88, E88_WIDE):
        ours = fastest(name)
        yield _at_least(name, "tok/s", ours, "tokens_per_s", _TOKENS_PER_S)
        for other in (MAMBA2, GDN):
            # Plain torch does not represent a model that has its own kernels.
            yield _ratio(f"{name} over {other}", ours, fastest(other, without="torch"))


def _ratio(name: str, ours: Row | None, theirs: Row | None) -> Target:
    return _judged(
        name,
        (">= 1.0", "times the tok/s"),
        (ours, theirs),
        lambda ours, theirs: float(ours["tokens_per_s"] / theirs["tokens_per_s"]),
        lambda value: value >= 1,
    )


def _against_torch(kernels: Sequence[Row]) -> Iterator[Target]:
    """Require that our kernels are not slower than plain torch, forward plus backward."""
    for row in kernels:
        if not row["is_ours"]:
            continue
        same = (row["operation"], "torch", row["size"])
        plain = next((x for x in kernels if (x["operation"], x["path"], x["size"]) == same), None)
        target = _judged(
            f"{row['operation']} {row['size']}: plain torch over {row['path']}",
            (">= 1.0", "times as long"),
            (row, plain),
            lambda ours, theirs: float(theirs["forward_backward_ms"] / ours["forward_backward_ms"]),
            lambda value: value >= 1,
        )
        cut = plain and plain.get("bound_length")
        if target.value is None:
            yield target
        elif cut:
            note = f"at least: plain torch was timed on the first {cut} positions"
            verdict = MET if target.verdict == MET else NOT_MEASURED
            yield replace(target, verdict=verdict, reason=note)
        else:
            yield replace(target, reason=None)


def _at_most(name: str, unit: str, row: Row | None, key: str, bound: float) -> Target:
    shown = (f"<= {bound:g}", unit)
    return _judged(name, shown, (row,), lambda row: float(row[key]), lambda value: value <= bound)


def _at_least(name: str, unit: str, row: Row | None, key: str, bound: float) -> Target:
    shown = (f">= {bound:,}", unit)
    return _judged(name, shown, (row,), lambda row: float(row[key]), lambda value: value >= bound)


def _judged(
    name: str,
    shown: tuple[str, str],
    rows: Sequence[Row | None],
    measure: Callable[..., float],
    holds: Callable[[float], bool],
) -> Target:
    """Judge the value of some rows; `shown` is the bound as text and the unit."""
    bound, unit = shown
    missing = next((reason for reason in map(_why_not, rows) if reason), None)
    if missing:
        return Target(name=name, bound=bound, unit=unit, verdict=NOT_MEASURED, reason=missing)
    value = measure(*rows)
    return Target(
        name=name,
        bound=bound,
        unit=unit,
        verdict=MET if holds(value) else MISSED,
        value=value,
        reason=" over ".join(_provenance(row) for row in rows if row is not None),
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


def _best(rows: Sequence[Row], key: str, pick: Callable[..., Row]) -> Row | None:
    """Return the row that `pick` (min or max) finds by a key, or any row if none was measured."""
    measured = [row for row in rows if _why_not(row) is None and row[key]]
    if measured:
        return pick(measured, key=lambda row: float(row[key]))
    return rows[0] if rows else None
