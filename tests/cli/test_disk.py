"""`disk`: what is measured, what is warned of, and that nothing is changed."""

import json
from typing import Any

from elmanctl.ledger.disk import measure
from tests.cli.conftest import Snapshot
from tests.command_line import QuickCommandLine


def document(done: Any) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_every_run_is_measured_and_nothing_is_changed(
    quick_with_runs: QuickCommandLine, snapshot: Snapshot
) -> None:
    before = snapshot()
    found = document(quick_with_runs("disk", "--json"))
    runs = quick_with_runs.folder / "runs"
    assert {row["run"]: row["size_bytes"] for row in found["runs"]} == {
        name: measure(runs / name) for name in ("finished", "interrupted-search")
    }
    assert found["space"]["free_bytes"] > 0
    assert quick_with_runs("disk").stdout.startswith("RUN\tSIZE\tFREEABLE\tNEEDED")
    assert snapshot() == before


def test_one_run_is_told_by_category_and_freeable_is_what_clean_frees(
    quick_with_runs: QuickCommandLine,
) -> None:
    (quick_with_runs.folder / "runs" / "finished" / ".x.tmp").write_text("x", encoding="utf-8")
    options = ("--set", "disk.keep_last=0", "--set", "disk.keep_best=1")
    resumed = quick_with_runs("resume", "finished", *options)
    assert resumed.returncode == 0, resumed.stderr
    found = document(quick_with_runs("disk", "finished", "--json"))
    categories = {row["category"]: row for row in found["categories"]}
    assert {"metrics", "log", "pickle", "result", "other", "ledger"} <= set(categories)
    assert found["freeable_bytes"] == sum(row["freeable_bytes"] for row in categories.values()) > 0
    assert [row["path"] for row in found["orphans"]] == [".x.tmp"]
    assert found["forecast"]["evaluations_left"] == 0
    freed = document(quick_with_runs("clean", "finished", "--yes", "--json"))
    assert freed["freed_bytes"] == found["freeable_bytes"]
    text = quick_with_runs("disk", "finished")
    assert text.stdout.startswith("CATEGORY\tFILES\tSIZE\tFREEABLE") and ".x.tmp" in text.stdout


def test_forecast_that_does_not_fit_is_warned_of(quick_with_runs: QuickCommandLine) -> None:
    ledger = quick_with_runs.folder / "runs" / "interrupted-search" / "ledger.jsonl"
    before = ledger.read_bytes()
    changed = quick_with_runs("resume", "interrupted", "--set", "disk.floor_gb=100000")
    assert changed.returncode == 6, changed.stderr
    assert ledger.read_bytes() != before
    for words in (("status", "interrupted"), ("disk", "interrupted"), ("disk",)):
        done = quick_with_runs(*words)
        assert "evaluations will write about" in done.stderr, words
