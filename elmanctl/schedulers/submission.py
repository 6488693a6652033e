"""Files of a submission: one pickle per task, and the sbatch script from `submission.sh`.

submitit names a pickle after its job, whose id is known only once sbatch has answered; a controller
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

from elmanctl.constants import LOCAL_JOB_VARIABLE
from elmanctl.errors import UsageError
from elmanctl.folders import as_nodes_see, working_folder
from elmanctl.jobs.evaluation import EvaluateAttempt
from elmanctl.ledger.submissions import Resources, Submission
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.quoting import check_command, check_path, check_setup, check_value

SCRIPT_NAME = "submission.sh"
LANES_NAME = "lanes.sh"
STEP_NAME = "step.sh"

# A line of the template is left out where one of its values is not set.
_TEMPLATE = Path(__file__).with_name(SCRIPT_NAME)
_PLACEHOLDER = re.compile(r"@([a-z_]+)@")
_OPTION = "#SBATCH --"

# What comes after it starts the worker.
_COMMAND = "# command\n"

# The ranks of a job end each other by themselves, and say why; what then still hangs, srun ends.
_TOGETHER = " --kill-on-bad-exit=0 --wait=60"

# Options that the controller decides; a user's own value would break its bookkeeping.
_OURS = (
    *("array", "clusters", "error", "job-name", "no-requeue", "nodes", "ntasks"),
    *("ntasks-per-node", "open-mode", "output", "parsable", "requeue", "signal", "test-only"),
    *("wait", "wrap"),
)

# Options with a setting of their own in `[slurm]`, on which retries and verdicts depend.
_SETTINGS = {
    "account": "account",
    "cpus-per-task": "cpus",
    "gres": "gres",
    "mem": "mem_gb",
    "partition": "partition",
    "time": "timeout_min",
}


def task_pickle(folder: Path, index: int) -> Path:
    """Return the path of a task's pickle."""
    return folder / f"task-{index}.pkl"


def write_pickles(submission: Submission, folder: Path, paths: RunPaths) -> None:
    """Write the pickle that each task runs, before anything is submitted."""
    from submitit.core.utils import DelayedSubmission

    timeout_min = math.ceil(submission.resources.timeout_min)
    for task in submission.tasks:
        attempt = paths.attempt(task.evaluation, task.attempt)
        delayed = DelayedSubmission(EvaluateAttempt(str(attempt.folder)))
        # submitit must not requeue on a timeout: Slurm's own state shows it.
        delayed.set_timeout(timeout_min, 0)
        delayed.dump(task_pickle(folder, task.index))


def worker_command(folder: Path, python: str | None) -> str:
    """Return the shell command that starts submitit's worker without modules of its folder."""
    return f"{_python(python)} -P -u -m submitit.core._submit {shlex.quote(str(folder))}"


def _python(python: str | None) -> str:
    return python or shlex.quote(str(as_nodes_see(Path(sys.executable))))


def _first_task(element: str, per_job: int) -> str:
    """Return the first task of an element of the array, in the shell."""
    return element if per_job == 1 else f"$(({element} * {per_job}))"


def _scaled_gres(gres: str, times: int) -> str:
    """Return generic resources, `name[:type][:count]` each, so many times over."""
    if times == 1:
        return gres
    scaled = []
    for word in gres.split(","):
        *name, last = word.split(":")
        count, name = (int(last), name) if last.isdecimal() and name else (1, [*name, last])
        scaled.append(":".join([*name, str(count * times)]))
    return ",".join(scaled)


def worker_environment(code: Path) -> dict[str, str]:
    """Return the variables that make a worker import the run's frozen code first."""
    known = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{code}{os.pathsep}{known}" if known else str(code)}


def make_script(submission: Submission, folder: Path, code: Path) -> str:
    """Return the sbatch script of a submission; `code` is the run's frozen code.

    Raises UsageError for values that cannot be passed to sbatch; see `check_resources`.
    """
    resources = submission.resources
    check_resources(resources)
    check_path(folder)
    check_path(code)
    values = _values(submission, folder, code)
    template = _TEMPLATE.read_text(encoding="utf-8")
    if resources.per_job > 1:
        head, mark, _ = template.partition(_COMMAND)
        template = head + mark + _TEMPLATE.with_name(LANES_NAME).read_text(encoding="utf-8")
    filled = (_fill(line, values) for line in template.splitlines())
    lines = [line for line in filled if line is not None]
    first = next(index for index, line in enumerate(lines) if line.startswith(_OPTION))
    options = {_option_name(line): line for line in lines if line.startswith(_OPTION)}
    # The user's own options come last: `--propagate` and `--chdir` may be set to other values.
    for name, value in extra_options(resources.extra).items():
        if name != "exclude":
            assigned = "" if value is True else f"={shlex.quote(str(value))}"
            options[name] = f"{_OPTION}{name}{assigned}"
    others = [line for line in lines if not line.startswith(_OPTION)]
    sorted_options = [options[name] for name in sorted(options)]
    return "\n".join([*others[:first], *sorted_options, *others[first:], ""])


