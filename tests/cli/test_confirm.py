"""Confirmation as users see it: the winner, how it was flattered, and what is not confirmed."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elmanctl.cli.confirmation import describe_confirmed, print_confirmed
from elmanctl.cli.search_summary import print_summary
from elmanctl.cli.search_view import confirmation_line, headline
from elmanctl.ledger.records import State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.search.confirmation import Confirmed, standing
from elmanctl.search.confirmation_plan import due_confirmations
from elmanctl.search.session import Session
from tests.cli.conftest import Snapshot
from tests.command_line import QuickCommandLine
from tests.search.scripted import Run, Runs

User = Callable[..., Any]


@pytest.fixture
def scripted(quick: QuickCommandLine, corpus: Path, tmp_path_factory: Any) -> Runs:
    """Makes runs in the folder of the command line."""
    return Runs(quick.folder / "runs", corpus, tmp_path_factory.mktemp("templates"))


def test_winner_and_noise_are_shown_wherever_the_best_is(
    quick: QuickCommandLine, scripted: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    run = scripted.new(name="confirmed", confirm_top=2, confirm_seeds=2)
    state = run.drive()
    first, second = (each.evaluation for each in standing(state).confirmed)
    line = "of 2 fresh seeds; the search value "
    head = quick("status", "confirmed").stderr
    assert f"  winner  {first}, mean " in head and line in head
    assert "  noise   sd 0.0000 between seeds (2 degrees of freedom)\n" in head
    assert "12 of 12 done" in head
    rows = quick("status", "confirmed").stdout.splitlines()
    assert [row.split("\t")[-1] for row in rows if row.startswith("c000-")] == [
        f"confirms {name}" for name in (first, first, second, second)
    ]
    shown = quick("show", "confirmed", "best").stdout
    assert shown.startswith(f"{first} of confirmed: completed\n")
    assert "  winner      the lowest mean of the confirmed configurations\n" in shown
    assert f"  confirms    {first}: " in quick("show", "confirmed", "c000-e00").stdout

    print_summary(run.paths, state)
    told = capsys.readouterr()
    assert f"best         {first}, confirmed\n  confirmed  mean " in told.out
    assert "noise        sd 0.0000 between seeds (2 degrees of freedom)\n" in told.out
    table = told.out.partition("CONFIRMED\t")[2].splitlines()
    assert [row.partition("\t")[0] for row in table[1:3]] == [first, second]
    assert "elmanctl confirm" not in told.err


def test_json_of_status_show_and_export_tell_what_is_confirmed(
    quick: QuickCommandLine, scripted: Runs
) -> None:
    run = scripted.new(name="confirmed", confirm_top=2, confirm_seeds=2)
    run.world.script = {"c000-e01": ["diverged"]}
    state = run.drive()
    brief = json.loads(quick("status", "confirmed", "--json").stdout)
    whole = json.loads(quick("status", "confirmed", "--all", "--json").stdout)
    found = brief["run"]["confirmation"]
    assert found == whole["run"]["confirmation"]
    assert found == json.loads(quick("show", "confirmed", "best", "--json").stdout)["confirmation"]
    assert found["is_confirmed"] and found["failed"] == ["c000-e01"] and found["undecided"] == 0
    # The one with a failure stands last.
    assert [each["n"] for each in found["configurations"]] == [2, 1]
    assert found["configurations"][1]["se"] is None
    assert (brief["run"]["evaluations"], brief["run"]["planned"]) == (12, 12)
    rows = {row["evaluation"]: row for row in brief["evaluations"]}
    assert rows["c000-e01"]["reason"] == f"confirms {state.evaluations['c000-e01'].confirms}: " + (
        "diverged (attempt 1)"
    )
    assert rows["c000-e00"]["generation"] is None
    assert "confirms" not in rows["g001-e00"]
    table = csv.DictReader(io.StringIO(quick("ledger", "export", "confirmed", "--csv").stdout))
    confirms = {row["evaluation"]: row["confirms"] for row in table}
    assert {name for name, other in confirms.items() if other} == {
        f"c000-e0{index}" for index in range(4)
    }
    exported = json.loads(quick("ledger", "export", "confirmed").stdout)["evaluations"]
    assert {e["evaluation"]: e.get("confirms") or "" for e in exported} == confirms


def test_search_without_confirmation_says_so(
    quick_with_runs: QuickCommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    best = json.loads(quick_with_runs("status", "finished", "--json").stdout)["run"]["best"]
    assert "  winner  not confirmed; `elmanctl confirm finished` " in (
        quick_with_runs("status", "finished").stderr
    )
    shown = quick_with_runs("show", "finished", "best").stdout
    assert shown.startswith(f"{best} of finished")
    assert "not confirmed: the lowest loss of the search, on one seed" in shown
    # While a search goes on there is no winner to speak of.
    assert "winner" not in quick_with_runs("status", "interrupted").stderr
    folder = quick_with_runs.folder / "runs" / "finished"
    with Session.open(folder) as session:
        print_summary(session.paths, session.state)
    told = capsys.readouterr()
    assert f"best         {best}, not confirmed\n" in told.out
    assert "`elmanctl confirm finished` trains the best again on fresh seeds" in told.err


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("confirm", "finished", "--top", "101"), "`search.confirm_top` must be at most 100", ""),
        (("confirm", "finished", "--seeds", "-1"), "is not in the range", ""),
        (("confirm", "nothing"), "no run named `nothing`", ""),
        (("search", "e88", "--set", "search.confirm_tops=1"), "unknown key", "confirm_top"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_confirmed_is_refused_and_nothing_is_written(
    quick_with_runs: QuickCommandLine,
    snapshot: Snapshot,
    words: tuple[str, ...],
    message: str,
    hint: str,
) -> None:
    before = snapshot()
    refused = quick_with_runs(*words)
    assert refused.returncode in (2, 3)
    assert message in refused.stderr and hint in refused.stderr
    assert "Traceback" not in refused.stderr
    assert snapshot() == before


def test_cancelled_run_and_one_without_a_loss_are_refused(
    quick: QuickCommandLine, scripted: Runs
) -> None:
    failing = scripted.new(name="failing", generations=1)
    failing.world.everywhere = "diverged"
    state = failing.drive()
    assert {e.state for e in state.evaluations.values()} == {State.FAILED}
    refused = quick("confirm", "failing")
    assert refused.returncode == 2 and "there is nothing to confirm" in refused.stderr
    done = scripted.new(name="done", generations=1)
    done.world.held = {"g000-e00"}
    done.view.every_turn = lambda session: done.stop.set() if session.state.live else None
    done.drive()
    assert quick("cancel", "--run", "done", "--all", "--yes").returncode == 0
    refused = quick("confirm", "done")
    assert refused.returncode == 2 and "was cancelled" in refused.stderr


def test_nothing_left_to_confirm_is_said_and_trains_nothing(
    quick: QuickCommandLine, scripted: Runs
) -> None:
    run = scripted.new(name="confirmed", confirm_top=2, confirm_seeds=2)
    run.world.script = {"c000-e01": ["diverged"]}
    before = run.drive()
    for words in (("confirm", "confirmed"), ("confirm", "confirmed", "--top", "1")):
        said = quick(*words)
        assert said.returncode == 0
        assert "nothing to confirm: " in said.stderr
        assert "1 training failed, see `elmanctl requeue --help`" in said.stderr
    told = json.loads(quick("confirm", "confirmed", "--json").stdout)
    assert told["confirmation"]["is_confirmed"] is told["best"]["is_confirmed"] is True
    assert told["best"]["evaluation"] == told["confirmation"]["winner"]["evaluation"]
    assert load_run(run.folder).state == before


def test_progress_of_confirmation_is_shown(quick: QuickCommandLine, scripted: Runs) -> None:
    run: Run = scripted.new(name="halfway", confirm_top=2, confirm_seeds=2)
    run.world.held = {"c000-e03"}
    heads: list[str] = []

    def stop_when_it_hangs(session: Session) -> None:
        heads.append(headline(session))
        live = [e.id for e, _ in session.state.live_attempts()]
        if live == ["c000-e03"] and not session.state.waiting:
            run.stop.set()

    run.view.every_turn = stop_when_it_hangs
    state: RunState = run.drive()
    head = quick("status", "halfway").stderr
    assert "  confirm 3 of 4 trainings of the best on fresh seeds are done\n" in head
    assert "  winner" not in head
    shown = json.loads(quick("status", "halfway", "--json").stdout)["run"]["confirmation"]
    assert (shown["is_confirmed"], shown["winner"], shown["undecided"]) == (False, None, 1)
    assert "  generation 1 of 2  0/12 done" in heads[0]
    assert "  confirming the best  11/12 done" in heads[-1]
    assert due_confirmations(state, session_settings(run)) is None
    assert run.view.confirmations == [[f"c000-e0{index}" for index in range(4)]]


def session_settings(run: Run) -> Any:
    with Session.open(run.folder) as session:
        return session.settings


def test_start_of_confirmation_is_one_line(scripted: Runs) -> None:
    run = scripted.new(name="line")
    state = run.drive()
    with Session.open(run.folder) as session:
        session.change_settings({"search.confirm_top": 2, "search.confirm_seeds": 1})
        asked = due_confirmations(session.state, session.settings)
    assert asked is not None
    first, second = (e.id for e in state.ranked()[:2])
    assert confirmation_line(asked) == f"confirming {first}, {second} on 1 fresh seed"


def confirmed(name: str, *losses: float, search: float = 2.0, failed: tuple[str, ...] = ()) -> Any:
    return Confirmed(
        evaluation=name,
        search_loss=search,
        seeds=tuple(range(len(losses))),
        losses=losses,
        failed=failed,
    )


@pytest.mark.parametrize(
    ("each", "words"),
    [
        (
            confirmed("g000-e00", 2.0, 2.1, 2.2),
            "mean 2.1000 ± 0.0577 of 3 fresh seeds; the search value 2.0000 was 0.1000 too low",
        ),
        (
            confirmed("g000-e00", 1.9),
            "mean 1.9000 of 1 fresh seed; the search value 2.0000 was 0.1000 too high",
        ),
        (confirmed("g000-e00"), "no fresh seed gave a loss"),
    ],
)
def test_confirmed_configuration_in_words(each: Confirmed, words: str) -> None:
    assert describe_confirmed(each) == words


def test_table_has_paired_differences_and_failures(capsys: pytest.CaptureFixture[str]) -> None:
    print_confirmed(
        [
            confirmed("g000-e00", 2.0, 2.2),
            confirmed("g000-e01", 2.1, 2.5),
            confirmed("g000-e02", failed=("c000-e04", "c000-e05")),
        ],
        None,
    )
    head, *rows = capsys.readouterr().out.splitlines()
    assert head == "CONFIRMED\tMEAN\tSE\tSEEDS\tBEHIND\tBEHIND SE\tP\tSEARCH\tOPTIMISM\tFAILED"
    assert rows == [
        "g000-e00\t2.1000\t0.1000\t2\t\t\t\t2.0000\t0.1000\t",
        "g000-e01\t2.3000\t0.2000\t2\t0.2000\t0.1000\t0.295\t2.0000\t0.3000\t",
        "g000-e02\t\t\t0\t\t\t\t2.0000\t\tc000-e04 c000-e05",
    ]
