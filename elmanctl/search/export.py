"""Export of a run's whole record, as JSON and CSV for other programs."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from elmanctl.codec import encode
from elmanctl.ledger.records import Attempt, Evaluation
from elmanctl.ledger.run_state import RunState
from elmanctl.run.corpus import corpus_name

EXPORT_VERSION = 1

# One row an evaluation; a `config.` column follows for each hyperparameter of the run, and in a run
# with confirmations `confirms`, in one with re-evaluations `reevaluates`.
CSV_COLUMNS = (
    *("run", "evaluation", "generation", "state", "loss", "parameters", "seed", "replaces"),
    *("repeats", "answered_by"),
    *("attempts", "verdict", "evidence", "job", "node", "elapsed_s", "size_bytes", "fingerprint"),
    "corpus",
)


def export_json(state: RunState) -> Iterator[str]:
    """Yield one JSON document in parts, with one evaluation a line."""
    head = {
        "version": EXPORT_VERSION,
        "run": dict(state.run),
        "corpus": corpus_name(state.run["data"]["path"]),
        "changes": dict(state.changes),
        "status": state.status.value,
        "generations": state.generations,
        **({} if state.ended_by is None else {"ended_by": state.ended_by}),
        "events": state.seq,
        "told": {str(generation): told for generation, told in state.told.items()},
    }
    yield json.dumps(head, allow_nan=False)[:-1] + ', "evaluations": ['
    separator = "\n"
    for evaluation in state.evaluations.values():
        yield separator + json.dumps(export_evaluation(state, evaluation), allow_nan=False)
        separator = ",\n"
    yield "\n]}\n"


def export_evaluation(state: RunState, evaluation: Evaluation) -> dict[str, Any]:
    """Return the whole record of one evaluation, as plain data."""
    return {
        "evaluation": evaluation.id,
        "generation": None if evaluation.confirms else evaluation.generation,
        "state": evaluation.state.value,
        "replaces": evaluation.replaces,
        "repeats": evaluation.repeats,
        "answered_by": evaluation.answer.by if evaluation.answer else None,
        **({"confirms": evaluation.confirms} if evaluation.confirms else {}),
        **({"reevaluates": evaluation.reevaluates} if evaluation.reevaluates else {}),
        "seed": evaluation.seed,
        "point": list(evaluation.point),
        "config": evaluation.hyperparameters,
        "parameters": evaluation.parameters,
        "loss": evaluation.loss,
        "fingerprint": fingerprint(evaluation),
        "changes": dict(evaluation.changes),
        "size_bytes": state.size_of(evaluation),
        "attempts": [export_attempt(attempt) for attempt in evaluation.attempts],
    }


def export_attempt(attempt: Attempt) -> dict[str, Any]:
    """Return the whole record of one attempt, as plain data."""
    return {
        "attempt": attempt.number,
        "state": attempt.state.value,
        "job": attempt.job_id,
        "submission": attempt.submission,
        "node": attempt.node,
        "submitted_at": attempt.submitted_at,
        "started_at": attempt.started_at,
        "finished_at": attempt.finished_at,
        "elapsed_s": attempt.elapsed_s,
        "verdict": encode(attempt.verdict) if attempt.verdict else None,
        "result": dict(attempt.result) if attempt.result is not None else None,
        "size_bytes": attempt.size_bytes,
    }


def fingerprint(evaluation: Evaluation) -> object:
    """Return the fingerprint of the protocol under which the loss was measured, if known."""
    results = [attempt.result for attempt in evaluation.attempts if attempt.result is not None]
    return results[-1].get("fingerprint") if results else None


def export_csv(state: RunState) -> Iterator[str]:
    """Yield a CSV table (RFC 4180): a header, then one line for each evaluation."""
    names = sorted({name for e in state.evaluations.values() for name in e.hyperparameters})
    last = ["confirms"] if state.confirmations else []
    if any(evaluation.reevaluates for evaluation in state.evaluations.values()):
        last.append("reevaluates")
    yield _line([*CSV_COLUMNS, *(f"config.{name}" for name in names), *last])
    for evaluation in state.evaluations.values():
        cells = _cells(state, evaluation)
        values = map(evaluation.hyperparameters.get, names)
        yield _line([*map(cells.get, CSV_COLUMNS), *values, *map(cells.get, last)])


def _cells(state: RunState, evaluation: Evaluation) -> dict[str, Any]:
    row = export_evaluation(state, evaluation)
    last = evaluation.last_attempt
    return {
        **row,
        "run": state.run["name"],
        "attempts": len(evaluation.attempts),
        "verdict": evaluation.verdict_kind,
        "evidence": last.verdict.summary if last and last.verdict else None,
        "job": last.job_id if last else None,
        "node": last.node if last else None,
        "elapsed_s": last.elapsed_s if last else None,
        "corpus": corpus_name(state.run["data"]["path"]),
    }


def _line(cells: list[object]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue()
