"""Values of any kind reach sbatch, srun and the worker as they are, or are refused by their key.

The script is run by a real bash; srun and Python are small programs that write down their words.
"""

import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from elmanctl.errors import UsageError
from elmanctl.ledger.submissions import Resources, Submission, Task
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.quoting import check_path, check_setup
from elmanctl.schedulers.submission import make_script, task_pickle, worker_command

SLOW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
QUICK = settings(max_examples=150, deadline=None)

# What a shell, sbatch or submitit would take for more than text.
TRAPS = (
    *("$(touch canary)", "`touch canary`", "; touch canary", "' touch canary '", '"', "'", "\\"),
    *("\n#SBATCH --array=0-99", "\ntouch canary\n", "#SBATCH --wrap=x", " # ", "-p", "--wrap"),
    *("%j", "%A_%a", "\r\n", "\0", "é", "漢字", "\u2028", "\udcff", "${HOME}", "!!", "*", "~", "&"),
    *(":", "$SLURM_JOB_ID", "\t", "\x07", "|", "<(touch canary)", ">canary", "{a,b}", "packjob"),
)
texts = st.lists(st.one_of(st.sampled_from(TRAPS), st.text(max_size=6)), max_size=5).map("".join)
numbers = st.one_of(st.integers(), st.booleans(), st.floats())
others = st.one_of(st.none(), st.lists(st.text(max_size=3), max_size=2), st.binary(max_size=3))

_RECORDER = """\
#!/bin/sh
printf '%s\\037' "$@" > "$CALLS/{name}"
"""
_SRUN = _RECORDER.format(name="srun") + 'while [ "$1" != stub ]; do shift; done\nexec "$@"\n'
_PYTHON = _RECORDER.format(name="python") + (
    'printf %s "$PYTHONPATH" > "$CALLS/pythonpath"\n'
    'for last; do :; done; cat "$last/4711_1_submitted.pkl" > "$CALLS/pickle"\n'
)


