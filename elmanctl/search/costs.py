"""Costs of a search: spent so far, forecast to its end, and held against its budget; pure.

A cost is in device-seconds: the elapsed time of an attempt times the GPUs it requested, or times
1 for a job without GPUs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from elmanctl import clock
from elmanctl.errors import SearchPaused
from elmanctl.ledger.records import Evaluation, RunStatus, State, VerdictKind
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.spending import Spent, cost_of, gpus_asked
from elmanctl.ledger.submissions import Resources
from elmanctl.ledger.summary import RunSummary
from elmanctl.settings import BudgetSettings

_HOUR_S = 3600.0

GPU_HOURS = "GPU-hours"

# Tolerance for rounding: a budget that is met exactly must not look exceeded.
_SLACK = 1e-6


# The verdicts of attempts that taught the optimizer something for what they cost.
_USEFUL = (VerdictKind.COMPLETED.value, VerdictKind.STOPPED.value)

# Of `[search]`.  A run older than these has no confirmations.
CONFIRMATION_KEYS = ("confirm_top", "confirm_seeds")

Account = RunState | RunSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One limit of `[budget]` and the amount used, in the unit of the limit."""

    key: str
    limit: float
    used: float

    @property
    def left(self) -> float:
        """The amount that is left."""
        return max(0.0, self.limit - self.used)

    @property
    def is_used_up(self) -> bool:
        """Whether nothing more may be submitted."""
        return self.used >= self.limit * (1 - _SLACK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The expected total cost of a search, and the controller's remaining working time.

    `device_s` and `left_s` are None before the first evaluation has finished.
    """

    evaluations_left: int
    device_s: float | None
    left_s: float | None


def effective_setting(state: Account, key: str) -> Any:
    """Return the current value of a setting; None for a run older than the setting."""
    section, name = key.split(".")
    recorded: Mapping[str, Any] = state.run["settings"].get(section, {})
    return state.changes.get(key, recorded.get(name))


def effective_budget(state: Account) -> BudgetSettings:
    """Return the current budget of a run."""
    names = [item.name for item in fields(BudgetSettings)]
    return BudgetSettings(**{name: effective_setting(state, f"budget.{name}") for name in names})


def unit_of(state: Account) -> str:
    """Return the name of this run's unit of cost."""
    if state.run["executor"] == "local":
        return unit_name(has_gpus=bool(effective_setting(state, "local.gpus")))
    asked = Resources(
        gres=effective_setting(state, "slurm.gres"),
        extra=effective_setting(state, "slurm.extra") or {},
    )
    return unit_name(has_gpus=gpus_asked(asked) > 0)


def unit_name(*, has_gpus: bool) -> str:
    """Return the name of a device-hour: a job without GPUs counts as one device."""
    return GPU_HOURS if has_gpus else "job-hours"


def ended(state: Account) -> Spent:
    """Return the cost of all finished attempts."""
    return sum(state.spent.values(), Spent())


def in_flight(state: Account, now: datetime) -> list[Spent]:
    """Return the cost so far of each live attempt."""
    return [cost_of(attempt, devices, now) for attempt, devices in state.flights]


def spent_device_s(state: Account, now: datetime) -> float:
    """Return the cost of a run until now, live attempts included."""
    return ended(state).device_s + sum(cost.device_s for cost in in_flight(state, now))


def wasted(state: Account) -> dict[str, Spent]:
    """Return the cost of attempts that gave neither a loss nor a predicted one, by verdict."""
    return {k: cost for k, cost in sorted(state.spent.items()) if k not in _USEFUL}


def failures(state: Account) -> int:
    """Return the number of failed attempts; cancelled ones are not counted."""
    return sum(c.attempts for k, c in wasted(state).items() if k != VerdictKind.CANCELLED)


def worked_s(state: Account, now: datetime) -> float:
    """Return the total working time of controllers.

    A killed controller counts until its last event: how long it lived after that is unknown.
    """
    if state.status is not RunStatus.RUNNING or state.last_event_at is None:
        return state.wall_s
    return state.wall_s + max(0.0, (now - clock.from_text(state.last_event_at)).total_seconds())


def idle_share(state: Account) -> float | None:
    """Return the share of the time of slots in which they stood empty; None before any counts.

    See `ledger.idle`.
    """
    return state.idle_s / state.slot_s if state.slot_s else None


def idle_device_s(state: Account) -> float:
    """Return the seconds of idle slots times the GPUs that they held.

    Those are the GPUs of this machine, of an allocation, and of the attempts of a job that ended
    before its last one.  A job of one attempt ends with that, and leaves its GPU to others.
    """
    if state.run["executor"] != "local":
        return state.held_idle_s
    if not effective_setting(state, "local.gpus"):
        return 0.0
    return state.idle_s * (effective_setting(state, "train.gpus") or 1)


def gpus_held(state: Account, *, has_controller: bool) -> tuple[int, int]:
    """Return how many GPUs jobs and the allocation of a run hold, and at how many one works.

    A job without a GPU counts as one.  Of an allocation nothing is known without a controller.
    """
    at_work = sum(count for attempt, count in state.flights if attempt.started_at is not None)
    each = max((count for _, count in state.flights), default=1)
    slots = (state.controller or {}).get("slots")
    if slots is not None and has_controller:
        return max(at_work, slots * each), at_work
    return at_work + each * sum(job.ended for job in state.held_jobs.values()), at_work


def uses(state: Account, budget: BudgetSettings, *, device_s: float, wall_s: float) -> list[Use]:
    """Return every limit that is set, and how much of it is used."""
    used = {
        "evaluations": float(state.trained),
        "gpu_hours": device_s / _HOUR_S,
        "wall_h": wall_s / _HOUR_S,
        "failures": float(failures(state)),
    }
    limits = {key: getattr(budget, key) for key in used}
    return [
        Use(key=key, limit=float(limits[key]), used=amount)
        for key, amount in used.items()
        if limits[key] is not None
    ]


def mean_device_s(state: Account) -> float | None:
    """Return the mean cost of an attempt that completed or was stopped, None before the first."""
    useful = _useful(state)
    return useful.device_s / useful.attempts if useful.attempts else None


def _useful(state: Account) -> Spent:
    return sum((state.spent[kind] for kind in _USEFUL if kind in state.spent), Spent())


def affordable(
    waiting: Sequence[Evaluation],
    state: Account,
    budget: BudgetSettings,
    *,
    expected_device_s: float | None,
    now: datetime,
) -> list[Evaluation]:
    """Return the waiting evaluations whose next attempt the budget covers, in order.

    A live attempt is expected to cost the mean, or what it has cost already if that is more.
    Without an expected cost, everything is affordable until the budget is used up.
    """
    # Only a limit on device-hours depends on the cost of live attempts.
    running = [] if budget.gpu_hours is None else in_flight(state, now)
    device_s = ended(state).device_s + sum(cost.device_s for cost in running)
    found = uses(state, budget, device_s=device_s, wall_s=worked_s(state, now))
    limits = {use.key: use for use in found}
    if any(use.is_used_up for key, use in limits.items() if key != "evaluations"):
        return []
    chosen = list(waiting)
    if "evaluations" in limits:
        room = int(limits["evaluations"].left)
        # `budget.evaluations` counts an evaluation once, at its first attempt.
        new = [each.id for each in chosen if not each.attempts][room:]
        chosen = [each for each in chosen if each.id not in new]
    if "gpu_hours" in limits and expected_device_s:
        to_come = sum(max(0.0, expected_device_s - cost.device_s) for cost in running)
        left_s = limits["gpu_hours"].left * _HOUR_S - to_come
        chosen = chosen[: max(0, math.floor(left_s / expected_device_s * (1 + _SLACK)))]
    return chosen


def overspent(
    state: Account,
    budget: BudgetSettings,
    *,
    population: int,
    expected_device_s: float | None,
    now: datetime,
) -> SearchPaused:
    """Return the error for an exhausted budget: which limit, and the value that goes on."""
    wall_s = worked_s(state, now)
    found = uses(state, budget, device_s=spent_device_s(state, now), wall_s=wall_s)
    used_up = [each for each in found if each.is_used_up]
    # Any other exhausted limit comes first: a retry is not held up by `budget.evaluations`.
    short = [each for each in used_up if each.key != "evaluations"]
    short += [
        each
        for each in found
        if each.key == "gpu_hours" and each.left * _HOUR_S < (expected_device_s or 0.0)
    ]
    use = (short + used_up)[0]
    ahead = forecast(state, population=population, now=now, wall_s=wall_s)
    needed = {
        "evaluations": state.trained + ahead.evaluations_left,
        "gpu_hours": (ahead.device_s or 0.0) / _HOUR_S,
        "wall_h": (wall_s + (ahead.left_s or 0.0)) / _HOUR_S,
        "failures": 0.0,
    }
    # Enough for the rest of the search, and more than the limit that was too low.
    more = math.ceil(max(needed[use.key], 1.25 * use.limit))
    each_h = (expected_device_s or 0.0) / _HOUR_S
    words = {
        "evaluations": f"{use.used:.0f} evaluations were trained, as many as it pays for",
        "gpu_hours": f"{use.used:.3g} of {use.limit:g} {unit_of(state)} are spent"
        + (f", and one more evaluation takes about {each_h:.2g}" if not use.is_used_up else ""),
        "wall_h": f"controllers were at work for {use.used:.3g} of {use.limit:g} hours",
        "failures": f"{use.used:.0f} attempts failed, as many as it allows",
    }
    return SearchPaused(
        f"`budget.{use.key}` is used up: {words[use.key]}",
        hint=f"`elmanctl resume {state.run['name']} --set budget.{use.key}={more}` goes on",
    )


def forecast(state: Account, *, population: int, now: datetime, wall_s: float) -> Forecast:
    """Return the expected total cost of the search, extrapolated from its cost so far.

    Each remaining evaluation costs the mean of the attempts that completed or were stopped.  The
    shares of failed attempts, which add to that, and of free repeats stay as they are.  `wall_s`
    is the working time of controllers so far.
    """
    left = evaluations_left(state, population)
    confirming = confirmations_left(state, population)
    mean_s, total = mean_device_s(state), ended(state)
    running_s = sum(cost.device_s for cost in in_flight(state, now))
    device_s = None
    if left == 0:
        device_s = total.device_s + running_s
    elif mean_s is not None:
        useful_s = _useful(state).device_s
        overhead = total.device_s / useful_s if useful_s else 1.0
        paid = state.trained / (state.trained + state.answered)
        trained = (left - confirming) * paid + confirming
        device_s = total.device_s + max(running_s, trained * mean_s * overhead)
    settled = planned(state, population) - (left - confirming)
    settled += state.totals.get("confirmations_decided", 0)
    left_s = left * wall_s / settled if settled > 0 else None
    return Forecast(evaluations_left=left, device_s=device_s, left_s=left_s)


def evaluations_left(state: Account, population: int) -> int:
    """Return the number of evaluations without a final state; replacements count once.

    Confirmations that are still to be asked are among them.
    """
    if state.status in (RunStatus.FINISHED, RunStatus.CANCELLED):
        return 0
    if state.ended_by is not None:
        return _undecided(state) + confirmations_to_ask(state, population)
    told = state.totals.get("generations_told", 0) * population
    left = planned(state, population) - told - state.newest_settled
    return max(0, left) + confirmations_left(state, population)


def _undecided(state: Account) -> int:
    """Return the number of evaluations that were asked and are not decided."""
    asked = state.totals.get("evaluations", 0)
    return asked - sum(state.totals.get(f"state:{each}", 0) for each in State if each.is_finished)


def planned(state: Account, population: int) -> int:
    """Return the number of evaluations of the whole search; replacements count once.

    `search.evaluations` limits those that are trained: an answered repeat makes room for another.
    """
    if state.ended_by is not None:
        return min(state.generations, state.totals.get("generations_told", 0)) * population
    whole: int = state.generations * population
    limit = effective_setting(state, "search.evaluations")
    return whole if limit is None else min(whole, limit + state.answered)


def confirmations_left(state: Account, population: int) -> int:
    """Return the number of confirmations without a final state, asked or not."""
    if state.status in (RunStatus.FINISHED, RunStatus.CANCELLED):
        return 0
    asked = state.totals.get("confirmations", 0) - state.totals.get("confirmations_decided", 0)
    return asked + confirmations_to_ask(state, population)


def confirmations_to_ask(state: Account, population: int) -> int:
    """Return how many confirmations are to be asked at most when the search is over.

    After the last generation has been reported they are asked at once.
    """
    done = state.totals.get("generations_told", 0)
    is_over = done >= state.generations or state.ended_by is not None
    has_ended = state.status in (RunStatus.FINISHED, RunStatus.CANCELLED)
    if has_ended or (is_over and state.totals.get("confirmations", 0)):
        return 0
    top, seeds = (effective_setting(state, f"search.{key}") or 0 for key in CONFIRMATION_KEYS)
    return min(top, planned(state, population)) * seeds
