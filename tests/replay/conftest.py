"""Shared fixtures of the replay tests."""

from pathlib import Path

import pytest

from tests.search.scripted import Runs


@pytest.fixture
def runs(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Makes runs in the test's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "templates").mkdir()
    return Runs(tmp_path / "runs", corpus, tmp_path / "templates")
