"""What becomes of each variable that sbatch would read, over the whole table."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from elmanctl.config import Resolved, resolve
from elmanctl.sbatch_variables import DEFAULTS, OURS, REFUSED
from elmanctl.schedulers.submission import extra_options
from elmanctl.settings import SlurmSettings
from tests.command_line import QuickCommandLine
from tests.schedulers import slurm_variables

EVERY = (*slurm_variables.SBATCH, "SLURM_HINT")

# Those with a setting of their own, or with another form than the option's own.
SETTINGS: Mapping[str, tuple[str, str, Any]] = {
    "SBATCH_ACCOUNT": ("lab", "slurm.account", "lab"),
    "SBATCH_PARTITION": ("urgent", "slurm.partition", "urgent"),
    "SBATCH_GRES": ("gpu:a100:2", "slurm.gres", "gpu:a100:2"),
    "SBATCH_GPUS": ("a100:1", "slurm.gres", "gpu:a100:1"),
    "SBATCH_GPUS_PER_NODE": ("2", "slurm.gres", "gpu:2"),
    "SBATCH_GPUS_PER_TASK": ("1", "slurm.gres", "gpu:1"),
    "SBATCH_TIMELIMIT": ("1-02:00", "slurm.timeout_min", 1560),
    "SBATCH_MEM_PER_NODE": ("24G", "slurm.mem_gb", 24.0),
}
FLAGS = ("EXCLUSIVE", "GET_USER_ENV", "NO_KILL", "OVERCOMMIT", "SPREAD_JOB", "USE_MIN_NODES")
OTHER_NAMES = {
    "SBATCH_BURST_BUFFER": "bb",
    "SBATCH_CPU_FREQ_REQ": "cpu-freq",
    "SBATCH_REQ_SWITCH": "switches",
    "SBATCH_SEGMENT_SIZE": "segment",
    "SLURM_HINT": "hint",
}


def resolved(environment: Mapping[str, str], folder: Path, text: str = "") -> Resolved:
    (folder / "elman.toml").write_text(text, encoding="utf-8")
    return resolve({}, folder=folder, environment={"HOME": str(folder), **environment})


def slurm(folder: Path, text: str = "", **variables: str) -> SlurmSettings:
    found = resolved(variables, folder, text)
    assert found.sbatch is not None and found.sbatch.refused == ()
    return found.settings.slurm


def refusals(folder: Path, text: str = "", **variables: str) -> list[str]:
    found = resolved(variables, folder, text).sbatch
    assert found is not None
    assert all(fault.hint for fault in found.refused)
    return [fault.message for fault in found.refused]


@pytest.mark.parametrize("name", EVERY)
def test_no_variable_of_sbatch_is_dropped_without_a_word(name: str, tmp_path: Path) -> None:
    text, key, value = SETTINGS.get(name, ("1", "", None))
    found = resolved({name: text}, tmp_path)
    assert found.sbatch is not None
    if name in OURS:
        assert found.sbatch.unused == (f"{name} is not used: {OURS[name]}",)
    elif name in REFUSED:
        (fault,) = found.sbatch.refused
        assert name in fault.message and fault.hint == REFUSED[name]
    elif name in SETTINGS:
        assert (getattr(found.settings.slurm, key.removeprefix("slurm.")), found.origins[key]) == (
            value,
            name,
        )
    elif name != "SBATCH_WAIT4SWITCH":
        option = OTHER_NAMES.get(name, name.removeprefix("SBATCH_").lower().replace("_", "-"))
        is_flag = name.removeprefix("SBATCH_") in FLAGS
        assert found.settings.slurm.extra == {option: True if is_flag else "1"}
        assert found.origins["slurm.extra"] == name
        # And sbatch gets it.
        assert extra_options(found.settings.slurm.extra) == found.settings.slurm.extra


def test_each_variable_has_one_meaning() -> None:
    tables = [*DEFAULTS, *OURS, *REFUSED, "SBATCH_WAIT4SWITCH"]
    assert sorted(tables) == sorted(EVERY)


def test_document_names_each_variable() -> None:
    text = (Path(__file__).parents[1] / "docs" / "environment.md").read_text(encoding="utf-8")
    assert [name for name in EVERY if f"`{name}`" not in text] == []


def test_unknown_variable_of_sbatch_is_told(tmp_path: Path) -> None:
    found = resolved({"SBATCH_NEW_OPTION": "1", "SBATCH_MEM_BIND_LIST": "0x1"}, tmp_path).sbatch
    assert found is not None
    (line,) = found.unused
    assert line.startswith("SBATCH_NEW_OPTION is not used: ") and "slurm.extra" in line


FILE = """\
[slurm]
account = "mine"
timeout_min = 30
extra = { qos = "low", constraint = false }
"""


def test_every_file_and_flag_stands_above_a_variable(tmp_path: Path) -> None:
    variables = {
        "SBATCH_ACCOUNT": "lab",
        "SBATCH_PARTITION": "urgent",
        "SBATCH_TIMELIMIT": "nonsense, and not read",
        "SBATCH_QOS": "high",
        "SBATCH_CONSTRAINT": "a100",
        "SBATCH_RESERVATION": "course",
        "ELMAN_SLURM_PARTITION": "long",
    }
    found = resolved(variables, tmp_path, FILE)
    assert found.sbatch is not None and found.sbatch.refused == ()
    slurm = found.settings.slurm
    assert (slurm.account, slurm.partition, slurm.timeout_min) == ("mine", "long", 30)
    assert slurm.extra == {"qos": "low", "constraint": False, "reservation": "course"}
    assert found.origins["slurm.extra"] == "elman.toml, SBATCH_RESERVATION"
    assert found.sbatch.origins == {"slurm.extra.reservation": "SBATCH_RESERVATION"}


def test_variable_stands_above_the_built_in_default_and_below_a_template(tmp_path: Path) -> None:
    assert slurm(tmp_path).gres == "gpu:1"
    assert slurm(tmp_path, SBATCH_GRES="gpu:2").gres == "gpu:2"
    folder = tmp_path / "sbatch_templates"
    folder.mkdir()
    (folder / "big.toml").write_text('gres = "gpu:8"\n', encoding="utf-8")
    text = '[slurm]\ntemplate = "big"\n'
    assert slurm(tmp_path, text, SBATCH_GRES="gpu:2").gres == "gpu:8"


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        *(("90", 90), ("90:30", 91), ("1:30:00", 90), ("0:10:01", 11), ("2-0", 2880)),
        *(("1-6:30", 1830), ("1-0:0:30", 1441), ("0:30", 1)),
    ],
)
def test_time_limit_is_read_as_sbatch_reads_it(text: str, minutes: int, tmp_path: Path) -> None:
    assert slurm(tmp_path, SBATCH_TIMELIMIT=text).timeout_min == minutes


@pytest.mark.parametrize(
    ("text", "gb"), [("4096", 4.0), ("24G", 24.0), ("1t", 1024.0), ("2048MB", 2.0)]
)
def test_memory_is_read_as_sbatch_reads_it(text: str, gb: float, tmp_path: Path) -> None:
    assert slurm(tmp_path, SBATCH_MEM_PER_NODE=text).mem_gb == gb


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("SBATCH_TIMELIMIT", "UNLIMITED"), ("SBATCH_TIMELIMIT", "soon")),
        *(("SBATCH_MEM_PER_NODE", "0"), ("SBATCH_MEM_PER_NODE", "much")),
    ],
)
def test_value_that_cannot_be_read_is_refused_by_name(name: str, text: str, tmp_path: Path) -> None:
    assert refusals(tmp_path, **{name: text}) == [f"cannot read {name}=`{text}`"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", True), ("yes", True), ("1", True), ("0", False), ("user", "user")],
)
def test_flag_is_read_as_sbatch_reads_it(text: str, expected: object, tmp_path: Path) -> None:
    assert slurm(tmp_path, SBATCH_EXCLUSIVE=text).extra == {"exclusive": expected}


def test_empty_variable_sets_nothing(tmp_path: Path) -> None:
    assert slurm(tmp_path, SBATCH_ACCOUNT="", SBATCH_QOS="") == SlurmSettings()


def test_longest_wait_goes_with_its_switches(tmp_path: Path) -> None:
    variables = {"SBATCH_REQ_SWITCH": "1", "SBATCH_WAIT4SWITCH": "2:00:00"}
    assert slurm(tmp_path, **variables).extra == {"switches": "1@2:00:00"}
    assert slurm(tmp_path, SBATCH_WAIT4SWITCH="2:00:00").extra == {}


def test_variables_that_exclude_each_other_are_refused_and_a_setting_decides(
    tmp_path: Path,
) -> None:
    memory = {"SBATCH_MEM_PER_NODE": "4G", "SBATCH_MEM_PER_CPU": "1G"}
    assert refusals(tmp_path, **memory) == [
        "SBATCH_MEM_PER_NODE and SBATCH_MEM_PER_CPU exclude each other"
    ]
    decided = slurm(tmp_path, "[slurm]\nmem_gb = 2\n", **memory)
    assert (decided.mem_gb, decided.extra) == (2.0, {})
    by_cpu = slurm(tmp_path, '[slurm]\nextra = { mem_per_cpu = "1G" }\n', **memory)
    assert (by_cpu.mem_gb, by_cpu.extra) == (None, {"mem_per_cpu": "1G"})
    gpus = {"SBATCH_GRES": "gpu:2", "SBATCH_GPUS": "1"}
    assert refusals(tmp_path, **gpus) == ["SBATCH_GRES and SBATCH_GPUS exclude each other"]
    assert slurm(tmp_path, SBATCH_GRES="gpu:2", SBATCH_GPUS="2").gres == "gpu:2"


def test_what_an_allocation_sets_is_no_default(tmp_path: Path) -> None:
    variables = {"SLURM_HINT": "nomultithread", "SBATCH_MEM_BIND": "local", "SBATCH_QOS": "high"}
    inside = slurm(tmp_path, SLURM_JOB_ID="7", **variables)
    assert inside.extra == {"qos": "high"}
    outside = slurm(tmp_path, **variables)
    assert outside.extra == {"hint": "nomultithread", "mem-bind": "local", "qos": "high"}


SEARCH = ("search", "e88", "--preset", "tiny", "--dry-run", "--json")


def test_dry_run_and_config_show_what_a_variable_set(quick: QuickCommandLine) -> None:
    variables = {"SBATCH_ACCOUNT": "lab", "SBATCH_QOS": "high", "SBATCH_OUTPUT": "%x.out"}
    planned = quick(*SEARCH[:-1], **variables)
    assert planned.returncode == 0, planned.stderr
    assert "#SBATCH --account=lab\n" in planned.stdout
    assert "#SBATCH --qos=high\n" in planned.stdout
    assert "slurm.account = lab, from SBATCH_ACCOUNT" in planned.stderr
    assert "slurm.extra.qos = high, from SBATCH_QOS" in planned.stderr
    assert "SBATCH_OUTPUT is not used: logs lie in the run's folder" in planned.stderr
    shown = quick("config", "--show-origin", **variables)
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert ["slurm.account", "lab", "SBATCH_ACCOUNT"] in rows
    assert "SBATCH_OUTPUT is not used" in shown.stderr


def test_what_a_variable_set_stays_with_a_run_that_goes_on_in_another_shell(
    quick: QuickCommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until its setting is replaced, which is told."""
    tools = quick.folder / "tools"
    tools.mkdir()
    answers = {
        "sbatch": "echo 'sbatch: error: Invalid qos specification' >&2; exit 1",
        "scontrol": "exit 0",
    }
    for name, body in answers.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    search = (*SEARCH[:4], "--yes", "--name", "run")
    begun = quick(*search, SBATCH_QOS="high", SBATCH_ACCOUNT="lab")
    assert begun.returncode == 1 and "Invalid qos" in begun.stderr

    def options() -> set[str]:
        scripts = (quick.folder / "runs" / "run" / "submissions").glob("*/submission.sh")
        newest = max(scripts, key=lambda script: script.parent.name)
        found = newest.read_text(encoding="utf-8").splitlines()
        return {line for line in found if line.startswith("#SBATCH --") and "=" in line}

    assert {"#SBATCH --qos=high", "#SBATCH --account=lab"} <= options()
    assert "without" not in quick("resume", "run").stderr
    assert {"#SBATCH --qos=high", "#SBATCH --account=lab"} <= options()
    told = quick("resume", "run", "--set", "slurm.extra={constraint='big'}").stderr
    assert "`slurm.extra` is replaced as a whole; dropped: qos=high" in told
    assert {"#SBATCH --constraint=big", "#SBATCH --account=lab"} <= options()
    assert "#SBATCH --qos=high" not in options()


def test_refused_variable_stops_a_search_on_slurm_and_no_other_command(
    quick: QuickCommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_CLUSTERS", "north")
    refused = quick(*SEARCH)
    assert refused.returncode == 2, refused.stderr
    assert "SBATCH_CLUSTERS is set" in refused.stderr and "SLURM_CLUSTERS" in refused.stderr
    assert quick(*SEARCH, "--local").returncode == 0
    assert "SBATCH_CLUSTERS" in quick("config").stderr
