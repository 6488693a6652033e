"""Seconds and device-seconds of attempts, from what is on record."""

from datetime import UTC, datetime
from typing import Any

import pytest

from elmanctl.errors import LedgerCorrupt
from elmanctl.ledger.events import Event
from elmanctl.ledger.records import Attempt
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.spending import Spent, cost_of, devices, gpus_asked
from elmanctl.ledger.state import replay
from elmanctl.ledger.submissions import Resources


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [
        ({}, 0),
        ({"gres": "gpu:1"}, 1),
        ({"gres": "gpu"}, 1),
        ({"gres": "gpu:4"}, 4),
        ({"gres": "gpu:a100"}, 1),
        ({"gres": "gpu:a100:2"}, 2),
        ({"gres": "gpu:h100_80gb:8(S:0-1)"}, 8),
        ({"gres": "gpu:a100:2,gpu:v100:1"}, 3),
        ({"gres": "shard:2,gpu:1,nvme:1"}, 1),
        ({"gres": "gres/gpu=2"}, 2),
        ({"gres": "nvme:4"}, 0),
        ({"gres": "gpuless:3"}, 0),
        ({"gres": "gpu:0"}, 0),
        ({"extra": {"gpus": 2}}, 2),
        ({"extra": {"gpus": "a100:2"}}, 2),
        ({"extra": {"gpus": "a100:2,v100:1"}}, 3),
        ({"extra": {"gpus-per-node": "h100:4"}}, 4),
        ({"extra": {"gpus_per_task": 2}}, 2),
        ({"extra": {"gpus": False, "qos": "high"}}, 0),
        # Slurm allocates what meets both.
        ({"gres": "gpu:1", "extra": {"gpus": 4}}, 4),
    ],
)
def test_gpus_are_counted_as_slurm_is_asked_for_them(resources: dict[str, Any], gpus: int) -> None:
    assert gpus_asked(Resources(**resources)) == gpus
    assert devices(Resources(**resources)) == max(1, gpus)


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [
        ({"gres": "gpu:4"}, 8),
        ({"gres": "gpu:4", "extra": {"gpus_per_node": 6}}, 12),
        ({"extra": {"gpus_per_task": 1}}, 8),
        ({"extra": {"gpus": 8}}, 8),
        ({}, 0),
    ],
)
def test_gpus_of_all_nodes_are_counted(resources: dict[str, Any], gpus: int) -> None:
    asked = Resources(nodes=2, tasks_per_node=4, **resources)
    assert gpus_asked(asked) == gpus
    # Without a GPU each process counts.
    assert devices(asked) == max(8, gpus)


def attempt(**known: Any) -> Attempt:
    return Attempt(number=1, submission="s1", task_index=0, **known)


BEGAN, ENDED = "2026-05-01T10:00:00.000Z", "2026-05-01T11:30:30.500Z"
NOW = datetime(2026, 5, 1, 10, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("known", "elapsed_s"),
    [
        ({"elapsed_s": 90.25, "started_at": BEGAN, "finished_at": ENDED}, 90.25),
        ({"started_at": BEGAN, "finished_at": ENDED}, 5430.5),
        ({"started_at": BEGAN}, 600.0),
        ({"submitted_at": BEGAN}, 0.0),
        ({"submitted_at": BEGAN, "finished_at": ENDED}, 0.0),
        ({"started_at": ENDED}, 0.0),
        ({"elapsed_s": -1.0}, 0.0),
        # Another zone than the ledger's cannot be told.
        ({"started_at": "2026-05-01T10:00:00", "finished_at": ENDED}, 0.0),
    ],
)
def test_time_is_the_workers_own_or_between_start_and_end(
    known: dict[str, Any], elapsed_s: float
) -> None:
    cost = cost_of(attempt(**known), devices(Resources(gres="gpu:2")), NOW)
    assert cost == Spent(attempts=1, elapsed_s=elapsed_s, device_s=2 * elapsed_s)


def told_at(*story: tuple[int, int, str, dict[str, Any]]) -> RunState:
    """Replay events, each with its second and the lease it was written under."""
    return replay(
        Event(
            seq=seq,
            at=f"2026-05-01T10:{second // 60:02}:{second % 60:02}.000Z",
            fence=fence,
            kind=kind,
            data=data,
        )
        for seq, (second, fence, kind, data) in enumerate(story, start=1)
    )


def test_wall_time_is_that_of_controllers_and_not_between_them(build: Any) -> None:
    started = ("controller_started", {"host": "login", "pid": 11})
    note = ("note", {"text": "x"})
    state = told_at(
        (0, 1, "run_created", {"run": build.run()}),
        (100, 2, *started),
        (130, 2, *note),
        # Killed; the next one came later.
        (400, 3, *started),
        (410, 3, "run_paused", {"reason": "x"}),
        (500, 4, *note),
        (600, 5, *started),
        (605, 5, "run_interrupted", {}),
        (900, 6, *note),
    )
    assert state.wall_s == 30 + 10 + 5


