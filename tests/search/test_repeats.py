"""Repeats: a configuration that is asked again is not trained again."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from elmanctl.errors import UsageError
from elmanctl.ledger.files import write_json
from elmanctl.ledger.payloads import (
    EvaluationAnswered,
    EvaluationClosed,
    EvaluationReopened,
    GenerationTold,
    Payload,
    PointsAsked,
)
from elmanctl.ledger.records import RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.run.paths import AttemptPaths
from elmanctl.search import repeats
from elmanctl.search.export import export_csv, export_json
from elmanctl.search.fitness import last_step
from elmanctl.search.noise import noise_estimates, noise_for
from elmanctl.search.request_schema import RequeueRequest
from elmanctl.search.requeue import plan_requeue, select_requeueable
from elmanctl.search.session import Session
from tests.integration.runs import losses, points
from tests.search import scripted
from tests.search.scripted import Run, Runs, ScriptedExecutor, verdicts

pytestmark = pytest.mark.usefixtures("no_power_failures")

# Whole numbers only: 24 models in all, so that a search meets the same ones again and again.
INTEGERS: dict[str, Any] = {
    # It asks points again; the default does so only when nothing else is left.
    "optimizer": "cma",
    "axes": {
        "n_heads": {"kind": "int", "low": 1, "high": 8},
        "depth": {"kind": "int", "low": 1, "high": 3},
    },
    "model": {"dim": 32, "n_state": 8, "lr": 1e-2},
    "generations": 10,
}


def jobs(state: RunState) -> int:
    """Return how many attempts were ever submitted and accepted."""
    return sum(len(s.tasks) for s in state.submissions.values() if s.job_id is not None)


def answered(state: RunState) -> list[str]:
    return [e.id for e in state.evaluations.values() if e.answer is not None]


@pytest.fixture
def paying(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A search that knows no repeat and pays for all; `undo` lets later ones know them."""
    with monkeypatch.context() as patch:
        patch.setattr(repeats.Known, "first", lambda self, config, lr, new: None)
        yield patch


@pytest.mark.parametrize("generations", [12, 50])
def test_answered_search_takes_the_path_of_one_that_pays_for_every_repeat(
    runs: Runs, paying: pytest.MonkeyPatch, generations: int
) -> None:
    settings = {**INTEGERS, "generations": generations, "population": 8}
    paid = runs.new(**settings).drive()
    paying.undo()
    state = runs.new(**settings).drive()
    assert points(state) == points(paid)
    assert state.told == paid.told
    assert losses(state) == losses(paid)
    assert state.status is paid.status is RunStatus.FINISHED
    distinct = {(e.config["n_heads"], e.config["depth"]) for e in state.evaluations.values()}
    assert jobs(state) == state.trained == len(distinct)
    assert jobs(state) + state.answered == jobs(paid) == generations * 8
    assert state.answered / jobs(paid) > (0.9 if generations == 50 else 0.7)


def test_divergence_is_answered_and_ranked_as_if_it_had_been_paid(
    runs: Runs, paying: pytest.MonkeyPatch
) -> None:
    """Whether a model diverges is a matter of its configuration, in both searches alike."""

    def drive(run: Run) -> RunState:
        verdict_of = run.world._verdict

        def verdict(evaluation: str, attempt: int) -> str:
            config = load_run(run.folder).state.evaluations[evaluation].config
            heads = config["n_heads"]
            return "diverged" if heads in (5, 6) else verdict_of(evaluation, attempt)

        run.world._verdict = verdict  # type: ignore[method-assign]
        return run.drive()

    paid = drive(runs.new(**INTEGERS))
    paying.undo()
    state = drive(runs.new(**INTEGERS))
    assert points(state) == points(paid)
    assert state.told == paid.told
    copied = [e for e in state.evaluations.values() if e.answer and e.state is State.FAILED]
    assert copied
    assert all(last_step(e) == 10 for e in copied)
    assert jobs(state) < jobs(paid)


def test_repeat_in_the_same_generation_waits_for_the_first_and_takes_no_slot(runs: Runs) -> None:
    run = runs.new(**{**INTEGERS, "generations": 1, "population": 24})
    waiting: set[str] = set()

    def look_on(session: Session) -> None:
        for evaluation in session.state.evaluations.values():
            if evaluation.repeats and evaluation.state is State.CREATED:
                waiting.add(evaluation.id)
                assert not evaluation.attempts

    run.view.every_turn = look_on
    state = run.drive(executor=ScriptedExecutor(run.world, slots=2))
    assert waiting == set(answered(state)) != set()
    for name in waiting:
        evaluation = state.evaluations[name]
        assert evaluation.repeats is not None
        first = state.evaluations[evaluation.repeats]
        assert (evaluation.loss, evaluation.state) == (first.loss, State.COMPLETED)
    assert len(state.told[0]) == 24


