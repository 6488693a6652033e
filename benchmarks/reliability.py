"""Disturb searches in every way that is promised to do no harm, and count what was lost.

    python benchmarks/reliability.py [--part kills --part cut ...] [--kills 200] [--quick]

Needs a Slurm cluster made by scripts/slurmbox for all that is about Slurm (`--local` leaves it
out), and root to mount a small disk.  Writes results/reliability.json and the tables of
docs/reliability.md; --continue keeps the trials that the file already holds, and several campaigns
of one version of the product may add to it at one time.  The folders of the searches stay in
--folder.  Exits with 1 when anything was lost, trained twice or otherwise.

The part no-accounting needs a cluster of its own and runs only when it is asked for:

    ACCOUNTING=0 SLURMBOX=... scripts/slurmbox up
    python benchmarks/reliability.py --part no-accounting --continue
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from campaign.parts import INSIDE, Campaign  # noqa: E402
from campaign.record import Results  # noqa: E402
from campaign.report import rewrite  # noqa: E402

PARTS = (
    *("kills", "kills-asynchronous", "kills-lanes", "kills-inside", "cut", "pairs", "paused"),
    *("orphan", "slurmctld", "slurmdbd", "node", "preempt", "disk"),
)
ASKED = ("no-accounting",)


def say(text: str) -> None:
    """Print a line with the time, at once."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def read_arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", action="append", choices=(*PARTS, *ASKED))
    parser.add_argument("--kills", type=int, default=200, help="half of them on Slurm")
    parser.add_argument("--searches", type=int, default=12, help="over which kills are spread")
    parser.add_argument("--rounds", type=int, default=0, help="of other parts; 0 is their default")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="of the searches; default a new one")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results" / "reliability.json"
    )
    parser.add_argument("--continue", action="store_true", dest="go_on")
    parser.add_argument("--table", action="store_true", help="only the tables of what is there")
    parser.add_argument("--quick", action="store_true", help="10 kills and no table: what CI runs")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--slurm", action="store_true", help="only what runs on Slurm")
    where.add_argument("--local", action="store_true", help="only what needs no Slurm")
    return parser.parse_args()


def run_part(campaign: Campaign, part: str, executors: list[str], own: argparse.Namespace) -> None:
    """Run one part on every executor that is asked for."""
    if part == INSIDE:
        if "slurm" in executors:
            campaign.inside(own.kills, own.searches)
    elif part.startswith("kills"):
        own_executors = ["slurm"] if part == "kills-lanes" else executors
        for executor in [name for name in own_executors if name in executors]:
            wanted = own.kills // len(own_executors)
            searches = max(1, own.searches // len(own_executors))
            campaign.kills(executor, wanted, searches, part=part, is_quick=own.quick)
    elif part == "cut" and "local" in executors:
        campaign.cuts(1, own.rounds or 20)
    elif part == "pairs":
        for executor in executors:
            campaign.pairs(executor, own.rounds or 10)
    elif part == "paused":
        for executor in executors:
            campaign.paused(executor, own.rounds or 6)
    elif part == "disk":
        for executor in executors:
            campaign.disk(executor, own.rounds or 3)
    elif part == "orphan" and "slurm" in executors:
        campaign.orphans(own.rounds or 6)
    elif part not in ("cut", "orphan") and "slurm" in executors:
        campaign.cluster(part, own.rounds or 2)


def main() -> int:
    """Run the parts and write what they came to."""
    own = read_arguments()
    page = ROOT / "docs" / "reliability.md"
    if own.table:
        rewrite(page, Results(own.results, go_on=True, is_read_only=True))
        return 0
    executors = [name for name in ("slurm", "local") if not getattr(own, _other(name))]
    if "slurm" in executors and "SLURM_CONF" not in os.environ:
        say('no cluster: eval "$(scripts/slurmbox up)", or pass --local')
        return 4
    folder = own.folder or Path(tempfile.mkdtemp(prefix="reliability-"))
    if own.quick:
        own.part, own.kills, own.searches = ["kills"], 10, len(executors)
        own.results = folder / "reliability.json"
    say(f"searches in {folder}")
    results = Results(own.results, go_on=own.go_on)
    campaign = Campaign(folder, results, seed=own.seed, say=say)
    for part in own.part or PARTS:
        run_part(campaign, part, executors, own)
    if not own.quick:
        rewrite(page, results)
    for fault in campaign.faults:
        say(f"FAULT {fault}")
    return 1 if campaign.faults or not results.trials else 0


def _other(executor: str) -> str:
    return "local" if executor == "slurm" else "slurm"


if __name__ == "__main__":
    sys.exit(main())
