"""Compared items: runs, evaluations and results of `elmanctl eval`, found by name."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from elmanctl.errors import Faults, NotFound, UsageError, meant
from elmanctl.folders import as_written
from elmanctl.ledger.run_state import RunState
from elmanctl.run.paths import AttemptPaths, RunPaths
from elmanctl.search.compared_results import row_of_run, rows_of_folders
from elmanctl.search.comparison import Row
from elmanctl.search.selection import find_run, list_runs, list_single_evaluations


def find_rows(items: Sequence[str], runs: Path, load: Callable[[RunPaths], RunState]) -> list[Row]:
    """Return a row for each run and evaluation, and one for the results of a configuration.

    An item is the name of a run or the path of its folder, with `/EVALUATION` for one that is not
    its winner, or the folder of a result.  `load` reads the state of a run.  Raises NotFound for
    what does not exist or has no result, UsageError for what is named twice.
    """
    rows: list[Row] = []
    folders: list[Path] = []
    faults = Faults()
    for item in items:
        with faults:
            found = find_item(item, runs)
            if isinstance(found, Path):
                folders.append(found)
            else:
                paths, evaluation = found
                rows.append(row_of_run(paths, load(paths), evaluation))
    with faults:
        rows += rows_of_folders(folders)
    with faults:
        _refuse_twice(rows)
    faults.raise_any()
    names = [row.item for row in rows]
    return [
        row if names.count(row.item) == 1 else replace(row, item=row.sources[0]) for row in rows
    ]


def find_item(item: str, runs: Path) -> Path | tuple[RunPaths, str | None]:
    """Return the folder of a result, or a run and the name of an evaluation, None for the winner.

    The whole name of a run comes before a folder here, and that before the beginning of a name.
    Raises NotFound.
    """
    whole = item.rstrip("/")
    head, _, tail = whole.rpartition("/")
    names = [path.name for path in list_runs(runs)]
    for name, evaluation in ((whole, None), (head, tail)):
        folder = runs / name if name in names else Path(name)
        if name and RunPaths(folder).ledger.is_file():
            return RunPaths(as_written(folder)), evaluation
    for folder in (Path(item), runs / item):
        if AttemptPaths(folder).spec.is_file():
            return as_written(folder)
    for name, evaluation in ((whole, None), (head, tail)):
        if name and any(known.startswith(name) for known in names):
            return RunPaths(as_written(find_run(runs, name))), evaluation
    raise _unknown(item, runs, names)


def _unknown(item: str, runs: Path, names: Sequence[str]) -> NotFound:
    singles = [path.name for path in list_single_evaluations(runs)]
    known = [*names, *singles, *(str(runs / name) for name in singles)]
    is_folder = Path(item).is_dir()
    return NotFound(
        f"{item} is the folder of no run, and of no result of `elmanctl eval`"
        if is_folder
        else f"no run, evaluation or folder `{item}`",
        hint=meant(item, known, "`elmanctl status` lists the runs"),
    )


def _refuse_twice(rows: Iterable[Row]) -> None:
    """Raise UsageError for a result that two items name."""
    owners: dict[str, str] = {}
    for row in rows:
        for source in row.sources:
            other = owners.get(source)
            if other == row.item:
                raise UsageError(f"{row.item} is named twice")
            if other is not None:
                raise UsageError(
                    f"{row.item} and {other} have a result in common, {source}",
                    hint="name one of them",
                )
        owners |= dict.fromkeys(row.sources, row.item)
