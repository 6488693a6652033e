"""A real ledger cut at every byte, and searches that go on from a cut one."""

import random
import tempfile
from collections.abc import Iterable
from pathlib import Path

from campaign.search import Fault, Search, wait_for
from elmanctl.ledger.contents import read_events
from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.state import load_run


def open_every_cut(ledger: Path, sizes: Iterable[int]) -> tuple[int, int]:
    """Open a ledger cut to each size; return how many cuts, and the most events that one lost.

    An event counts as lost when its line was whole before the cut, its newline included.  Raises
    Fault for a cut that does not open, or that shows another event than those before it.
    """
    data = ledger.read_bytes()
    whole = read_events(ledger).events
    opened = most = 0
    with tempfile.TemporaryDirectory() as name:
        cut = Path(name) / ledger.name
        for size in sizes:
            cut.write_bytes(data[:size])
            try:
                seen = read_events(cut).events
                load_run(cut.parent)
            except Exception as exc:
                raise Fault(f"cut to {size} bytes it does not open: {exc!r}") from exc
            if list(seen) != list(whole[: len(seen)]):
                raise Fault(f"cut to {size} bytes it shows other events")
            opened += 1
            most = max(most, data.count(b"\n", 0, size) - len(seen))
    return opened, most


def make_varied_ledger(search: Search) -> None:
    """Drive a small search and change it on its way: its ledger gets many kinds of events."""
    search.finish()
    requeue = ["requeue", "--failed", "--run", "run", "--force", "--yes"]
    search.expect(search.start(requeue), 0)
    generations = str(search.shape.generations + 1)
    changed = ["resume", "run", "--generations", generations, "--set", "budget.evaluations=500"]
    controller = search.start(changed)
    wait_for(lambda: search.state().status is RunStatus.RUNNING, "the search to go on")
    clean = ["clean", "run", "--keep-best", "1", "--keep-last", "0", "--yes"]
    search.expect(search.start(clean), 0)
    search.expect(controller, 0)


def resume_from_cut(search: Search, chance: random.Random) -> str:
    """Finish a search, cut its ledger anywhere after its first event, and let it go on.

    This loses far more than a torn last line: everything after the cut, while the files of the
    workers stay.  Returns where the cut was.
    """
    search.finish()
    ledger = search.run_folder / "ledger.jsonl"
    data = ledger.read_bytes()
    size = chance.randint(data.index(b"\n") + 1, len(data) - 1)
    ledger.write_bytes(data[:size])
    search.finish()
    return f"cut after {size:,} of {len(data):,} bytes"
