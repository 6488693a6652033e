import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.errors import ConfigError
from elmanctl.run import split as module
from elmanctl.run.corpus import CorpusInfo, cache_folder, describe
from elmanctl.run.split import Split, check_split, documents_of, find_split, scan, write_split


def of(path: Path, share: float) -> Split:
    info = CorpusInfo(path=path, size_bytes=path.stat().st_size, sha256="")
    documents, held_out = scan(path, share)
    return module._split(info.size_bytes, documents, held_out)


def pieces(data: bytes, split: Split, part: str) -> list[bytes]:
    return [data[start:end] for start, end in getattr(split, part).tolist()]


# A document is any bytes but the separator.
texts = st.lists(st.binary(max_size=6).map(lambda b: b.replace(b"\x1e", b"e")), max_size=40)


@given(documents=texts, share=st.floats(0.05, 0.5), ends=st.booleans())
def test_every_byte_is_on_one_side_and_training_keeps_one_separator_between_two_documents(
    tmp_path_factory: pytest.TempPathFactory, documents: list[bytes], share: float, ends: bool
) -> None:
    data = b"\x1e".join(documents) + (b"\x1e" if ends else b"")
    path = tmp_path_factory.mktemp("split") / "corpus"
    path.write_bytes(data)
    split = of(path, share)
    held_out = pieces(data, split, "held_out")
    trained = b"".join(pieces(data, split, "trained")).split(b"\x1e")
    limit = share * 2**64
    expected = [
        document
        for document in documents
        if document
        and int.from_bytes(hashlib.blake2b(document, digest_size=8).digest(), "big") < limit
    ]
    assert held_out == expected
    assert [each for each in trained if each] == [
        document for document in documents if document and document not in expected
    ]
    assert split.held_out_bytes + split.trained_bytes <= len(data)
    assert split.documents == sum(1 for document in documents if document)


def test_the_split_is_the_same_wherever_a_document_stands_and_grows_with_the_share(
    corpus: Path, tmp_path: Path
) -> None:
    documents = corpus.read_bytes().split(b"\x1e")
    turned = tmp_path / "turned"
    turned.write_bytes(b"\x1e".join(documents[::-1]))
    there = set(pieces(turned.read_bytes(), of(turned, 0.1), "held_out"))
    here = set(pieces(corpus.read_bytes(), of(corpus, 0.1), "held_out"))
    more = set(pieces(corpus.read_bytes(), of(corpus, 0.3), "held_out"))
    assert here == there
    assert here < more


def test_separators_at_the_border_of_a_block_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "corpus"
    path.write_bytes(b"abc\x1ed\x1e\x1eef")
    for size in range(1, 10):
        monkeypatch.setattr(module, "_SCAN_BYTES", size)
        found = [(start, end, bytes(content)) for start, end, content in documents_of(path)]
        assert found == [(0, 3, b"abc"), (4, 5, b"d"), (7, 9, b"ef")]


def test_what_is_held_out_is_found_once_and_kept(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    info = describe(corpus)
    first = find_split(info, 0.1)
    monkeypatch.setattr(module, "scan", lambda path, share: pytest.fail("it was scanned again"))
    again = find_split(info, 0.1)
    assert (again.held_out == first.held_out).all()
    assert again.documents == first.documents


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_a_damaged_cache_is_made_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    info = describe(corpus)
    first = find_split(info, 0.1)
    (entry,) = (cache_folder() / "splits").iterdir()
    entry.write_bytes(content)
    assert (find_split(info, 0.1).held_out == first.held_out).all()
    assert len(entry.read_bytes()) > len(content)


def test_workers_read_the_split_of_their_run_and_no_other(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, path = describe(corpus), tmp_path / "split.npz"
    write_split(find_split(info, 0.1), info, 0.1, path)
    # As on a node without the cache.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read: list[Path] = []

    def counted(path: Path, share: float) -> tuple[int, module.Intervals]:
        read.append(path)
        return scan(path, share)

    monkeypatch.setattr(module, "scan", counted)
    assert find_split(info, 0.1, path).documents == find_split(info, 0.1, path).documents
    assert read == []
    assert len(find_split(info, 0.2, path).held_out) > len(find_split(info, 0.1, path).held_out)
    other = CorpusInfo(path=corpus, size_bytes=info.size_bytes, sha256="0" * 64)
    find_split(other, 0.1, path)
    assert read == [corpus, corpus]


def test_too_few_documents_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "corpus"
    path.write_bytes(b"one\x1etwo\x1ethree")
    with pytest.raises(ConfigError, match=r"only \d of the 3 documents") as refused:
        check_split(of(path, 0.1), 0.1)
    assert "train.objective=last100" in (refused.value.hint or "")
    check_split(of(path, 0.0), 0.0)


def test_nothing_is_held_out_without_a_share(corpus: Path) -> None:
    split = find_split(describe(corpus), 0.0)
    assert split.trained.tolist() == [[0, corpus.stat().st_size]]
    assert split.held_out.shape == (0, 2)
    assert split.held_out.dtype == np.int64
