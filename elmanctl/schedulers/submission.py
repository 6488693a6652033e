"""What a submission is made of: one pickle a task, and the script that sbatch gets.

submitit names a pickle after its job, which is known only once sbatch has answered; a controller
that dies in between leaves a job waiting for a file that nobody renames.  Here the script itself
links the name when the job starts, so that no controller is needed.
"""

import math
import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elmanctl.errors import UsageError
from elmanctl.folders import as_nodes_see, working_folder
from elmanctl.jobs.evaluation import EvaluateAttempt
from elmanctl.ledger.records import Resources, Submission
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.quoting import check_command, check_path, check_setup, check_value

# The signal that warns of the end comes this long before it.
SIGNAL_DELAY_S = 30

SCRIPT_NAME = "submission.sh"

# What the controller decides; a user's own value would break its bookkeeping.
_OURS = (
    *("array", "clusters", "error", "job-name", "no-requeue", "nodes", "ntasks"),
    *("ntasks-per-node", "open-mode", "output", "parsable", "requeue", "signal", "test-only"),
    *("wait", "wrap"),
)

# What has a setting of its own in `[slurm]`, by which retries and verdicts go.
_SETTINGS = {
    "account": "account",
    "cpus-per-task": "cpus",
    "gres": "gres",
    "mem": "mem_gb",
    "partition": "partition",
    "time": "timeout_min",
}


def task_pickle(folder: Path, index: int) -> Path:
    """Return where the pickle of one task is kept."""
    return folder / f"task-{index}.pkl"


def write_pickles(submission: Submission, folder: Path, paths: RunPaths) -> None:
    """Write what each task runs, before anything is submitted."""
    from submitit.core.utils import DelayedSubmission

    timeout_min = math.ceil(submission.resources.timeout_min)
    for task in submission.tasks:
        attempt = paths.attempt(task.evaluation, task.attempt)
        delayed = DelayedSubmission(EvaluateAttempt(str(attempt.folder)))
        # No time-out is ever turned into a requeue by submitit: Slurm's own state tells of it.
        delayed.set_timeout(timeout_min, 0)
        delayed.dump(task_pickle(folder, task.index))


def worker_command(folder: Path, python: str | None) -> str:
    """Return the shell command that starts submitit's worker, off the working folder's modules."""
    interpreter = python or shlex.quote(str(as_nodes_see(Path(sys.executable))))
    return f"{interpreter} -P -u -m submitit.core._submit {shlex.quote(str(folder))}"


def worker_environment(code: Path) -> dict[str, str]:
    """Return what the worker's environment must hold: the run's frozen code comes first."""
    known = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{code}{os.pathsep}{known}" if known else str(code)}


def make_script(submission: Submission, folder: Path, code: Path) -> str:
    """Return the sbatch script of a submission; `code` is the run's frozen code.

    Raises UsageError for what cannot be carried into it; see `check_resources`.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    resources = submission.resources
    check_resources(resources)
    check_path(folder)
    check_path(code)
    return str(
        _make_sbatch_string(
            command=worker_command(folder, resources.python),
            folder=folder,
            map_count=len(submission.tasks) if submission.is_array else None,
            array_parallelism=len(submission.tasks),
            signal_delay_s=SIGNAL_DELAY_S,
            stderr_to_stdout=True,
            wckey=None,
            time=resources.timeout_min,
            nodes=1,
            ntasks_per_node=1,
            job_name=submission.job_name,
            partition=resources.partition or None,
            account=resources.account or None,
            gres=resources.gres or None,
            mem=None if resources.mem_gb is None else f"{round(resources.mem_gb * 1024)}M",
            cpus_per_task=resources.cpus,
            setup=_setup_lines(resources, folder, code, is_array=submission.is_array),
            # The limits of a login node's shell say nothing of what a job may use; but whether
            # cores are written is the user's choice, where slurmd's own limit is mostly none.
            additional_parameters={
                "no-requeue": True,
                "propagate": "CORE",
                **_where(),
                **_extra(resources),
            },
        )
    )


def _where() -> dict[str, str]:
    """Return where the job begins, where sbatch would name a folder that only this machine has."""
    folder = working_folder()
    return {} if folder == Path.cwd() else {"chdir": str(folder)}


def _extra(resources: Resources) -> dict[str, Any]:
    options = extra_options(resources.extra)
    if resources.exclude:
        options["exclude"] = excluded(resources)
    return options


def excluded(resources: Resources) -> str:
    """Return what --exclude gets: nodes to avoid are added to those that the user avoids."""
    own = extra_options(resources.extra).get("exclude")
    return ",".join([*([str(own)] if own else []), *resources.exclude])


def _setup_lines(resources: Resources, folder: Path, code: Path, *, is_array: bool) -> list[str]:
    lines = list(resources.setup)
    if resources.cpus:
        # Since Slurm 22.05 srun no longer inherits this from sbatch.
        lines.append(f"export SRUN_CPUS_PER_TASK={resources.cpus}")
    # With `--export=NONE` srun would pass on nothing that is set here.
    lines.append("export SLURM_EXPORT_ENV=ALL")
    lines.append(f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    lines.append(_link_line(shlex.quote(str(folder)), is_array=is_array))
    return lines


def _link_line(where: str, *, is_array: bool) -> str:
    """Return the shell line that names a task's pickle after its job, as submitit looks for it."""
    if not is_array:
        return f'ln -sfn {where}/task-0.pkl {where}/"${{SLURM_JOB_ID}}_submitted.pkl"'
    task = f'{where}/"task-${{SLURM_ARRAY_TASK_ID}}.pkl"'
    link = f'{where}/"${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}_submitted.pkl"'
    return f"ln -sfn {task} {link}"


def check_resources(resources: Resources) -> None:
    """Raise UsageError, naming the key, for what cannot reach sbatch as it is."""
    for key in ("partition", "account", "gres"):
        check_value(f"slurm.{key}", getattr(resources, key) or "")
    for name, value in extra_options(resources.extra).items():
        check_value(f"slurm.extra.{name}", value)
    check_setup("slurm.setup", resources.setup)
    if resources.python is not None:
        check_command("slurm.python", resources.python)


def extra_options(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return a user's own sbatch options, without those that are turned off.

    Raises UsageError for one that the controller itself decides, or that is no long option.
    """
    options = {key.replace("_", "-"): value for key, value in extra.items() if value is not False}
    for key in options:
        if key in _SETTINGS:
            raise UsageError(
                f"`slurm.extra` cannot set `{key}`", hint=f"set `slurm.{_SETTINGS[key]}`"
            )
        if key in _OURS or not re.fullmatch(r"[a-z][a-z-]+", key):
            raise UsageError(
                f"`slurm.extra` cannot set `{key}`",
                hint=f"elmanctl itself decides {', '.join(_OURS)}; other long options are free",
            )
    return options
