"""Begin searches with the code of an older commit, kill them, and go on with this checkout's.

    python benchmarks/resume_older.py fa2d121 [--quick]
    eval "$(scripts/slurmbox up)"; python benchmarks/resume_older.py fa2d121 --slurm

Each search is killed by SIGKILL at another instant and gone on with by `resume`; some controllers
answer a `clean` of this checkout before.  Points, what the optimizer was told and what became of
each evaluation must be those of an undisturbed search of this checkout, and nothing may be trained
twice.  Trainings are stand-ins; the code around them is the older commit's, frozen in the run.
Exits with 1 when anything was lost or otherwise.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from campaign.search import Fault, References, Search, Shape, judge, wait_for  # noqa: E402

Instant = tuple[str, int] | str

# The controller is killed as soon as its ledger has so many events of a kind ...
EVENTS: tuple[Instant, ...] = (
    *(("attempt_started", 2), ("attempt_finished", 3)),
    *(("generation_told", 1), ("points_asked", 2)),
)
# ... or inside of a call, as campaign/dying.py knows them.
CALLS: tuple[Instant, ...] = (
    *("submit:before:1", "submit:after:1", "tell:before:1"),
    *("tell:before:1", "fsync:after:30"),
)
QUICK: tuple[Instant, ...] = (EVENTS[0], EVENTS[2], CALLS[1])

# Searches at one time.
TOGETHER = 3


def read_arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", help="that begins the searches")
    parser.add_argument("--slurm", action="store_true", help="on the cluster of SLURM_CONF")
    parser.add_argument("--quick", action="store_true", help="three instants and two generations")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="of the searches; default a new one")
    return parser.parse_args()


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """Have the files of a commit in a work tree of its own."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def begin(search: Search, instant: Instant) -> None:
    """Start a search and kill its controller at an instant; raise Fault where it ends before."""
    if isinstance(instant, str):
        search.expect(search.start(options=["--die", instant]), -9)
        return
    kind, count = instant
    mark = f'"kind":"{kind}"'.encode()
    ledger = search.run_folder / "ledger.jsonl"
    process = search.start()

    def is_time() -> bool:
        happened = search.exists and ledger.read_bytes().count(mark) >= count
        return happened or process.poll() is not None

    wait_for(is_time, f"event {count} of {kind}")
    if kind == "attempt_finished":
        older, search.checkout = search.checkout, ROOT
        search.expect(search.start(["clean", "run", "--yes"]), 0)
        search.checkout = older
        if b'"request_applied"' not in ledger.read_bytes():
            raise Fault("the controller was not asked to clean")
    if process.poll() is not None:
        raise Fault(f"ended with {process.returncode} before the kill: {search.words(process)}")
    search.kill(process)


def go_on(search: Search, instant: Instant, reference: Search) -> str:
    """Begin a search with its own code and go on with this checkout's; return what is wrong."""
    try:
        begin(search, instant)
        if not search.exists:
            raise Fault("killed before the run began")
        search.checkout = ROOT
        search.finish()
        return judge(search, reference).why
    except Fault as exc:
        return str(exc)


def main() -> int:
    """Try every instant, and say what came of it."""
    own = read_arguments()
    if own.slurm and "SLURM_CONF" not in os.environ:
        print('no cluster: eval "$(scripts/slurmbox up)"', file=sys.stderr)
        return 4
    folder = own.folder or Path(tempfile.mkdtemp(prefix="resume-older-"))
    instants = QUICK if own.quick else (*EVENTS, *CALLS)
    generations = 2 if own.quick else 3
    shape = Shape(
        population=4, generations=generations, seed=own.seed, faults=0.35, seconds=(0.0, 1.0)
    )
    executor = "slurm" if own.slurm else "local"
    with checked_out(own.commit, folder / "checkout") as checkout:
        reference = References(folder / "references").of(shape)

        def attempt(number: int) -> bool:
            start, instant = time.monotonic(), instants[number]
            search = Search(folder / str(number), shape, executor, checkout=checkout)
            why = go_on(search, instant, reference)
            name = instant if isinstance(instant, str) else f"{instant[0]}:{instant[1]}"
            found = why or f"same points and results, {len(search.state().evaluations)} evaluations"
            seconds = time.monotonic() - start
            print(f"{own.commit} {executor} {name}: {found}, {seconds:.0f} s", flush=True)
            return not why

        with ThreadPoolExecutor(TOGETHER) as pool:
            return 0 if all(list(pool.map(attempt, range(len(instants))))) else 1


if __name__ == "__main__":
    sys.exit(main())
