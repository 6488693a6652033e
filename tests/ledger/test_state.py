"""State of a run, as the events of its ledger tell it."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from elmanctl.errors import LedgerCorrupt, NotFound
from elmanctl.ledger.contents import read_events
from elmanctl.ledger.events import Event
from elmanctl.ledger.handlers import handle
from elmanctl.ledger.lease import Lease
from elmanctl.ledger.payloads import PAYLOADS, decode_payload
from elmanctl.ledger.records import CONFIRMATION, Answer, RunStatus, State, VerdictKind
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.spending import Spent
from elmanctl.ledger.state import apply, load_run, replay
from elmanctl.ledger.store import LEDGER_FILE, LedgerWriter
from elmanctl.ledger.submissions import SubmissionState
from tests.ledger.conftest import record
from tests.ledger.stories import Story, close, reopen, told_by


def test_story_holds_every_kind_of_event(story: Story) -> None:
    assert {kind for kind, _ in story} == set(PAYLOADS)


def test_every_kind_of_event_has_its_handler() -> None:
    assert set(handle.registry) - {object} == set(PAYLOADS.values())


def test_trial_changes_nothing_until_it_is_adopted(story: Story) -> None:
    state, tried = RunState(), RunState()
    for seq, (kind, data) in enumerate(story, start=1):
        event = Event(seq=seq, at=f"2026-05-01T10:00:{seq:02}.000Z", fence=1, kind=kind, data=data)
        before, trial = deepcopy(tried), tried.trial()
        apply(trial, event)
        assert tried == before
        apply(state, event)
        tried.adopt(trial)
        assert tried == state
        for name in ("evaluations", "submissions", "positions", "intended", "members"):
            assert list(getattr(tried, name)) == list(getattr(state, name))


def test_whole_story_is_told_right(story: Story, build: Any) -> None:
    state = told_by(story)
    first, second, third, fourth, again, *_, last = state.evaluations.values()
    assert state.run == build.run()
    assert (state.status, state.reason) == (RunStatus.FINISHED, "all generations are done")
    assert [e.state for e in (first, second, third)] == [
        State.COMPLETED,
        State.COMPLETED,
        State.CANCELLED,
    ]
    assert (first.id, first.generation, first.point, first.seed) == (
        "g000-e00",
        0,
        (0.25, 0.0),
        3,
    )
    assert third.replaces == "g000-e01"
    assert (fourth.repeats, fourth.state, fourth.loss) == ("g000-e01", State.COMPLETED, 1.25)
    assert fourth.answer == Answer(
        by="g000-e01",
        verdict=VerdictKind.COMPLETED,
        loss=1.25,
        saved_s=12.5,
        saved_device_s=12.5,
    )
    assert state.repeats == {"g000-e01": ("g000-e03", "g001-e00", "g001-e01")}
    assert (last.id, last.generation, last.reevaluates) == ("g001-e01", 1, "g000-e01")
    assert (again.id, again.generation, again.confirms) == ("c000-e00", CONFIRMATION, "g000-e01")
    assert state.confirmations == {"g000-e01": ("c000-e00", "c000-e01")}
    assert [(e.seed, e.state) for e in state.confirmations_of("g000-e01")] == [
        (1001, State.CREATED),
        (1002, State.CANCELLED),
    ]
    assert second.changes == {"mem_gb": 80}
    assert [(a.number, a.submission, a.job_id, a.state) for a in second.attempts] == [
        (1, "s0003", "77_1", State.FAILED),
        (2, "s0004", "78_0", State.COMPLETED),
    ]
    failed = second.attempts[0]
    assert (failed.node, failed.elapsed_s, failed.size_bytes) == ("gpu-1", 12.5, 100)
    assert failed.verdict is not None
    assert (failed.verdict.kind, failed.verdict.summary) == (VerdictKind.OOM, "it says so")
    assert (failed.submitted_at, failed.started_at, failed.finished_at) == (
        "2026-05-01T10:00:08.000Z",
        "2026-05-01T10:00:10.000Z",
        "2026-05-01T10:00:13.000Z",
    )
    assert [s.state for s in state.submissions.values()] == [
        SubmissionState.REFUSED,
        SubmissionState.ABANDONED,
        SubmissionState.ACCEPTED,
        SubmissionState.ACCEPTED,
    ]
    assert state.submissions["s0001"].error == "no such partition"
    assert state.told == {0: [("g000-e01", 1.25), ("g000-e00", 1.5)]}
    assert state.reported == {"g000-e03": 1.25, "g000-e01": 1.25, "g000-e00": 1.5}
    assert (state.unreported, state.open) == ({}, {1: None})
    assert (state.generation, state.generations, state.refused) == (1, 3, {0: 3})
    assert state.applied_requests == {"r1": {"command": "clean", "answer": {"files": 2}}}
    assert state.controller == {"host": "login", "pid": 12, "at": "2026-05-01T10:00:19.000Z"}
    assert [note.text for note in state.notes] == ["the node gpu-1 was replaced"]
    assert state.size_bytes == 100 + (100 + 100 - 60)
    (excluded,) = state.excluded_nodes.values()
    assert (excluded.node, excluded.at, excluded.readmitted) == (
        "gpu-1",
        "2026-05-01T10:00:31.000Z",
        True,
    )
    assert excluded.until == "2026-05-01T10:00:32.000Z"
    assert (state.seq, state.fence, state.last_event_at) == (43, 1, "2026-05-01T10:00:43.000Z")
    assert state.live_attempts() == []
    assert state.spent == {
        "completed": Spent(attempts=2, elapsed_s=25.0, device_s=25.0),
        "oom": Spent(attempts=1, elapsed_s=12.5, device_s=12.5),
    }
    assert (state.answered, state.trained) == (1, 2)
    assert state.saved == Spent(attempts=1, elapsed_s=12.5, device_s=12.5)
    # From the first controller to the pause and from the second to the interruption.
    assert state.wall_s == 15.0 + 19.0


def test_empty_ledger_is_an_empty_state() -> None:
    state = replay([])
    assert (state.run, state.generation, state.best(), state.size_bytes) == ({}, -1, None, 0)
    assert set(state.counts()) == set(State)


def test_best_is_the_lowest_loss_and_the_first_of_equals(build: Any) -> None:
    names = ["g000-e00", "g000-e01", "g000-e02", "g000-e03"]
    story: Story = [
        ("run_created", {"run": build.run()}),
        ("points_asked", build.asked(0, *names)),
        ("submission_intended", build.intended("s1", *((name, 1) for name in names))),
    ]
    for name, loss in zip(reversed(names), (1.5, 1.5, 1.0, 3.0), strict=True):
        story += [("attempt_finished", build.finished(name, 1, "completed", loss))]
    story += [close(name, "completed") for name in names if name != "g000-e01"]
    state = told_by(story)
    # g000-e01 has the lowest loss, and is not closed yet.
    assert [e.id for e in state.ranked()] == ["g000-e02", "g000-e03", "g000-e00"]
    best = state.best()
    assert best is not None and (best.id, best.loss) == ("g000-e02", 1.5)


def test_counts_and_failures_are_those_of_the_evaluations(submitted: Story, build: Any) -> None:
    state = told_by(
        [
            *submitted,
            ("attempt_started", {"evaluation": "g000-e00", "attempt": 1}),
            ("attempt_finished", build.finished("g000-e01", 1, "python_error")),
            close("g000-e01", "failed"),
        ]
    )
    counts = {state: count for state, count in state.counts().items() if count}
    assert counts == {State.RUNNING: 1, State.FAILED: 1}
    assert [(e.id, a.number) for e, a in state.live_attempts()] == [("g000-e00", 1)]


@pytest.mark.parametrize("kind", VerdictKind)
def test_verdict_decides_the_state_of_the_attempt(
    submitted: Story, build: Any, kind: VerdictKind
) -> None:
    named = {"completed": State.COMPLETED, "stopped": State.STOPPED, "cancelled": State.CANCELLED}
    expected = named.get(kind, State.FAILED)
    loss = 1.0 if kind is VerdictKind.COMPLETED else None
    ending = ("attempt_finished", build.finished("g000-e00", 1, kind, loss))
    state = told_by([*submitted, ("stop_decided", build.stopping("g000-e00", 1)), ending])
    evaluation = state.evaluations["g000-e00"]
    assert evaluation.attempts[0].state is expected
    assert evaluation.state is State.CREATED


@pytest.mark.parametrize("outcome", ["submission_refused", "submission_abandoned"])
def test_submission_without_a_job_leaves_no_attempt(
    submitted: Story, build: Any, outcome: str
) -> None:
    story = [*submitted[:3], close("g000-e01", "cancelled")]
    state = told_by([*story, (outcome, {"submission": "s1", "error": "no"})])
    assert [e.attempts for e in state.evaluations.values()] == [(), ()]
    assert [e.state for e in state.evaluations.values()] == [State.CREATED, State.CANCELLED]
    assert state.submissions["s1"].error == "no"


def test_attempt_judged_before_its_submission_was_given_up_stays_on_record(
    submitted: Story, build: Any
) -> None:
    state = told_by(
        [
            *submitted[:3],
            ("attempt_finished", build.finished("g000-e00", 1, "lost")),
            ("submission_abandoned", {"submission": "s1", "error": "no"}),
        ]
    )
    assert [len(e.attempts) for e in state.evaluations.values()] == [1, 0]


def test_job_of_a_cancelled_evaluation_may_still_end(submitted: Story, build: Any) -> None:
    story = [*submitted, close("g000-e00", "cancelled")]
    state = told_by(story)
    assert [e.id for e, _ in state.live_attempts()] == ["g000-e00", "g000-e01"]
    story += [
        ("attempt_started", {"evaluation": "g000-e00", "attempt": 1}),
        ("attempt_finished", build.finished("g000-e00", 1, "cancelled")),
    ]
    state = told_by(story)
    assert state.evaluations["g000-e00"].state is State.CANCELLED
    assert [e.id for e, _ in state.live_attempts()] == ["g000-e01"]


def test_job_put_back_by_the_scheduler_may_start_again(submitted: Story) -> None:
    start = {"evaluation": "g000-e00", "attempt": 1}
    state = told_by(
        [
            *submitted,
            ("attempt_started", {**start, "node": "gpu-1", "at": "2026-05-01T11:00:00.000Z"}),
            ("attempt_started", {**start, "node": "gpu-2", "at": "2026-05-01T12:00:00.000Z"}),
        ]
    )
    attempt = state.evaluations["g000-e00"].attempts[0]
    assert (attempt.node, attempt.started_at) == ("gpu-2", "2026-05-01T12:00:00.000Z")


def test_changes_of_several_requeues_are_merged(submitted: Story, build: Any) -> None:
    state = told_by(
        [
            *submitted,
            ("attempt_finished", build.finished("g000-e00", 1, "oom")),
            close("g000-e00", "failed"),
            reopen("g000-e00", mem_gb=80, timeout_min=30),
            close("g000-e00", "cancelled"),
            reopen("g000-e00", mem_gb=120),
        ]
    )
    evaluation = state.evaluations["g000-e00"]
    assert evaluation.changes == {"mem_gb": 120, "timeout_min": 30}
    assert evaluation.state is State.CREATED


def test_controller_that_starts_makes_the_run_go_on(submitted: Story) -> None:
    story = [*submitted, ("run_paused", {"reason": "disk"})]
    assert (told_by(story).status, told_by(story).reason) == (RunStatus.PAUSED, "disk")
    state = told_by([*story, ("controller_started", {"host": "h", "pid": 1})])
    assert (state.status, state.reason) == (RunStatus.RUNNING, None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"confirms": None}, "no evaluation ''"),
        ({"confirms": "g009-e00"}, "no evaluation 'g009-e00'"),
        ({"confirms": "g000-e01"}, "g000-e01, which the search did not complete"),
        ({"confirms": "c000-e00"}, "c000-e00, which the search did not complete"),
        ({"config": {"dim": 32, "lr": 1e-3}}, "g000-e00 with another configuration"),
        ({"seed": 3}, "on seed 3 once more"),
        ({"seed": 1001}, "on seed 1001 once more"),
        ({"id": "c000-e00"}, "c000-e00 is asked twice"),
    ],
)
def test_confirmation_trains_what_is_completed_on_a_fresh_seed(
    submitted: Story, build: Any, change: dict[str, Any], reason: str
) -> None:
    story = [
        *submitted,
        ("attempt_finished", build.finished("g000-e00", 1, "completed", 1.0)),
        close("g000-e00", "completed"),
        ("confirmation_asked", build.confirming("g000-e00", "c000-e00", seed=1001)),
    ]
    (plan,) = build.confirming("g000-e00", "c001-e00", seed=1002)["evaluations"]
    told_by([*story, ("confirmation_asked", {"evaluations": [plan]})])
    changed = {key: value for key, value in {**plan, **change}.items() if value is not None}
    with pytest.raises(LedgerCorrupt, match=reason):
        told_by([*story, ("confirmation_asked", {"evaluations": [changed]})])


def test_confirmation_is_neither_the_best_nor_reported(submitted: Story, build: Any) -> None:
    story = [
        *submitted,
        ("attempt_finished", build.finished("g000-e00", 1, "completed", 1.0)),
        close("g000-e00", "completed"),
        ("confirmation_asked", build.confirming("g000-e00", "c000-e00")),
        ("submission_intended", build.intended("s2", ("c000-e00", 1))),
        ("attempt_finished", build.finished("c000-e00", 1, "completed", 0.5)),
        close("c000-e00", "completed"),
    ]
    state = told_by(story)
    best = state.best()
    assert best is not None and best.id == "g000-e00"
    assert [e.id for e in state.ranked()] == ["g000-e00"]
    ((confirmed, (again,)),) = state.confirmed
    assert (confirmed.id, again.loss) == ("g000-e00", 0.5)
    with pytest.raises(LedgerCorrupt, match="c000-e00 is a confirmation, and yet it is reported"):
        told_by([*story, ("generation_told", {"generation": 0, "told": [["c000-e00", 0.5]]})])
    (plan,) = build.asked(0, "g000-e09")["evaluations"]
    asked = build.asked(0) | {"evaluations": [{**plan, "confirms": "g000-e00"}]}
    with pytest.raises(LedgerCorrupt, match="g000-e09 is a confirmation, and yet the optimizer"):
        told_by([*story, ("points_asked", asked)])


def test_attempt_is_stopped_once_and_only_by_a_decision(submitted: Story, build: Any) -> None:
    decision = ("stop_decided", build.stopping("g000-e00", 1))
    ending = ("attempt_finished", build.finished("g000-e00", 1, "stopped"))
    state = told_by([*submitted, decision, ending, close("g000-e00", "stopped")])
    stopped = state.evaluations["g000-e00"]
    assert (stopped.state, stopped.loss, state.best()) == (State.STOPPED, None, None)
    assert stopped.attempts[0].stop_at == "2026-05-01T10:00:05.000Z"
    assert (state.counts()[State.STOPPED], state.spared.elapsed_s) == (1, 3 * 12.5)
    confirming = [
        ("attempt_finished", build.finished("g000-e01", 1, "completed", 1.0)),
        close("g000-e01", "completed"),
        ("confirmation_asked", build.confirming("g000-e01", "c000-e00")),
        ("submission_intended", build.intended("s2", ("c000-e00", 1))),
    ]
    impossible: list[tuple[Story, str]] = [
        ([decision, decision], "stopped twice"),
        ([ending], "stopped without a decision"),
        ([decision, ending, decision], "already stopped"),
        ([close("g000-e01", "stopped")], "while an attempt of it is live"),
        ([*confirming, ("stop_decided", build.stopping("c000-e00", 1))], "is a confirmation"),
    ]
    for story, reason in impossible:
        with pytest.raises(LedgerCorrupt, match=reason):
            told_by([*submitted, *story])


def test_copy_of_a_state_is_its_own(story: Story) -> None:
    state = told_by(story[:8])
    before = deepcopy(state)
    for seq, (kind, data) in enumerate(story[8:], start=9):
        at = f"2026-05-01T10:00:{seq:02}.000Z"
        apply(state, Event(seq=seq, at=at, fence=1, kind=kind, data=data))
    assert before == told_by(story[:8])
    assert state == told_by(story)


def test_recorded_run_is_the_loaded_run(tmp_path: Path, story: Story) -> None:
    path = tmp_path / LEDGER_FILE
    with Lease.acquire(tmp_path) as lease:
        kind, data = story[0]
        with LedgerWriter.create(path, lease, kind, **data) as writer:
            state = replay(writer.contents.events)
            for kind, data in story[1:]:
                record(writer, state, decode_payload(kind, data))
    loaded = load_run(tmp_path)
    assert (loaded.state, loaded.warning) == (state, None)


def test_torn_ledger_is_loaded_with_its_warning(tmp_path: Path, story: Story) -> None:
    path = tmp_path / LEDGER_FILE
    with Lease.acquire(tmp_path) as lease:
        LedgerWriter.create(path, lease, "run_created", **story[0][1]).close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    loaded = load_run(tmp_path)
    assert loaded.state == RunState()
    assert loaded.warning is not None and "torn" in loaded.warning
    path.write_bytes(b"")
    loaded = load_run(tmp_path)
    assert loaded.warning is not None and "no event" in loaded.warning
    assert read_events(path).warning is None
    with pytest.raises(NotFound):
        load_run(tmp_path / "none")
