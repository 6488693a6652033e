"""Sources of objectives that a user names: runs, files of recorded evaluations, functions."""

from collections.abc import Sequence
from pathlib import Path

from elmanctl.errors import UsageError
from elmanctl.ledger.run_state import RunState
from elmanctl.replay.functions import FAILURE_SHARE, NOISE, FunctionSource, find_functions
from elmanctl.replay.objective import Constant, Objective, Source
from elmanctl.replay.recorded_objective import Fit, fit_objective
from elmanctl.replay.recording import Recording, read_recordings, recording_of


def find_sources(
    runs: Sequence[RunState],
    files: Sequence[Path],
    functions: Sequence[str],
    *,
    surrogate: str,
    noise: float | None,
    failure_share: float | None,
) -> tuple[dict[str, Source], list[str]]:
    """Return the sources by name, and a line on each fitted one.

    `noise` and `failure_share` replace those on record.  Raises NotFound for an unknown function or
    file, and UsageError for a file that cannot be read, for what no surrogate can be fitted to, for
    two sources of one name, and for none at all.
    """
    recorded: list[tuple[Recording, RunState | None]] = []
    recorded += [(recording_of(state), state) for state in runs]
    recorded += [(each, None) for path in files for each in read_recordings(path)]
    found: list[Source] = []
    notes = []
    for recording, state in recorded:
        objective, fit = fit_objective(
            recording, surrogate=surrogate, noise=noise, failure_share=failure_share, run=state
        )
        notes.append(_describe(objective, fit, surrogate))
        found.append(Constant(objective=objective))
    found += [
        FunctionSource(
            name=name,
            noise=NOISE if noise is None else noise,
            failure_share=FAILURE_SHARE if failure_share is None else failure_share,
        )
        for name in find_functions(functions)
    ]
    if not found:
        raise UsageError(
            "nothing to search",
            hint="name a run, or pass `--file` or `--function`, e.g. `--function all`",
        )
    named: dict[str, Source] = {}
    for source in found:
        if source.name in named:
            raise UsageError(f"two objectives are named `{source.name}`")
        named[source.name] = source
    return named, notes


def _describe(objective: Objective, fit: Fit, surrogate: str) -> str:
    kind = "extra trees" if surrogate == "trees" else "a Gaussian process"
    source = f"by {fit.degrees} degrees of freedom of repeats" if fit.degrees else "as given"
    return (
        f"{objective.name}: {fit.losses} losses, of whose variance {kind} predict"
        f"{'s' * (surrogate == 'gp')} {fit.explained:.0%} in five folds; "
        f"noise sd {objective.noise:.4g} {source}, failures {objective.failure_share:.1%}"
    )
