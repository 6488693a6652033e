"""Measure the share of slots that stand idle in searches with stand-in workers of spread run times.

    python benchmarks/idle_share.py [--evaluations 200] [--slots 8] [--seconds 2 8]

Needs a Slurm cluster made by scripts/slurmbox.  Runs one search in each mode, with a population of
so many as there are slots, and prints what the ledger says: slots without an attempt, submitted
ones included, while points are still to come (`ledger/idle.py`), and the time from the first
submission to the end of the last training.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from campaign.search import SETTINGS, Search, Shape  # noqa: E402

from elmanctl import clock  # noqa: E402

MODES = ("generational", "asynchronous")


def measure(folder: Path, mode: str, own: argparse.Namespace) -> str:
    """Run one search and return its row."""
    low, high = own.seconds
    shape = Shape(
        population=own.slots,
        generations=own.evaluations // own.slots,
        seed=1,
        seconds=(low, high),
    )
    settings = f'{SETTINGS}\n[search]\nmode = "{mode}"\nconfirm_top = 0\n'
    search = Search(folder / mode, shape, "slurm", settings=settings)
    search.finish(timeout_s=3600)
    state = search.state()
    attempts = [attempt for e in state.evaluations.values() for attempt in e.attempts]
    began = min(clock.from_text(str(each.submitted_at)) for each in attempts)
    ended = max(clock.from_text(str(each.finished_at)) for each in attempts)
    return (
        f"| {mode} | {len(state.evaluations)} | {state.idle_s / state.slot_s:.1%} |"
        f" {(ended - began).total_seconds():.0f} |"
    )


def main() -> None:
    """Do what the usage says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--seconds", type=float, nargs=2, default=(2.0, 8.0))
    own = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="idle-"))
    print("| mode | evaluations | idle slots | seconds |\n| --- | --- | --- | --- |")
    for mode in MODES:
        print(measure(folder, mode, own), flush=True)


if __name__ == "__main__":
    main()
