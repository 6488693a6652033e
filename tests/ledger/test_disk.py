import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from elmanctl.errors import LedgerError
from elmanctl.ledger.disk import measure, space_of


def allocated(path: Path) -> int:
    return path.lstat().st_blocks * 512


def test_measure_is_the_sum_of_what_is_allocated(tmp_path: Path) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    (below / "log").write_bytes(b"x" * 100_000)
    (tmp_path / "a" / "small").write_bytes(b"x")
    os.sync()
    paths = [tmp_path, tmp_path / "a", below, below / "log", tmp_path / "a" / "small"]
    assert measure(tmp_path) == sum(map(allocated, paths))
    assert measure(tmp_path) > 100_000


def test_sparse_file_costs_only_its_blocks(tmp_path: Path) -> None:
    before = measure(tmp_path)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert measure(tmp_path) - before < 1 << 20


def test_file_with_several_names_is_counted_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * 50_000)
    os.sync()
    before = measure(tmp_path)
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    assert measure(tmp_path) == before


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "big").write_bytes(b"x" * 200_000)
    os.sync()
    run = tmp_path / "run"
    run.mkdir()
    before = measure(run)
    (run / "folder").symlink_to(outside)
    (run / "file").symlink_to(outside / "big")
    (run / "itself").symlink_to(run)
    (run / "nowhere").symlink_to("none")
    assert measure(run) - before < 50_000
    named_by_a_link = tmp_path / "name"
    named_by_a_link.symlink_to(outside)
    assert measure(named_by_a_link) == measure(outside)


def test_nothing_takes_nothing(tmp_path: Path) -> None:
    assert measure(tmp_path / "none") == 0


def test_what_vanishes_during_the_walk_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * 50_000)
    real = os.fwalk

    def list_then_remove(top: str, **options: Any) -> Iterator[Any]:
        for root, folders, files, descriptor in real(top, **options):
            if Path(root) == tmp_path:
                shutil.rmtree(tmp_path / "a")
            else:
                (Path(root) / "file").unlink(missing_ok=True)
            yield root, folders, files, descriptor

    monkeypatch.setattr(os, "fwalk", list_then_remove)
    assert 0 < measure(tmp_path) < 50_000


def test_folder_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(path: Path) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(LedgerError, match="Permission denied"):
        measure(tmp_path)


def test_free_bytes_shrink_with_what_is_written(tmpfs: Callable[[int], Path]) -> None:
    folder = tmpfs(1024)
    before = space_of(folder, with_quota=False).free_bytes
    (folder / "file").write_bytes(b"x" * 500_000)
    assert before == 1024 * 1024
    assert before - space_of(folder, with_quota=False).free_bytes == measure(folder / "file")
    with pytest.raises(LedgerError):
        space_of(folder / "none", with_quota=False)
