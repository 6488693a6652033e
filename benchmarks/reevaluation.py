"""Measure what training the best of a search again is worth, within its budget and beyond it.

    python benchmarks/reevaluation.py [HISTORIES.jsonl.gz] [--seeds 30] [--optimizer NAME] ...

Objectives are the synthetic functions of `elmanctl replay` and, with HISTORIES, the surrogates of
recorded searches that `optimizers.py` uses, with their noise; 3 % of the trainings fail.  Each
search is simulated with 0 to 3 generations of re-evaluations at the end of the same budget, by the
code that a real search runs: `due_reevaluation` chooses what is trained again, `by_estimate` what
is handed over.  Each of them is judged as it is, and after the default confirmations, which come on
top of the budget: the best three on three fresh seeds each, whose lowest mean wins.  Two more hand
over the lowest loss, and the lowest mean.

A value is the mean regret of the configuration handed over, divided by that of the lowest loss of a
search without re-evaluations on the same objectives and seeds; regrets are normalised by objective,
and p is that of a signed-rank test over objectives and seeds.
"""

import argparse
import math
import multiprocessing
import random
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
from optimizers import POPULATION, recorded_sources

from elmanctl.constants import CMA
from elmanctl.ledger.records import (
    Attempt,
    Evaluation,
    EvaluationPlan,
    State,
    Verdict,
    VerdictKind,
    evaluation_id,
)
from elmanctl.ledger.run_state import RunState
from elmanctl.replay.functions import FUNCTIONS, FunctionSource
from elmanctl.replay.objective import Objective, Source, values_at
from elmanctl.replay.simulation import fitness_of, settings_of
from elmanctl.replay.summary import signed_rank_p
from elmanctl.search.estimate import by_estimate, estimates
from elmanctl.search.optimizers.port import Point, Problem
from elmanctl.search.optimizers.registry import start_optimizer
from elmanctl.search.reevaluation import due_reevaluation
from elmanctl.settings import SearchSettings, Settings

BUDGETS = (60, 120, 304)
RESERVED = (0, 1, 2, 3)
CONFIRMED = 3
FRESH_SEEDS = 3
DRAWS = 16


