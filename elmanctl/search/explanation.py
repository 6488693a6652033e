"""Explanation of an evaluation: what happened to it and why, one step after the other; pure.

Each step is an event of the ledger, in words.  The reasons are those of the records: the policy's
row for a verdict, the values reported to the optimizer, the requests of submissions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

from elmanctl import clock
from elmanctl.ledger import payloads
from elmanctl.ledger.events import Event
from elmanctl.ledger.payloads import Payload, decode_payload
from elmanctl.ledger.records import Attempt, Evaluation, Evidence, State, Verdict
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.submissions import Resources
from elmanctl.search.effective_settings import effective_settings
from elmanctl.settings import RetrySettings
from elmanctl.space.space import SearchSpace
from elmanctl.verdicts.policy import Feedback, Rule, rule_of

# Waiting shorter than this is no news.
_WAIT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that happened, when, and what is to be said of it; `at` as the ledger has it."""

    at: str
    what: str
    why: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class _Context:
    """The evaluation that is explained, its run, and what earlier events said of it."""

    state: RunState
    evaluation: Evaluation
    retry: RetrySettings
    submissions: dict[str, int] = field(default_factory=dict)
    submitted_at: dict[int, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.evaluation.id

    def attempt(self, number: int) -> Attempt | None:
        found = (each for each in self.evaluation.attempts if each.number == number)
        return next(found, None)


def explain(state: RunState, events: Iterable[Event], evaluation: Evaluation) -> list[Step]:
    """Return the steps of an evaluation, by the events of its run."""
    context = _Context(state=state, evaluation=evaluation, retry=effective_settings(state).retry)
    steps = []
    for event in events:
        described = _describe(decode_payload(event.kind, event.data), context, event.at)
        if described is not None:
            what, *why = described
            steps.append(Step(at=event.at, what=what, why=tuple(why)))
    return steps


@singledispatch
def _describe(payload: Payload, context: _Context, at: str) -> Sequence[str] | None:
    """Return what an event says of the evaluation, and why; None if it says nothing."""
    return None


@_describe.register
def _asked(event: payloads.PointsAsked, context: _Context, at: str) -> Sequence[str] | None:
    names = [plan.id for plan in event.evaluations]
    if context.name not in names:
        return None
    run, own = context.state.run, context.evaluation
    place = _ordinal(context.state.members.get(event.generation, ()).index(own.id) + 1)
    said = [f"asked by {run['optimizer']['name']}: {place} point of generation {event.generation}"]
    said.append(_point(context.state, own))
    said.append(f"its model has {own.parameters:,} parameters; seed {own.seed}")
    if own.replaces:
        said.append(f"in place of {own.replaces}, whose failure says nothing about its point")
    if own.repeats:
        said.append(f"it repeats {own.repeats}: the same configuration")
    return said


@_describe.register
def _confirming(
    event: payloads.ConfirmationAsked, context: _Context, at: str
) -> Sequence[str] | None:
    if context.name not in [plan.id for plan in event.evaluations]:
        return None
    own = context.evaluation
    return (
        f"asked to confirm {own.confirms} on the fresh seed {own.seed}",
        "the optimizer learns nothing of it",
    )


@_describe.register
def _again(event: payloads.ReevaluationAsked, context: _Context, at: str) -> Sequence[str] | None:
    if context.name not in [plan.id for plan in event.evaluations]:
        return None
    own = context.evaluation
    return [f"asked to train {own.reevaluates} again, on the fresh seed {own.seed}"]


@_describe.register
def _submitted(
    event: payloads.SubmissionIntended, context: _Context, at: str
) -> Sequence[str] | None:
    asked = event.submission
    task = next((each for each in asked.tasks if each.evaluation == context.name), None)
    if task is None:
        return None
    context.submissions[asked.id] = task.index
    context.submitted_at[task.attempt] = at
    where = "" if task.allocation is None else f" inside allocation {task.allocation.job_id}"
    said = [f"attempt {task.attempt} submitted{where}"]
    if request := _request(asked.resources):
        said.append(f"it asks for {request}")
    if len(asked.tasks) > 1:
        said.append(f"with {len(asked.tasks) - 1} others, as {asked.id}")
    if asked.resources.exclude:
        said.append(f"not on {', '.join(asked.resources.exclude)}")
    return said


@_describe.register
def _accepted(
    event: payloads.SubmissionAccepted, context: _Context, at: str
) -> Sequence[str] | None:
    if event.submission not in context.submissions:
        return None
    index = context.submissions[event.submission]
    job = context.state.submissions[event.submission].job_of(event.job_id, index)
    found = ["found by its name, for its answer was lost"] if event.adopted else []
    return [f"taken as job {job}", *found]


@_describe.register
def _refused(event: payloads.SubmissionRefused, context: _Context, at: str) -> Sequence[str] | None:
    if event.submission not in context.submissions:
        return None
    return ["the submission was refused", event.error]


@_describe.register
def _abandoned(
    event: payloads.SubmissionAbandoned, context: _Context, at: str
) -> Sequence[str] | None:
    if event.submission not in context.submissions:
        return None
    return ["the submission was given up, and does not count as an attempt", event.error]


@_describe.register
def _started(event: payloads.AttemptStarted, context: _Context, at: str) -> Sequence[str] | None:
    if event.evaluation != context.name:
        return None
    began = event.at or at
    waited_s = _seconds(context.submitted_at.get(event.attempt), began)
    node = f" on {event.node}" if event.node else ""
    waited = f", after {clock.format_rough(waited_s)}" if waited_s >= _WAIT_S else ""
    return [f"attempt {event.attempt} seen at work{node}{waited}"]


@_describe.register
def _stopped(event: payloads.StopDecided, context: _Context, at: str) -> Sequence[str] | None:
    if event.evaluation != context.name:
        return None
    stop = event.stop
    return (
        f"attempt {event.attempt} stopped early by the rule `{stop.rule}`",
        f"at {stop.share:.0%} of its budget its loss was {stop.loss:.4f} and {stop.predicted:.4f} "
        f"was predicted, against {stop.limit:.4f} of {stop.compared} others",
    )


@_describe.register
def _finished(event: payloads.AttemptFinished, context: _Context, at: str) -> Sequence[str] | None:
    if event.evaluation != context.name:
        return None
    attempt = context.attempt(event.attempt)
    elapsed = "" if event.elapsed_s is None else f" after {clock.format_rough(event.elapsed_s)}"
    sure = "" if event.verdict.confidence is None else f", {event.verdict.confidence}"
    cause = "" if event.verdict.cause is None else f" ({event.verdict.cause})"
    said = [f"attempt {event.attempt} ended{elapsed}: {event.verdict.kind}{cause}{sure}"]
    said += [f"{quote.source}: {quote.text}{place_of(quote)}" for quote in event.verdict.evidence]
    said += _origin(event.result or {})
    if attempt is not None:
        said.append(_policy(event.verdict, context.retry))
    return said


@_describe.register
def _excluded(event: payloads.NodeExcluded, context: _Context, at: str) -> Sequence[str] | None:
    if f" of {context.name} attempt " not in event.reason:
        return None
    until = clock.from_text(event.until).astimezone()
    return [f"{event.node} gets no jobs of this run until {until:%H:%M}", event.reason]


@_describe.register
def _closed(event: payloads.EvaluationClosed, context: _Context, at: str) -> Sequence[str] | None:
    if event.evaluation != context.name:
        return None
    loss = context.evaluation.loss
    value = f", loss {loss!r}" if event.state is State.COMPLETED and loss is not None else ""
    return [f"decided: {event.state}{value}"]


@_describe.register
def _answered(
    event: payloads.EvaluationAnswered, context: _Context, at: str
) -> Sequence[str] | None:
    if event.evaluation != context.name:
        return None
    value = "" if event.loss is None else f", loss {event.loss!r}"
    return [
        f"answered by {event.by} without a job: {event.state}{value}",
        "it has the same configuration and seed, and would end the same",
    ]


@_describe.register
def _reopened(
    event: payloads.EvaluationReopened, context: _Context, at: str
) -> Sequence[str] | None:
    if event.evaluation != context.name:
        return None
    changes = ", ".join(f"{key}={value}" for key, value in event.changes.items())
    return [f"requeued by {event.by}" + (f" with {changes}" if changes else "")]


@_describe.register
def _reported(event: payloads.ValueReported, context: _Context, at: str) -> Sequence[str] | None:
    if event.evaluation != context.name:
        return None
    return [f"the optimizer learned {event.value!r}", *_meaning(context)]


@_describe.register
def _reported_with_generation(
    event: payloads.GenerationTold, context: _Context, at: str
) -> Sequence[str] | None:
    if (
        context.evaluation.generation != event.generation
        or context.name in context.state.unreported
    ):
        return None
    value = dict(event.told).get(context.name)
    if value is not None:
        learned = f"the optimizer learned {value!r}, with generation {event.generation}"
        return [learned, *_meaning(context)]
    if not event.told:
        return None
    return [f"the optimizer learned nothing of it, of generation {event.generation}"]


@_describe.register
def _cleaned(event: payloads.Cleaned, context: _Context, at: str) -> Sequence[str] | None:
    if event.evaluation != context.name and context.name not in (event.evaluations or {}):
        return None
    return [f"its {event.kind} were cleaned away"]


def _policy(verdict: Verdict, retry: RetrySettings) -> str:
    """Return what the policy says of a verdict: whether it is tried again, and what is learned."""
    rule = rule_of(verdict)
    learned = f"the optimizer learns {_FEEDBACK[rule.feedback]}"
    if rule.setting is None:
        return f"policy: final; {learned}"
    count = int(getattr(retry, rule.setting))
    retries = "no retry" if not count else "1 retry" if count == 1 else f"{count} retries"
    again = f"`retry.{rule.setting}` allows {retries}" + (_change(rule) if count else "")
    return f"policy: {again}; without one {learned}"


def _change(rule: Rule) -> str:
    change = "" if rule.change.value == "nothing" else f", each with {rule.change.value}"
    return change + (", from the checkpoint" if rule.resumes else "")


_FEEDBACK: Mapping[Feedback, str] = {
    Feedback.LOSS: "its loss",
    Feedback.PREDICTION: "its predicted loss",
    Feedback.LAST: "that it is worse than all others",
    Feedback.NOTHING: "nothing",
}


def _meaning(context: _Context) -> list[str]:
    """Return why another value than its loss was reported."""
    last = context.evaluation.last_attempt
    if last is None or last.verdict is None or context.evaluation.answer is not None:
        return []
    feedback = rule_of(last.verdict).feedback
    meanings = {
        Feedback.LAST: "a rank behind the worst loss, for it diverged",
        Feedback.PREDICTION: "the loss that was predicted when it was stopped",
    }
    return [meanings[feedback]] if feedback in meanings else []


def _point(state: RunState, evaluation: Evaluation) -> str:
    """Return the values of the axes of the search, as they are."""
    names = [axis.name for axis in SearchSpace.decode(state.run["space"]).axes]
    values = evaluation.hyperparameters
    chosen = [f"{name}={values[name]!r}" for name in names if name in values]
    solved = f"; dim={values['dim']}" if "dim" in values and "dim" not in names else ""
    return f"{', '.join(chosen)}{solved}"


def _request(resources: Resources) -> str:
    """Return what a job, or each of its attempts, asks for."""
    parts = [
        resources.gres,
        f"{resources.cpus} CPU{'s' * (resources.cpus > 1)}" if resources.cpus else None,
        f"{resources.mem_gb:g} GB" if resources.mem_gb else None,
        f"{resources.timeout_min:g} min" if resources.timeout_min else None,
        f"partition {resources.partition}" if resources.partition else None,
        f"{resources.nodes} nodes" if resources.nodes > 1 else None,
        f"{resources.per_job} attempts in a job" if resources.per_job > 1 else None,
    ]
    return ", ".join(part for part in parts if part)


def _origin(result: Mapping[str, Any]) -> list[str]:
    """Return where a training went on, or why it began anew."""
    found = result.get("continued_from")
    if found:
        source = found.get("source") or f"attempt {found['attempt']}"
        return [f"it went on from {source}, step {found['step']}"]
    reason = result.get("not_continued")
    return [f"it began anew: {reason}"] if reason else []


def place_of(quote: Evidence) -> str:
    """Return the file and line of evidence, as it is appended to its text."""
    if quote.file is None:
        return ""
    return f" [{quote.file}]" if quote.line is None else f" [{quote.file}:{quote.line}]"


def _seconds(began: str | None, ended: str) -> float:
    if began is None:
        return 0.0
    return (clock.from_text(ended) - clock.from_text(began)).total_seconds()


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 // 10 != 1 else 0, "th")
    return f"{number}{ending}"
