"""Records to plain JSON data and back, as they stand in the events of a ledger.

Every `decode_` function raises LedgerCorrupt with the JSON path of what is wrong.  `path` is
where the value stands, for that message.
"""

from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from typing import Any, TypeVar

from elmanctl.errors import LedgerCorrupt
from elmanctl.ledger.fields import Fields, as_number, describe
from elmanctl.ledger.records import (
    Cause,
    Confidence,
    Evaluation,
    Evidence,
    EvidenceSource,
    Submission,
    Task,
    Verdict,
    VerdictKind,
)
from elmanctl.ledger.shared_keys import SharedKeys

_Member = TypeVar("_Member", bound=StrEnum)

_RUN_TEXTS = ("name", "token", "model", "executor")
_RUN_OBJECTS = (
    "settings",
    "space",
    "start",
    "optimizer",
    "budget",
    "data",
    "protocol",
    "code",
    "versions",
)


def encode_evidence(evidence: Evidence) -> dict[str, Any]:
    """Return plain data; `file` and `line` only where they are known."""
    return _without_none(asdict(evidence))


def decode_evidence(data: object, path: str = "evidence") -> Evidence:
    """Read what `encode_evidence` returned."""
    with Fields(data, path) as fields:
        return Evidence(
            source=decode_member(EvidenceSource, fields.text("source"), f"{path}.source"),
            text=fields.text("text"),
            file=fields.optional_text("file"),
            line=fields.optional_whole("line"),
        )


def encode_verdict(verdict: Verdict) -> dict[str, Any]:
    """Return plain data; `confidence` and `cause` only where they are known."""
    data = {
        "kind": verdict.kind.value,
        "evidence": [encode_evidence(evidence) for evidence in verdict.evidence],
        "confidence": verdict.confidence and verdict.confidence.value,
        "cause": verdict.cause and verdict.cause.value,
    }
    return _without_none(data)


def decode_verdict(data: object, path: str = "verdict") -> Verdict:
    """Read what `encode_verdict` returned."""
    with Fields(data, path) as fields:
        # Ledgers of version 0.1 know neither confidence nor cause.
        return Verdict(
            kind=decode_member(VerdictKind, fields.text("kind"), f"{path}.kind"),
            evidence=tuple(
                decode_evidence(item, where) for where, item in fields.items("evidence")
            ),
            confidence=_optional_member(Confidence, fields, "confidence"),
            cause=_optional_member(Cause, fields, "cause"),
        )


def encode_task(task: Task) -> dict[str, Any]:
    """Return plain data; `slot` only where there is one."""
    return _without_none(asdict(task))


def decode_task(data: object, path: str = "task") -> Task:
    """Read what `encode_task` returned."""
    with Fields(data, path) as fields:
        return Task(
            index=fields.whole("index"),
            evaluation=fields.text("evaluation"),
            attempt=fields.whole("attempt"),
            slot=fields.optional_whole("slot"),
        )


def encode_submission(submission: Submission) -> dict[str, Any]:
    """Return the plain data of a submission as it is intended: without any answer."""
    return {
        "id": submission.id,
        "job_name": submission.job_name,
        "tasks": [encode_task(task) for task in submission.tasks],
        "resources": dict(submission.resources),
        **({} if submission.is_array else {"is_array": False}),
    }


def decode_submission(
    data: object, path: str = "submission", *, intended_at: str | None = None
) -> Submission:
    """Read what `encode_submission` returned, as a submission that is intended."""
    with Fields(data, path) as fields:
        return Submission(
            id=fields.text("id"),
            job_name=fields.text("job_name"),
            tasks=tuple(decode_task(item, where) for where, item in fields.items("tasks")),
            resources=fields.mapping("resources"),
            intended_at=intended_at,
            # Where it is missing the submission is one, as in all ledgers before it could be not.
            is_array=fields.optional_flag("is_array") is not False,
        )


def encode_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """Return the plain data of an evaluation as it is asked: without state and attempts."""
    data: dict[str, Any] = {
        "id": evaluation.id,
        "point": list(evaluation.point),
        "config": dict(evaluation.config),
        "parameters": evaluation.parameters,
        "seed": evaluation.seed,
    }
    if evaluation.replaces is not None:
        data["replaces"] = evaluation.replaces
    if evaluation.repeats is not None:
        data["repeats"] = evaluation.repeats
    return data


def decode_evaluation(data: object, path: str = "evaluation", *, generation: int) -> Evaluation:
    """Read what `encode_evaluation` returned, as a new evaluation of `generation`."""
    with Fields(data, path) as fields:
        return Evaluation(
            id=fields.text("id"),
            generation=generation,
            point=tuple(as_number(item, where) for where, item in fields.items("point")),
            config=SharedKeys(fields.mapping("config")),
            parameters=fields.whole("parameters"),
            seed=fields.whole("seed"),
            replaces=fields.optional_text("replaces"),
            repeats=fields.optional_text("repeats"),
        )


def decode_run(data: object, path: str = "run") -> Mapping[str, Any]:
    """Check the description of a run, whose parts stay plain data, and return it."""
    with Fields(data, path) as fields:
        run: dict[str, Any] = {key: fields.text(key) for key in _RUN_TEXTS}
        run |= {key: fields.mapping(key) for key in _RUN_OBJECTS}
        # Runs of version 0.1 have none.
        audit = fields.optional_mapping("audit")
    return run if audit is None else run | {"audit": audit}


def decode_member(members: type[_Member], text: str, path: str) -> _Member:
    """Return the member of an enumeration with this value."""
    try:
        return members(text)
    except ValueError as exc:
        known = ", ".join(members)
        raise LedgerCorrupt(f"`{path}` is {describe(text)}, not one of {known}") from exc


def _optional_member(members: type[_Member], fields: Fields, key: str) -> _Member | None:
    text = fields.optional_text(key)
    return None if text is None else decode_member(members, text, f"{fields.path}.{key}")


def _without_none(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value is not None}
