"""A kill around every event of a search to which everything happens at once.

Repeats, every kind of verdict, bad nodes, replacements, points put back by hand, a budget that is
used up and raised, cleaning for want of room, and arrays that are split: whatever instant the
controller, or the person's command, dies at, the search comes to the same end.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from elmanctl.errors import SearchPaused
from elmanctl.ledger.disk import Space
from elmanctl.ledger.files import write_json
from elmanctl.ledger.payloads import Payload
from elmanctl.ledger.quota import Quota
from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.spending import Spent
from elmanctl.ledger.state import load_run
from elmanctl.search import disk_admission
from elmanctl.search.actions import perform
from elmanctl.search.attempt_monitor import Watcher
from elmanctl.search.session import Session
from tests.integration.runs import losses, points
from tests.long import LONG
from tests.search.scripted import Run, Runs, ScriptedExecutor, World, verdicts

pytestmark = pytest.mark.usefixtures("no_power_failures")

POPULATION = 10
SEARCH: dict[str, Any] = {
    "axes": {
        "n_heads": {"kind": "int", "low": 1, "high": 4},
        "depth": {"kind": "int", "low": 1, "high": 3},
    },
    "model": {"dim": 32, "n_state": 8, "lr": 1e-2},
    "generations": 2,
    "population": POPULATION,
    "slurm": {"mem_gb": 8.0, "setup": ("module load cuda",)},
    "retry": {"breaker": 0, "python_error": 0},
    "disk": {"auto_clean": True, "keep_last": 1, "keep_best": 0, "keep_failed_logs": False},
}

# One after the other, for the evaluations that have jobs of their own in the first generation.
FATES: Sequence[Sequence[str]] = (
    ("oom", "node_failure", "oom gpu", "completed"),
    ("oom neighbour", "cuda_error device", "completed"),
    ("diverged",),
    ("environment", "killed", "preempted", "preempted", "completed"),
    ("python_error", "completed"),
    ("timeout", "completed"),
    ("lost", "undetermined", "cuda_error", "completed"),
    ("invalid", "invalid"),
    ("cancelled",),
)
ELAPSED = {"started_at": "2026-01-01T00:00:00.000Z", "at": "2026-01-01T00:01:00.000Z"}
SMALL, LARGE = 10**8, 10**12


class Littering(World):
    """Workers that live for a minute, leave curves, and run on a node of their own each time."""

    def node(self, job_id: str) -> str:
        evaluation, attempt = self.tasks[job_id]
        return f"n{1 + (int(evaluation[-2:]) + attempt) % 5}"

    def end(self, job_id: str, verdict: str) -> None:
        paths = self.paths.attempt(*self.tasks[job_id])
        write_json(paths.heartbeat, ELAPSED)
        # An old one: a job that is lost gives no sign of life.
        os.utime(paths.heartbeat, (0, 0))
        paths.metrics.write_text("{}\n" * 2000, encoding="utf-8")
        super().end(job_id, verdict)


def space_of(folder: Path) -> Space:
    """Return too little room as long as curves of the first generation lie beside a second one."""
    is_second = any((folder / "optimizer").glob("g001-*"))
    litters = any((folder / "evaluations").glob("g000-*/*/metrics.jsonl"))
    free = SMALL if is_second and litters else LARGE
    return Space(free_bytes=free, free_inodes=None, quota=Quota(note="not asked"))


def act(run: Run) -> None:
    """Do once what a person does at the pause: put back what failed, and raise the budget."""
    with Session.open(run.folder) as session:
        if session.settings.budget.evaluations == 1000:
            return
        watcher = Watcher(session, ScriptedExecutor(run.world))
        perform(session, watcher, "requeue", {"force": True}, "by hand")
        session.change_settings({"budget.evaluations": 1000})


def see_through(run: Run) -> RunState:
    """Drive a run to its end, as the same person would from wherever it stands."""
    while load_run(run.folder).state.status is not RunStatus.FINISHED:
        executor = ScriptedExecutor(run.world)
        executor.tasks_per_submission = 3
        try:
            run.drive(executor=executor)
        except SearchPaused as exc:
            assert "`budget.evaluations` is used up" in exc.message
            act(run)
    return load_run(run.folder).state


def start(runs: Runs, repeats: str) -> Run:
    """Return a run to which everything will happen, however many of its points repeat others."""
    plain = runs.new(**SEARCH, repeats=repeats)
    own = [e.id for e in plain.drive(generations=3).evaluations.values() if trains(e.id, plain)]
    first = [name for name in own if name.startswith("g000")]
    run = runs.new(**SEARCH, repeats=repeats, budget={"evaluations": len(first)})
    run.world = Littering(run.folder)
    run.world.script = dict(zip(first, FATES, strict=False))
    return run


def trains(name: str, run: Run) -> bool:
    """Whether an evaluation had a job."""
    return bool(load_run(run.folder).state.evaluations[name].attempts)


def attempts_of(spent: dict[str, Spent]) -> dict[str, tuple[int, float]]:
    return {kind: (cost.attempts, round(cost.device_s)) for kind, cost in spent.items()}


def assert_same(state: RunState, undisturbed: RunState, world: World, where: str) -> None:
    assert points(state) == points(undisturbed), where
    assert losses(state) == losses(undisturbed), where
    assert state.told == undisturbed.told, where
    for name, evaluation in undisturbed.evaluations.items():
        assert verdicts(state, name) == verdicts(undisturbed, name), where
        assert state.evaluations[name].state is evaluation.state, where
    assert set(world.trained.values()) == {1}, where
    assert attempts_of(state.spent) == attempts_of(undisturbed.spent), where
    sums = (state.trained, state.answered, state.saved.attempts)
    expected = undisturbed.trained, undisturbed.answered, undisturbed.saved.attempts
    assert sums == expected, where
    known = {s.job_id for s in state.submissions.values() if s.job_id is not None}
    assert set(world.jobs.values()) == known, where


def watch_every_event(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> tuple[RunState, dict[str, Run]]:
    """Return how the undisturbed search ends, and what a kill around each event leaves."""
    left: dict[str, Run] = {}
    record, moments = Session.record, 0

    def leave(moment: str, session: Session, kind: str) -> None:
        nonlocal moments
        moments += 1
        if moments % every == 0:
            where = f"{moment} event {session.state.seq + (moment == 'before')}, {kind}"
            left[where] = run.copy(folder / f"kill-{len(left)}")

    def recorded(self: Session, event: Payload) -> None:
        leave("before", self, event.event_kind())
        record(self, event)
        leave("after", self, event.event_kind())

    with monkeypatch.context() as patch:
        patch.setattr(Session, "record", recorded)
        undisturbed = see_through(run)
    return undisturbed, left


def check(
    runs: Runs, folder: Path, monkeypatch: pytest.MonkeyPatch, repeats: str, every: int
) -> None:
    run = start(runs, repeats)
    monkeypatch.setattr(disk_admission, "space_of", space_of)
    undisturbed, left = watch_every_event(run, folder, monkeypatch, every)
    assert_same(undisturbed, undisturbed, run.world, "undisturbed")
    met = {verdict for name in undisturbed.evaluations for verdict in verdicts(undisturbed, name)}
    assert met >= {"oom", "cuda_error", "environment", "lost", "python_error", "preempted"}
    assert undisturbed.excluded_nodes and undisturbed.changes == {"budget.evaluations": 1000}
    assert any(e.replaces for e in undisturbed.evaluations.values())
    assert undisturbed.freed_bytes
    assert bool(undisturbed.answered) is (repeats == "answer")
    for where, killed in left.items():
        assert_same(see_through(killed), undisturbed, killed.world, f"{repeats}: {where}")


# The quick test looks around one event in so many; a prime, so that it meets every kind.
SAMPLE = 1 if LONG else 61


@pytest.mark.timeout(3600 if LONG else 300)
@pytest.mark.parametrize("repeats", ["answer", "reseed"])
def test_kill_amid_everything_loses_and_repeats_nothing(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeats: str
) -> None:
    check(runs, tmp_path, monkeypatch, repeats, every=SAMPLE)
