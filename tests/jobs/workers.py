"""Workers as processes of their own, and what they left."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elmanctl.run.paths import AttemptPaths
from tests.jobs.attempts import read
from tests.patience import PATIENCE_S

CONFIG = {"dim": 16, "depth": 1, "n_heads": 2, "n_state": 4}
LONG = 10**9

Start = Callable[..., "subprocess.Popen[str]"]


def metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_for_steps(paths: AttemptPaths, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not paths.metrics.exists() or len(paths.metrics.read_text().splitlines()) < count:
        assert time.monotonic() < deadline, "the worker makes no steps"
        time.sleep(0.02)


def verdict(paths: AttemptPaths) -> tuple[str, str]:
    found = read(paths.result)["verdict"]
    return found["kind"], found["evidence"][0]["text"]
