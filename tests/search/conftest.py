"""Shared fixtures of the search tests: no user cache, and runs that are made once."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from elmanctl.ledger.files import write_json
from elmanctl.run.paths import AttemptPaths
from tests.search import scripted
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


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch, no_power_failures: None) -> None:
    """Losses that differ by the seed and the model, as those of real training do."""
    write = scripted.write_result

    def written(paths: AttemptPaths, verdict: str) -> None:
        write(paths, verdict)
        spec = json.loads(paths.spec.read_text())
        result = json.loads(paths.result.read_text())
        if result["loss"] is not None:
            noise = random.Random(f"{spec['config']} {spec['lr']} {spec['seed']}").gauss(0, 0.05)
            write_json(paths.result, {**result, "loss": result["loss"] + noise})

    monkeypatch.setattr(scripted, "write_result", written)