def test_repeat_shares_a_failure_and_is_replaced_like_others(runs: Runs) -> None:
    settings = {**INTEGERS, "generations": 1, "population": 24, "retry": {"replacements": 24}}
    first = next(iter(runs.new(**settings).drive().repeats))
    run = runs.new(**settings)
    run.world.script = {first: ["python_error"]}
    state = run.drive()
    twins = [name for name in state.repeats[first] if state.evaluations[name].replaces is None]
    assert twins
    replaced = {e.replaces for e in state.evaluations.values() if e.replaces}
    for name in (first, *twins):
        assert state.evaluations[name].state is State.FAILED
        assert name in replaced
        assert name not in dict(state.told[0])
    assert run.world.trained[first, 1] == 1
    assert not any(run.world.trained[name, 1] for name in twins)


def failed_twins(runs: Runs) -> tuple[Run, str, str]:
    """Return a finished run in which one evaluation failed, and the name of one that shared it."""
    settings = {**INTEGERS, "generations": 1, "population": 24, "retry": {"replacements": 0}}
    first, others = next(iter(runs.new(**settings).drive().repeats.items()))
    run = runs.new(**settings)
    run.world.script = {first: ["python_error"]}
    run.drive()
    return run, first, others[0]


def reopen(run: Run, *names: str) -> None:
    with Session.open(run.folder) as session:
        for name in names:
            attempts = len(session.state.evaluations[name].attempts)
            changes = {"since_attempt": attempts}
            session.record(EvaluationReopened(evaluation=name, changes=changes, by="me"))


def test_failed_original_that_completes_later_answers_later_repeats_only(runs: Runs) -> None:
    run, first, twin = failed_twins(runs)
    told = load_run(run.folder).state.told[0]
    reopen(run, first)
    state = run.drive(generations=4)
    assert verdicts(state, first) == ["python_error", "completed"]
    assert state.evaluations[twin].state is State.FAILED
    assert state.told[0] == told
    assert state.status is RunStatus.FINISHED
    later = [n for n in state.repeats[first] if state.evaluations[n].generation > 0]
    assert later
    assert all(state.evaluations[n].loss == state.evaluations[first].loss for n in later)


def test_repeat_put_back_in_the_queue_is_trained_where_nothing_else_can_answer(runs: Runs) -> None:
    run, first, twin = failed_twins(runs)
    reopen(run, twin)
    state = run.drive()
    assert verdicts(state, twin) == ["completed"]
    assert state.evaluations[first].state is State.FAILED
    assert state.evaluations[twin].answer is None
    assert state.evaluations[twin].loss is not None


def test_original_and_repeat_put_back_together_cost_one_job(runs: Runs) -> None:
    run, first, twin = failed_twins(runs)
    before = jobs(load_run(run.folder).state)
    reopen(run, first, twin)
    state = run.drive()
    assert jobs(state) == before + 1
    assert state.evaluations[twin].answer is not None
    assert state.evaluations[twin].loss == state.evaluations[first].loss


def test_requeue_refuses_a_repeat_that_would_only_fail_as_its_original_did(runs: Runs) -> None:
    """Nothing else can answer it, so it would be paid for."""
    run, first, twin = failed_twins(runs)
    other = next(n for n, e in load_run(run.folder).state.evaluations.items() if not e.repeats)
    with Session.open(run.folder) as session:
        state, settings = session.state, session.settings
        # The same exception on two configurations is one of the code.
        failed = state.evaluations[first].attempts
        also = replace(state.evaluations[other], state=State.FAILED, attempts=failed)
        known = replace(state, evaluations={**state.evaluations, other: also})
        chosen = [known.evaluations[name] for name in (first, twin)]
        with pytest.raises(UsageError, match=f"{first}, {twin} would fail again"):
            plan_requeue(known, settings, chosen, RequeueRequest(skip_deterministic=True))
        forced = plan_requeue(known, settings, chosen, RequeueRequest(force=True))
        assert [evaluation.id for evaluation, _ in forced.chosen] == [first, twin]


def test_repeat_of_what_somebody_else_cancelled_is_put_back_with_it(runs: Runs) -> None:
    settings = {**INTEGERS, "generations": 1, "population": 24}
    first, others = next(iter(runs.new(**settings).drive().repeats.items()))
    run = runs.new(**settings)
    run.world.script = {first: ["cancelled"]}
    state = run.drive()
    assert {e.id for e in select_requeueable(state, kinds=())} == {first, *others}
    reopen(run, first, *others)
    state = run.drive()
    assert {state.evaluations[name].loss for name in others} == {state.evaluations[first].loss}


def test_answer_that_is_taken_back_saved_nothing(runs: Runs) -> None:
    run, first, twin = failed_twins(runs)
    before = load_run(run.folder).state
    reopen(run, first, twin)
    opened = load_run(run.folder).state
    assert opened.answered == before.answered - 1
    assert opened.saved.attempts == before.saved.attempts - 1
    state = run.drive()
    assert state.answered == before.answered == len(answered(state))
    assert state.saved.attempts == before.answered