def submission(**resources: Any) -> Submission:
    asked = Resources(**{"timeout_min": 21, "python": "stub", **resources})
    tasks = tuple(Task(index=index, evaluation=f"g000-e0{index}", attempt=1) for index in range(2))
    return Submission(id="s0001", job_name="elman-x-1a2b3c4d-s0001", tasks=tasks, resources=asked)


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with srun and the stub of Python."""
    folder = tmp_path_factory.mktemp("stubs")
    for name, text in (("srun", _SRUN), ("stub", _PYTHON)):
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


def run_script(text: str, root: Path, stubs: Path) -> dict[str, str]:
    """Run a script as a node does; return what the stubs wrote down."""
    calls, home = root / "calls", root / "home"
    for folder in (calls, home):
        folder.mkdir()
    script = root / "script"
    script.write_bytes(text.encode())
    done = subprocess.run(
        ["bash", str(script)],
        cwd=home,
        env={
            "PATH": f"{stubs}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "SLURM_ARRAY_JOB_ID": "4711",
            "SLURM_ARRAY_TASK_ID": "1",
        },
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    # Nothing but the stubs ran: no file appeared where the script was started.
    assert list(home.iterdir()) == []
    return {path.name: path.read_bytes().decode() for path in calls.iterdir()}


def sbatch_options(script: str) -> dict[str, str | None]:
    """Read the options of a script as sbatch does, which is not quite as a shell does.

    A backslash escapes inside single quotes too, a bare # ends the option, options end at the
    first command.
    """
    found: dict[str, str | None] = {}
    for line in script.split("\n"):
        if line.strip() and not line.lstrip().startswith("#"):
            break
        if line.startswith("#SBATCH"):
            name, equals, value = _sbatch_word(line.removeprefix("#SBATCH").lstrip()).partition("=")
            assert name not in found, "an option stands twice"
            found[name.removeprefix("--")] = value if equals else None
    return found


def _sbatch_word(text: str) -> str:
    word, quote, marks = "", "", iter(text)
    for mark in marks:
        if mark == "\\":
            word += next(marks)
        elif mark == quote:
            quote = ""
        elif not quote and mark in "'\"":
            quote = mark
        elif not quote and (mark.isspace() or mark == "#"):
            break
        else:
            word += mark
    assert not quote, "a quote is left open"
    return word


@QUICK
@given(partition=texts, account=texts, gres=texts, comment=st.one_of(texts, numbers, others))
@example(partition="a\nb", account="", gres="", comment=None)
@example(partition="gpu", account="$(touch canary)", gres="a b", comment="\\")
def test_options_reach_sbatch_as_they_are_or_are_refused_by_their_key(
    partition: str, account: str, gres: str, comment: Any
) -> None:
    run = RunPaths(Path("/cluster/run"))
    asked = {"partition": partition, "account": account, "gres": gres}
    try:
        script = make_script(
            submission(**asked, extra={"comment": comment}), run.submission("s0001"), run.code
        )
    except UsageError as exc:
        key = re.search(r"`slurm\.(extra\.)?(partition|account|gres|comment)`", exc.message)
        assert key is not None
        assert not str({**asked, "comment": comment}[key[2]]).isprintable() or (
            not isinstance(comment, str) or "\\" in f"{partition}{account}{gres}{comment}"
        )
        return
    options = sbatch_options(script)
    for name, value in asked.items():
        assert options.get(name) == (value or None)
    if isinstance(comment, bool):
        assert ("comment" in options, options.get("comment")) == (comment, None)
    else:
        assert options["comment"] == str(comment)
    # Nothing that was asked for turned into an option of its own.
    assert options.keys() <= {
        *("partition", "account", "gres", "comment", "array", "job-name", "no-requeue", "nodes"),
        *("ntasks-per-node", "open-mode", "output", "propagate", "signal", "time"),
    }


@SLOW
@given(account=texts, comment=texts)
def test_options_are_nothing_to_the_shell(account: str, comment: str, stubs: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        run = _run(root / "run")
        try:
            script = make_script(
                submission(account=account, extra={"comment": comment}),
                run.submission("s0001"),
                run.code,
            )
        except UsageError:
            return
        told = run_script(script, root, stubs)
        assert told["pickle"] == "pickle 1"


@SLOW
@given(name=texts)
@example(name='it\'s a "run"; $(touch canary) `touch canary` # é')
@example(name="-rf")
def test_any_folder_reaches_the_worker_as_it_is_or_is_refused(name: str, stubs: Path) -> None:
    assume("/" not in name and "\0" not in name and name not in ("", ".", ".."))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        try:
            check_path(root / name)
        except UsageError:
            with pytest.raises(UsageError):
                _script(RunPaths(root / name))
            return
        run = _run(root / name)
        told = run_script(_script(run), root, stubs)
        folder = str(run.submission("s0001"))
        assert told["pickle"] == "pickle 1"
        assert told["pythonpath"].split(":") == [str(run.code)]
        words = told["srun"].split("\037")[:-1]
        worker = ["stub", "-P", "-u", "-m", "submitit.core._submit", folder]
        assert words == ["--unbuffered", "--output", f"{folder}/%A_%a_%t_log.out", *worker]
        assert told["python"].split("\037")[:-1] == worker[1:]
        assert shlex.split(worker_command(Path(folder), "stub")) == worker
        assert sbatch_options(_script(run))["output"] == f"{folder}/%A_%a_0_log.out"


@QUICK
@given(lines=st.lists(texts, max_size=3))
@example(lines=["#SBATCH --array=0-99"])
@example(lines=["echo 'x"])
@example(lines=["cat <<END"])
@example(lines=["module load cuda \\"])
@example(lines=["x=$(", "touch y)"])
def test_setup_lines_neither_set_options_nor_swallow_what_follows(lines: list[str]) -> None:
    try:
        check_setup("slurm.setup", lines)
    except UsageError as exc:
        assert "`slurm.setup`" in exc.message
        return
    run = RunPaths(Path("/cluster/run"))
    script = make_script(submission(setup=lines), run.submission("s0001"), run.code)
    assert sbatch_options(script)["array"] == "0-1%2"
    # The line after them is still a line of its own: a shell that reads the rest stumbles over it.
    torn = "\n".join([*lines, ")"])
    checked = subprocess.run(["bash", "-n"], input=torn.encode(), capture_output=True, check=False)
    assert checked.returncode != 0


def _script(run: RunPaths) -> str:
    return make_script(submission(), run.submission("s0001"), run.code)


def _run(folder: Path) -> RunPaths:
    run = RunPaths(folder)
    place = run.submission("s0001")
    place.mkdir(parents=True)
    for index in range(2):
        task_pickle(place, index).write_text(f"pickle {index}", encoding="utf-8")
    return run


@pytest.fixture(autouse=True)
def _no_stray_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A canary would appear in the working folder of whoever ran it."""
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []
