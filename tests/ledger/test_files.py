import errno
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from elmanctl.ledger.files import (
    DamagedFile,
    create_atomically,
    parse_object,
    read_json,
    write_atomically,
    write_json,
)


def test_replaced_file_holds_exactly_the_new_bytes(tmp_path: Path) -> None:
    path = tmp_path / "weird name\n'\".bin"
    write_atomically(path, b"first, and longer")
    write_atomically(path, b"second\x00")
    assert path.read_bytes() == b"second\x00"
    assert list(tmp_path.iterdir()) == [path]


def test_reader_never_sees_a_mixture(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomically(path, b"a" * 100_000)
    with path.open("rb") as reader:
        before = reader.read(10)
        write_atomically(path, b"b" * 100_000)
        assert set(before + reader.read()) == {ord("a")}


def test_full_disk_leaves_the_old_file_and_nothing_else(tmpfs: Callable[[int], Path]) -> None:
    folder = tmpfs(64)
    path = folder / "state"
    write_atomically(path, b"old")
    for write in (write_atomically, create_atomically):
        target = path if write is write_atomically else folder / "new"
        with pytest.raises(OSError) as caught:
            write(target, os.urandom(200_000))
        assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert list(folder.iterdir()) == [path]


def test_interrupted_replacement_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "state", b"new")
    assert list(tmp_path.iterdir()) == []


def test_creating_refuses_what_exists(tmp_path: Path) -> None:
    path = tmp_path / "one"
    create_atomically(path, b"first")
    with pytest.raises(FileExistsError):
        create_atomically(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_link_whose_reply_was_lost_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link_and_lose_the_reply(self: Path, target: Path) -> None:
        os.link(target, self)
        raise FileExistsError(errno.EEXIST, "the repeated request says")

    monkeypatch.setattr(Path, "hardlink_to", link_and_lose_the_reply)
    create_atomically(tmp_path / "one", b"first")
    assert (tmp_path / "one").read_bytes() == b"first"


def test_json_round_trip_is_compact_and_exact(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    data = {"x": 0.1 + 0.2, "s": "ü\ud800", "n": None, "l": [1, True]}
    write_json(path, data)
    assert read_json(path) == data
    assert b" " not in path.read_bytes()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": value})
    assert list(tmp_path.iterdir()) == []


def test_absent_file_reads_as_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[1]",
        b"3",
        b'{"a":NaN}',
        b'{"a":1e999}',
        b'{"a":1,"a":2}',
        b'{"a":"\xff"}',
        b"[" * 100_000,
        b'{"a":1}{}',
    ],
)
def test_damaged_json_names_its_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match=r"a\.json"):
        read_json(path)


def test_objects_share_the_strings_of_their_keys() -> None:
    one, other = (parse_object(b'{"a key of a table": {"loss_window_steps": 1}}') for _ in range(2))
    assert next(iter(one)) is next(iter(other))
    inner, same = one["a key of a table"], other["a key of a table"]
    assert isinstance(inner, dict) and isinstance(same, dict)
    assert next(iter(inner)) is next(iter(same))
