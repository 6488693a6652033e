"""Selection of runs and evaluations by the names that a user gives."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from elmanctl.errors import EnvironmentNotReady, Faults, LedgerError, NotFound, UsageError, meant
from elmanctl.folders import as_written
from elmanctl.ledger.records import Evaluation, RunStatus, VerdictKind
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.snapshot import load_summary
from elmanctl.run.paths import AttemptPaths, RunPaths
from elmanctl.search.confirmation import best_of, standing

_NAMES_SHOWN = 8


def list_runs(folder: Path) -> list[Path]:
    """Return the folders of all runs, least recently written first.

    Raises NotFound if `folder` is not a folder, EnvironmentNotReady if it cannot be read.
    """
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return []
    except NotADirectoryError as exc:
        raise NotFound(
            f"{as_written(folder)} is no folder, so no runs are in it", hint="change `paths.runs`"
        ) from exc
    except OSError as exc:
        raise EnvironmentNotReady(
            f"cannot read the runs in {as_written(folder)}: {exc.strerror}"
        ) from exc
    found = [(at_ns, path) for path in paths if (at_ns := _last_write_ns(path)) is not None]
    return [path for _, path in sorted(found, key=lambda item: (item[0], item[1].name))]


def list_single_evaluations(folder: Path) -> list[Path]:
    """Return the folders with results of `elmanctl eval`, oldest first."""
    found = [path for path in folder.glob("eval-*") if AttemptPaths(path).spec.is_file()]
    return sorted(found, key=lambda path: (AttemptPaths(path).spec.stat().st_mtime_ns, path.name))


def _last_write_ns(path: Path) -> int | None:
    """Return the time of the last write to a ledger, None if this is not a run."""
    try:
        return RunPaths(path).ledger.stat().st_mtime_ns
    except PermissionError:
        # Possibly another user's run: reading it later fails with the reason.
        return 0
    except OSError:
        return None


def no_runs_in(folder: Path) -> str:
    """Return a message that a folder has no runs, or does not exist."""
    missing = "" if folder.exists() else ": there is no such folder"
    return f"no runs in {as_written(folder)}{missing}"


def find_run(folder: Path, name: str | None) -> Path:
    """Return a run's folder by its name or a unique prefix of it, or the newest one.

    Raises NotFound when there is none, UsageError for an ambiguous prefix.
    """
    runs = list_runs(folder)
    if not runs:
        raise NotFound(
            no_runs_in(folder),
            hint="start one with `elmanctl search e88 --preset tiny --local`; "
            "`elmanctl -C DIR ...` looks elsewhere",
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
    hints = (meant(name, names), "`elmanctl status` lists the runs")
    raise NotFound(
        f"no run named `{name}` in {as_written(folder)}", hint=" ".join(filter(None, hints))
    )


def find_run_to_change(folder: Path, name: str | None, *, whole_name: bool = False) -> Path:
    """Return the folder of a run to change, which is never guessed among several.

    Without a name it is the only run, or the only open one.  With `whole_name` a prefix is not
    enough.  Raises NotFound, UsageError.
    """
    if name is not None:
        found = find_run(folder, name)
        if whole_name and found.name != name:
            raise UsageError(
                f"`{name}` is only the beginning of a run's name",
                hint=f"write the whole name: {found.name}",
            )
        return found
    find_run(folder, None)
    runs = list_runs(folder)
    candidates = [path for path in runs if _is_open(path)] if len(runs) > 1 else runs
    if len(candidates) == 1:
        return candidates[0]
    what = "not finished" if candidates else "finished or cancelled"
    names = [path.name for path in reversed(candidates or runs)]
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    raise UsageError(
        f"{len(names)} runs are {what}, and none is named",
        hint=f"name one: {', '.join(names[:_NAMES_SHOWN])}{more}",
    )


def _is_open(path: Path) -> bool:
    """Whether a run is neither finished nor cancelled; an unreadable one counts as open."""
    try:
        status = load_summary(path).summary.status
    except LedgerError:
        return True
    return status not in (RunStatus.FINISHED, RunStatus.CANCELLED)


def find_evaluation(state: RunState, name: str) -> Evaluation:
    """Return an evaluation by id (`g012-e03`, `12.3`), by job id, or `best`; raises NotFound.

    The best is the confirmed winner, or without one the completed evaluation of the lowest loss.
    """
    if name in state.evaluations:
        return state.evaluations[name]
    if name == "best":
        if (best := best_of(state, standing(state))) is None:
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
    run = state.run["name"]
    hint = meant(name, state.evaluations, f"`elmanctl status {run} --all` lists them")
    raise NotFound(f"no evaluation `{name}` in run `{run}`", hint=hint)


def select_named(state: RunState, names: Iterable[str]) -> list[Evaluation]:
    """Return evaluations by name, without duplicates."""
    found: dict[str, Evaluation] = {}
    faults = Faults()
    for name in names:
        with faults:
            evaluation = find_evaluation(state, name)
            found[evaluation.id] = evaluation
    faults.raise_any()
    return list(found.values())


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise UsageError for an unknown verdict, with the nearest known one."""
    faults = Faults()
    for kind in kinds:
        if kind not in set(VerdictKind):
            hint = meant(kind, VerdictKind, f"verdicts: {', '.join(VerdictKind)}")
            faults.add(UsageError(f"no verdict named `{kind}`", hint=hint))
    faults.raise_any()
