"""Produce every verdict for real on a Slurm cluster of scripts/slurmbox, and compare.

    eval "$(scripts/slurmbox up)"
    python benchmarks/verdicts_on_cluster.py [--out FILE] [--only NAMES] [--together] [--list]

Prints case, expected, verdict, confidence and the first evidence; exits with 1 on any mismatch.
Jobs run side by side where they do not disturb each other; --together leaves out the cases that
disturb the whole cluster.  --out keeps the rows of other cases that the file already holds, those
of a cluster without accounting (ACCOUNTING=0) too; with --table they go into docs/reliability.md.
Needs root, to mount a small disk.
"""

import argparse
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from campaign.cases import CASES, GATE, Case  # noqa: E402
from campaign.cluster import slurmbox  # noqa: E402
from campaign.verdict_table import keep, rewrite  # noqa: E402

from elmanctl.ledger.records import Verdict  # noqa: E402
from tests.integration.cluster import Job  # noqa: E402


def main() -> int:
    """Run the cases and print the table."""
    options = read_arguments()
    if options.list:
        print("\n".join(CASES))
        return 0
    names = options.only.split(",") if options.only else list(CASES)
    chosen = [CASES[name.strip()] for name in names]
    if options.together:
        chosen = [case for case in chosen if not case.alone]
    accounting = subprocess.run(["sacct", "-n"], capture_output=True, check=False).returncode == 0
    chosen = [case for case in chosen if accounting or not case.needs_accounting]
    with tempfile.TemporaryDirectory(prefix="verdicts-") as folder:
        rows = run(chosen, Path(folder))
    if options.out:
        kept = keep(options.out, rows, accounting=accounting)
        if options.table:
            rewrite(ROOT / "docs" / "reliability.md", kept)
    for row in rows:
        words = (row["case"], row["expected"], row["verdict"], row["cause"] or "-")
        print("".join(f"{word:<26}" for word in words) + row["evidence"][:100])
    wrong = [row for row in rows if not row["holds"]]
    print(f"\n{len(rows) - len(wrong)} of {len(rows)} as expected")
    return 1 if wrong else 0


def read_arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="keep the rows in this JSON file")
    parser.add_argument("--table", action="store_true", help="write the table of the docs, too")
    parser.add_argument("--only", help="names of cases, with commas between them")
    parser.add_argument("--together", action="store_true", help="only what runs side by side")
    parser.add_argument("--list", action="store_true", help="name the cases")
    return parser.parse_args()


def run(cases: list[Case], folder: Path) -> list[dict[str, Any]]:
    """Return a row for each case; what disturbs the whole cluster runs alone, at the end."""
    corpus = folder / "corpus.bytes"
    text = (Path(sysconfig.get_path("stdlib")) / "turtle.py").read_bytes()
    # Many short documents, of which some are held out.
    corpus.write_bytes(text.replace(b"\n\n", b"\x1e"))
    try:
        together = [(case, submit(case, folder, corpus)) for case in cases if not case.alone]
        # All at once: without accounting Slurm forgets a job soon after its end.
        with ThreadPoolExecutor(max_workers=len(together) or 1) as pool:
            rows = list(pool.map(lambda pair: meet(*pair), together))
        slurmbox("up")
        for case in (case for case in cases if case.alone):
            rows.append(meet(case, submit(case, folder, corpus)))
            slurmbox("up")
    finally:
        for case in cases:
            if case.on_full_disk:
                subprocess.run(["umount", place(case, folder)], check=False)
    return rows


def place(case: Case, folder: Path) -> Path:
    """Return the folder of a case's run."""
    return folder / case.name.replace(" ", "-")


def submit(case: Case, folder: Path, corpus: Path) -> Job:
    """Submit the job of a case, on a small file system where it asks for one."""
    run_folder = place(case, folder)
    if case.on_full_disk:
        run_folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "elmanctl", str(run_folder)]
        subprocess.run(mount, check=True)
    gate = shlex.quote(str(run_folder / GATE))
    nodes = subprocess.check_output(["sinfo", "-hN", "-p", "gpu", "-o", "%N"], text=True).split()
    if case.alone:
        extra = {}
    elif case.node is None:
        taken = {other.node for other in CASES.values() if other.node is not None}
        extra = {"exclude": ",".join(nodes[-number] for number in sorted(taken))}
    else:
        extra = {"nodelist": nodes[-case.node]}
    setup = (f"until [ -e {gate} ]; do sleep 0.2; done",) if case.gated else ()
    job = Job(run_folder, corpus, setup=setup, extra=extra, **case.job)
    if case.on_full_disk:
        fill(run_folder)
    return job


def fill(folder: Path) -> None:
    """Leave a file system with no room at all."""
    with (folder / "filler").open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            return


def meet(case: Case, job: Job) -> dict[str, Any]:
    """End the job of a case, wait for its verdict, and return the row."""
    if case.disturb is not None:
        case.disturb(job)
    verdict: Verdict = job.verdict()
    cause = verdict.cause and verdict.cause.value
    return {
        "case": case.name,
        "done": case.done,
        "expected": case.expected.value,
        "verdict": verdict.kind.value,
        "confidence": verdict.confidence and verdict.confidence.value,
        "cause": cause,
        "holds": (verdict.kind, verdict.cause) == (case.expected, case.cause),
        "evidence": verdict.summary,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


if __name__ == "__main__":
    if "SLURM_CONF" not in os.environ and "--list" not in sys.argv:
        print('no cluster: eval "$(scripts/slurmbox up)"', file=sys.stderr)
        sys.exit(4)
    sys.exit(main())
