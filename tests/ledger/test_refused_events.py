"""Events that the state of a run refuses."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from elmanctl import clock
from elmanctl.errors import LedgerCorrupt, LedgerError, LedgerTooNew
from elmanctl.ledger.events import Event
from elmanctl.ledger.lease import Lease
from elmanctl.ledger.payloads import EvaluationClosed, Note
from elmanctl.ledger.records import State
from elmanctl.ledger.state import apply, load_run, replay
from elmanctl.ledger.store import LEDGER_FILE, LedgerWriter
from tests.ledger.conftest import record
from tests.ledger.stories import Story, close, reopen, told_by


def impossible(build: Any) -> list[tuple[str, dict[str, Any], str]]:
    """Events that cannot follow `submitted`, each with what must be said about it."""
    unknown = {"evaluation": "g009-e00", "attempt": 1}
    run, asked, intended, finished = build.run, build.asked, build.intended, build.finished
    return [
        ("run_created", {"run": run()}, "only one"),
        ("points_asked", asked(0, "g000-e00"), "g000-e00 is asked twice"),
        ("points_asked", asked(2, "g002-e00"), "generation 2 is asked after 0"),
        ("points_asked", asked(0, "g000-e05", replaces="g009-e00"), "no evaluation 'g009-e00'"),
        ("submission_intended", intended("s1"), "intended twice"),
        ("submission_intended", intended("s2", ("g009-e00", 1)), "no evaluation 'g009-e00'"),
        ("submission_intended", intended("s2", ("g000-e00", 2)), "an attempt of it is live"),
        ("submission_accepted", {"submission": "s9", "job_id": "1", "adopted": False}, "'s9'"),
        (
            "submission_accepted",
            {"submission": "s1", "job_id": "1", "adopted": False},
            "s1 is accepted though it is accepted",
        ),
        ("submission_refused", {"submission": "s1", "error": "no"}, "refused though it is accept"),
        ("submission_abandoned", {"submission": "s9", "error": "no"}, "no submission 's9'"),
        ("attempt_started", unknown, "no evaluation 'g009-e00'"),
        ("attempt_started", {"evaluation": "g000-e00", "attempt": 2}, "no attempt 2"),
        ("attempt_finished", finished("g009-e00", 1, "oom"), "no evaluation 'g009-e00'"),
        ("attempt_finished", finished("g000-e00", 2, "oom"), "no attempt 2"),
        ("attempt_finished", finished("g000-e00", 1, "completed"), "without a result"),
        ("attempt_finished", finished("g000-e00", 1, "tired"), "`data.verdict.kind` is 'tired'"),
        (*close("g000-e00", "failed"), "an attempt of it is live"),
        (*close("g000-e00", "running"), "closed as running"),
        (*close("g000-e00", "done"), "`data.state` is 'done'"),
        (*reopen("g000-e00"), "reopened though it is submitted"),
        ("generation_told", {"generation": 1, "told": []}, "generation 1 is reported"),
        ("generation_told", {"generation": 0, "told": [["g009-e00", 1]]}, "no evaluation"),
        ("generation_told", {"generation": 0, "told": [["g000-e00"]]}, r"data\.told\[0\]` must"),
        ("generation_told", {"generation": 0, "told": [["g000-e00", "1"]]}, r"told\[0\]\[1\]"),
        ("cleaned", {"evaluation": "x", "kind": "a", "freed_bytes": 1, "files": 1}, "no evaluat"),
        ("run_extended", {"generations": 2}, "2 generations are extended to 2"),
        ("note", {"text": "x", "extra": 1}, r"`data\.extra` is not a known key"),
        ("note", {}, r"`data\.text` is missing"),
        ("note", {"text": 3}, r"`data\.text` must be a text, not 3"),
        ("controller_started", {"host": "h", "pid": True}, r"`data\.pid` must be a whole number"),
    ]


@pytest.mark.parametrize("index", range(31))
def test_impossible_event_is_refused_by_number_and_reason(
    submitted: Story, build: Any, index: int
) -> None:
    cases = impossible(build)
    assert len(cases) == 31
    kind, data, reason = cases[index]
    with pytest.raises(LedgerCorrupt, match=rf"^event 5 \({kind}\): .*{reason}"):
        told_by([*submitted, (kind, data)])


def after_the_end(build: Any) -> list[tuple[tuple[str, dict[str, Any]], str]]:
    """Events that cannot follow once g000-e00 is completed and generation 0 told."""
    request = {"request": "r1", "command": "clean", "answer": {}}
    return [
        (close("g000-e00", "failed"), "closed though it is completed"),
        (("attempt_finished", build.finished("g000-e00", 1, "lost")), "already completed"),
        (("attempt_started", {"evaluation": "g000-e00", "attempt": 1}), "already completed"),
        (("submission_intended", build.intended("s2", ("g000-e00", 2))), "though it is completed"),
        (("points_asked", build.asked(0, "g000-e07")), "after it was reported"),
        (("generation_told", {"generation": 0, "told": []}), "or twice"),
        (("value_reported", {"evaluation": "g000-e00", "value": 2}), "g000-e00 is reported twice"),
        (("value_reported", {"evaluation": "g000-e01", "value": 2}), "before it is decided"),
        (("request_applied", request), "applied twice"),
        (close("g000-e01", "completed"), "without a loss"),
        (("submission_intended", build.intended("s2", ("g000-e01", 3))), "the next one is 2"),
    ]


@pytest.mark.parametrize("index", range(11))
def test_what_is_finished_stays_finished(submitted: Story, build: Any, index: int) -> None:
    story = [
        *submitted,
        ("attempt_finished", build.finished("g000-e00", 1, "completed", 1.0)),
        close("g000-e00", "completed"),
        ("attempt_finished", build.finished("g000-e01", 1, "oom")),
        ("generation_told", {"generation": 0, "told": [["g000-e00", 1]]}),
        ("request_applied", {"request": "r1", "command": "clean", "answer": {}}),
    ]
    told_by(story)
    cases = after_the_end(build)
    assert len(cases) == 11
    event, reason = cases[index]
    with pytest.raises(LedgerCorrupt, match=rf"^event 10 .*{reason}"):
        told_by([*story, event])


def test_evaluation_is_not_reopened_while_its_job_ends(submitted: Story) -> None:
    with pytest.raises(LedgerCorrupt, match="reopened while an attempt of it is live"):
        told_by([*submitted, close("g000-e00", "cancelled"), reopen("g000-e00")])


def test_nothing_comes_before_the_run() -> None:
    with pytest.raises(LedgerCorrupt, match="must be the first event"):
        told_by([("note", {"text": "x"})])


@pytest.mark.parametrize("key", ["token", "settings", "start", "code"])
def test_run_is_described_completely(build: Any, key: str) -> None:
    run = build.run()
    del run[key]
    with pytest.raises(LedgerCorrupt, match=rf"`data\.run\.{key}` is missing"):
        told_by([("run_created", {"run": run})])


def test_unknown_kind_of_event_is_newer_than_this_version(submitted: Story) -> None:
    with pytest.raises(LedgerTooNew, match="event 5 is of the unknown kind 'moon_landed'"):
        told_by([*submitted, ("moon_landed", {})])


def test_events_are_applied_in_their_order(story: Story) -> None:
    state = told_by(story[:3])
    kind, data = story[3]
    at = clock.to_text(clock.now())
    with pytest.raises(LedgerCorrupt, match="it does not follow event 3"):
        apply(state, Event(seq=5, at=at, fence=1, kind=kind, data=data))


def test_event_that_the_state_refuses_is_not_written(tmp_path: Path, story: Story) -> None:
    path = tmp_path / LEDGER_FILE
    lease = Lease.acquire(tmp_path)
    with lease, LedgerWriter.create(path, lease, "run_created", **story[0][1]) as writer:
        state = replay(writer.contents.events)
        before = (path.read_bytes(), deepcopy(state))
        with pytest.raises(LedgerError, match=r"refused to write event 2 .* no evaluation"):
            record(writer, state, EvaluationClosed(evaluation="x", state=State.FAILED))
        with pytest.raises(LedgerError, match="refused to write event 2"):
            record(writer, state, Note(text=3))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="is nan"):
            record(writer, state, Note(text=float("nan")))  # type: ignore[arg-type]
        assert (path.read_bytes(), state) == before
        assert record(writer, state, Note(text="x")).seq == 2


def test_event_that_could_not_be_written_is_not_applied(
    tmpfs: Callable[[int], Path], story: Story
) -> None:
    folder = tmpfs(64)
    path = folder / LEDGER_FILE
    lease = Lease.acquire(folder)
    with lease, LedgerWriter.create(path, lease, "run_created", **story[0][1]) as writer:
        state = replay(writer.contents.events)
        with pytest.raises(LedgerError, match="cannot write"):
            record(writer, state, Note(text="x" * 200_000))
        assert state == load_run(folder).state
