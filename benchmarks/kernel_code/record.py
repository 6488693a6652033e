"""Measures the machine code of every kernel, and puts it on record.

usage: python -m benchmarks.kernel_code.record [--only TEXT] [FOLDER...]

Compiles every case for every architecture, under the installed Triton and under the one in each
FOLDER (scripts/install-triton), a process for each; writes tests/kernels/budgets.json and the
tables of docs/kernels.md.  Tritons that are not asked keep their numbers, and so do, with --only,
cases whose name has not TEXT in it.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks.kernel_code import budgets
from benchmarks.kernel_code.cases import CASES, WANTED
from benchmarks.kernel_code.children import ROOT, Answer, Child


def main() -> int:
    """Do what the usage says; return 1 when a kernel spills and no reason is on record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    chosen = [name for name in CASES if arguments.only in name]
    before = budgets.load() if budgets.FILE.exists() else {}
    began_s = time.monotonic()
    answers = _measured(chosen, arguments.folders)
    after: budgets.Budgets = {
        triton: {sm: {name: x[name] for name in CASES if name in x} for sm, x in of_triton.items()}
        for triton, of_triton in before.items()
    }
    unexplained = []
    for answer in answers:
        old = before.get(answer.triton, {}).get(f"sm_{answer.architecture}", {})
        place = after.setdefault(answer.triton, {}).setdefault(f"sm_{answer.architecture}", {})
        case = CASES[answer.case]
        found = budgets.record_of(answer.measured, case.loops, answer.warps)
        if found.spills:
            reason = old[answer.case].spills.get("reason", "") if answer.case in old else ""
            found = replace(found, spills=found.spills | {"reason": reason})
            if not reason:
                unexplained.append(f"{answer.case}, {answer.triton}, sm_{answer.architecture}")
        place[answer.case] = found
    for architectures in after.values():
        for architecture, records in architectures.items():
            names = [name for name, number in WANTED if f"sm_{number}" == architecture]
            architectures[architecture] = {name: records[name] for name in names if name in records}
    budgets.FILE.write_text(budgets.dump(after), encoding="utf-8")
    subprocess.run([sys.executable, ROOT / "scripts" / "make-reference"], check=True)
    print(
        f"{len(answers)} kernels in {time.monotonic() - began_s:.0f} s, "
        f"{sum(answer.processor_s for answer in answers):.0f} s of processors"
    )
    for line in unexplained:
        print(f"spills, write the reason beside it in {budgets.FILE.name}: {line}")
    return bool(unexplained)


def _measured(chosen: list[str], folders: list[Path]) -> list[Answer]:
    wanted = [pair for pair in WANTED if pair[0] in chosen]
    with ExitStack() as stack:
        children = []
        for triton in (None, *folders):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            children.append(stack.enter_context(Child(wanted, folder, triton=triton)))
        return [child.answer(*pair) for child in children for pair in wanted]


if __name__ == "__main__":
    sys.exit(main())
