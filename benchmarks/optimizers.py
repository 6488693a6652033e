"""Compare optimizers on recorded searches and on synthetic functions; print Markdown tables.

    python benchmarks/optimizers.py HISTORIES.jsonl.gz [--cache FILE] [--seeds 30] ...

Surrogates are fitted to the recorded searches of HISTORIES, by extra trees and by a Gaussian
process; one that predicts less than 0.4 of the variance of losses left out of its fit is not used.
The noise is that of repeats, where a search has none the median of the others'; 3 % of the
trainings fail.  Synthetic functions have another instance for every seed.  All optimizers get the
same seeds, noise and failures, in generations of 8.

Finished searches are kept in the file of `--cache`: what was stopped goes on, and another optimizer
costs only its own searches.  An optimizer that asks the same points whatever the budget, as two
searches on each of two objectives show, is simulated once, with the largest.
"""

import argparse
import json
import logging
import random
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from study_histories import read_histories

from elmanctl.constants import CMA, OPTIMIZERS, STUDY
from elmanctl.replay.functions import FUNCTIONS, FunctionSource
from elmanctl.replay.objective import Constant, Source
from elmanctl.replay.recorded_objective import fit_objective
from elmanctl.replay.rows import Overall
from elmanctl.replay.runner import Simulations, Task, run_tasks, tasks_of
from elmanctl.replay.simulation import Trace
from elmanctl.replay.summary import Traces, overall, ratio_of, regrets_at, rows_of, signed_rank_p
from elmanctl.replay.surrogate import SURROGATES
from elmanctl.replay.trace_cache import TraceCache

FAILURE_SHARE = 0.03
LEAST_EXPLAINED = 0.4
POPULATION = 8

BEFORE = CMA
REFERENCE = 120

_RESAMPLES = 400


def recorded_sources(path: Path) -> Iterator[tuple[Source, str]]:
    """Yield an objective for each surrogate that fits, and a row about it."""
    recordings = read_histories(path)
    noises = [found[0] for each in recordings if (found := each.noise()) is not None]
    for recording in recordings:
        own = recording.noise()
        noise = own[0] if own else statistics.median(noises)
        for kind in SURROGATES:
            objective, fit = fit_objective(
                recording, surrogate=kind, noise=noise, failure_share=FAILURE_SHARE
            )
            if fit.explained >= LEAST_EXPLAINED:
                row = (
                    f"| {recording.name} | {kind} | {len(recording.axes)} | {fit.losses} |"
                    f" {fit.explained:.2f} | {objective.typical - objective.best:.3f} |"
                    f" {noise:.4f}{'' if own else ' (others)'} |"
                )
                yield Constant(objective=replace(objective, name=f"{recording.name}/{kind}")), row


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """The budgets and the number of seeds with which an optimizer is simulated."""

    budgets: Sequence[int]
    seeds: int


def simulate_all(
    simulations: Simulations,
    optimizers: Sequence[str],
    extents: Mapping[str, Extent],
    cache: TraceCache,
    processes: int,
) -> dict[Task, Trace]:
    """Return every search of the comparison, in order."""
    found: dict[Task, Trace] = {}
    for name in optimizers:
        budgets = extents[name].budgets
        whole = _ignores_budget(simulations, name, budgets, cache)
        tasks = tasks_of(
            list(simulations.sources),
            [name],
            seeds=extents[name].seeds,
            budgets=budgets[-1:] if whole else budgets,
            population=POPULATION,
        )
        done = run_tasks(simulations, tasks, cache, processes=processes)
        for number, (task, trace) in enumerate(done, start=1):
            for budget in budgets if whole else [task.budget]:
                found[replace(task, budget=budget)] = trace
            _report(name, number, len(tasks))
    return found


def _ignores_budget(
    simulations: Simulations, name: str, budgets: Sequence[int], cache: TraceCache
) -> bool:
    """Whether searches of the least and the largest but one budget begin alike."""
    if len(budgets) < 2:
        return False
    for source in list(simulations.sources)[:: max(1, len(simulations.sources) - 1)]:
        pair = tasks_of(
            [source],
            [name],
            seeds=1,
            budgets=(budgets[0], budgets[1]),
            population=POPULATION,
        )
        traces = dict(run_tasks(simulations, pair, cache, processes=1))
        short, long = (traces[task].handed for task in pair)
        if [each for each in long if each[0] <= budgets[0]] != list(short):
            return False
    return True


