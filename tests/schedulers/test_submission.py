"""The sbatch script: its text, and what it does when a shell runs it."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from difflib import unified_diff
from pathlib import Path
from typing import Any

import pytest

from elmanctl.errors import UsageError
from elmanctl.ledger.submissions import Resources, Submission, Task
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.submission import (
    SCRIPT_NAME,
    extra_options,
    make_script,
    task_pickle,
    worker_command,
    worker_environment,
    write_pickles,
)

GOLDEN = Path(__file__).parents[1] / "data"


def submission(tasks: int = 3, **resources: Any) -> Submission:
    asked = Resources(**{"timeout_min": 21, "python": "python3", **resources})
    return Submission(
        id="s0007",
        job_name="elman-e88-480m-1a2b3c4d-s0007",
        tasks=tuple(
            Task(index=index, evaluation=f"g002-e{index:02}", attempt=1) for index in range(tasks)
        ),
        resources=asked,
    )


def script(run: Path, tasks: int = 3, **resources: Any) -> str:
    paths = RunPaths(run)
    return make_script(submission(tasks, **resources), paths.submission("s0007"), paths.code)


def assert_golden(name: str, text: str) -> None:
    """Compare with the file in tests/data; a script changes on purpose or not at all."""
    expected = (GOLDEN / name).read_text(encoding="utf-8")
    changed = unified_diff(expected.splitlines(), text.splitlines(), name, "now", lineterm="")
    assert text == expected, "\n".join(changed)


def test_script_with_plain_paths_is_the_golden_one() -> None:
    text = script(
        Path("/cluster/runs/e88-480m"),
        partition="gpu",
        account="lm",
        gres="gpu:1",
        mem_gb=32,
        cpus=4,
        setup=("module load cuda", "ulimit -n 4096"),
        extra={"qos": "high", "exclusive": True, "nice": 100, "reservation": False},
    )
    assert_golden("submission.sh", text)


TRAPS = Path('/cluster/it\'s a "run"/-x $(touch pwned) `touch pwned`; #')


def test_script_with_traps_for_a_shell_is_the_golden_one() -> None:
    text = script(
        TRAPS,
        partition="-p two words",
        account="$(touch pwned)'\"",
        gres="gpu:a b:1",
        mem_gb=1.5,
        extra={"comment": "it's; $(touch pwned)"},
    )
    assert_golden("submission-quoted.sh", text)


def test_script_of_a_job_of_several_ranks_is_the_golden_one() -> None:
    text = script(
        Path("/cluster/runs/e88-27b"), partition="gpu", gres="gpu:8", nodes=4, tasks_per_node=8
    )
    assert_golden("submission-ranks.sh", text)


def test_script_of_jobs_of_several_attempts_is_the_golden_one() -> None:
    asked = {"partition": "gpu", "gres": "gpu:a100:1,lic", "mem_gb": 40, "cpus": 8}
    text = script(Path("/cluster/runs/e88"), tasks=6, per_job=4, **asked)
    assert_golden("submission-lanes.sh", text)


def test_job_of_fewer_attempts_than_fit_asks_for_these() -> None:
    lines = script(Path("/cluster/run"), tasks=3, per_job=4, gres="gpu:1", mem_gb=2).splitlines()
    for option in ("gres=gpu:3", "mem=6144M", "ntasks-per-node=3", "array=0-0%1"):
        assert f"#SBATCH --{option}" in lines


def test_script_asks_for_nothing_that_is_not_set() -> None:
    text = script(Path("/cluster/run"))
    for option in ("partition", "account", "gres", "mem", "cpus-per-task", "wckey"):
        assert f"#SBATCH --{option}" not in text


def test_job_is_never_requeued_by_slurm_behind_the_ledgers_back() -> None:
    lines = script(Path("/cluster/run")).splitlines()
    assert "#SBATCH --no-requeue" in lines


def test_limits_of_the_shell_other_than_on_cores_do_not_travel_unless_asked_for() -> None:
    assert "#SBATCH --propagate=CORE" in script(Path("/cluster/run")).splitlines()
    asked = script(Path("/cluster/run"), extra={"propagate": "STACK"}).splitlines()
    assert [line for line in asked if "propagate" in line] == ["#SBATCH --propagate=STACK"]


def test_underscores_of_an_extra_option_become_dashes() -> None:
    assert extra_options({"mail_type": "END", "nice": 5}) == {"mail-type": "END", "nice": 5}


@pytest.mark.parametrize(
    "key",
    [
        *("array", "job-name", "job_name", "output", "error", "requeue", "no_requeue"),
        *("open-mode", "signal", "nodes", "ntasks", "wrap", "wait", "test-only", "clusters"),
        *("J", "p", "-p", "mail type", "qos\n#SBATCH --array", "", "QOS"),
    ],
)
def test_extra_option_that_would_break_the_bookkeeping_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match=r"`slurm\.extra` cannot set") as raised:
        extra_options({key: "1"})
    assert raised.value.hint is not None and "job-name" in raised.value.hint
    with pytest.raises(UsageError):
        script(Path("/cluster/run"), extra={key: "1"})


@pytest.mark.parametrize(("key", "setting"), [("time", "timeout_min"), ("mem", "mem_gb")])
def test_extra_option_with_a_setting_of_its_own_is_refused_by_that_name(
    key: str, setting: str
) -> None:
    with pytest.raises(UsageError) as raised:
        extra_options({key: "1"})
    assert raised.value.hint == f"set `slurm.{setting}`"


# A stub of srun: it starts the command in the background of nothing, here and now.
_SRUN = """\
#!/bin/sh
printf '%s\\037' "$@" > "$CALLS/srun"
while [ "$1" != "$STUB" ]; do shift; done
exec "$@"
"""

# A stub of Python: what it was called with, what it sees, and the pickle it would load.
_PYTHON = """\
#!/bin/sh
for last; do :; done
printf '%s\\037' "$@" > "$CALLS/python"
cat "$last/${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}_submitted.pkl" > "$CALLS/pickle"
printf '%s' "$PYTHONPATH" > "$CALLS/pythonpath"
printf '%s' "$SRUN_CPUS_PER_TASK" > "$CALLS/cpus"
printf '%s' "$FROM_SETUP" > "$CALLS/setup"
"""


class Shell:
    """Runs a script as a node would, with stubs of srun and Python on PATH."""

    def __init__(self, root: Path) -> None:
        self.bin = root / "bin"
        self.calls = root / "calls"
        for folder in (self.bin, self.calls):
            folder.mkdir()
        for name, text in (("srun", _SRUN), ("stub-python", _PYTHON)):
            (self.bin / name).write_text(text, encoding="utf-8")
            (self.bin / name).chmod(0o755)

    def run(self, text: str, task: int, folder: Path, **environment: str) -> None:
        path = folder / SCRIPT_NAME
        path.write_text(text, encoding="utf-8")
        subprocess.run(
            ["sh", str(path)],
            cwd=folder,
            env={
                "PATH": f"{self.bin}:{os.environ['PATH']}",
                "CALLS": str(self.calls),
                "STUB": "stub-python",
                "SLURM_ARRAY_JOB_ID": "4711",
                "SLURM_ARRAY_TASK_ID": str(task),
                **environment,
            },
            check=True,
            capture_output=True,
        )

    def written(self, name: str) -> str:
        return (self.calls / name).read_text(encoding="utf-8")

    def words(self, name: str) -> list[str]:
        return self.written(name).split("\037")[:-1]


@pytest.fixture(params=["plain", 'it\'s a "run" -x $(touch pwned) `touch pwned`; # é'])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path / str(request.param))
    folder = paths.submission("s0007")
    folder.mkdir(parents=True)
    for index in range(3):
        task_pickle(folder, index).write_text(f"pickle {index}", encoding="utf-8")
    return paths


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_each_task_reaches_its_own_pickle_under_the_name_that_submitit_wants(
    run: RunPaths, shell: Shell
) -> None:
    folder = run.submission("s0007")
    text = script(run.folder, python="stub-python")
    for task in (2, 0):
        shell.run(text, task, folder)
        assert shell.written("pickle") == f"pickle {task}"
        assert shell.words("python") == ["-P", "-u", "-m", "submitit.core._submit", str(folder)]
    assert not list(run.folder.parent.rglob("pwned"))
    assert sorted(path.name for path in folder.glob("*_submitted.pkl")) == [
        "4711_0_submitted.pkl",
        "4711_2_submitted.pkl",
    ]


def test_output_of_the_worker_goes_into_the_submissions_folder(run: RunPaths, shell: Shell) -> None:
    folder = run.submission("s0007")
    text = script(run.folder, python="stub-python")
    shell.run(text, 0, folder)
    words = shell.words("srun")
    assert words[words.index("--output") + 1] == str(folder / "%A_%a_%t_log.out")
    (line,) = [line for line in text.splitlines() if line.startswith("#SBATCH --output=")]
    written = shlex.split(line.removeprefix("#SBATCH --output="))
    assert written == [str(folder / "%A_%a_0_log.out")]


def test_requeued_task_finds_its_pickle_again(run: RunPaths, shell: Shell) -> None:
    folder = run.submission("s0007")
    text = script(run.folder, python="stub-python")
    for _ in range(2):
        shell.run(text, 1, folder)
        assert shell.written("pickle") == "pickle 1"


def test_frozen_code_comes_before_what_the_node_would_import(run: RunPaths, shell: Shell) -> None:
    folder = run.submission("s0007")
    text = script(run.folder, python="stub-python")
    shell.run(text, 0, folder)
    assert shell.written("pythonpath") == str(run.code)
    shell.run(text, 0, folder, PYTHONPATH="/else/where")
    assert shell.written("pythonpath") == f"{run.code}:/else/where"


def test_lines_of_the_user_run_before_the_worker(run: RunPaths, shell: Shell) -> None:
    folder = run.submission("s0007")
    lines = ("export FROM_SETUP='a b'", "PYTHONPATH=/from/setup")
    shell.run(script(run.folder, python="stub-python", setup=lines, cpus=3), 0, folder)
    assert shell.written("setup") == "a b"
    assert shell.written("cpus") == "3"
    assert shell.written("pythonpath") == f"{run.code}:/from/setup"


def test_pickles_load_in_a_process_that_knows_only_the_frozen_code(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "run")
    folder = paths.submission("s0007")
    folder.mkdir(parents=True)
    write_pickles(submission(2), folder, paths)
    code = Path(__file__).parents[2]
    program = (
        "import sys, json; from submitit.core.utils import DelayedSubmission as D; "
        "print(json.dumps([D.load(path).function.folder for path in sys.argv[1:]]))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *(str(task_pickle(folder, i)) for i in range(2))],
        cwd="/",
        env={"PATH": os.environ["PATH"], **worker_environment(code)},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [str(paths.attempt(f"g002-e0{index}", 1).folder) for index in range(2)]
    assert json.loads(done.stdout) == expected


def test_worker_runs_under_this_python_unless_another_is_named(tmp_path: Path) -> None:
    words = shlex.split(worker_command(tmp_path, None))
    assert words == [sys.executable, "-P", "-u", "-m", "submitit.core._submit", str(tmp_path)]
    words = shlex.split(worker_command(tmp_path, "apptainer exec 'my image.sif' python3"))
    assert words[:4] == ["apptainer", "exec", "my image.sif", "python3"]


def test_script_of_a_job_that_is_no_array_names_its_files_after_the_jobs_id() -> None:
    alone = replace(submission(1), is_array=False)
    text = make_script(alone, Path("/runs/x/submissions/s0001"), Path("/runs/x/code"))
    assert "--array" not in text and "SLURM_ARRAY" not in text
    assert "#SBATCH --output=/runs/x/submissions/s0001/%j_0_log.out" in text
    assert '"${SLURM_JOB_ID}_submitted.pkl"' in text
