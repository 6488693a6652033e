"""Let a long search run where something is always failing, and judge it.

    LIMITS=1 eval "$(scripts/slurmbox up)"
    python benchmarks/soak.py [--evaluations 2000] [--hours 3]

Stand-in trainings on a cluster of scripts/slurmbox, with a limit on submitted jobs; slurmctld is
restarted every two minutes, a node fails every five, and the controller sits in an allocation that
is ended and taken anew every ten.  Every evaluation must get exactly one result, by a log that the
workers write outside the run; the controllers' memory must not grow, nor their questions exceed two
a minute.  Writes results/soak.json and a table of docs/reliability.md; exits with 1 when a promise
was broken.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from campaign.record import about_this_machine  # noqa: E402
from campaign.soak import Plan, Soak  # noqa: E402
from campaign.soak_judge import rewrite  # noqa: E402


def read_arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evaluations", type=int, default=2000)
    parser.add_argument("--population", type=int, default=20)
    parser.add_argument("--submit-limit", type=int, default=20)
    parser.add_argument("--restart-s", type=float, default=120, help="slurmctld, every")
    parser.add_argument("--node-s", type=float, default=300, help="a node fails, every")
    parser.add_argument("--node-back-s", type=float, default=60, help="and is back after")
    parser.add_argument("--renew-s", type=float, default=600, help="the allocation, every")
    parser.add_argument("--poll-s", type=float, default=60, help="slurm.poll_s of the search")
    parser.add_argument("--seconds", type=float, nargs=2, default=(4, 9), help="of a training")
    parser.add_argument("--settled", type=int, default=100, help="evaluations until memory counts")
    parser.add_argument("--hours", type=float, default=6, help="given up after")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="of the search; default a new one")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results" / "soak.json"
    )
    parser.add_argument("--no-table", action="store_true", help="leave the documents alone")
    return parser.parse_args()


@contextmanager
def submit_limit(jobs: int) -> Iterator[None]:
    """Limit the submitted jobs of this user, 0 not at all; exits where no limits are enforced."""
    if jobs == 0:
        yield
        return
    config = subprocess.check_output(["scontrol", "show", "config"], text=True)
    enforced = next(line for line in config.splitlines() if "AccountingStorageEnforce" in line)
    if "limits" not in enforced:
        sys.exit("the cluster enforces no limits: LIMITS=1 scripts/slurmbox up")
    modify = ["sacctmgr", "-i", "modify", "user", "root", "set"]
    subprocess.run([*modify, f"MaxSubmitJobs={jobs}"], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run([*modify, "MaxSubmitJobs=-1"], check=False, capture_output=True)


def main() -> int:
    """Run, write down, judge."""
    own = read_arguments()
    if "SLURM_CONF" not in os.environ:
        print('no cluster: LIMITS=1 eval "$(scripts/slurmbox up)"', file=sys.stderr)
        return 4
    plan = Plan(
        evaluations=own.evaluations,
        population=own.population,
        submit_limit=own.submit_limit,
        restart_s=own.restart_s,
        node_s=own.node_s,
        node_back_s=own.node_back_s,
        renew_s=own.renew_s,
        poll_s=own.poll_s,
        seconds=tuple(own.seconds),
        settled=own.settled,
        seed=own.seed,
    )
    folder = own.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    say(f"the search is in {folder}")
    about = about_this_machine()
    with submit_limit(plan.submit_limit):
        seen = Soak(folder, plan, say).run(3600 * own.hours)
    data = {"version": 1, "about": about, **seen}
    own.results.parent.mkdir(parents=True, exist_ok=True)
    own.results.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if not own.no_table:
        rewrite(ROOT / "docs" / "reliability.md", data)
    for words in seen["broken"]:
        say(f"BROKEN {words}")
    return 1 if seen["broken"] else 0


def say(text: str) -> None:
    """Print a line with the time, at once."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
