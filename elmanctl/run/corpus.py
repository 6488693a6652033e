"""Corpora: the built-in one, and the digests by which a corpus is recognized."""

import hashlib
import json
import logging
import math
import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elmanctl.constants import PROGRAM, VOCABULARY
from elmanctl.errors import EnvironmentNotReady, NotFound, os_errors_as
from elmanctl.ledger.files import read_small, write_atomically, write_json
from elmanctl.run.corpus_packing import PackSummary, pack_files, walk_sorted

logger = logging.getLogger(__name__)

# The whole standard library with its tests is about 32 MB.
BUILT_IN_LIMIT_BYTES = 40_000_000
BUILT_IN_SUFFIXES = frozenset({".py", ".txt", ".rst", ".md", ".toml"})
_NOT_THE_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__"})

# Of larger files a worker compares only the size, unless their digest is cached.
VERIFY_LIMIT_BYTES = 1 << 30
ENTROPY_LIMIT_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusInfo:
    """The size and the digest of a corpus."""

    path: Path
    size_bytes: int
    sha256: str


def cache_folder() -> Path:
    """Return this program's folder in the user's cache, by XDG_CACHE_HOME."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / PROGRAM


def built_in_name() -> str:
    """Return the file name of the built-in corpus, with the version of its Python."""
    return f"standard-library-{platform.python_version()}.bytes"


def corpus_name(path: str | Path) -> str:
    """Return the name of a corpus beside losses on it: that of its file."""
    return Path(path).name


def keep_built_in(out: Path) -> PackSummary:
    """Copy the built-in corpus of this Python to a file.

    Raises EnvironmentNotReady when the file or the cache cannot be written.
    """
    corpus = standard_library_corpus()
    with os_errors_as(EnvironmentNotReady, f"cannot write the corpus {out}"):
        documents = int(json.loads(read_small(_side(corpus)))["documents"])
        write_atomically(out, corpus.read_bytes())
    info = describe(out)
    return PackSummary(
        path=out,
        size_bytes=info.size_bytes,
        sha256=info.sha256,
        documents=documents,
        separators_replaced=0,
        skipped={},
    )


def standard_library_corpus(cache: Path | None = None) -> Path:
    """Return the built-in corpus, the text of Python's own standard library.

    It is written once per Python version: sources (.py) and text files in the order of their paths,
    up to `BUILT_IN_LIMIT_BYTES`, without installed packages.  Raises EnvironmentNotReady when the
    cache folder cannot be written.
    """
    folder = cache_folder() if cache is None else cache
    corpus = folder / built_in_name()
    side = _side(corpus)
    if not _is_complete(corpus, side):
        library = Path(sysconfig.get_path("stdlib"))
        summary = pack_files(_library_files(library), corpus, limit_bytes=BUILT_IN_LIMIT_BYTES)
        keys = ("sha256", "size_bytes", "documents")
        write_json(side, {key: getattr(summary, key) for key in keys})
        _cache_digest(corpus, _key(corpus), summary.sha256)
    return corpus


def describe(path: Path) -> CorpusInfo:
    """Return size and digest of a corpus; the file is read once and its digest cached.

    The cache is keyed by real path, size and modification time.  Raises NotFound when there is no
    such file, EnvironmentNotReady when it cannot be read.
    """
    if not path.is_file():
        raise NotFound(
            f"no such corpus file: {path}", hint="`elmanctl data pack` makes one from folders"
        )
    # Taken before reading, so that a file that changes meanwhile is read again next time.
    key = _key(path)
    digest = cached_digest(path)
    if digest is None:
        failed = f"cannot read the corpus {path}"
        with os_errors_as(EnvironmentNotReady, failed), path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        _cache_digest(path, key, digest)
    return CorpusInfo(path=path, size_bytes=path.stat().st_size, sha256=digest)


def verify(expected: CorpusInfo) -> str:
    """Check that a corpus is the expected one; return what was compared, `sha256` or `size`.

    Only the size is compared for a file above `VERIFY_LIMIT_BYTES` without a cached digest.  Raises
    EnvironmentNotReady when the file is missing or a different one.
    """
    path = expected.path
    if not path.is_file():
        raise EnvironmentNotReady(f"the corpus is missing on this machine: {path}")
    size_bytes = path.stat().st_size
    if size_bytes != expected.size_bytes:
        raise EnvironmentNotReady(
            f"the corpus {path} has {size_bytes} bytes here, not {expected.size_bytes}"
        )
    if size_bytes > VERIFY_LIMIT_BYTES and cached_digest(path) is None:
        return "size"
    found = describe(path).sha256
    if found != expected.sha256:
        raise EnvironmentNotReady(
            f"the corpus {path} has sha256 {found} here, not {expected.sha256}"
        )
    return "sha256"


def unigram_entropy(path: Path, *, limit_bytes: int = ENTROPY_LIMIT_BYTES) -> float:
    """Return the entropy of single bytes in nats, over the first `limit_bytes` of a corpus.

    It is the loss of a model that knows only the frequency of each byte.  An empty file has
    entropy 0.
    """
    import numpy as np

    counts = np.zeros(VOCABULARY, dtype=np.int64)
    with path.open("rb") as stream:
        while limit_bytes > 0 and (chunk := stream.read(min(_CHUNK_BYTES, limit_bytes))):
            limit_bytes -= len(chunk)
            counts += np.bincount(np.frombuffer(chunk, dtype=np.uint8), minlength=VOCABULARY)
    total = int(counts.sum())
    shares = [int(count) / total for count in counts if count]
    return math.fsum(-share * math.log(share) for share in shares)


def cached_digest(path: Path) -> str | None:
    """Return the cached digest of a file that has not changed since, or None."""
    try:
        record = json.loads(read_small(_cache_entry(path)))
        return str(record["sha256"]) if record["key"] == _key(path) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _cache_digest(path: Path, key: list[str | int], sha256: str) -> None:
    entry = _cache_entry(path)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_json(entry, {"key": key, "sha256": sha256})
    except OSError as exc:
        logger.warning("the digest of %s was not cached: %s", path, exc)


def _cache_entry(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:24]
    return cache_folder() / "digests" / f"{name}.json"


def _key(path: Path) -> list[str | int]:
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _side(corpus: Path) -> Path:
    return corpus.with_suffix(".json")


def _is_complete(corpus: Path, side: Path) -> bool:
    try:
        return bool(json.loads(read_small(side))["size_bytes"] == corpus.stat().st_size)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _library_files(library: Path) -> Iterator[Path]:
    for file in walk_sorted(library, lambda name: name not in _NOT_THE_LIBRARY):
        if file.suffix in BUILT_IN_SUFFIXES and file.is_file() and not file.is_symlink():
            yield file