def _report(name: str, done: int, of: int) -> None:
    if done % 50 == 0 or done == of:
        print(f"\r{name}: {done} of {of}", end="\n" if done == of else "", file=sys.stderr)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """Evaluations after which the mean regret is the reference's at its budget; None: never."""

    evaluations: int | None
    low: int | None
    high: int | None


def reached(simulations: Simulations, own: Traces, reference: Traces) -> Reached:
    """Return when an optimizer reaches the mean regret of the reference, with a 90 % interval.

    The interval is that of resampled objectives, with all their seeds.
    """
    most = max(task.budget for task in own)
    curves = {n: regrets_at(simulations, own, n) for n in range(4, most + 1, 2)}
    target = regrets_at(simulations, reference, REFERENCE)
    # One whose every search failed has no regret to compare.
    sources = sorted(
        {source for source, _ in target} & {source for source, _ in curves[max(curves)]}
    )
    per = {
        source: (
            _mean(target, source),
            {n: _mean(curve, source) for n, curve in curves.items()},
        )
        for source in sources
    }

    def first(chosen: Sequence[str]) -> int | None:
        goal = sum(per[source][0] for source in chosen)
        return next((n for n in curves if sum(per[s][1][n] for s in chosen) <= goal), None)

    draw = random.Random(0)
    again = sorted(
        first(draw.choices(sources, k=len(sources))) or most + 1 for _ in range(_RESAMPLES)
    )
    low, high = again[_RESAMPLES // 20], again[-_RESAMPLES // 20]
    return Reached(evaluations=first(sources), low=low, high=high if high <= most else None)


def _mean(regrets: Mapping[tuple[str, int], float], source: str) -> float:
    return statistics.fmean(value for (name, _), value in regrets.items() if name == source)


def print_tables(
    simulations: Simulations, traces: Mapping[Task, Trace], title: str, budgets: Sequence[int]
) -> None:
    """Print the tables of one kind of objectives."""
    names = list(dict.fromkeys(task.optimizer for task in traces))
    count = len(simulations.sources)
    print(f"\n### {title}\n\n{count} objectives")
    print("\nMean regret by that of the build before (p of Wilcoxon's signed-rank test)\n")
    _print_head("optimizer", "pairs", *(str(budget) for budget in budgets))
    beside = {(each.optimizer, each.budget): each for each in overall(simulations, traces, BEFORE)}
    for name in names:
        pairs = str(beside[name, budgets[0]].pairs)
        print(_line(name, pairs, *(_ratio(beside.get((name, budget))) for budget in budgets)))
    print("\nRegret of the point handed over: median [quartiles]\n")
    _print_head("optimizer", *(str(budget) for budget in budgets))
    for name in names:
        print(_line(name, *(_quartiles(simulations, traces, name, each) for each in budgets)))
    print(f"\nEvaluations until the mean regret is that of the build before at {REFERENCE}\n")
    _print_head(
        "optimizer", "evaluations", "90 % interval", f"by the study's at {REFERENCE}",
        "repeats trained of 100", "repeats answered of 100", "invalid of 100", "ms a generation",
    )  # fmt: skip
    reference = _of(traces, BEFORE, REFERENCE)
    for name in names:
        print(_line(name, *_effort(simulations, traces, name, reference)))


def _effort(
    simulations: Simulations, traces: Traces, name: str, reference: Traces
) -> Iterator[str]:
    longest = _of(traces, name, max(t.budget for t in traces if t.optimizer == name))
    own = _of(traces, name, REFERENCE) or longest
    found = reached(simulations, longest if _is_same(own, longest) else own, reference)
    yield "–" if found.evaluations is None else str(found.evaluations)
    yield f"{found.low} to {found.high or 'more'}"
    study = regrets_at(simulations, _of(traces, STUDY, REFERENCE), REFERENCE)
    pairs = [
        (r, study[k]) for k, r in regrets_at(simulations, own, REFERENCE).items() if k in study
    ]
    is_compared = name != STUDY and next(iter(own)).budget == REFERENCE
    ratio = ratio_of(pairs) if is_compared else None
    yield "–" if ratio is None else f"{ratio:.2f}{_p(signed_rank_p(pairs))}"
    done = [trace for trace in own.values() if trace.error is None]
    trained = sum(trace.trained for trace in done)
    yield f"{100 * sum(t.retrained for t in done) / trained:.1f}"
    yield f"{100 * sum(t.answered for t in done) / trained:.1f}"
    yield f"{100 * sum(t.refused for t in done) / trained:.1f}"
    yield f"{statistics.median(t.cpu_ms for t in done):.0f}"


def _of(traces: Traces, name: str, budget: int) -> dict[Task, Trace]:
    return {t: trace for t, trace in traces.items() if (t.optimizer, t.budget) == (name, budget)}


def _is_same(own: Traces, longest: Traces) -> bool:
    return next(iter(own.values())) is next(iter(longest.values()))


def _ratio(found: Overall | None) -> str:
    if found is None:
        return "–"
    return "1" if found.ratio is None else f"{found.ratio:.2f}{_p(found.p)}"


def _quartiles(simulations: Simulations, traces: Traces, name: str, budget: int) -> str:
    regrets = regrets_at(simulations, _of(traces, name, budget), budget).values()
    if not regrets:
        return "–"
    low, middle, high = statistics.quantiles(regrets, n=4, method="inclusive")
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def _p(p: float | None) -> str:
    if p is None:
        return ""
    return f" ({p:.2f})" if p >= 0.01 else f" ({p:.0e})"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _print_head(*cells: str) -> None:
    print(_line(*cells))
    print(_line(*("---" for _ in cells)))


def main() -> None:
    """Do what the usage says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("histories", type=Path)
    parser.add_argument("--cache", type=Path, help="file that keeps finished searches")
    parser.add_argument("--optimizer", action="append", help="default: study and all installed")
    parser.add_argument("--kind", choices=("recorded", "synthetic"), help="default: both")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--budgets", type=int, nargs="+", default=[30, 60, 120, 300])
    parser.add_argument(
        "--until",
        action="append",
        default=[],
        metavar="NAME=BUDGET[:SEEDS]",
        help="largest budget, and the number of seeds, of a slow optimizer",
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--values", type=Path, help="JSON for the values on every objective")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    cache = TraceCache(options.cache)
    optimizers = list(dict.fromkeys([BEFORE, STUDY, *(options.optimizer or OPTIMIZERS)]))
    extents = {name: Extent(budgets=options.budgets, seeds=options.seeds) for name in optimizers}
    for word in options.until:
        name, _, limits = word.partition("=")
        most, _, seeds = limits.partition(":")
        extents[name] = Extent(
            budgets=[budget for budget in options.budgets if budget <= int(most)],
            seeds=int(seeds or options.seeds),
        )
    values = []
    for kind in ("recorded", "synthetic"):
        if options.kind in (kind, None):
            sources = _sources(kind, options.histories)
            simulations = Simulations(sources=sources, procedures={})
            traces = simulate_all(
                *(simulations, optimizers, extents, cache),
                options.processes,
            )
            print_tables(simulations, traces, kind.capitalize(), options.budgets)
            values += [asdict(row) for row in rows_of(simulations, traces)]
    if options.values is not None:
        options.values.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _sources(kind: str, histories: Path) -> dict[str, Source]:
    if kind == "synthetic":
        return {name: FunctionSource(name=name) for name in FUNCTIONS}
    found = list(recorded_sources(histories))
    print("\nSurrogates\n")
    _print_head(
        *("search", "surrogate", "axes", "losses", "variance explained"),
        *("typical less best", "noise sd"),
    )
    for _, row in found:
        print(row)
    return {source.name: source for source, _ in found}


if __name__ == "__main__":
    main()
