"""Shared fixtures of the search tests: no user cache, and runs that are made once."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.search.scripted import Runs


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the tests' own, where digests of corpora are kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ledgers of new runs are kept, to be copied."""
    return tmp_path_factory.mktemp("templates")


@pytest.fixture
def runs(tmp_path: Path, corpus: Path, templates: Path) -> Runs:
    """Makes runs in the test's folder."""
    return Runs(tmp_path, corpus, templates)


@pytest.fixture
def no_power_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here pulls the plug, and waiting for the disk would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
