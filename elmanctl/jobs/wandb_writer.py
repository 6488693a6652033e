"""Weights & Biases writer: an attempt as one W&B run, also after restarts of its job."""

import os
import secrets
from collections.abc import Mapping
from typing import Any

from elmanctl.ledger.files import write_atomically
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.progress import read_table
from elmanctl.run.spec import AttemptSpec


class WandbWriter:
    """Logs to a W&B run; wandb is imported here.

    Its configuration is the spec, its group the search.  `WANDB_MODE` and W&B's other variables
    mean what they mean everywhere.
    """

    def __init__(self, paths: AttemptPaths, spec: AttemptSpec) -> None:
        # What W&B shows of a process is the worker's, which started this one.
        os.environ.setdefault("WANDB_X_STATS_PID", str(os.getppid()))
        import wandb

        self._paths = paths
        entity, _, project = spec.metrics.wandb.rpartition("/")
        name = paths.folder.name
        self._run = wandb.init(
            entity=entity or None,
            project=project,
            group=spec.run if paths.is_in_run else None,
            name=f"{spec.evaluation}/{name}" if paths.is_in_run else name,
            id=_run_id(paths),
            resume="allow",
            dir=str(paths.folder),
            config=spec.encode(),
            settings=wandb.Settings(console="off", silent=True, disable_git=True),
        )
        # After a restart the steps begin again at the checkpoint, which W&B's own count cannot.
        self._run.define_metric("*", step_metric="step")

    def write(self, values: Mapping[str, Any]) -> None:
        """Log the numbers of one step."""
        self._run.log(dict(values))

    def close(self) -> None:
        """End the W&B run, with the attempt's result in its summary; without one it has failed."""
        result = read_table(self._paths.result)
        if result is None:
            self._run.finish(exit_code=1)
            return
        kind = result["verdict"]["kind"]
        plain = {name: value for name, value in result.items() if type(value) in (int, float, str)}
        self._run.summary.update({"verdict": kind, "result": plain})
        self._run.finish(exit_code=0 if kind == "completed" else 1)


def _run_id(paths: AttemptPaths) -> str:
    """Return the id of the attempt's W&B run, made at its first start."""
    path = paths.wandb / "run-id"
    if not path.exists():
        paths.wandb.mkdir(exist_ok=True)
        write_atomically(path, secrets.token_hex(8).encode())
    return path.read_text(encoding="ascii")
