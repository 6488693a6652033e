"""The `replay` command: optimizers on surrogates of recorded searches and on functions."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typer import Argument, Context, Option

from elmanctl.cli.completion import one_of, run_names
from elmanctl.cli.context import JsonFlag, chosen_run, load_readable
from elmanctl.cli.output import say
from elmanctl.cli.replay_tables import print_tables
from elmanctl.constants import BEST, CMA, MEASURED_BEST, OPTIMIZERS
from elmanctl.errors import Faults, NotFound, PartialFailure, UsageError, meant
from elmanctl.folders import as_written
from elmanctl.settings import SearchSettings

_SURROGATES = ("trees", "gp")
_MOST = 100_000


def replay(
    ctx: Context,
    runs: Annotated[
        list[str] | None,
        Argument(metavar="RUN...", help="Runs to fit a surrogate to", autocompletion=run_names),
    ] = None,
    file: Annotated[
        list[Path] | None,
        Option(help="JSON lines of recorded evaluations, maybe with gzip; repeatable"),
    ] = None,
    function: Annotated[
        list[str] | None, Option(help="Synthetic function, or all of them; repeatable")
    ] = None,
    optimizer: Annotated[
        list[str] | None, Option(help="Optimizer; repeatable; the first one is compared with")
    ] = None,
    budget: Annotated[
        str, Option(help="Trained evaluations of a search, several with commas")
    ] = "30,60,120",
    seeds: Annotated[int, Option(help="Searches of each", min=1, max=_MOST)] = 30,
    surrogate: Annotated[
        str,
        Option(help="trees, or gp for a Gaussian process", autocompletion=one_of(_SURROGATES)),
    ] = "trees",
    noise: Annotated[
        float | None, Option(help="Standard deviation of a loss; default from repeats", min=0.0)
    ] = None,
    failures: Annotated[
        float | None,
        Option(help="Share of trainings that fail; default as on record", min=0.0, max=0.9),
    ] = None,
    population: Annotated[int, Option(help="Evaluations a generation", min=4, max=10_000)] = 8,
    sigma: Annotated[
        float | None, Option(help="First step size of CMA-ES, a share of each range", max=1.0)
    ] = None,
    processes: Annotated[
        int | None, Option(help="Searches at the same time; default all cores", min=1, max=1000)
    ] = None,
    cache: Annotated[
        Path | None, Option(help="File that keeps finished searches, to go on after a stop")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare optimizers on what earlier searches recorded

    A surrogate is fitted to the losses of each run. Every optimizer searches it with the same
    seeds, noise and failures, and is judged by the noise-free value of the point with the lowest
    loss.

    \b
    Examples:
        elmanctl replay e88-480m --optimizer cma --optimizer random
        elmanctl replay --function all --seeds 100
        elmanctl replay --file earlier.jsonl --noise 0.01 --cache replay.jsonl
    """
    budgets = _budgets(budget)
    asked = optimizer or _default_optimizers()
    names = list(dict.fromkeys(MEASURED_BEST if name == BEST else name for name in asked))
    _check_optimizers(names)
    if surrogate not in _SURROGATES:
        hint = meant(surrogate, _SURROGATES, f"surrogates: {', '.join(_SURROGATES)}")
        raise UsageError(f"no surrogate named `{surrogate}`", hint=hint)
    from elmanctl.replay.runner import Simulations, run_tasks, tasks_of
    from elmanctl.replay.sources import find_sources
    from elmanctl.replay.summary import overall, rows_of
    from elmanctl.replay.trace_cache import TraceCache

    sources, notes = find_sources(
        [load_readable(chosen_run(ctx, run)) for run in runs or ()],
        [as_written(path) for path in file or ()],
        function or (),
        surrogate=surrogate,
        noise=noise,
        failure_share=failures,
    )
    for note in notes:
        say(note)
    tasks = tasks_of(
        list(sources),
        names,
        seeds=seeds,
        budgets=budgets,
        population=population,
        sigma=sigma,
    )
    simulations = Simulations(sources=sources, procedures={})
    found = dict(
        run_tasks(
            simulations,
            tasks,
            TraceCache(None if cache is None else as_written(cache)),
            processes=processes or len(os.sched_getaffinity(0)),
        )
    )
    traces = {task: found[task] for task in tasks}
    print_tables(
        rows_of(simulations, traces), overall(simulations, traces, names[0]), as_json=as_json
    )
    errors = [f"{task.optimizer}: {t.error}" for task, t in traces.items() if t.error is not None]
    if errors:
        raise PartialFailure(f"{len(errors)} of {len(traces)} searches failed; first {errors[0]}")


def _default_optimizers() -> list[str]:
    """Return CMA-ES by pycma, the default of a search, and what all have to be better than."""
    return [each for each in (CMA, SearchSettings().optimizer, "random") if each in OPTIMIZERS]


def _check_optimizers(names: Sequence[str]) -> None:
    faults = Faults()
    for name in names:
        if name not in OPTIMIZERS:
            hint = meant(name, OPTIMIZERS, f"optimizers: {', '.join(OPTIMIZERS)}")
            faults.add(NotFound(f"no optimizer named `{name}`", hint=hint))
    faults.raise_any()


def _budgets(text: str) -> list[int]:
    """Return the budgets of a text such as `30,60`; raise UsageError for anything else."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and 1 <= int(word) <= _MOST for word in words):
        raise UsageError(
            f"`--budget` takes numbers of evaluations, not `{text}`", hint="e.g. `--budget 30,60`"
        )
    return sorted({int(word) for word in words})
