import re
import subprocess
from pathlib import Path

import pytest
import torch

import elmanctl
from elmanctl.bench.machine import CPU_LABEL, commit, describe, require_device
from elmanctl.constants import INSTALL_TRAIN
from elmanctl.errors import EnvironmentNotReady


def test_missing_gpu_is_an_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentNotReady, match="torch sees no GPU") as refused:
        require_device("cuda")
    assert "--device cpu" in (refused.value.hint or "")
    assert require_device("cpu") == torch.device("cpu")


def test_missing_torch_is_an_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentNotReady, match="torch is not installed") as refused:
        require_device("cpu")
    assert refused.value.hint == INSTALL_TRAIN


def test_description_names_code_and_versions_and_says_that_a_cpu_is_one() -> None:
    told = describe(torch.device("cpu"))
    assert told["label"] == CPU_LABEL and told["device"] == "cpu"
    assert told["torch"] == torch.__version__
    assert told["elmanctl"] == elmanctl.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told["date"])


def test_commit_is_what_the_environment_says_of_a_copy() -> None:
    assert commit({"ELMAN_COMMIT": " 0123abc "}) == "0123abc"


def checkout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository with one commit in which the package is said to be."""
    package = folder / "elmanctl"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first"],
    ):
        subprocess.run(["git", "-C", folder, *words], check=True)
    monkeypatch.setattr(elmanctl, "__file__", str(package / "__init__.py"))


def test_commit_is_that_of_the_checkout_and_changes_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout(tmp_path, monkeypatch)
    head = subprocess.run(
        ["git", "-C", tmp_path, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert commit({}) == head[:12]
    (tmp_path / "elmanctl" / "more.py").write_text("")
    assert commit({}) == f"{head[:12]} with changes"


def test_commit_is_found_through_the_link_of_an_editable_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout(tmp_path, monkeypatch)
    known = commit({})
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "elmanctl").symlink_to("../elmanctl")
    linked = tmp_path / "src" / "elmanctl" / "__init__.py"
    monkeypatch.setattr(elmanctl, "__file__", str(linked))
    assert known is not None
    assert commit({}) == known


def test_copy_without_a_history_has_no_commit_though_a_repository_is_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout(tmp_path, monkeypatch)
    copy = tmp_path / "copy" / "elmanctl"
    copy.mkdir(parents=True)
    monkeypatch.setattr(elmanctl, "__file__", str(copy / "__init__.py"))
    assert commit({}) is None
