"""Whether a log tells of one run after the other, by its form; pure.

What starts runs announces each by a number or a name of its own; and a run that begins again
prints what it printed at first, and counts from where it counted at first.
"""

import re
from dataclasses import dataclass, field

# Who announces a run, and which.
_ANNOUNCED = re.compile(
    r"\[HYDRA\]\s+#(?P<hydra>\d+) :|^wandb: Agent Starting Run: (?P<wandb>\w+)"
    r"|^\++ (?:\S+=\S+ )*(?P<traced>(?:\S*/)?(?:python[\d.]*|torchrun|srun|accelerate) .{1,400})"
    r"|^\W{0,4}[=#*>-]{2,40}\W{0,4}(?P<headed>(?i:run|experiment|trial|seed|config|job|sweep)\b"
    r"\W{0,4}(?:\d\w{0,20}|\w{1,30}=[\w.+-]{1,30}))"
    r"|^\W{0,4}(?P<counted>(?i:run|experiment|trial|config|job|seed)\W{1,3}\d{1,6})"
    r"(?: ?/ ?\d| of \d|\W*$)"
    r"|^\[(?P<named>(?i:run|trial|job|task|experiment|config)\W?\d{1,6})\] "
    r"|\bSLURM_ARRAY_TASK_ID\W{1,3}(?P<task>\d+)|\bSLURM_JOB_?ID\W{1,3}(?P<job>\d+)"
)
_WORD = re.compile(r"[a-z]+")
_SCRIPT = re.compile(r"\S{1,200}\.py\b|-m \S+")
# One of one is a run.
_ALONE = re.compile(r"\b1 jobs\b|\b1/1\b|\bNumber of trials\W{1,40}1\b")
_STEP = re.compile(r"(?i)\b(?:step|iter|iteration|it)\b\W{0,6}(\d{1,12})\b")


def is_alone(line: str) -> bool:
    """Whether a line that could tell of many runs tells of one."""
    return _ALONE.search(line) is not None


@dataclass(slots=True)
class Runs:
    """What was announced so far, and where the count of steps stands.

    `in_parts`: something counts from its beginning more than once in one run, an epoch for one.
    """

    in_parts: bool = False
    _announced: dict[str, str] = field(default_factory=dict)
    _script: str | None = None
    _first_step: int | None = None
    _last_step: int | None = None
    _marked: bool = False
    _head: str | None = None
    _died: bool = False
    _reborn: bool = False

    def announces_another(self, line: str, *, has_trained: bool) -> bool:
        """Take notice of what announces a run; whether that is not the first."""
        found = _ANNOUNCED.search(line)
        if found is None:
            return False
        if found["traced"]:
            script = _SCRIPT.search(found["traced"])
            again = script is not None and script[0] == self._script
            self._script = script[0] if script else self._script
            return again and has_trained
        who = str(found.lastgroup)
        name = found[who].lower()
        # Of a heading, the word before the number: a run and its seed are one.
        kind = _WORD.match(name) if who in ("headed", "counted") else None
        return self._announced.setdefault(kind[0] if kind else who, name) != name

    def head(self, shape: str) -> None:
        """Take notice of a line that tells of a beginning, without its numbers."""
        self._marked = True
        self._head = self._head or shape
        self._reborn |= self._died and shape == self._head

    def end(self) -> None:
        """Take notice of a finish, or of an error."""
        self._marked = True

    def dies_again(self) -> bool:
        """Take notice of an exception that nobody caught; whether another run died before."""
        self._marked = True
        self._died = True
        return self._reborn and not self.in_parts

    def begins_again(self, line: str) -> bool:
        """Take notice of a step with its loss; whether another run has begun with it."""
        found = _STEP.search(line)
        if found is None:
            return False
        step, first, last = int(found[1]), self._first_step, self._last_step
        self._first_step, self._last_step = step if first is None else first, step
        marked, self._marked = self._marked, False
        again = first is not None and last is not None and step <= first < last
        return again and marked and not self.in_parts
