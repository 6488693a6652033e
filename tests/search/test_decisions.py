"""Retry decisions are cached, and made again when one of their inputs changes."""

from collections import Counter
from typing import Any

import pytest

from elmanctl.ledger.payloads import EvaluationClosed, NodeReadmitted
from elmanctl.ledger.records import Evaluation, RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.models.memory import training_memory_bytes
from elmanctl.search import retry
from elmanctl.search.retry import Decisions
from elmanctl.search.session import Session
from elmanctl.settings import Settings
from elmanctl.space import preflight
from elmanctl.verdicts.policy import Decision
from tests.search.scripted import Run, Runs, ScriptedExecutor, verdicts

pytestmark = pytest.mark.usefixtures("no_power_failures")

FAILED = {"g000-e00": "oom gpu", "g000-e01": "preempted", "g000-e02": "environment"}


@pytest.fixture
def run(runs: Runs) -> Run:
    run = runs.new(generations=1, slurm={"gpu_memory_gb": 11.0}, train={"batch": 16})
    run.world.script = {name: [verdict] for name, verdict in FAILED.items()}
    return run


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """How often a decision was made, by evaluation and number of its attempts."""
    made: Counter[tuple[str, int]] = Counter()
    decision_on = retry.decision_on

    def counted(state: RunState, settings: Settings, evaluation: Evaluation) -> Decision:
        made[evaluation.id, len(evaluation.attempts)] += 1
        return decision_on(state, settings, evaluation)

    monkeypatch.setattr(retry, "decision_on", counted)
    return made


def leave_waiting(run: Run, *, turns: int, then_goes_on: bool = False) -> RunState:
    """Drive a run whose scheduler takes no more once attempts have failed."""
    executor = ScriptedExecutor(run.world)
    waited = 0

    def turn(session: Session) -> None:
        nonlocal waited
        executor.slots = 64 if waited == turns else 0
        waited += not session.state.live
        if waited >= turns and not then_goes_on:
            run.stop.set()

    run.view.every_turn = turn
    return run.drive(executor=executor)


def test_decision_and_memory_of_a_model_are_worked_out_once_while_an_evaluation_waits(
    run: Run, made: Counter[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: Counter[tuple[Any, int, bool]] = Counter()
    memory_bytes = training_memory_bytes

    def counted(config: Any, *, micro_batch: int, is_recomputing: bool, **rest: Any) -> int:
        sizes[config, micro_batch, is_recomputing] += 1
        return memory_bytes(config, micro_batch=micro_batch, is_recomputing=is_recomputing, **rest)

    monkeypatch.setattr(preflight, "training_memory_bytes", counted)
    # The points were tried when the run was planned.
    preflight._micro_batch.cache_clear()
    state = leave_waiting(run, turns=5, then_goes_on=True)
    assert state.status is RunStatus.FINISHED
    for name, verdict in FAILED.items():
        assert verdicts(state, name) == [verdict.partition(" ")[0], "completed"]
    assert {(name, 1) for name in FAILED} < made.keys()
    assert set(made.values()) == {1}
    assert sizes and set(sizes.values()) == {1}


def test_decision_is_made_again_when_settings_or_nodes_have_changed(
    run: Run, made: Counter[tuple[str, int]]
) -> None:
    leave_waiting(run, turns=2)
    made.clear()
    with Session.open(run.folder) as session:
        decisions = Decisions(session)

        def closed() -> dict[str, State | None]:
            return {e.id: decision.close for e, decision in decisions.waiting()}

        assert closed() == closed() == dict.fromkeys(FAILED)
        assert set(made.values()) == {1}
        session.change_settings({"retry.preempted": 0})
        assert closed() == {**dict.fromkeys(FAILED), "g000-e01": State.FAILED}
        session.record(NodeReadmitted(node="n1", reason="no other node is left"))
        assert closed() == {
            **dict.fromkeys(FAILED),
            **dict.fromkeys(("g000-e01", "g000-e02"), State.FAILED),
        }
        session.record(EvaluationClosed(evaluation="g000-e00", state=State.FAILED))
        assert list(closed()) == ["g000-e01", "g000-e02"]
