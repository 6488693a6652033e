"""Record the machine-code budgets of all kernels.

usage: python -m benchmarks.kernel_code.record [--only TEXT] [FOLDER...]

Compiles all cases for all architectures, with the installed Triton and the one in each FOLDER
(scripts/install-triton), in one process per version; writes tests/kernels/budgets.json and the
tables of docs/kernels.md.  Records of other versions of Triton are kept, and with --only also those
of cases whose name does not contain TEXT.
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
    """Run the command; return 1 if a kernel spills without a recorded reason."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    selected = [name for name in CASES if arguments.only in name]
    before = budgets.load() if budgets.FILE.exists() else {}
    start_s = time.monotonic()
    answers = _measure(selected, arguments.folders)
    after: budgets.Budgets = {
        triton: {sm: {name: x[name] for name in CASES if name in x} for sm, x in of_triton.items()}
        for triton, of_triton in before.items()
    }
    unexplained = []
    for answer in answers:
        old = before.get(answer.triton, {}).get(f"sm_{answer.architecture}", {})
        records = after.setdefault(answer.triton, {}).setdefault(f"sm_{answer.architecture}", {})
        case = CASES[answer.case]
        found = budgets.record_of(answer.measured, case.loops, answer.warps)
        if found.spills:
            reason = old[answer.case].spills.get("reason", "") if answer.case in old else ""
            found = replace(found, spills=found.spills | {"reason": reason})
            if not reason:
                unexplained.append(f"{answer.case}, {answer.triton}, sm_{answer.architecture}")
        records[answer.case] = found
    for architectures in after.values():
        for architecture, records in architectures.items():
            names = [name for name, number in WANTED if f"sm_{number}" == architecture]
            architectures[architecture] = {name: records[name] for name in names if name in records}
    budgets.FILE.write_text(budgets.dump(after), encoding="utf-8")
    subprocess.run([sys.executable, ROOT / "scripts" / "make-reference"], check=True)
    print(
        f"{len(answers)} kernels in {time.monotonic() - start_s:.0f} s, "
        f"{sum(answer.processor_s for answer in answers):.0f} s of CPU time"
    )
    for line in unexplained:
        print(f"spills, add the reason in {budgets.FILE.name}: {line}")
    return bool(unexplained)


def _measure(selected: list[str], folders: list[Path]) -> list[Answer]:
    wanted = [pair for pair in WANTED if pair[0] in selected]
    with ExitStack() as stack:
        children = []
        for triton in (None, *folders):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            children.append(stack.enter_context(Child(wanted, folder, triton=triton)))
        return [child.answer(*pair) for child in children for pair in wanted]


if __name__ == "__main__":
    sys.exit(main())
