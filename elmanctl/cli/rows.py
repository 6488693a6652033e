"""Rows of evaluations and runs, as plain data shared by tables and JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from elmanctl import clock
from elmanctl.constants import ASYNCHRONOUS, STUDY
from elmanctl.ledger.records import Attempt, Evaluation, State, Stop, Verdict
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.summary import RunSummary
from elmanctl.run.corpus import corpus_name
from elmanctl.run.paths import RunPaths
from elmanctl.run.progress import read_progress
from elmanctl.search.effective_settings import avoided_nodes


def searched_names(run: Mapping[str, Any]) -> list[str]:
    """Return the axes that a run searches, after `dim` if that is solved."""
    axes = [*run["space"].get("sweep", ()), *run["space"]["axes"]]
    return axes if "dim" in axes else ["dim", *axes]


def origin_data(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the corpus of a run, its start point and its optimizer's seed, as plain data.

    A ledger of version 0.1 has the point and its source, but not the values.
    """
    return {
        "corpus": corpus_name(run["data"]["path"]),
        "corpus_sha256": run["data"]["sha256"],
        "start": dict(run["start"]),
        "optimizer_seed": run["optimizer"]["seed"],
    }


def corpus_line(run: Mapping[str, Any]) -> str:
    """Return one line on the corpus of a run."""
    data = run["data"]
    return (
        f"{corpus_name(data['path'])}, sha256 {str(data['sha256'])[:12]}, unigram entropy "
        f"{float(data['unigram_nats']):.4f} nats"
    )


def start_line(run: Mapping[str, Any]) -> str:
    """Return one line on the start point of a search, its source, the optimizer's seed, the mode.

    Nothing is said of generations, the default.
    """
    start = run["start"]
    line = describe_start(start.get("values", {}), start["source"], run["optimizer"]["seed"])
    is_asynchronous: bool = run["settings"]["search"].get("mode") == ASYNCHRONOUS
    mode = "; asynchronous" * is_asynchronous
    return line + describe_sweep(run["space"].get("sweep", {})) + mode


def describe_start(values: Mapping[str, Any], source: str, seed: int) -> str:
    """Format a start point: the value of every axis, its source, and the optimizer's seed."""
    shown = " ".join(f"{name}={describe_config(value)}" for name, value in values.items())
    where = f"{shown} ({source})" if shown else source
    return f"starts at {where}; optimizer seed {seed}"


def fate_of_infeasible(optimizer: str) -> str:
    """Return what becomes of a point that no model can be built at, in words."""
    return "told as failures" if optimizer == STUDY else "redrawn at no cost"


def describe_sweep(sweep: Mapping[str, Sequence[object]]) -> str:
    """Format the swept settings and their values, as an addition to a line; empty without any."""
    texts = [f"{name} = {', '.join(map(describe_config, sweep[name]))}" for name in sweep]
    return f"; in turns for {' and '.join(texts)}" if texts else ""


def describe_config(value: object) -> str:
    """Format one value of a configuration briefly."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def excluded_rows(state: RunState | RunSummary) -> list[dict[str, Any]]:
    """Return the nodes that are excluded now, as plain data."""
    return [
        {"node": node.node, "until": node.until, "reason": node.reason}
        for node in avoided_nodes(state)
    ]


def excluded_line(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return one line on the excluded nodes, None without any."""
    if not rows:
        return None
    now = clock.now()
    longest_s = max((clock.from_text(row["until"]) - now).total_seconds() for row in rows)
    names = ", ".join(row["node"] for row in rows)
    left = clock.format_rough(max(0.0, longest_s))
    if len(rows) == 1:
        return f"{names} is excluded for {left} after {rows[0]['reason']}"
    return f"{names} are excluded for up to {left} after failures there"


