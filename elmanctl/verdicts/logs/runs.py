"""Detection of several runs in one log, by its form; pure.

A launcher announces each run by a number or a name of its own; and a run that starts over prints
the same lines again, and counts from the same step again.
"""

import re
from dataclasses import dataclass, field

# Announcements of a run by its launcher.
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
# One of one is a single run.
_ALONE = re.compile(r"\b1 jobs\b|\b1/1\b|\bNumber of trials\W{1,40}1\b")
_STEP = re.compile(r"(?i)\b(?:step|iter|iteration|it)\b\W{0,6}(\d{1,12})\b")


def is_alone(line: str) -> bool:
    """Whether a line that looks like one of many runs is about a single one."""
    return _ALONE.search(line) is not None


@dataclass(slots=True)
class Runs:
    """The runs announced so far, and the step that the current one is at.

    `in_parts`: a counter restarts within one run, as that of an epoch does.
    """

    in_parts: bool = False
    _announced: dict[str, str] = field(default_factory=dict)
    _script: str | None = None
    _first_step: int | None = None
    _last_step: int | None = None
    _marked: bool = False
    _head: str | None = None
    _died: bool = False
    _restarted: bool = False

    def announces_another(self, line: str, *, has_trained: bool) -> bool:
        """Note an announcement of a run; return whether it is another than the first."""
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
        # Of a heading, the word before the number: a run and its seed are the same run.
        kind = _WORD.match(name) if who in ("headed", "counted") else None
        return self._announced.setdefault(kind[0] if kind else who, name) != name

    def head(self, shape: str) -> None:
        """Note a line from the start of a run, without its numbers."""
        self._marked = True
        self._head = self._head or shape
        self._restarted |= self._died and shape == self._head

    def end(self) -> None:
        """Note a finish or an error."""
        self._marked = True

    def dies_again(self) -> bool:
        """Note an uncaught exception; return whether another run died before."""
        self._marked = True
        self._died = True
        return self._restarted and not self.in_parts

    def begins_again(self, line: str) -> bool:
        """Note a step with its loss; return whether another run starts with it."""
        found = _STEP.search(line)
        if found is None:
            return False
        step, first, last = int(found[1]), self._first_step, self._last_step
        self._first_step, self._last_step = step if first is None else first, step
        marked, self._marked = self._marked, False
        again = first is not None and last is not None and step <= first < last
        return again and marked and not self.in_parts
