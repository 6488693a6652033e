"""Starved jobs: outdated node exclusions are relaxed, and only those."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from elmanctl.errors import EnvironmentNotReady
from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.submissions import Resources, Submission
from elmanctl.schedulers.executor import JobReport, JobState, LiveJob, PollResult
from elmanctl.search import starved_jobs
from elmanctl.search.session import Session
from tests.search.scripted import Run, Runs, ScriptedExecutor, verdicts

pytestmark = pytest.mark.usefixtures("no_power_failures")

REASONS = [
    "ReqNodeNotAvail, UnavailableNodes:n[2-4]",
    "ReqNodeNotAvail",
    "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
    "BadConstraints",
]


class OneNode(ScriptedExecutor):
    """A cluster of which n1 alone is up: a job that avoids it waits for a reason."""

    reason = REASONS[0]
    fails = 0

    def poll(self, jobs: Sequence[LiveJob], intended: Sequence[Submission]) -> PollResult:
        told = super().poll([job for job in jobs if not self._avoids(job)], intended)
        waits = JobReport(state=JobState.PENDING, raw="PENDING", reason=self.reason)
        blocked = {job.job_id: waits for job in jobs if self._avoids(job)}
        return replace(told, reports={**told.reports, **blocked})

    def avoid(self, jobs: Sequence[LiveJob], resources: Resources) -> None:
        if self.fails:
            self.fails -= 1
            raise EnvironmentNotReady("`scontrol` failed: slurm_update error")
        super().avoid(jobs, resources)

    def _avoids(self, job: LiveJob) -> bool:
        (asked,) = (one for one in self.submitted if one.id == job.submission)
        return "n1" in self.world.avoided.get(job.job_id, asked.resources.exclude)


@pytest.fixture
def run(runs: Runs) -> Run:
    run = runs.new(generations=1, slurm={})
    run.world.script = {"g000-e01": ["node_failure"], "g000-e02": ["node_failure"]}
    return run


@pytest.fixture
def executor(run: Run) -> OneNode:
    return OneNode(run.world)


def stop_after(run: Run, turns: int) -> None:
    """Stop the controller after some more turns."""
    run.stop.clear()
    left = [turns]

    def turn(session: Session) -> None:
        left[0] -= 1
        if not left[0]:
            run.stop.set()

    run.view.every_turn = turn


@pytest.mark.parametrize("reason", REASONS)
def test_job_that_waits_for_want_of_nodes_gets_the_oldest_back(
    run: Run, executor: OneNode, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setattr(starved_jobs, "PATIENCE_S", 0.0)
    executor.reason, executor.fails = reason, 2
    state = run.drive(executor=executor)
    assert state.status is RunStatus.FINISHED
    assert verdicts(state, "g000-e01") == ["node_failure", "completed"]
    assert set(run.world.avoided.values()) == {()}
    (node,) = state.excluded_nodes.values()
    assert node.readmitted
    # No job was submitted anew for it.
    assert len(state.evaluations["g000-e01"].attempts) == 2


@pytest.mark.parametrize("reason", ["Priority", "Resources", "JobHeldAdmin", "Licenses"])
def test_job_that_waits_for_its_turn_is_left_alone(
    run: Run, executor: OneNode, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setattr(starved_jobs, "PATIENCE_S", 0.0)
    executor.reason = reason
    stop_after(run, 30)
    state = run.drive(executor=executor)
    assert [node.readmitted for node in state.excluded_nodes.values()] == [False]
    assert run.world.avoided == {}


def test_exclusion_that_ended_is_taken_from_waiting_jobs_without_patience(
    run: Run, executor: OneNode
) -> None:
    stop_after(run, 30)
    state = run.drive(executor=executor)
    assert run.world.avoided == {}
    (node,) = state.excluded_nodes.values()
    run.stop.clear()

    def an_hour_later(session: Session) -> None:
        session.state.excluded_nodes["n1"] = replace(node, until=node.at)

    run.view.every_turn = an_hour_later
    state = run.drive(executor=executor)
    assert state.status is RunStatus.FINISHED
    assert set(run.world.avoided.values()) == {()}
    assert not any(one.readmitted for one in state.excluded_nodes.values())


def test_controller_that_died_before_it_eased_is_followed_by_one_that_does(
    run: Run, executor: OneNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(run, 30)
    run.drive(executor=executor)
    monkeypatch.setattr(starved_jobs, "PATIENCE_S", 0.0)
    avoid = executor.avoid

    def die(jobs: Sequence[LiveJob], resources: Resources) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(executor, "avoid", die)
    with pytest.raises(KeyboardInterrupt):
        run.drive(executor=executor)
    monkeypatch.setattr(executor, "avoid", avoid)
    # Only what is on record: patience would not have it so soon.
    monkeypatch.setattr(starved_jobs, "PATIENCE_S", 1e9)
    run.stop.clear()
    run.view.every_turn = lambda session: None
    state = run.drive(executor=executor)
    assert state.status is RunStatus.FINISHED
    assert [node.readmitted for node in state.excluded_nodes.values()] == [True]


def test_node_that_the_user_keeps_an_evaluation_off_is_never_given_back_to_it(
    run: Run, executor: OneNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starved_jobs, "PATIENCE_S", 0.0)
    stop_after(run, 60)

    def keep_off(session: Session) -> None:
        name = "g000-e01"
        known = session.state.evaluations[name]
        session.state.evaluations[name] = replace(
            known, changes={"exclude": ["n1"], "since_attempt": 0}
        )

    turn = run.view.every_turn

    def both(session: Session) -> None:
        keep_off(session)
        turn(session)

    run.view.every_turn = both
    state = run.drive(executor=executor)
    assert verdicts(state, "g000-e01") == ["node_failure"]
    assert verdicts(state, "g000-e02") == ["node_failure", "completed"]
