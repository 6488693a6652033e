"""Costs of a run: spent, forecast, wasted and budgeted, as one line each and as plain data."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from elmanctl import clock
from elmanctl.cli.output import counted
from elmanctl.ledger.records import Attempt
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.spending import Spent, cost_of, devices, left_of
from elmanctl.ledger.summary import RunSummary
from elmanctl.search import costs
from elmanctl.search.noise import noise_estimates

_HOUR_S = 3600.0

# A smaller share of idle slots is what any search has between two turns of its controller.
_SHOWN_IDLE = 0.05


def cost_data(
    state: RunState | RunSummary, *, has_controller: bool, now: datetime
) -> dict[str, Any]:
    """Return costs, forecast, waste, savings and budgets; hours are GPU-hours, see `unit`.

    `has_controller` says whether a controller is running: wall time passes only while one does.
    """
    wall_s = costs.worked_s(state, now) if has_controller else state.wall_s
    population = costs.effective_setting(state, "search.population")
    ahead = costs.forecast(state, population=population, now=now, wall_s=wall_s)
    device_s = costs.spent_device_s(state, now)
    held, at_work = costs.gpus_held(state, has_controller=has_controller)
    return {
        "unit": costs.unit_of(state),
        "gpu_hours": device_s / _HOUR_S,
        "in_flight_gpu_hours": sum(cost.device_s for cost in costs.in_flight(state, now)) / _HOUR_S,
        "forecast_gpu_hours": None if ahead.device_s is None else ahead.device_s / _HOUR_S,
        "evaluations_left": ahead.evaluations_left,
        "wall_h": wall_s / _HOUR_S,
        "left_h": None if ahead.left_s is None else ahead.left_s / _HOUR_S,
        "waste": {kind: spent.device_s / _HOUR_S for kind, spent in costs.wasted(state).items()},
        "attempts": {kind: spent.attempts for kind, spent in sorted(state.spent.items())},
        "failures": costs.failures(state),
        "idle_share": costs.idle_share(state),
        "idle_gpu_hours": costs.idle_device_s(state) / _HOUR_S,
        "gpus_held": held,
        "gpus_at_work": at_work,
        "answered": state.answered,
        "saved_gpu_hours": state.saved.device_s / _HOUR_S,
        **_spared_data(state.spared),
        "budgets": {
            use.key: {"limit": use.limit, "used": use.used, "left": use.left}
            for use in costs.uses(
                state, costs.effective_budget(state), device_s=device_s, wall_s=wall_s
            )
        },
    }


def _spared_data(spared: Spent) -> dict[str, Any]:
    if not spared.attempts:
        return {}
    return {"stopped_early": spared.attempts, "spared_gpu_hours": spared.device_s / _HOUR_S}


def noise_data(state: RunState) -> list[dict[str, Any]]:
    """Return the noise of every configuration that was trained with several seeds."""
    return [
        {"evaluation": first, "n": noise.n, "mean": noise.mean, "sd": noise.sd}
        for first, noise in noise_estimates(state).items()
    ]


def describe_cost(state: RunState | RunSummary, cost: Mapping[str, Any]) -> str | None:
    """Return one line: spent, forecast in total, time left, and savings; None if nothing spent."""
    if not cost["gpu_hours"] and not cost["answered"]:
        return None
    parts = [f"{format_hours(cost['gpu_hours'])} {cost['unit']} spent"]
    if cost["evaluations_left"] and cost["forecast_gpu_hours"] is not None:
        parts.append(f"about {format_hours(cost['forecast_gpu_hours'])} in total")
    if cost["evaluations_left"] and cost["left_h"]:
        parts.append(f"about {clock.format_rough(cost['left_h'] * _HOUR_S)} left")
    if cost["idle_share"] is not None and cost["idle_share"] >= _SHOWN_IDLE:
        held = f", {format_hours(cost['idle_gpu_hours'])} {cost['unit']}"
        paid = held if cost["idle_gpu_hours"] else ""
        parts.append(f"slots idle {cost['idle_share']:.0%} of the time{paid}")
    elif cost["idle_gpu_hours"] >= _SHOWN_IDLE * cost["gpu_hours"] > 0:
        held = format_hours(cost["idle_gpu_hours"])
        parts.append(f"{held} {cost['unit']} held idle")
    if cost["gpus_held"] > cost["gpus_at_work"]:
        what = "GPUs" if cost["unit"] == costs.GPU_HOURS else "slots"
        parts.append(f"{cost['gpus_at_work']} of {cost['gpus_held']} held {what} at work")
    if cost["answered"]:
        saved = format_hours(cost["saved_gpu_hours"])
        parts.append(f"{counted(cost['answered'], 'repeat')} deduplicated, {saved} saved")
    if "stopped_early" in cost:
        saved = format_hours(cost["spared_gpu_hours"])
        stopped = counted(cost["stopped_early"], "training")
        parts.append(f"{stopped} stopped early, about {saved} saved")
    return "; ".join(parts)


def spared_hours(state: RunState, attempt: Attempt) -> str:
    """Return what the rest of a training that was stopped early would have cost, with its unit."""
    used = devices(state.submissions[attempt.submission].resources)
    spared = left_of(attempt, cost_of(attempt, used))
    return f"{format_hours(spared.device_s / _HOUR_S)} {costs.unit_of(state)}"


def describe_waste(state: RunState | RunSummary, cost: Mapping[str, Any]) -> str | None:
    """Return one line on attempts that gave no loss, the costliest verdict first; None without."""
    waste = {kind: spent for kind, spent in costs.wasted(state).items() if spent.attempts}
    if not waste:
        return None
    total = sum(waste.values(), Spent())
    by_kind = ", ".join(
        f"{kind} {format_hours(spent.device_s / _HOUR_S)} in {spent.attempts}"
        for kind, spent in sorted(waste.items(), key=lambda item: -item[1].device_s)
    )
    return f"{format_hours(total.device_s / _HOUR_S)} {cost['unit']} gave no loss: {by_kind}"


def describe_budget(cost: Mapping[str, Any]) -> str | None:
    """Return one line on what is left of each budget, None without any."""
    if not cost["budgets"]:
        return None
    names = {
        "evaluations": "evaluations",
        "gpu_hours": cost["unit"],
        "wall_h": "hours of controller time",
        "failures": "failed attempts",
    }
    parts = [
        f"{format_hours(use['left'])} of {use['limit']:g} {names[key]} left"
        for key, use in cost["budgets"].items()
    ]
    return ", ".join(parts)


def format_hours(hours: float) -> str:
    """Format hours briefly; below one hour with two significant digits."""
    return f"{hours:.2g}" if hours < 1 else f"{hours:.1f}".removesuffix(".0")
