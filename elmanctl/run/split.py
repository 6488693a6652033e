"""Split of a corpus: its documents are held out or trained on by a hash of their content.

The split depends on the corpus and the share alone, never on a seed, so every model that is trained
on a corpus is validated on the same text.  Equal documents are on one side of it.
"""

import hashlib
import io
import logging
import mmap
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from elmanctl.errors import ConfigError, EnvironmentNotReady
from elmanctl.ledger.files import write_atomically
from elmanctl.run.corpus import CorpusInfo, cache_folder
from elmanctl.run.corpus_packing import SEPARATOR

logger = logging.getLogger(__name__)

Intervals = npt.NDArray[np.int64]  # [n, 2], start and end in bytes, in order

# A standard error over documents takes some.
LEAST_DOCUMENTS = 8

_HASH_BYTES = 8
_SCAN_BYTES = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The two parts of a corpus.

    `held_out` are the documents that are held out, without their separators; `trained` the rest of
    the file in order, in which one separator still stands between two documents.
    """

    documents: int
    held_out: Intervals
    trained: Intervals

    @property
    def held_out_bytes(self) -> int:
        """The size of the held-out documents."""
        return _size(self.held_out)

    @property
    def trained_bytes(self) -> int:
        """The size of what may be trained on."""
        return _size(self.trained)


def whole(size_bytes: int) -> Split:
    """Return the split of a corpus of which nothing is held out, its documents not counted."""
    trained = np.array([[0, size_bytes]] if size_bytes else [], dtype=np.int64).reshape(-1, 2)
    return Split(documents=0, held_out=np.zeros((0, 2), dtype=np.int64), trained=trained)


def find_split(corpus: CorpusInfo, share: float, of_run: Path | None = None) -> Split:
    """Return the split of a corpus from the file of its run, from the cache, or by a scan.

    A scan reads the whole corpus, and is kept in the cache.  Raises EnvironmentNotReady when the
    corpus cannot be read.
    """
    if not share:
        return whole(corpus.size_bytes)
    entry = cache_folder() / "splits" / f"{corpus.sha256[:24]}-{share!r}.npz"
    for path in (of_run, entry):
        found = path and _read(path, corpus, share)
        if found:
            return found
    documents, held_out = scan(corpus.path, share)
    split = _split(corpus.size_bytes, documents, held_out)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_split(split, corpus, share, entry)
    except OSError as exc:
        logger.warning("the split of the corpus was not cached: %s", exc)
    return split


def write_split(split: Split, corpus: CorpusInfo, share: float, path: Path) -> None:
    """Write a split to a file, atomically; raises OSError."""
    content = io.BytesIO()
    parts = {"documents": split.documents, "held_out": split.held_out}
    np.savez(content, sha256=corpus.sha256, share=share, **parts)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())


def _read(path: Path, corpus: CorpusInfo, share: float) -> Split | None:
    """Return the split in a file, None unless it is a whole one of this corpus and share."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
            if str(kept["sha256"]) != corpus.sha256 or float(kept["share"]) != share:
                return None
            return _split(corpus.size_bytes, int(kept["documents"]), kept["held_out"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def check_split(split: Split, share: float) -> None:
    """Raise ConfigError for a corpus with too few documents to hold some out."""
    if share and len(split.held_out) < LEAST_DOCUMENTS:
        raise ConfigError(
            f"only {len(split.held_out)} of the {split.documents} documents of the corpus are held "
            f"out at `train.holdout` {share:g}, and at least {LEAST_DOCUMENTS} are needed",
            hint="pack more documents, with 0x1e between them, or raise `train.holdout`; without "
            "held-out text: `--set train.objective=last100 --set train.holdout=0`",
        )


def scan(path: Path, share: float) -> tuple[int, Intervals]:
    """Return how many documents a corpus has, and the intervals of those that are held out.

    A document is held out if the first 8 bytes of its BLAKE2b digest, as a number, are below the
    share of 2**64.  Raises EnvironmentNotReady when the corpus cannot be read.
    """
    limit = int(share * 2 ** (8 * _HASH_BYTES))
    documents, found = 0, []
    for start, end, content in documents_of(path):
        documents += 1
        digest = hashlib.blake2b(content, digest_size=_HASH_BYTES).digest()
        if int.from_bytes(digest, "big") < limit:
            found.append((start, end))
    return documents, np.array(found, dtype=np.int64).reshape(-1, 2)


def documents_of(path: Path) -> Iterator[tuple[int, int, memoryview]]:
    """Yield start, end and content of each document that is not empty.

    The content is valid until the next one is asked for.  Raises EnvironmentNotReady when the
    corpus cannot be read.
    """
    try:
        with path.open("rb") as stream:
            if not stream.seek(0, os.SEEK_END):
                return
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                for start, end in _between_separators(data):
                    if end > start:
                        with memoryview(data)[start:end] as content:
                            yield start, end, content
    except OSError as exc:
        raise EnvironmentNotReady(f"cannot read the corpus {path}: {exc.strerror}") from exc


def _between_separators(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    start = 0
    for offset in range(0, len(data), _SCAN_BYTES):
        block = np.frombuffer(data[offset : offset + _SCAN_BYTES], dtype=np.uint8)
        for place in np.flatnonzero(block == SEPARATOR[0]).tolist():
            yield start, offset + place
            start = offset + place + 1
    yield start, len(data)


def _split(size_bytes: int, documents: int, held_out: Intervals) -> Split:
    # With each document goes one separator, so that one is left between its neighbours.
    removed = held_out.copy()
    is_last = removed[:, 1] == size_bytes
    removed[~is_last, 1] += 1
    removed[is_last, 0] = np.maximum(removed[is_last, 0] - 1, 0)
    starts = np.concatenate([[0], removed[:, 1]])
    ends = np.concatenate([removed[:, 0], [size_bytes]])
    kept = np.stack([starts, ends], axis=1)
    return Split(documents=documents, held_out=held_out, trained=kept[kept[:, 0] < kept[:, 1]])


def _size(intervals: Intervals) -> int:
    return int((intervals[:, 1] - intervals[:, 0]).sum())