def test_totals_by_verdict_are_those_of_the_records_to_the_second(build: Any) -> None:
    """A table of attempts as sacct would show them, on two and on four GPUs."""
    table = [
        ("completed", 3661.0, 2),
        ("oom", 59.0, 2),
        ("completed", 1800.0, 4),
        ("timeout", 36000.0, 4),
        ("cancelled", 1.0, 2),
        ("oom", 61.0, 4),
    ]
    names = [f"g000-e{index:02}" for index in range(len(table))]
    story = [(0, 1, "run_created", {"run": build.run()})]
    story += [(0, 1, "points_asked", build.asked(0, *names))]
    for name, (kind, elapsed_s, gpus) in zip(names, table, strict=True):
        asked = build.intended(f"s-{name}", (name, 1))
        asked["submission"]["resources"] = {"gres": f"gpu:h100:{gpus}"}
        ended = {
            **build.finished(name, 1, kind, 1.0 if kind == "completed" else None),
            "elapsed_s": elapsed_s,
        }
        story += [(1, 1, "submission_intended", asked), (2, 1, "attempt_finished", ended)]
    state = told_at(*story)
    assert state.spent == {
        "completed": Spent(attempts=2, elapsed_s=5461.0, device_s=2 * 3661 + 4 * 1800.0),
        "oom": Spent(attempts=2, elapsed_s=120.0, device_s=2 * 59 + 4 * 61.0),
        "timeout": Spent(attempts=1, elapsed_s=36000.0, device_s=144000.0),
        "cancelled": Spent(attempts=1, elapsed_s=1.0, device_s=2.0),
    }
    assert state.trained == 6


def test_evaluations_whose_jobs_never_were_are_not_paid(build: Any) -> None:
    state = told_at(
        (0, 1, "run_created", {"run": build.run()}),
        (0, 1, "points_asked", build.asked(0, "g000-e00", "g000-e01")),
        (1, 1, "submission_intended", build.intended("s1", ("g000-e00", 1), ("g000-e01", 1))),
        (2, 1, "submission_abandoned", {"submission": "s1", "error": "no such job"}),
        (3, 1, "submission_intended", build.intended("s2", ("g000-e00", 1))),
    )
    assert state.trained == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"evaluation": "g000-e00"}, "repeats no other"),
        ({"by": "g009-e00"}, "no evaluation"),
        ({"state": "running"}, "closed as running"),
        ({"loss": None}, "without a loss"),
        ({"verdict": "sad"}, "not one of"),
        ({"saved": {}}, "missing"),
    ],
)
def test_answer_that_cannot_be_is_refused(build: Any, change: dict[str, Any], told: str) -> None:
    story = [
        (0, 1, "run_created", {"run": build.run()}),
        (0, 1, "points_asked", build.asked(0, "g000-e00")),
        (0, 1, "points_asked", build.asked(0, "g000-e01", repeats="g000-e00")),
    ]
    good = build.answered("g000-e01", "g000-e00", 1.5)
    assert told_at(*story, (1, 1, "evaluation_answered", good)).answered == 1
    with pytest.raises(LedgerCorrupt, match=told):
        told_at(*story, (1, 1, "evaluation_answered", {**good, **change}))


def test_repeat_of_a_repeat_and_of_nothing_is_refused(build: Any) -> None:
    story = [
        (0, 1, "run_created", {"run": build.run()}),
        (0, 1, "points_asked", build.asked(0, "g000-e00")),
        (0, 1, "points_asked", build.asked(0, "g000-e01", repeats="g000-e00")),
    ]
    with pytest.raises(LedgerCorrupt, match="a repeat itself"):
        told_at(*story, (1, 1, "points_asked", build.asked(0, "g000-e02", repeats="g000-e01")))
    with pytest.raises(LedgerCorrupt, match="no evaluation"):
        told_at(*story, (1, 1, "points_asked", build.asked(0, "g000-e02", repeats="g000-e07")))


def test_reopened_repeat_has_no_answer_any_more(build: Any) -> None:
    reopened = {"evaluation": "g000-e01", "changes": {}, "by": "me"}
    state = told_at(
        (0, 1, "run_created", {"run": build.run()}),
        (0, 1, "points_asked", build.asked(0, "g000-e00")),
        (0, 1, "points_asked", build.asked(0, "g000-e01", repeats="g000-e00")),
        (1, 1, "evaluation_answered", build.answered("g000-e01", "g000-e00", 1.5)),
        (2, 1, "evaluation_reopened", reopened),
    )
    assert state.evaluations["g000-e01"].answer is None
    assert state.evaluations["g000-e01"].loss is None
