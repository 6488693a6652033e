"""The cost of attempts: seconds, and device-seconds by the GPUs they requested."""

import re
from dataclasses import dataclass
from datetime import datetime

from elmanctl import clock
from elmanctl.ledger.records import Attempt
from elmanctl.ledger.submissions import Resources

# Options of a Slurm job for one node; each is a number, or `type:number`, or a list.
_NODE_OPTIONS = ("gpus_per_node", "gpus_per_socket")

# `gpu`, `gpu:2`, `gpu:a100`, `gpu:a100:2`, also as `gres/gpu=2` and with `(S:0-1)` behind.
_GRES = re.compile(r"(?:gres/)?gpu(?:[:=](?P<rest>[^(]*))?(?:\(.*\))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """A sum over attempts: how many, how long they ran, and that times their devices."""

    attempts: int = 0
    elapsed_s: float = 0.0
    device_s: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            attempts=self.attempts + other.attempts,
            elapsed_s=self.elapsed_s + other.elapsed_s,
            device_s=self.device_s + other.device_s,
        )

    def __sub__(self, other: "Spent") -> "Spent":
        # Fractions that were added and are taken away again may leave a trace below 0.
        return Spent(
            attempts=self.attempts - other.attempts,
            elapsed_s=max(0.0, self.elapsed_s - other.elapsed_s),
            device_s=max(0.0, self.device_s - other.device_s),
        )


def cost_of(attempt: Attempt, device_count: int, now: datetime | None = None) -> Spent:
    """Return what one attempt cost on so many devices.

    Waiting in the queue costs nothing.  An attempt that runs cost what it did until `now`.
    """
    elapsed_s = _elapsed_s(attempt, now)
    return Spent(attempts=1, elapsed_s=elapsed_s, device_s=elapsed_s * device_count)


def left_of(attempt: Attempt, cost: Spent) -> Spent:
    """Return about what the rest of a training that was stopped early would have cost.

    That is its own cost, of the training alone where its worker said how long that was, for each
    share of the budget that was left.
    """
    if attempt.stop is None:
        return Spent()
    result = attempt.result or {}
    share, trained_s = result.get("share"), result.get("elapsed_s")
    done = share if isinstance(share, float) and 0 < share <= 1 else attempt.stop.share
    elapsed_s = float(trained_s) if isinstance(trained_s, int | float) else cost.elapsed_s
    left_s = max(0.0, elapsed_s) * (1 - done) / done
    by_device = cost.device_s / cost.elapsed_s if cost.elapsed_s else 1.0
    return Spent(attempts=1, elapsed_s=left_s, device_s=left_s * by_device)


def devices(resources: Resources) -> int:
    """Return by how many a job's time counts: its GPUs, or its tasks where it has fewer."""
    return max(resources.tasks, gpus_asked(resources))


def gpus_asked(resources: Resources) -> int:
    """Return how many GPUs the job of one attempt asks for, 0 for none."""
    extra = {key.replace("-", "_"): value for key, value in resources.extra.items()}
    each = [_in_gres(resources.gres), *(_in_option(extra.get(key)) for key in _NODE_OPTIONS)]
    each.append(resources.tasks_per_node * _in_option(extra.get("gpus_per_task")))
    return max(resources.nodes * max(each), _in_option(extra.get("gpus")))


def _in_gres(text: object) -> int:
    words = str(text or "").split(",")
    found = [match for word in words if (match := _GRES.fullmatch(word.strip()))]
    return sum(_count(match["rest"]) for match in found)


def _in_option(value: object) -> int:
    if value is None or value is False:
        return 0
    return sum(_count(word.strip()) for word in str(value).split(","))


def _count(text: str | None) -> int:
    """Return the number at the end of `2`, `a100:2` or `a100`; without one it is 1."""
    last = (text or "").replace("=", ":").split(":")[-1]
    return int(last) if last.isdigit() else 1


def _elapsed_s(attempt: Attempt, now: datetime | None) -> float:
    if attempt.elapsed_s is not None:
        return max(0.0, attempt.elapsed_s)
    began, end = _moment(attempt.started_at), _moment(attempt.finished_at) or now
    if began is None or end is None:
        return 0.0
    return max(0.0, (end - began).total_seconds())


def _moment(text: str | None) -> datetime | None:
    """Return a moment on record, None for one that does not say of which zone it is."""
    try:
        moment = clock.from_text(text) if text is not None else None
    except ValueError:
        return None
    return moment if moment is not None and moment.tzinfo is not None else None
