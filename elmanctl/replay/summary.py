"""Summaries of simulated searches: values handed over, regrets, waste, and paired comparisons."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, quantiles

from elmanctl.replay.rows import Overall, Row
from elmanctl.replay.runner import Simulations, Task
from elmanctl.replay.simulation import Trace

Traces = Mapping[Task, Trace]


def rows_of(simulations: Simulations, traces: Traces) -> list[Row]:
    """Return a row for each objective, optimizer and budget, in their order."""
    groups: dict[tuple[str, str, int], dict[Task, Trace]] = {}
    for task, trace in traces.items():
        groups.setdefault((task.source, task.optimizer, task.budget), {})[task] = trace
    order = list(dict.fromkeys(task.source for task in traces))
    ordered = sorted(groups, key=lambda group: order.index(group[0]))
    return [_row(simulations, groups[group]) for group in ordered]


def _row(simulations: Simulations, group: Traces) -> Row:
    task = next(iter(group))
    traces = [trace for trace in group.values() if trace.error is None]
    values = [trace.value(task.budget) for trace in traces] or [math.nan]
    low, median, high = (
        quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    regrets = regrets_at(simulations, group, task.budget).values()

    def mean(name: str) -> float:
        return fmean(getattr(trace, name) for trace in traces) if traces else math.nan

    return Row(
        source=task.source,
        optimizer=task.optimizer,
        budget=task.budget,
        searches=len(traces),
        failed_searches=len(group) - len(traces),
        median=median,
        low=low,
        high=high,
        regret=fmean(regrets) if regrets else math.nan,
        wasted=mean("retrained"),
        answered=mean("answered"),
        refused=mean("refused"),
        cpu_ms=mean("cpu_ms"),
    )


def regrets_at(
    simulations: Simulations, traces: Traces, evaluations: int
) -> dict[tuple[str, int], float]:
    """Return the regret after so many evaluations by (source, seed); failed searches have none.

    A search without any loss so far is worth a random point: its regret is 1.
    """
    found = {}
    for task, trace in traces.items():
        if trace.error is None:
            value = trace.value(evaluations)
            objective = simulations.sources[task.source].at(task.seed)
            found[task.source, task.seed] = objective.regret(value) if value < math.inf else 1.0
    return found


def overall(simulations: Simulations, traces: Traces, beside: str) -> list[Overall]:
    """Return the regrets on all objectives, with those of the optimizer `beside` to compare."""
    groups: dict[tuple[str, int], dict[Task, Trace]] = {}
    for task, trace in traces.items():
        groups.setdefault((task.optimizer, task.budget), {})[task] = trace
    regrets = {group: regrets_at(simulations, found, group[1]) for group, found in groups.items()}
    found = []
    for (optimizer, budget), own in regrets.items():
        other = regrets.get((beside, budget), {}) if optimizer != beside else {}
        pairs = [(own[key], other[key]) for key in own if key in other]
        found.append(
            Overall(
                optimizer=optimizer,
                budget=budget,
                pairs=len(pairs) or len(own),
                regret=fmean(own.values()) if own else math.nan,
                ratio=ratio_of(pairs),
                p=signed_rank_p(pairs),
            )
        )
    return found


def ratio_of(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return the sum of the first ones by that of the second ones; None where that is 0."""
    below = math.fsum(other for _, other in pairs)
    return math.fsum(own for own, _ in pairs) / below if below > 0 else None


def signed_rank_p(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return the two-sided p of Wilcoxon's signed-rank test; None where no pair differs.

    By the normal approximation with the correction for ties; pairs that are equal are left out.
    """
    differences = [own - other for own, other in pairs if own != other]
    count = len(differences)
    if not count:
        return None
    ranks = _ranks([abs(difference) for difference in differences])
    positive = math.fsum(r for r, d in zip(ranks, differences, strict=True) if d > 0)
    ties: dict[float, int] = {}
    for rank in ranks:
        ties[rank] = ties.get(rank, 0) + 1
    variance = count * (count + 1) * (2 * count + 1) / 24
    variance -= sum(n**3 - n for n in ties.values()) / 48
    if variance <= 0:
        return 1.0
    return math.erfc(abs(positive - count * (count + 1) / 4) / math.sqrt(2 * variance))


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of every value from 1, the mean rank among equal ones."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or values[order[end]] != values[order[start]]:
            for index in order[start:end]:
                ranks[index] = (start + end + 1) / 2
            start = end
    return ranks
