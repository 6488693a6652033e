"""Reading runs in tests."""

import json
from pathlib import Path

from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run


def load(folder: Path) -> RunState:
    """Return a run's state; its ledger must be whole."""
    loaded = load_run(folder)
    assert loaded.warning is None
    return loaded.state


def points(state: RunState) -> dict[str, tuple[float, ...]]:
    """Return the point of every evaluation."""
    return {name: evaluation.point for name, evaluation in state.evaluations.items()}


def losses(state: RunState) -> dict[str, float | None]:
    """Return the loss of every evaluation."""
    return {name: evaluation.loss for name, evaluation in state.evaluations.items()}


def trained_attempts(folder: Path) -> list[str]:
    """Return the folder of every attempt that a worker finished, as `evaluation/attempt`."""
    found = sorted((folder / "evaluations").glob("*/*/result.json"))
    return [
        f"{path.parts[-3]}/{path.parts[-2]}"
        for path in found
        if json.loads(path.read_text(encoding="utf-8"))["verdict"]["kind"] == "completed"
    ]