def evaluation_row(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as a flat row; missing values are None."""
    last = evaluation.last_attempt
    result = last.result if last and last.result else {}
    return {
        "evaluation": evaluation.id,
        "generation": None if evaluation.confirms else evaluation.generation,
        "state": shown_state(evaluation),
        "attempt": last.number if last else None,
        "job": last.job_id if last else None,
        "loss": evaluation.loss,
        "parameters": evaluation.parameters,
        "config": evaluation.hyperparameters,
        "step": result.get("steps"),
        "elapsed_s": last.elapsed_s if last else None,
        "node": last.node if last else None,
        "verdict": evaluation.verdict_kind.value if evaluation.verdict_kind else None,
        "reason": reason(evaluation),
        "size_bytes": sum(attempt.size_bytes or 0 for attempt in evaluation.attempts),
        "replaces": evaluation.replaces,
        "repeats": evaluation.repeats,
        "answered_by": evaluation.answer.by if evaluation.answer else None,
        **({"stop": asdict(evaluation.stop)} if evaluation.stop else {}),
        **({"confirms": evaluation.confirms} if evaluation.confirms else {}),
        **({"reevaluates": evaluation.reevaluates} if evaluation.reevaluates else {}),
    }


def with_progress(row: dict[str, Any], paths: RunPaths, evaluation: Evaluation) -> dict[str, Any]:
    """Add step and elapsed time of a live worker's heartbeat to a row.

    A worker may run for a minute before the next poll of the scheduler.  Its loss is under
    `progress` alone: `loss` is that of a completed evaluation.
    """
    last = evaluation.last_attempt
    seen = None
    if last is not None and last.state in (State.SUBMITTED, State.RUNNING):
        seen = read_progress(paths.attempt(evaluation.id, last.number))
    if seen is None:
        return {**row, "progress": None}
    return {**row, "step": seen.step, "elapsed_s": seen.elapsed_s, "progress": asdict(seen)}


def progress_line(seen: Mapping[str, Any]) -> str:
    """Return one line on a live worker's progress, and the age of its heartbeat."""
    parts = [
        seen["phase"],
        None if seen["step"] is None else f"step {seen['step']}",
        None if seen["loss"] is None else f"loss {seen['loss']:.4f}",
        shown_elapsed(seen["elapsed_s"]),
    ]
    age = "" if seen["age_s"] is None else f" ({clock.format_rough(seen['age_s'])} ago)"
    return ", ".join(part for part in parts if part) + age


def shown_state(evaluation: Evaluation) -> str:
    """Return the state, or `waiting` if a retry is due."""
    if evaluation.state is State.CREATED and evaluation.attempts:
        return "waiting"
    return evaluation.state.value


def reason(evaluation: Evaluation) -> str | None:
    """Return why an evaluation has no loss, no job, no place in the search or no final loss.

    That is its verdict, the evaluation it repeats, the one it confirms or trains again, or a lack
    of convergence.
    """
    again = None
    if evaluation.confirms is not None:
        again = f"confirms {evaluation.confirms}"
    elif evaluation.reevaluates is not None:
        again = f"re-evaluates {evaluation.reevaluates}"
    if again is not None:
        failure = _failure(evaluation)
        return again + (f": {failure}" if failure else "")
    if evaluation.answer is not None:
        end = evaluation.answer
        failed = evaluation.state is not State.COMPLETED and end.verdict is not None
        return f"as {end.by}: {end.verdict}" if failed else f"as {end.by}"
    return _failure(evaluation)


def _failure(evaluation: Evaluation) -> str | None:
    """Return the newest verdict of an evaluation without a loss, or that it did not converge."""
    judged = [a for a in evaluation.attempts if a.verdict is not None]
    if not judged:
        return None
    if evaluation.state is State.COMPLETED:
        found = convergence_of(judged[-1])
        return "not converged" if found and not found["is_converged"] else None
    verdict = judged[-1].verdict
    assert verdict is not None
    if evaluation.state is State.STOPPED and evaluation.stop is not None:
        return f"stopped at {evaluation.stop.share:.0%}, predicted {evaluation.stop.predicted:.4f}"
    return f"{verdict.kind.value} (attempt {judged[-1].number})"


def describe_stop(stop: Stop) -> str:
    """Return what a decision to stop early rests on, in words."""
    at = f"at {stop.share:.0%} of the budget: training loss {stop.loss:.4f}"
    if stop.chance is None:
        return f"{at}, {stop.limit:.4f} was needed to go on; {stop.compared} compared"
    return (
        f"{at}, predicted {stop.predicted:.4f}, a chance of {_percent(stop.chance)} to end below "
        f"{stop.limit:.4f}; {stop.compared} compared"
    )


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "below 0.1%"


def convergence_of(attempt: Attempt) -> Mapping[str, Any] | None:
    """Return what a result says on convergence, None where that was not the budget."""
    found = (attempt.result or {}).get("convergence")
    return found if isinstance(found, Mapping) else None


def describe_convergence(found: Mapping[str, Any]) -> str:
    """Return whether the loss of a result converged, and by how much it improved at its end."""
    if found["improvement"] is None:
        return "no, too few steps to judge"
    fall = f"{found['improvement']:.4f} ± {found['improvement_se']:.4f} nats a window"
    return f"at step {found['step']}, {fall}" if found["is_converged"] else f"no, {fall}"


def describe_verdict(verdict: Verdict) -> str:
    """Format a verdict briefly: its kind, its cause if known, and its confidence."""
    kind = f"{verdict.kind} ({verdict.cause})" if verdict.cause else verdict.kind.value
    return f"{kind}, {verdict.confidence}" if verdict.confidence else kind


def shown_elapsed(elapsed_s: float | None) -> str | None:
    """Format a duration as Slurm does, None if it is unknown."""
    return None if elapsed_s is None else clock.format_duration(elapsed_s)


def loss_quantity(evaluation: Evaluation) -> str:
    """Return the quantity that the loss of an evaluation is, in words."""
    if evaluation.answer is not None:
        return f"that of {evaluation.answer.by}"
    last = evaluation.last_attempt
    result = last.result if last is not None and last.result is not None else {}
    if result.get("objective") == "val":
        return "on held-out documents"
    if result.get("objective") == "mean":
        return "mean of all steps"
    return f"mean of the last {result.get('loss_window_steps', 100)} steps"
