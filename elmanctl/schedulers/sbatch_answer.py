"""Interpretation of sbatch's answer: accepted, refused for good or for now, or perhaps accepted.

The messages are those of Slurm's table of errors (22.05 to 26.05), of sbatch itself, and typical
ones of the sites' plugins.  Only an unambiguous message counts as a refusal; after an unrecognized
one the job is looked up by its name before anything is concluded.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

_T = TypeVar("_T")


class Outcome(StrEnum):
    """What became of a submission."""

    ACCEPTED = "accepted"
    NEVER = "never"  # the same request will be refused again
    NOT_NOW = "not now"  # the same request may pass later, or with fewer tasks
    PERHAPS = "perhaps"  # the job may exist, and is looked up by its name


class Reason(StrEnum):
    """Why sbatch did not accept a submission."""

    LIMIT = "limit"  # the number of jobs at one time: fewer may fit
    BUSY = "busy"  # the cluster's controller accepts nothing for the moment
    CLOSED = "closed"  # the partition, the reservation or the nodes are not available now
    ARRAY = "array"  # the array is too large, or arrays are not supported
    POLICY = "policy"  # a limit on jobs, or on the request: the message does not say which
    REQUEST = "request"  # the request itself
    LOST = "lost"  # the answer was lost, or part of it
    UNKNOWN = "unknown"  # an unrecognized message


@dataclass(frozen=True, slots=True, kw_only=True)
class SbatchAnswer:
    """One answer: `words` are sbatch's own, `key` is the setting to change if it is known.

    `is_certain`: Slurm gives this answer only if it created no job.
    """

    outcome: Outcome
    reason: Reason | None = None
    words: str = ""
    job_id: str | None = None
    key: str | None = None
    is_certain: bool = False


_BRIEF = 300

# Exit codes of `timeout` and shells for a command that timed out or got a signal.  sbatch itself
# returns 255 for invalid options.
_CUT_SHORT = (124, *range(129, 193))

# `--parsable` prints the id, and the cluster's name where there are several.
_ID = re.compile(r"([0-9]{1,10})(?:;[A-Za-z0-9._-]+)?")

_PREFIX = re.compile(
    r"^\s*(?:sbatch:\s*)?(?:error:\s*|fatal:\s*)*(?:Batch job submission failed:\s*"
    r"|allocation failure:\s*)?",
    re.IGNORECASE,
)
_ERROR = re.compile(
    r"^.*(?:Batch job submission failed|allocation failure): *(.*)$", re.IGNORECASE | re.MULTILINE
)
_TRYING = re.compile(r"sleeping and retrying", re.IGNORECASE)

# The connection failed before, during or after the answer.  These messages outrank all others: of
# several attempts of a wrapper, the first may have been accepted.
_LOST = re.compile(
    r"timed out|zero bytes were|unable to contact|connection (?:refused|reset|closed|aborted)"
    r"|broken pipe|closed by (?:remote|peer|foreign)|no route to host|host is down"
    r"|network is (?:unreachable|down)|transport endpoint|unexpected message received"
    r"|message (?:receive|send) failure"
    r"|communication (?:connection|shutdown) failure|connection rejected by handler"
    r"|forced closed|delayed socket error|socket error|shutting down and closing"
    r"|header lengths are longer|insane message length|would block|protocol authentication error"
    # Messages of a wrapper that talks to Slurm over HTTP.
    r"|gateway time-?out|bad gateway|service unavailable"
    r"|slurm_receive_msg|unable to process (?:incoming|outgoing)|interrupted system call"
    r"|entire message|zero length message|server not responding",
    re.IGNORECASE,
)

# A reason as squeue writes it, on a line of its own before the error (since Slurm 19.05).
_SUBMIT_LIMIT = re.compile(r"\b(?:Assoc|QOS|Max|Grp)\w*Submit\w*", re.IGNORECASE)
_OTHER_LIMIT = re.compile(r"\b(?:Assoc|QOS)(?:Max|Min|Grp|Job|Resource|Time)\w*")
_LIMITED = (
    *(("wall", "slurm.timeout_min"), ("minutes", "slurm.timeout_min"), ("gres", "slurm.gres")),
    *(("mem", "slurm.mem_gb"), ("cpu", "slurm.cpus")),
)
_POLICY = re.compile(r"violates accounting/QOS policy", re.IGNORECASE)

_TOO_LARGE = re.compile(r"invalid job array specification", re.IGNORECASE)

# Adjectives of jobs in the messages of sites' plugins.
_SUCH = (
    r"(?:(?:a|the|your|all|\(?\d+\)?|allowed|permitted|queued|pending|running|submitted|waiting|active"
    r"|concurrent|simultaneous|total|gpu|cpu|batch|user|slurm) )*"
)

_NOT_NOW: tuple[tuple[str, Reason], ...] = (
    (r"MaxJobCount|queue (?:is )?full|unable to create job record", Reason.LIMIT),
    (r"temporarily unable to accept job|resource temporarily unavailable", Reason.LIMIT),
    (r"too many (?:\w+ ){0,2}jobs", Reason.LIMIT),
    (r"jobs? (?:\w+ )?limit (?:\w+ )?(?:been )?(?:reached|exceeded)", Reason.LIMIT),
    (rf"\b(?:max(?:imum)?|limit|number) (?:number )?(?:of|on) {_SUCH}jobs\b", Reason.LIMIT),
    (rf"\b\d+ {_SUCH}jobs\b|\b(?:1|one) {_SUCH}job (?:at a time|per user)", Reason.LIMIT),
    (r"rate limit|standby mode|job creation temporarily disabled", Reason.BUSY),
    (r"presently disabled|no new jobs|not (?:\w+ )?accepting", Reason.BUSY),
    (
        r"submissions? (?:(?:is|are|has|have|been|was|were|currently) )*"
        r"(?:disabled|closed|suspended|stopped|paused|halted)",
        Reason.BUSY,
    ),
    (r"error writing script/environment|unable to connect to database", Reason.BUSY),
    (r"(?:job|authentication) credential|authentication agent|\bmunge", Reason.BUSY),
    (r"requested nodes are busy|license server", Reason.BUSY),
    (r"currently (?:unavailable|not available|closed|down|offline)", Reason.BUSY),
    (r"required (?:partition|node) not available|partition in down state", Reason.CLOSED),
    (r"reservation (?:is in use|not usable now)|maintenance|\bdown-?time|outage", Reason.CLOSED),
    (r"max powered up nodes|burst buffer resource limit|for burst buffer", Reason.CLOSED),
    (r"breached requested qos usage threshold", Reason.CLOSED),
    (
        r"(?:try|retry|submit) (?:it )?again (?:later|soon|in|after|when|once)\b|please retry"
        r"|(?:try|retry|submit) later|\bwait (?:until|for|a)\b",
        Reason.BUSY,
    ),
    (r"\btemporar(?:y|ily)\b|too busy|overloaded", Reason.BUSY),
)

# Faults of the request, and the setting at fault.
_NEVER: tuple[tuple[str, str | None], ...] = (
    (r"partition name|invalid partition|no partition specified", "slurm.partition"),
    (r"to use this partition|not in this partition", "slurm.partition"),
    (r"requested partition configuration", "slurm.partition"),
    (r"invalid account\b|invalid or unknown association", "slurm.account"),
    (r"invalid qos|permission denied for qos", "slurm.extra"),
    (r"invalid (?:feature|preferred feature|wckey|licenses?|mcs_label|extra)", "slurm.extra"),
    (r"invalid accounting frequency", "slurm.extra"),
    (r"invalid (?:--)?nice|invalid node name|invalid burst|job dependency", "slurm.extra"),
    (r"requested reservation is invalid|access denied to requested reserv", "slurm.extra"),
    (r"time limit (?:is invalid|specification required)|time-min spec", "slurm.timeout_min"),
    (r"invalid --time", "slurm.timeout_min"),
    (r"\bgres\b|generic resource|invalid (?:tres|trackable resource)", "slurm.gres"),
    (r"memory (?:required|specification)", "slurm.mem_gb"),
    (r"more processors requested|cpu count specification|threads per core", "slurm.cpus"),
    (r"node configuration is not available|topology configuration is not", None),
    (r"specification invalid|access/permission denied|not permitted", None),
    (r"invalid --|unrecognized option|invalid option", "slurm.extra"),
    (r"unable to open file|batch script", None),
    (r"does not look like a batch script|parameter too long", None),
    (r"not supported on this system|only batch jobs", None),
    (r"invalid (?:user|group) id", None),
)


def brief(words: str) -> str:
    """Return sbatch's message in one line: the reason, without prefixes and notes on retries."""
    lines = [_PREFIX.sub("", line).strip() for line in words.splitlines()]
    reasons = [line for line in lines if line and not _TRYING.search(line)] or lines
    return "; ".join(reasons)[:_BRIEF]


