"""Finding runs and evaluations by what a user calls them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from elmanctl.errors import NotFound, UsageError, nearest
from elmanctl.jobs.paths import RunPaths
from elmanctl.ledger.records import Evaluation, VerdictKind
from elmanctl.ledger.state import RunState


def list_runs(folder: Path) -> list[Path]:
    """Return the folders of all runs, oldest ledger first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if RunPaths(path).ledger.is_file()]
    return sorted(found, key=lambda path: (RunPaths(path).ledger.stat().st_mtime_ns, path.name))


def find_run(folder: Path, name: str | None) -> Path:
    """Return a run's folder: by its name or a unique beginning of it, or the newest one.

    Raises NotFound when there is none, UsageError when a beginning fits several.
    """
    runs = list_runs(folder)
    if not runs:
        raise NotFound(
            f"no runs in {folder}",
            hint="start one with `elmanctl search e88 --preset tiny --local`",
        )
    if name is None:
        return runs[-1]
    names = {path.name: path for path in runs}
    if name in names:
        return names[name]
    starting = [path for path in runs if path.name.startswith(name)]
    if len(starting) == 1:
        return starting[0]
    if starting:
        raise UsageError(
            f"`{name}` is the beginning of {len(starting)} runs",
            hint=f"name one: {', '.join(path.name for path in starting)}",
        )
    near = nearest(name, names)
    known = f"did you mean `{near}`? " if near else ""
    raise NotFound(f"no run named `{name}`", hint=f"{known}List runs with `elmanctl status`")


def find_evaluation(state: RunState, name: str) -> Evaluation:
    """Return an evaluation by id (`g012-e03`, `12.3`), by job id, or `best`.

    Raises NotFound, with the nearest id where there is one.
    """
    if name in state.evaluations:
        return state.evaluations[name]
    if name == "best":
        best = state.best()
        if best is None:
            raise NotFound("no evaluation is completed yet")
        return best
    generation, dot, index = name.partition(".")
    if dot and generation.isdigit() and index.isdigit():
        short = f"g{int(generation):03}-e{int(index):02}"
        if short in state.evaluations:
            return state.evaluations[short]
    for evaluation in state.evaluations.values():
        if any(attempt.job_id == name for attempt in evaluation.attempts):
            return evaluation
    near = nearest(name, state.evaluations)
    raise NotFound(
        f"no evaluation `{name}` in run `{state.run['name']}`",
        hint=f"did you mean `{near}`?" if near else "`elmanctl status RUN` lists them",
    )


def select_named(state: RunState, names: Iterable[str]) -> list[Evaluation]:
    """Return evaluations by their names, each once."""
    found = {e.id: e for e in (find_evaluation(state, name) for name in names)}
    return list(found.values())


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise UsageError, with the nearest that exists, for a verdict that does not."""
    for kind in kinds:
        if kind not in set(VerdictKind):
            near = nearest(kind, VerdictKind)
            raise UsageError(
                f"no verdict named `{kind}`",
                hint=f"did you mean `{near}`?" if near else f"verdicts: {', '.join(VerdictKind)}",
            )
