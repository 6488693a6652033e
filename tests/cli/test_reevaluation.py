"""Re-evaluation as users see it: what is trained again, the mean of the best, the noise."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from elmanctl.cli.search_summary import print_summary
from elmanctl.cli.search_view import generation_line
from elmanctl.search.confirmation import best_of, standing
from tests.command_line import QuickCommandLine
from tests.search.scripted import Runs


@pytest.fixture
def scripted(quick: QuickCommandLine, corpus: Path, tmp_path_factory: Any) -> Runs:
    """Makes runs in the folder of the command line."""
    return Runs(quick.folder / "runs", corpus, tmp_path_factory.mktemp("templates"))


def test_best_noise_and_what_is_trained_again_are_shown(
    quick: QuickCommandLine, scripted: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    run = scripted.new(name="again", generations=3, reevaluate=0.3)
    state = run.drive()
    best = best_of(state, standing(state))
    assert best is not None and best.loss is not None
    # The losses of a scripted training do not depend on the seed.
    mean = f"mean {best.loss:.4f} ± 0.0000 of 3 seeds"
    done = quick("status", "again")
    assert f"  best    {best.id}, {mean}\n" in done.stderr
    assert "  noise   sd 0.0000 between seeds (4 degrees of freedom)\n" in done.stderr
    first, second, third = [e.id for e in state.ranked() if e.repeats is None][:3]
    reasons = [row.split("\t")[-1] for row in done.stdout.splitlines() if row.startswith("g002")]
    assert reasons == [f"re-evaluates {name}" for name in (first, second, third, first)]
    shown = quick("show", "again", "g002-e01").stdout
    assert f"  retrains    {second}: same configuration, fresh seed\n" in shown
    assert "  protocol    sd 0.0000 between seeds (4 degrees of freedom)\n" in shown
    assert (
        f"  confirmed   not confirmed: the best of the search, {mean}\n"
        in quick("show", "again", "best").stdout
    )
    line = f"g002: 4 trainings of 3 configurations on fresh seeds, best {best.id}: {mean}"
    assert generation_line(state, 2) == line
    print_summary(run.paths, state)
    told = capsys.readouterr().out
    assert f"  estimate   {mean}\n" in told
    assert "noise        sd 0.0000 between seeds (4 degrees of freedom)\n" in told


def test_programs_are_told_too(quick: QuickCommandLine, scripted: Runs) -> None:
    state = scripted.new(name="again", generations=3, reevaluate=0.3).drive()
    found = json.loads(quick("status", "again", "--json").stdout)
    estimate = found["run"]["estimate"]
    assert (estimate["n"], estimate["se"], estimate["ties"]) == (3, 0.0, [])
    again = {row["evaluation"]: row.get("reevaluates") for row in found["evaluations"]}
    assert again["g002-e00"] == again["g002-e03"] == estimate["evaluation"]
    noise = json.loads(quick("show", "again", "best", "--json").stdout)["protocol_noise"]
    assert (noise["degrees"], noise["configurations"]) == (4, 3)
    table = csv.DictReader(io.StringIO(quick("ledger", "export", "again", "--csv").stdout))
    exported = {row["evaluation"]: row["reevaluates"] for row in table}
    assert exported == {each.id: each.reevaluates or "" for each in state.evaluations.values()}


@pytest.mark.torch
def test_plan_says_how_many_train_the_best_again(quick: QuickCommandLine, corpus: Path) -> None:
    search = ("search", "e88", "--preset", "tiny", "--data", str(corpus), "--dry-run", "--local")
    done = quick(*search, "--set", "search.reevaluate=0.3")
    line = "12 evaluations of 300 steps, the last 4 of the best again, then the best 2"
    assert line in done.stderr
    refused = quick(*search, "--set", "search.reevaluate=0.6")
    assert refused.returncode == 2
    assert "`search.reevaluate` must be at most 0.5, not 0.6" in refused.stderr