class Search:
    """One simulated search, whose evaluations are kept as in a ledger.

    `values` are those of points that are known, to which it adds its own.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: str,
        seed: int,
        generations: int,
        values: dict[Point, float],
    ) -> None:
        self.objective = objective
        self._values = values
        self.state = RunState(generations=generations)
        self._draw = random.Random(seed)
        self._first: dict[object, str] = {}
        own = settings_of(
            optimizer,
            population=POPULATION,
            sigma=None,
            seed=seed,
            budget=generations * POPULATION,
        )
        self._optimizer = start_optimizer(
            optimizer,
            Problem(
                coordinates=tuple(axis.coordinate for axis in objective.axes),
                start=tuple(axis.middle for axis in objective.axes),
                population=POPULATION,
                sigma=own.sigma,
                seed=seed,
                budget=generations * POPULATION,
                design=own.lhs_points,
                starts=own.lhs_starts,
            ),
        )

    def ask(self, generation: int) -> None:
        """Evaluate a generation of the optimizer, and report it; repeats are answered."""
        points = self._optimizer.ask(POPULATION, self.objective.surface.is_valid)
        new = [point for point in points if point not in self._values]
        if new:
            values = self.objective.surface.values(np.array(new)).tolist()
            self._values.update(zip(new, values, strict=True))
        losses: list[float | None] = []
        for index, point in enumerate(points):
            name = evaluation_id(generation, index)
            first = self._first.setdefault(values_at(self.objective.axes, point), name)
            if first == name:
                self._train(_plan(name, point), generation)
            losses.append(self.state.evaluations[first].loss)
        self._optimizer.report(list(zip(points, fitness_of(losses), strict=True)))
        self.state.generation = generation

    def train_again(self, generations: int) -> None:
        """Train the best again in so many generations more, as a real search does."""
        state = self.state
        state.generations = state.generation + 1 + generations
        share = generations / state.generations
        settings = Settings(search=SearchSettings(reevaluate=share, population=POPULATION))
        while state.generation + 1 < state.generations:
            due = due_reevaluation(state, settings)
            assert due is not None
            for plan in due.evaluations:
                first = str(plan.repeats)
                state.repeats[first] = (*state.repeats.get(first, ()), plan.id)
                self._train(plan, due.generation)
            state.generation = due.generation

    def _train(self, plan: EvaluationPlan, generation: int) -> None:
        value = self.value(plan.point)
        noise = self._draw.gauss(0.0, 1.0) * self.objective.noise
        has_failed = self._draw.random() < self.objective.failure_share
        loss = None if has_failed or not math.isfinite(value) else value + noise
        self.state.put(_ended(plan, generation, loss, has_diverged=not math.isfinite(value)))

    def value(self, point: Point) -> float:
        """Return the noise-free value of a point that was asked."""
        return self._values[point]

    def lowest(self) -> float:
        """Return the value of the configuration with the lowest loss."""
        return self.value(self.state.ranked()[0].point)

    def lowest_mean(self) -> float:
        """Return the value of the configuration with the lowest mean."""
        best = min(estimates(self.state), key=lambda each: each.mean)
        return self.value(best.evaluations[0].point)

    def handed(self) -> float:
        """Return the value of the configuration that is handed over."""
        return self.value(by_estimate(self.state)[0].point)

    def confirmed(self, seed: int) -> float:
        """Return the value of the winner of confirmation, the mean over draws of its losses."""
        firsts = {each.configuration: each.point for each in reversed(by_estimate(self.state))}
        top = list(reversed(firsts.values()))[:CONFIRMED]
        values = np.array([self.value(point) for point in top])
        error = self.objective.noise / math.sqrt(FRESH_SEEDS)
        means = values + error * np.random.default_rng(seed).normal(size=(DRAWS, len(values)))
        return float(values[means.argmin(1)].mean())


def _plan(name: str, point: tuple[float, ...]) -> EvaluationPlan:
    return EvaluationPlan(id=name, point=point, config={}, lr=0.0, parameters=1, seed=42)


def _ended(
    plan: EvaluationPlan, generation: int, loss: float | None, *, has_diverged: bool
) -> Evaluation:
    """Return an evaluation that completed with a loss, diverged, or failed for another reason."""
    kind, state = VerdictKind.COMPLETED, State.COMPLETED
    if loss is None:
        kind = VerdictKind.DIVERGED if has_diverged else VerdictKind.NODE_FAILURE
        state = State.FAILED
    attempt = Attempt(
        number=1,
        submission="",
        task_index=0,
        state=state,
        verdict=Verdict(kind=kind),
        result={"loss": loss},
    )
    own = {key: getattr(plan, key) for key in ("id", "point", "config", "lr", "parameters")}
    return Evaluation(
        **own,
        seed=plan.seed,
        repeats=plan.repeats,
        reevaluates=plan.reevaluates,
        generation=generation,
        state=state,
        attempts=(attempt,),
    )


@dataclass(frozen=True, slots=True)
class Case:
    """One search to simulate."""

    source: Source
    seed: int
    budget: int


def regrets_of(case: Case, optimizer: str, reserves: Sequence[int]) -> dict[str, float]:
    """Return the regret of what each procedure hands over."""
    objective = case.source.at(case.seed)
    generations = case.budget // POPULATION
    found: dict[str, float] = {}
    values: dict[Point, float] = {}
    for reserved in reserves:
        search = Search(objective, optimizer, case.seed, generations - reserved, values)
        for generation in range(generations - reserved):
            search.ask(generation)
        if reserved:
            search.train_again(reserved)
        found[f"{reserved}"] = search.handed()
        found[f"{reserved} confirmed"] = search.confirmed(case.seed)
        if reserved == 1:
            found["1, lowest loss"] = search.lowest()
            found["1, lowest mean"] = search.lowest_mean()
    return {name: objective.regret(value) for name, value in found.items()}


def rows_of(results: Sequence[tuple[str, Mapping[str, float]]]) -> list[str]:
    """Return a row for each procedure: mean regret over that of none, with its p.

    `results` are the names of objectives, with the regrets of a search on each.  Objectives whose
    best point every search found are left out.
    """
    own: defaultdict[str, list[float]] = defaultdict(list)
    for name, found in results:
        own[name] += found.values()
    scale = {name: fmean(regrets) for name, regrets in own.items()}
    scaled = {
        procedure: [found[procedure] / scale[name] for name, found in results if scale[name]]
        for procedure in results[0][1]
    }
    before = scaled["0"]
    return [
        f"| {name} | {fmean(values) / fmean(before):.3f} | {_p(values, before)} |"
        for name, values in scaled.items()
    ]


def _p(values: Sequence[float], before: Sequence[float]) -> str:
    p = signed_rank_p(list(zip(values, before, strict=True)))
    return "–" if p is None else f"{p:.2g}"


def main() -> int:
    """Simulate all searches and print a table for each budget."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--optimizer", default=CMA)
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--reserved", type=int, nargs="+", default=RESERVED)
    parser.add_argument("--processes", type=int, default=1)
    asked = parser.parse_args()
    sources: list[Source] = [FunctionSource(name=name) for name in FUNCTIONS]
    if asked.path is not None:
        sources += [source for source, _ in recorded_sources(asked.path)]
    print(f"{len(sources)} objectives, {asked.seeds} seeds, optimizer `{asked.optimizer}`")
    simulated = partial(regrets_of, optimizer=asked.optimizer, reserves=asked.reserved)
    for budget in asked.budgets:
        cases = [
            Case(source, seed, budget) for source in sources for seed in range(1, asked.seeds + 1)
        ]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(asked.processes, context) as pool:
            found = pool.map(simulated, cases, chunksize=4)
            results = [(c.source.name, regrets) for c, regrets in zip(cases, found, strict=True)]
        print(f"\n| Re-evaluations, of {budget} | Regret | p |\n| --- | ---: | ---: |")
        print("\n".join(rows_of(results)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