def test_cancelled_original_cancels_its_repeats(runs: Runs) -> None:
    settings = {**INTEGERS, "generations": 1, "population": 24}
    first, others = next(iter(runs.new(**settings).drive().repeats.items()))
    run = runs.new(**settings)
    run.world.script = {first: ["cancelled"]}
    state = run.drive()
    assert state.evaluations[first].state is State.CANCELLED
    assert state.evaluations[others[0]].state is State.CANCELLED
    assert not any(run.world.trained[name, 1] for name in others)
    assert others[0] not in dict(state.told[0])


def test_reseeded_repeats_run_on_the_next_seeds_and_show_the_noise(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = scripted.write_result

    def noisy(paths: AttemptPaths, verdict: str) -> None:
        """Write a loss that differs by the seed."""
        write(paths, verdict)
        seed = json.loads(paths.spec.read_text())["seed"]
        result = json.loads(paths.result.read_text())
        write_json(paths.result, {**result, "loss": result["loss"] + seed**2 / 1e6})

    monkeypatch.setattr(scripted, "write_result", noisy)
    state = runs.new(**{**INTEGERS, "repeats": "reseed"}).drive()
    assert jobs(state) == len(state.evaluations) == 40
    assert state.answered == 0
    for first, others in state.repeats.items():
        seeds = [state.evaluations[name].seed for name in (first, *others)]
        assert seeds == list(range(42, 42 + len(seeds)))
    found = noise_estimates(state)
    assert set(found) == set(state.repeats) != set()
    for first, noise in found.items():
        names = (first, *state.repeats[first])
        measured = [loss for name in names if (loss := state.evaluations[name].loss) is not None]
        assert (noise.evaluations, noise.n) == (names, len(measured))
        assert noise.mean == pytest.approx(mean(measured))
        assert noise.sd == pytest.approx(stdev(measured)) and noise.sd > 0
        assert noise_for(state, state.evaluations[names[1]]) == noise


def test_answered_repeats_are_no_measurement_of_noise_and_not_among_the_best(runs: Runs) -> None:
    state = runs.new(**INTEGERS).drive()
    assert answered(state)
    assert noise_estimates(state) == {}
    assert not set(answered(state)) & {e.id for e in state.ranked()}


def test_kill_around_any_event_answers_every_repeat_once(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.new(**{**INTEGERS, "generations": 3, "population": 5})
    run.world.script = {"g000-e00": ["diverged"], "g000-e02": ["node_failure"]}
    left: list[Run] = []
    record = Session.record

    def recorded(self: Session, event: Payload) -> None:
        if isinstance(event, EvaluationAnswered | PointsAsked | GenerationTold):
            left.append(run.copy(tmp_path / f"kill-{len(left)}"))
        record(self, event)
        if isinstance(event, EvaluationAnswered | PointsAsked | EvaluationClosed):
            left.append(run.copy(tmp_path / f"kill-{len(left)}"))

    monkeypatch.setattr(Session, "record", recorded)
    undisturbed = run.drive()
    monkeypatch.setattr(Session, "record", record)
    assert undisturbed.answered >= 3
    for killed in left:
        state = killed.drive()
        assert points(state) == points(undisturbed)
        assert state.told == undisturbed.told
        assert answered(state) == answered(undisturbed)
        assert (state.answered, state.trained) == (undisturbed.answered, undisturbed.trained)
        assert set(killed.world.trained.values()) == {1}


def test_run_of_before_repeats_goes_on_and_knows_what_it_evaluated(
    runs: Runs, paying: pytest.MonkeyPatch
) -> None:
    """Its ledger has no `repeats` in it: what was paid twice stays, what comes is answered."""
    run = runs.new(**{**INTEGERS, "generations": 4})
    before = run.drive()
    assert not before.repeats
    paying.undo()
    state = run.drive(generations=10)
    asked = [e for e in state.evaluations.values() if e.generation >= 4]
    known = {(e.config["n_heads"], e.config["depth"]) for e in before.evaluations.values()}
    for evaluation in asked:
        if (evaluation.config["n_heads"], evaluation.config["depth"]) in known:
            assert evaluation.answer is not None
    assert points(state) == points(runs.new(**INTEGERS).drive())


def test_export_tells_an_answered_loss_from_one_that_was_trained(runs: Runs) -> None:
    """Else whoever reads it takes copies of one measurement for several."""
    state = runs.new(**INTEGERS).drive()
    told = json.loads("".join(export_json(state)))["evaluations"]
    rows = list(csv.DictReader(io.StringIO("".join(export_csv(state)))))
    expected = {e.id: e.answer.by if e.answer else None for e in state.evaluations.values()}
    assert any(expected.values()) and not all(expected.values())
    assert {row["evaluation"]: row["answered_by"] for row in told} == expected
    assert {row["evaluation"]: row["answered_by"] or None for row in rows} == expected
    assert {row["verdict"] for row in rows} == {"completed"}
    assert all(bool(row["attempts"]) is not bool(row["answered_by"]) for row in told)