def make_step(submission: Submission, folder: Path, code: Path) -> str:
    """Return the script of a submission's only task, as a step in an allocation.

    Raises UsageError for values that a shell would not pass on unchanged.
    """
    check_setup("slurm.setup", submission.resources.setup)
    check_path(folder)
    check_path(code)
    values = _values(submission, folder, code)
    template = _TEMPLATE.with_name(STEP_NAME).read_text(encoding="utf-8")
    lines = (_fill(line, values) for line in template.splitlines())
    return "\n".join([*(line for line in lines if line is not None), ""])


def local_variables(job: str) -> dict[str, str]:
    """Return the variables by which a worker, and submitit in it, know of a job without sbatch."""
    return {
        LOCAL_JOB_VARIABLE: job,
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_ID": job,
        "SUBMITIT_LOCAL_NTASKS": "1",
        "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
        "SUBMITIT_LOCAL_NODEID": "0",
        "SUBMITIT_LOCAL_GLOBALID": "0",
        "SUBMITIT_LOCAL_LOCALID": "0",
    }


def _values(submission: Submission, folder: Path, code: Path) -> dict[str, str | None]:
    """Return the values of the template by placeholder, quoted for the shell; None for not set."""
    resources, count = submission.resources, len(submission.tasks)
    lanes = min(resources.per_job, count)
    jobs = math.ceil(count / resources.per_job)
    job = "%A_%a" if submission.is_array else "%j"
    own = {
        "account": resources.account or None,
        "array": f"0-{jobs - 1}%{jobs}" if submission.is_array else None,
        "chdir": _chdir(),
        "code": code,
        "cpus": resources.cpus or None,
        "exclude": excluded(resources) or None,
        "folder": folder,
        "gres": _scaled_gres(resources.gres, lanes) if resources.gres else None,
        "job_log": folder / f"{job}_0_log.out",
        "job_name": submission.job_name,
        "nodes": resources.nodes,
        "mem": None if resources.mem_gb is None else f"{round(resources.mem_gb * 1024) * lanes}M",
        "partition": resources.partition or None,
        "tasks_per_node": resources.tasks_per_node * lanes,
        "timeout_min": resources.timeout_min,
        "worker_log": folder / f"{job}_%t_log.out",
    }
    quoted = {name: None if v is None else shlex.quote(str(v)) for name, v in own.items()}
    task, job = ("${SLURM_ARRAY_TASK_ID}", "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}")
    return quoted | {
        "setup": "\n".join(resources.setup) if resources.setup else None,
        "count": str(count),
        "lane_gres": f" --gres={shlex.quote(resources.gres)}" if resources.gres else "",
        "lanes": str(lanes),
        "per_job": str(resources.per_job),
        "python": _python(resources.python),
        "task": _first_task(task, resources.per_job) if submission.is_array else "0",
        "together": _TOGETHER if resources.tasks > 1 else "",
        "job": job if submission.is_array else "${SLURM_JOB_ID}",
        "worker": worker_command(folder, resources.python),
    }


def _fill(line: str, values: Mapping[str, str | None]) -> str | None:
    """Return a line of the template with its values, None if one of them is not set."""
    if any(values[name] is None for name in _PLACEHOLDER.findall(line)):
        return None
    return _PLACEHOLDER.sub(lambda found: str(values[found[1]]), line)


def _option_name(line: str) -> str:
    return line.removeprefix(_OPTION).partition("=")[0]


def _chdir() -> Path | None:
    """Return where the job begins, if sbatch would name a folder that only this machine has."""
    folder = working_folder()
    return None if folder == Path.cwd() else folder


def excluded(resources: Resources) -> str:
    """Return the value of --exclude: the nodes that the user avoids and those of the search."""
    own = extra_options(resources.extra).get("exclude")
    return ",".join([*([str(own)] if own else []), *resources.exclude])


def check_resources(resources: Resources) -> None:
    """Raise UsageError, naming the key, for a value that cannot be passed to sbatch unchanged."""
    for key in ("partition", "account", "gres"):
        check_value(f"slurm.{key}", getattr(resources, key) or "")
    for name, value in extra_options(resources.extra).items():
        check_value(f"slurm.extra.{name}", value)
    check_setup("slurm.setup", resources.setup)
    if resources.python is not None:
        check_command("slurm.python", resources.python)


def extra_options(extra: Mapping[str, object]) -> dict[str, object]:
    """Return the user's own sbatch options, without those that are turned off.

    Raises UsageError for one that the controller decides, or that is no long option.
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
