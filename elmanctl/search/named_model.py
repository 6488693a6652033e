"""Named model: the file of a model by what a user calls it."""

from collections.abc import Callable
from pathlib import Path

from elmanctl.ledger.run_state import RunState
from elmanctl.run.paths import RunPaths
from elmanctl.run.saved_file import MODEL_FILE, locate_model
from elmanctl.search.compared_items import find_item
from elmanctl.search.kept_models import find_model
from elmanctl.search.selection import find_evaluation


def find_named_model(name: str, runs: Path, load: Callable[[RunPaths], RunState]) -> Path:
    """Return the file of a model: a file or folder, RUN/EVALUATION, or RUN for its best.

    The best is the confirmed winner, or without one the evaluation of the lowest loss.  `load`
    reads the state of a run.  Raises NotFound for what does not exist or has no model.
    """
    path = Path(name)
    is_folder_of_run = RunPaths(path).ledger.is_file()
    if path.is_file() or path.suffix == Path(MODEL_FILE).suffix:
        return path
    if path.is_dir() and not is_folder_of_run:
        return locate_model(path)
    found = find_item(name, runs)
    if isinstance(found, Path):
        return locate_model(found)
    paths, evaluation = found
    state = load(paths)
    return find_model(paths, state, find_evaluation(state, evaluation or "best"))
