import logging
import math
import os
from pathlib import Path

import pytest

from elmanctl.errors import EnvironmentNotReady, NotFound
from elmanctl.run import corpus
from elmanctl.run.corpus import (
    CorpusInfo,
    cached_digest,
    describe,
    standard_library_corpus,
    unigram_entropy,
    verify,
)
from elmanctl.run.corpus_packing import pack_folders


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def test_documents_are_packed_in_the_order_of_their_paths_with_a_separator_between(
    tmp_path: Path,
) -> None:
    one = folder_of(tmp_path / "one", {"b.txt": b"second", "a/z.txt": b"first"})
    two = folder_of(tmp_path / "two", {"a.txt": "third é".encode()})
    out = tmp_path / "out.bytes"
    summary = pack_folders([one, two], out)
    assert out.read_bytes() == b"first\x1esecond\x1ethird \xc3\xa9"
    assert (summary.documents, summary.size_bytes) == (3, out.stat().st_size)
    assert summary.sha256 == describe(out).sha256
    assert summary.skipped == {}


def test_a_separator_inside_a_document_becomes_a_space_and_is_counted(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"a": b"x\x1ey\x1ez", "b": b"\x1e"})
    summary = pack_folders([source], tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"x y z\x1e "
    assert summary.separators_replaced == 3


def test_what_is_not_text_is_left_out_and_counted(tmp_path: Path) -> None:
    files = {
        "a.txt": b"text",
        "b.bin": b"looks like text at first\0",
        "c.txt": b"\x1e bad utf-8 \xff",
        "d.txt": b"cut in the middle of a character \xc3",
        "e.txt": b"",
        ".hidden": b"secret",
        ".git/config": b"x",
        "z.txt": b"more",
    }
    source = folder_of(tmp_path / "in", files)
    outside = folder_of(tmp_path / "outside", {"x.txt": b"not ours"})
    (source / "link").symlink_to(outside / "x.txt")
    (source / "linked").symlink_to(outside)
    os.mkfifo(source / "pipe")
    summary = pack_folders([source], tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"text\x1emore"
    assert summary.documents == 2
    assert summary.separators_replaced == 0
    assert summary.sha256 == describe(tmp_path / "out").sha256
    assert summary.skipped == {
        "binary": 1,
        "empty": 1,
        "hidden": 2,
        "link": 1,
        "not UTF-8": 2,
        "not a file": 1,
    }


def test_a_late_fault_takes_the_whole_document_back(tmp_path: Path) -> None:
    long = b"a" * (3 << 20)
    source = folder_of(tmp_path / "in", {"a": b"kept", "b": long + b"\0", "c": b"kept too"})
    summary = pack_folders([source], tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"kept\x1ekept too"
    assert summary.sha256 == describe(tmp_path / "out").sha256


def test_packing_into_a_packed_folder_does_not_pack_the_corpus_itself(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"a": b"text"})
    for _ in range(2):
        assert pack_folders([source], source / "out").documents == 1


def test_packing_nothing_is_refused_and_leaves_an_earlier_corpus_alone(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"a": b"\0"})
    out = tmp_path / "out"
    out.write_bytes(b"earlier")
    with pytest.raises(NotFound, match="no text files") as caught:
        pack_folders([source], out)
    assert caught.value.hint == "left out: 1 binary"
    assert out.read_bytes() == b"earlier"
    with pytest.raises(NotFound, match="no such folder"):
        pack_folders([tmp_path / "missing"], out)


def test_packing_to_where_nothing_can_be_written_says_so(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"a": b"text"})
    with pytest.raises(EnvironmentNotReady, match="cannot pack"):
        pack_folders([source], source / "a" / "out")


def test_the_built_in_corpus_is_this_pythons_library_and_is_written_once(own_cache: Path) -> None:
    path = standard_library_corpus()
    assert path.parent == own_cache
    assert describe(path).size_bytes > 5_000_000
    text = path.read_bytes()
    assert b"class JSONDecodeError(ValueError):" in text
    assert b"site-packages/pytest" not in text
    text.decode("utf-8")
    first = path.stat().st_mtime_ns
    assert standard_library_corpus().stat().st_mtime_ns == first


def test_a_half_written_built_in_corpus_is_written_again(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "BUILT_IN_LIMIT_BYTES", 50_000)
    path = standard_library_corpus()
    whole = path.read_bytes()
    assert 30_000 < len(whole) <= 50_000
    path.write_bytes(whole[:100])
    assert standard_library_corpus().read_bytes() == whole


def test_a_digest_is_remembered_until_the_file_changes(corpus_file: Path) -> None:
    assert cached_digest(corpus_file) is None
    info = describe(corpus_file)
    assert cached_digest(corpus_file) == info.sha256
    corpus_file.write_bytes(b"other")
    os.utime(corpus_file, ns=(1, 1))
    assert cached_digest(corpus_file) is None
    assert describe(corpus_file).sha256 != info.sha256


def test_a_damaged_memory_of_digests_is_as_good_as_none(corpus_file: Path, own_cache: Path) -> None:
    info = describe(corpus_file)
    (memory,) = (own_cache / "digests").iterdir()
    for damage in (b"", b"[]", b'{"key": 1}', b'{"key'):
        memory.write_bytes(damage)
        assert describe(corpus_file) == info


def test_a_cache_that_cannot_be_written_only_costs_time(
    corpus_file: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_cache.parent.mkdir()
    own_cache.write_text("a file in the place of the folder")
    with caplog.at_level(logging.WARNING):
        assert describe(corpus_file).size_bytes == corpus_file.stat().st_size
    assert "not cached" in caplog.text


def test_a_missing_corpus_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such corpus file"):
        describe(tmp_path / "missing")


def test_verify_accepts_the_very_bytes_and_nothing_else(corpus_file: Path) -> None:
    info = describe(corpus_file)
    assert verify(info) == "sha256"
    corpus_file.write_bytes(corpus_file.read_bytes()[:-1] + b"?")
    os.utime(corpus_file, ns=(1, 1))
    with pytest.raises(EnvironmentNotReady, match="has sha256"):
        verify(info)
    corpus_file.write_bytes(b"short")
    with pytest.raises(EnvironmentNotReady, match="has 5 bytes here"):
        verify(info)
    corpus_file.unlink()
    with pytest.raises(EnvironmentNotReady, match="missing on this machine"):
        verify(info)


def test_a_huge_corpus_without_a_cached_digest_is_compared_by_size(
    corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "VERIFY_LIMIT_BYTES", 10)
    size = corpus_file.stat().st_size
    expected = CorpusInfo(path=corpus_file, size_bytes=size, sha256="0" * 64)
    assert verify(expected) == "size"
    describe(corpus_file)
    with pytest.raises(EnvironmentNotReady, match="has sha256"):
        verify(expected)


def test_unigram_entropy_is_that_of_the_bytes_frequencies(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"ab" * 1000)
    assert unigram_entropy(path) == pytest.approx(math.log(2))
    path.write_bytes(bytes(range(256)) * 10)
    assert unigram_entropy(path) == pytest.approx(math.log(256))
    path.write_bytes(b"a" * 100 + b"bcd" * 1000)
    assert unigram_entropy(path, limit_bytes=100) == 0
    path.write_bytes(b"")
    assert unigram_entropy(path) == 0
