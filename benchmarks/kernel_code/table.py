"""Tables of docs/kernels.md from the recorded machine-code budgets."""

import math
from collections.abc import Iterable, Mapping

from benchmarks.kernel_code.budgets import Budgets, Record
from benchmarks.kernel_code.cases import BATCH, CASES, STEPS, Case

# An H100 SXM: 132 multiprocessors with 4 schedulers, each issuing one warp instruction per cycle.
SCHEDULERS = 4 * 132
CLOCK_GHZ = 1.755
ESTIMATED = "sm_90"


def kernel_tables(budgets: Budgets, cases: Mapping[str, Case] = CASES) -> str:
    """Return one table per architecture, then one with estimated times."""
    versions = sorted(budgets, reverse=True)
    architectures = sorted({name for part in budgets.values() for name in part}, reverse=True)
    parts = []
    for number, architecture in enumerate(architectures, 1):
        records = {version: budgets[version].get(architecture, {}) for version in versions}
        parts.append(f"Table {number}. {architecture}.\n\n{_code_table(records, cases)}")
    records = {version: budgets[version].get(ESTIMATED, {}) for version in versions}
    parts.append(
        f"Table {len(architectures) + 1}. Estimates, not measurements: the time of one layer of "
        f"E88 at B{BATCH} T{STEPS} if an H100\nat {CLOCK_GHZ} GHz only issued the instructions of "
        f'Table 1, one per cycle and scheduler ({SCHEDULERS}). "Even"\nassumes an even '
        'distribution of the warps; "worst" is the scheduler with the most warps.\n\n'
        f"{_time_table(records, cases)}"
    )
    return "\n".join(parts)


def _code_table(records: Mapping[str, Mapping[str, Record]], cases: Iterable[str]) -> str:
    lines = [
        "| Kernel | Warps | Registers | Shared bytes | Instructions | by loop | guarded "
        "| SHFL | MUFU |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for case in cases:
        found = [part[case] for part in records.values() if case in part]
        if found:
            cells = (
                f"`{case}`",
                _versions(f"{record.warps}" for record in found),
                _versions(f"{record.registers}{_spilled(record)}" for record in found),
                _versions(f"{record.shared_bytes:,}" for record in found),
                _versions(_number(record.instructions) for record in found),
                _versions(_by_loop(record) for record in found),
                _versions(_number(record.guarded) for record in found),
                _versions(_number(record.shuffles) for record in found),
                _versions(_number(record.specials) for record in found),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _versions(texts: Iterable[str]) -> str:
    """Join the texts of all versions of Triton, or return a single one if they agree."""
    found = list(texts)
    return found[0] if len(set(found)) == 1 else " / ".join(found)


def _number(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")


def _by_loop(record: Record) -> str:
    return " + ".join(f"{name} {_number(number)}" for name, number in record.loops.items())


def _spilled(record: Record) -> str:
    return f" and {record.spills['stack_bytes']} bytes spilled" if record.spills else ""


def _time_table(records: Mapping[str, Mapping[str, Record]], cases: Mapping[str, Case]) -> str:
    lines = [
        "| Kernel | Triton | Heads | Warps | Instructions per step | Even, ms | Worst, ms |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, case in cases.items():
        if case.layer is None:
            continue
        for version, part in records.items():
            if name in part:
                warps = case.layer.programs * part[name].warps
                slots = part[name].instructions * STEPS
                even_ms = slots * warps / SCHEDULERS / CLOCK_GHZ / 1e6
                worst_ms = slots * math.ceil(warps / SCHEDULERS) / CLOCK_GHZ / 1e6
                lines.append(
                    f"| `{name}` | {version} | {case.layer.heads} | {warps:,} "
                    f"| {_number(part[name].instructions)} | {even_ms:.2f} | {worst_ms:.2f} |"
                )
    return "\n".join(lines) + "\n"
