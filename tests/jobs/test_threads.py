"""A loss does not depend on how many threads the environment of a worker asks for."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import elmanctl
from elmanctl.models.params import count_parameters
from elmanctl.models.registry import FAMILIES
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.spec import AttemptSpec
from tests.models.samples import SMALL, small_config

CHECKOUT = Path(elmanctl.__file__).parents[1]
# As a job's shell, a site's module and a user's profile set them.
ENVIRONMENTS: tuple[dict[str, str], ...] = (
    {"OMP_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
    {"OMP_NUM_THREADS": "4", "MKL_DYNAMIC": "FALSE", "OMP_DYNAMIC": "FALSE"},
)
WORKERS = """
import sys
from elmanctl.jobs.evaluation import evaluate_attempt
for folder in sys.argv[1:]:
    # As in a process of its own, where the number is not set yet.
    import torch
    torch.set_num_threads(THREADS)
    evaluate_attempt(folder)
"""


def losses(folder: Path) -> list[float]:
    lines = (folder / AttemptPaths(folder).metrics.name).read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_loss_of_any_family_is_the_same_whatever_threads_the_environment_names(
    make_spec: Callable[..., AttemptSpec], tmp_path: Path
) -> None:
    found: list[dict[str, Any]] = []
    for number, environment in enumerate(ENVIRONMENTS):
        folders = []
        for level in FAMILIES:
            config = small_config(level).encode()
            spec = make_spec(
                level=level,
                config=config,
                parameters_expected=count_parameters(level, config),
                lr=SMALL[level]["lr"],
                steps=4,
            )
            paths = AttemptPaths(tmp_path / str(number) / level)
            paths.folder.mkdir(parents=True)
            paths.spec.write_text(json.dumps(spec.encode()))
            folders.append(paths.folder)
        script = WORKERS.replace("THREADS", environment["OMP_NUM_THREADS"])
        cleared = {k: v for k, v in os.environ.items() if "NUM_THREADS" not in k}
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, folders)],
            env=cleared | {"PYTHONPATH": str(CHECKOUT)} | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found.append({folder.name: losses(folder) for folder in folders})
    assert all(len(steps) == 4 for steps in found[0].values())
    assert found[1] == found[0]
    assert found[2] == found[0]
