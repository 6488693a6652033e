"""`elmanctl set`: settings that change while a search runs, and when none does."""

import json
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import pytest

from elmanctl.ledger.run_state import RunState
from elmanctl.run.paths import RunPaths
from tests.command_line import CommandLine, QuickCommandLine
from tests.integration.runs import load, trained_attempts, wait_for, with_standins

SEARCH = ("search", "e88", "--local", "--preset", "tiny", "--yes", "--workers", "1")
LONG = (
    *("--asynchronous", "--generations", "3", "--population", "4"),
    *("--set", "search.confirm_top=0", "--name", "changed"),
)


class Search:
    """A search of this machine that another process drives."""

    def __init__(self, user: CommandLine, corpus: Path) -> None:
        self.user = with_standins(user, 0.5)
        self.folder = RunPaths(user.folder / "runs" / "changed").folder
        self.process: Popen[str] = self.user.start((*SEARCH, *LONG, "--data", str(corpus)))

    @property
    def state(self) -> RunState:
        return load(self.folder)

    def live(self) -> int:
        return len(self.state.live_attempts())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def search(elmanctl: CommandLine, corpus: Path) -> Iterator[Search]:
    begun = Search(elmanctl, corpus)
    yield begun
    begun.close()


@pytest.mark.slow
@pytest.mark.torch
def test_workers_of_a_running_search_grow_and_shrink(search: Search) -> None:
    wait_for(lambda: (search.folder / "ledger.jsonl").exists() and search.live() == 1, "a worker")
    done = search.user("set", "changed", "local.workers=3", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["changed"] == [{"setting": "local.workers", "was": 1, "now": 3}]
    wait_for(lambda: search.live() == 3, "three workers")
    again = search.user("set", "local.workers=1")
    assert again.stdout.splitlines()[-1].split() == ["local.workers", "3", "1"]
    settled = len(trained_attempts(search.folder))
    wait_for(lambda: len(trained_attempts(search.folder)) >= settled + 4, "four more")
    assert search.live() <= 1
    # What was set is on record: a controller that is killed is replaced under the same settings.
    search.close()
    told = search.user("set", "local.workers=2")
    assert "no controller is at work: `elmanctl resume changed` goes on" in told.stderr
    last = search.user("resume")
    assert last.returncode == 0, last.stderr
    assert len(search.state.evaluations) == 12 == len(trained_attempts(search.folder))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "name a setting and its value"),
        (("train.steps=5",), "is part of what this search measures"),
        (("search.max_jobs=5",), "means nothing to this search"),
        (("local.workers=none",), "local.workers"),
        (("local.workers=0",), "`local.workers`"),
        (("local.wrokers=2",), "local.workers"),
        (("--gpus", "0,x"), "`--gpus` is a list"),
        (("--gpus", "77"), "no GPU 77 here"),
        (("one", "two", "local.workers=2"), "`two` is neither a setting nor the run"),
    ],
)
def test_what_cannot_be_set_is_refused_and_nothing_is_written(
    quick_with_runs: QuickCommandLine, words: tuple[str, ...], message: str
) -> None:
    ledger = RunPaths(quick_with_runs.folder / "runs" / "interrupted-search").ledger
    before = ledger.read_bytes()
    named = () if "one" in words else ("interrupted-search",)
    done = quick_with_runs("set", *named, *words)
    assert done.returncode != 0 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert ledger.read_bytes() == before
