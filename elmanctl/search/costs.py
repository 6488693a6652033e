"""What a search has cost, what it will cost, and whether its budget pays for more: all pure.

Costs are in device-seconds: the time of an attempt times the GPUs that it asked for, or times 1
where a job asks for none.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Protocol

from elmanctl import clock
from elmanctl.errors import SearchPaused
from elmanctl.ledger.records import Attempt, Evaluation, Resources, RunStatus, VerdictKind
from elmanctl.ledger.spending import Spent, cost_on, gpus_asked
from elmanctl.settings import BudgetSettings

_HOUR_S = 3600.0

# Sums of fractions must not make a budget that is met exactly look exceeded.
_SLACK = 1e-6


class Account(Protocol):
    """What costs are worked out from: a run's state, or its summary."""

    @property
    def run(self) -> Mapping[str, Any]:
        """The record of the run."""

    @property
    def changes(self) -> Mapping[str, Any]:
        """Settings that were replaced."""

    @property
    def status(self) -> RunStatus:
        """Where the run stands."""

    @property
    def last_event_at(self) -> str | None:
        """When the newest event was written."""

    @property
    def generations(self) -> int:
        """How many generations the search is to make."""

    @property
    def totals(self) -> Mapping[str, int]:
        """Sums that are kept with every event."""

    @property
    def newest_settled(self) -> int:
        """How many of the newest generation are decided while it is not told."""

    @property
    def spent(self) -> Mapping[str, Spent]:
        """What ended attempts cost, by verdict."""

    @property
    def answered(self) -> int:
        """How many repeats were answered."""

    @property
    def trained(self) -> int:
        """How many evaluations ever had a job."""

    @property
    def wall_s(self) -> float:
        """How long controllers were at work."""

    @property
    def flights(self) -> tuple[tuple[Attempt, int], ...]:
        """The live attempts, each with the number by which its time counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One limit of `[budget]` and how much of it is used, in the limit's own unit."""

    key: str
    limit: float
    used: float

    @property
    def left(self) -> float:
        """What may still be used."""
        return max(0.0, self.limit - self.used)

    @property
    def is_used_up(self) -> bool:
        """Whether nothing may be submitted any more."""
        return self.used >= self.limit * (1 - _SLACK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a search comes to: `device_s` and `left_s` are None before there is anything to go by.

    `evaluations_left` are those to be settled, `device_s` the cost of the whole search and
    `left_s` how long it will still take while a controller is at work.
    """

    evaluations_left: int
    device_s: float | None
    left_s: float | None


def effective_setting(state: Account, key: str) -> Any:
    """Return a setting of a run as it is now; None where the run is older than the setting."""
    section, name = key.split(".")
    recorded: Mapping[str, Any] = state.run["settings"].get(section, {})
    return state.changes.get(key, recorded.get(name))


def effective_budget(state: Account) -> BudgetSettings:
    """Return the budget of a run as it is now."""
    names = [item.name for item in fields(BudgetSettings)]
    return BudgetSettings(**{name: effective_setting(state, f"budget.{name}") for name in names})


def unit_of(state: Account) -> str:
    """Return what a device-hour of this run is called."""
    if state.run["executor"] == "local":
        return unit_name(has_gpus=bool(effective_setting(state, "local.gpus")))
    asked = Resources(
        gres=effective_setting(state, "slurm.gres"),
        extra=effective_setting(state, "slurm.extra") or {},
    )
    return unit_name(has_gpus=gpus_asked(asked) > 0)


def unit_name(*, has_gpus: bool) -> str:
    """Return what a device-hour is called: a job without a GPU counts as one device."""
    return "GPU-hours" if has_gpus else "job-hours"


def ended(state: Account) -> Spent:
    """Return what all ended attempts cost."""
    return sum(state.spent.values(), Spent())


def in_flight(state: Account, now: datetime) -> list[Spent]:
    """Return what each live attempt has cost so far."""
    return [cost_on(attempt, devices, now) for attempt, devices in state.flights]


def spent_device_s(state: Account, now: datetime) -> float:
    """Return what a run has cost until now, with what is still running."""
    return ended(state).device_s + sum(cost.device_s for cost in in_flight(state, now))


def wasted(state: Account) -> dict[str, Spent]:
    """Return what the attempts cost that brought no loss, by verdict."""
    return {
        kind: cost
        for kind, cost in sorted(state.spent.items())
        if kind != VerdictKind.COMPLETED.value
    }


def failures(state: Account) -> int:
    """Return how many attempts failed; one that was cancelled did not."""
    waste = wasted(state)
    return sum(c.attempts for kind, c in waste.items() if kind != VerdictKind.CANCELLED.value)


def worked_s(state: Account, now: datetime) -> float:
    """Return how long controllers were at work.

    One that was killed counts until its last event: nobody knows how long it lived after that.
    """
    if state.status is not RunStatus.RUNNING or state.last_event_at is None:
        return state.wall_s
    return state.wall_s + max(0.0, (now - clock.from_text(state.last_event_at)).total_seconds())


def uses(state: Account, budget: BudgetSettings, *, device_s: float, wall_s: float) -> list[Use]:
    """Return every limit that is set, with what is used of it."""
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
    """Return what a completed attempt costs on average, None before the first."""
    completed = state.spent.get(VerdictKind.COMPLETED.value)
    return completed.device_s / completed.attempts if completed else None


def affordable(
    waiting: Sequence[Evaluation],
    state: Account,
    budget: BudgetSettings,
    *,
    expected_device_s: float | None,
    now: datetime,
) -> list[Evaluation]:
    """Return those that wait for an attempt and that the budget pays for, in order.

    What is in flight is expected to cost what an attempt costs on average, or what it has cost
    where that is more.  Without an expectation the budget pays until it is used up.
    """
    # Only a limit on device-hours counts what each live attempt has cost.
    running = [] if budget.gpu_hours is None else in_flight(state, now)
    device_s = ended(state).device_s + sum(cost.device_s for cost in running)
    found = uses(state, budget, device_s=device_s, wall_s=worked_s(state, now))
    limits = {use.key: use for use in found}
    if any(use.is_used_up for key, use in limits.items() if key != "evaluations"):
        return []
    chosen = list(waiting)
    if "evaluations" in limits:
        room = int(limits["evaluations"].left)
        # One that was trained before is paid for; only its further attempts cost.
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
    """Return the error of a search whose budget pays for nothing more: why, and how to go on."""
    wall_s = worked_s(state, now)
    found = uses(state, budget, device_s=spent_device_s(state, now), wall_s=wall_s)
    used_up = [each for each in found if each.is_used_up]
    # One that was trained before costs no evaluation: whatever else is short is short for it too.
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
    # Enough for the rest of the search, and more than what did not suffice.
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
    """Return what the search will have cost at its end, from what it cost so far.

    Every evaluation that is left costs the mean of the completed attempts; on top comes the same
    share of failed attempts as until now, and the same share of repeats costs nothing.  `wall_s`
    is how long controllers were at work.
    """
    planned = state.generations * population
    left = evaluations_left(state, population)
    mean_s, total = mean_device_s(state), ended(state)
    running_s = sum(cost.device_s for cost in in_flight(state, now))
    device_s = None
    if left == 0:
        device_s = total.device_s + running_s
    elif mean_s is not None:
        completed_s = state.spent[VerdictKind.COMPLETED.value].device_s
        overhead = total.device_s / completed_s if completed_s else 1.0
        paid = state.trained / (state.trained + state.answered)
        device_s = total.device_s + max(running_s, left * paid * mean_s * overhead)
    settled = planned - left
    left_s = left * wall_s / settled if settled > 0 else None
    return Forecast(evaluations_left=left, device_s=device_s, left_s=left_s)


def evaluations_left(state: Account, population: int) -> int:
    """Return how many evaluations are still to be settled, replacements not counted twice."""
    if state.status in (RunStatus.FINISHED, RunStatus.CANCELLED):
        return 0
    left = (state.generations - state.totals.get("generations_told", 0)) * population
    left -= min(population, state.newest_settled)
    return max(0, left)


def most_device_s(evaluations: int, timeout_min: float, devices: int) -> float:
    """Return the most that so many attempts can cost: the time limit ends each of them."""
    return evaluations * timeout_min * 60.0 * devices


def budget_stop(
    budget: BudgetSettings,
    *,
    evaluations: int,
    expected_gpu_hours: float | None,
    most_gpu_hours: float,
    unit: str,
) -> str | None:
    """Return what the budget does to a search that is planned, None where it cannot end it.

    Wall time and failures are not foreseen; repeats may let a search go further than this says.
    """
    words = []
    if budget.evaluations is not None and budget.evaluations < evaluations:
        words.append(f"ends it after {budget.evaluations} evaluations")
    if budget.gpu_hours is not None and budget.gpu_hours < most_gpu_hours:
        is_certain = expected_gpu_hours is not None and budget.gpu_hours < expected_gpu_hours
        end = "ends" if is_certain else "may end"
        words.append(f"{end} it after {budget.gpu_hours:g} {unit}")
    if budget.wall_h is not None:
        words.append(f"may end it after {budget.wall_h:g} h of work")
    if budget.failures is not None:
        words.append(f"may end it after {budget.failures} failed attempts")
    return ", ".join(words) or None
