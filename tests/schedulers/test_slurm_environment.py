"""The environment of Slurm's commands, recorded by stand-ins for them."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.ledger.submissions import Resources, Submission, Task
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.executor import LiveJob
from elmanctl.schedulers.slurm import Slurm
from elmanctl.schedulers.slurm_environment import PASSED, job_environment, query_environment
from elmanctl.schedulers.slurm_executor import SlurmExecutor
from tests.schedulers import slurm_variables
from tests.schedulers.slurm_tools import SlurmTools

SUBMISSION = Submission(
    id="s0001",
    job_name="elman-run-1a2b3c4d-s0001",
    tasks=(Task(index=0, evaluation="g000-e00", attempt=1),),
    resources=Resources(timeout_min=5),
    intended_at="2026-08-01T10:00:00.000Z",
)
JOB = LiveJob(job_id="7_0", submission="s0001", task_index=0, job_name=SUBMISSION.job_name)

# What people have in their shells, and jobs may need.
OF_THE_USER = {
    "HOME": "/users/ada",
    "USER": "ada",
    "LANG": "de_DE.UTF-8",
    "TZ": "Europe/Berlin",
    "LD_LIBRARY_PATH": "/opt/slurm/lib",
    "CONDA_PREFIX": "/users/ada/env",
    "MODULEPATH": "/opt/modules",
    "LOADEDMODULES": "slurm/22.05",
    "OMP_NUM_THREADS": "4",
    "OMPI_MCA_btl": "self",
    "NCCL_DEBUG": "INFO",
    "KRB5CCNAME": "FILE:/tmp/krb5cc_7",
    "TMPDIR": "/scratch/ada",
    "SLURMBOX": "/somewhere",
    "MUNGE_SOCKET": "/run/munge",
}

ASKS: Mapping[str, Callable[[SlurmExecutor, Path], object]] = {
    "sbatch": lambda executor, folder: executor.submit(SUBMISSION, folder),
    "squeue": lambda executor, _: executor.poll([JOB], []),
    "sacct": lambda executor, _: executor.poll([JOB], []),
    "scancel": lambda executor, _: executor.cancel([JOB]),
    "scontrol": lambda executor, _: executor.avoid([JOB], Resources(exclude=("n1",))),
    "sinfo": lambda *_: Slurm().check_partition("gpu"),
}


@pytest.mark.parametrize("command", ASKS)
def test_only_what_leads_to_the_cluster_reaches_a_command(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller sits in an allocation, and every variable of every manual page is set."""
    tools = SlurmTools(tmp_path / "bin", monkeypatch)
    shell = dict.fromkeys((*slurm_variables.EVERY, *slurm_variables.DEVICES), "7")
    shell |= OF_THE_USER | {name: f"to-{name}" for name in PASSED}
    for name, value in shell.items():
        monkeypatch.setenv(name, value)
    answers = {"sbatch": "4711\n", "sinfo": "gpu\n"}
    for name in ASKS:
        tools.answer(name, answers.get(name, ""), does=f"export -p > {name}.seen")
    ASKS[command](SlurmExecutor(RunPaths(tmp_path / "run"), max_jobs=3), tmp_path / "folder")
    text = (tools.folder / f"{command}.seen").read_text(encoding="utf-8")
    seen = dict(re.findall(r"^export (\w+)='(.*)'$", text, re.MULTILINE))
    assert not set(seen) & {*slurm_variables.EVERY, *slurm_variables.DEVICES}
    assert {name for name in seen if name.startswith("SLURM_")} == set(PASSED)
    assert OF_THE_USER.items() <= seen.items()
    # A job has the user's own language, by sbatch; what a program reads is in one.
    assert seen.get("LC_ALL") == (None if command == "sbatch" else "C")


def test_sacct_follows_the_cluster_that_the_others_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = SlurmTools(tmp_path / "bin", monkeypatch)
    tools.answer("sacct")
    monkeypatch.setenv("SLURM_CLUSTERS", "north")
    Slurm().accounting(["a"], since="2026-08-01")
    Slurm().check_accounting()
    assert [call[1] for call in tools.calls] == ["--clusters=north"] * 2
    monkeypatch.delenv("SLURM_CLUSTERS")
    Slurm().check_accounting()
    assert not any("cluster" in word for word in tools.calls[2])


def test_devices_of_the_user_reach_jobs_and_those_of_an_allocation_do_not() -> None:
    devices = dict.fromkeys(slurm_variables.DEVICES, "2,3")
    assert job_environment(devices) == devices
    for name in ("SLURM_JOB_ID", "SLURM_JOBID"):
        assert job_environment(devices | {name: "7"}) == {}


@pytest.mark.parametrize(
    "name", ["TMPDIR", "TMP", "TEMP", "LSCRATCH", "JOBFS", "TRITON_CACHE_DIR", "XDG_RUNTIME_DIR"]
)
def test_folder_made_for_one_job_does_not_reach_others(name: str) -> None:
    inside = {"SLURM_JOB_ID": "4711"}
    for folder in ("/tmp/4711", "/scratch/slurm.4711.0", "/local/job_4711/tmp"):
        assert job_environment({name: folder, **inside}) == {}
        assert job_environment({name: folder}) == {name: folder}
    for folder in ("/tmp", "/scratch/ada", "/scratch/147110"):
        assert job_environment({name: folder, **inside}) == {name: folder}


NAMES = st.sampled_from((*slurm_variables.EVERY, *PASSED, *OF_THE_USER))


@given(st.dictionaries(NAMES, st.text(st.characters(codec="ascii", exclude_characters="\0"))))
def test_of_any_shell_only_declared_variables_of_slurm_pass(shell: dict[str, str]) -> None:
    for environment in (job_environment(shell), query_environment(shell)):
        assert not set(environment) & set(slurm_variables.EVERY)
        assert {k: v for k, v in shell.items() if k in PASSED}.items() <= environment.items()