def read_answer(code: int, stdout: str, stderr: str) -> SbatchAnswer:
    """Return what sbatch's exit code and output mean; a code below zero is a signal."""
    words = stderr.strip() or stdout.strip() or f"exit code {code}"
    if code == 0:
        found = _ID.fullmatch(stdout.strip())
        if found:
            return SbatchAnswer(outcome=Outcome.ACCEPTED, words=words, job_id=found[1])
        # A banner may hold any number, so its job can be found by name only.
        words = stdout.strip() or stderr.strip() or "sbatch printed no job id"
        return SbatchAnswer(outcome=Outcome.PERHAPS, reason=Reason.UNKNOWN, words=words)
    if code < 0 or code in _CUT_SHORT or _LOST.search(words):
        return SbatchAnswer(outcome=Outcome.PERHAPS, reason=Reason.LOST, words=words)
    return _refusal(words)


def _refusal(words: str) -> SbatchAnswer:
    """Classify the message of an sbatch that failed after it had got Slurm's whole answer."""
    if _POLICY.search(words):
        return _classify_limit(words) or _certain(Outcome.NOT_NOW, Reason.POLICY, words)
    # Slurm's own error outranks messages of plugins and warnings before it, unless it is empty
    # ("Unspecified error").
    errors = _ERROR.findall(words)
    for text in (*errors[-1:], words):
        found = _classify_error(text, words)
        if found is not None:
            return found
    return SbatchAnswer(outcome=Outcome.PERHAPS, reason=Reason.UNKNOWN, words=words)


def _classify_limit(words: str) -> SbatchAnswer | None:
    """Return the answer for a message that names a limit, None if it names none."""
    if _SUBMIT_LIMIT.search(words):
        return _certain(Outcome.NOT_NOW, Reason.LIMIT, words)
    limit = _OTHER_LIMIT.search(words)
    if limit is None:
        return None
    key = next((key for part, key in _LIMITED if part in limit[0].lower()), None)
    return _certain(Outcome.NEVER, Reason.REQUEST, words, key)


def _classify_error(text: str, words: str) -> SbatchAnswer | None:
    """Return the answer for an error text within a message, None for an unrecognized text."""
    if _TOO_LARGE.search(text):
        return _certain(Outcome.NEVER, Reason.ARRAY, words)
    limit = _classify_limit(text)
    if limit is not None:
        return limit
    if _named(text, _NEVER):
        key = next((key for _, key in _named(text, _NEVER) + _named(words, _NEVER) if key), None)
        return _certain(Outcome.NEVER, Reason.REQUEST, words, key)
    for _, reason in _named(text, _NOT_NOW):
        return SbatchAnswer(outcome=Outcome.NOT_NOW, reason=reason, words=words)
    return None


def _certain(outcome: Outcome, reason: Reason, words: str, key: str | None = None) -> SbatchAnswer:
    return SbatchAnswer(outcome=outcome, reason=reason, words=words, key=key, is_certain=True)


def _named(text: str, rules: Sequence[tuple[str, _T]]) -> list[tuple[str, _T]]:
    """Return the rules that match a text."""
    return [rule for rule in rules if re.search(rule[0], text, re.IGNORECASE)]
