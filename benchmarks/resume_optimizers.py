"""Kill the controllers of a search by every optimizer at random events, and go on each time.

    python benchmarks/resume_optimizers.py [OPTIMIZER...] [--kills N] [--generations N] [--seed N]

Each controller is killed by SIGKILL once its ledger has grown by a random number of events, and
`resume` goes on in a process with another hash seed.  Points, what the optimizer was told and what
became of each evaluation must be those of a search that nobody killed, and nothing may be trained
twice.  Controllers and workers are processes of their own; trainings are stand-ins, of which some
fail.  Prints a table, and exits with 1 when anything was lost or otherwise.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from campaign.search import SETTINGS, Fault, Search, Shape, judge, wait_for  # noqa: E402

from elmanctl.constants import LHS_CMA, OPTIMIZERS, STUDY  # noqa: E402


def settings_of(name: str) -> str:
    """Return the elman.toml of a search by an optimizer."""
    search = ["[search]", f'optimizer = "{name}"', "confirm_top = 0"]
    if name == LHS_CMA:
        search += ["lhs_points = 6", "lhs_starts = 2"]
    return "\n".join([*search, "", SETTINGS])


def new_search(folder: Path, name: str, shape: Shape) -> Search:
    """Return a search that has not begun."""
    return Search(folder, shape, "local", settings=settings_of(name))


def events(search: Search) -> int:
    """Return the number of events in a ledger."""
    return (search.run_folder / "ledger.jsonl").read_bytes().count(b"\n") if search.exists else 0


def kill_and_go_on(search: Search, kills: int, dice: random.Random) -> int:
    """Drive a search through several kills to its end; return how many hit."""
    hit = 0
    for _ in range(kills):
        wanted = events(search) + dice.randint(1, 20)
        search.environment["PYTHONHASHSEED"] = str(dice.randrange(2**32))
        process = search.start()
        if not _reaches(search, process, wanted):
            break
        search.kill(process)
        hit += 1
    search.environment["PYTHONHASHSEED"] = str(dice.randrange(2**32))
    search.finish()
    return hit


def _reaches(search: Search, process: subprocess.Popen[bytes], wanted: int) -> bool:
    """Wait for an event; return False if the search ends before."""
    wait_for(lambda: events(search) >= wanted or process.poll() is not None, "events")
    return process.poll() is None


def main() -> int:
    """Do what the usage says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # That of the study has rules of its own for failures, see the preset.
    names = [name for name in OPTIMIZERS if name != STUDY]
    parser.add_argument("optimizers", nargs="*", metavar="OPTIMIZER", default=names)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    own = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="resume-optimizers-"))
    shape = Shape(
        population=4, generations=own.generations, seed=own.seed, faults=0.2, seconds=(0.0, 0.2)
    )
    print("| Optimizer | Evaluations | Kills | Same points and results | Seconds |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    is_good = True
    for name in own.optimizers:
        start = time.monotonic()
        try:
            reference = new_search(folder / f"{name}-undisturbed", name, shape)
            reference.finish()
            search = new_search(folder / name, name, shape)
            hit = kill_and_go_on(search, own.kills, random.Random(f"{own.seed} {name}"))
            found = judge(search, reference)
            why = "" if found.is_good else found.why
        except Fault as exc:
            hit, why = 0, str(exc).replace("\n", " ")
        is_good &= not why
        count = len(search.state().evaluations) if search.exists else 0
        seconds = time.monotonic() - start
        print(f"| `{name}` | {count} | {hit} | {why or 'yes'} | {seconds:.0f} |", flush=True)
    print(f"\nfiles in {folder}", file=sys.stderr)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
