"""Packing of text files into a corpus: one file of bytes, with 0x1e between documents."""

import codecs
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from elmanctl.errors import EnvironmentNotReady, NotFound

SEPARATOR = b"\x1e"
_CHUNK_BYTES = 1 << 20

MET_BEFORE = "met before"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackSummary:
    """A packed corpus; `skipped` counts the files left out by reason."""

    path: Path
    size_bytes: int
    sha256: str
    documents: int
    separators_replaced: int
    skipped: Mapping[str, int]


def pack_folders(folders: Iterable[Path], out: Path) -> PackSummary:
    """Pack the text files of folders into the corpus `out`, atomically.

    Files are in the order of the folders, then of their paths.  Left out and counted: files with a
    NUL byte or invalid UTF-8, hidden files and folders, symbolic links (which lead outside or
    repeat a document), empty and unreadable files, and files met before, because a folder is named
    twice or is part of another.  A 0x1e inside a document becomes a space.  Raises NotFound for a
    missing folder or when there is no text at all, EnvironmentNotReady when `out` cannot be
    written.
    """
    roots = list(folders)
    for root in roots:
        if not root.is_dir():
            raise NotFound(f"no such folder: {root}")
    skipped: Counter[str] = Counter()
    target = out.resolve()
    files = (file for root in roots for file in _candidates(root, skipped))
    others = (file for file in files if file.resolve() != target)
    return pack_files(_each_once(others, skipped), out, skipped)


def _each_once(files: Iterable[Path], skipped: Counter[str]) -> Iterator[Path]:
    met: set[Path] = set()
    for file in files:
        path = file.resolve()
        if path in met:
            skipped[MET_BEFORE] += 1
            continue
        met.add(path)
        yield file


def pack_files(
    files: Iterable[Path],
    out: Path,
    skipped: Counter[str] | None = None,
    *,
    limit_bytes: int | None = None,
) -> PackSummary:
    """Pack text files into `out` in the order given, without those that would exceed the limit.

    Raises NotFound when there is no text at all, EnvironmentNotReady when `out` cannot be written;
    an earlier `out` is then untouched.
    """
    # Unpredictable and new: others may plant links in the folder.
    temporary = out.with_name(f".{out.name}.{os.urandom(8).hex()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("x+b") as stream:
                packer = _Packer(stream, limit_bytes, Counter() if skipped is None else skipped)
                for file in files:
                    packer.add(file)
                stream.flush()
                os.fsync(stream.fileno())
            summary = packer.summary(out)
            if not summary.documents:
                raise NotFound("no text files to pack", hint=_reasons(summary))
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as exc:
        raise EnvironmentNotReady(f"cannot pack the corpus {out}: {exc}") from exc
    return summary


def walk_sorted(root: Path, is_wanted: Callable[[str], bool]) -> Iterator[Path]:
    """Yield the files under `root` in the order of their paths; links are not followed.

    Folders whose name is not wanted are not entered.
    """
    folders: list[Path] = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if is_wanted(name)]
        folders.extend(Path(folder) / file for file in files)
    yield from sorted(folders)


def _reasons(summary: PackSummary) -> str | None:
    counts = [f"{count} {reason}" for reason, count in summary.skipped.items()]
    return f"left out: {', '.join(counts)}" if counts else None


def _candidates(root: Path, skipped: Counter[str]) -> Iterator[Path]:
    def is_wanted(name: str) -> bool:
        if name.startswith("."):
            skipped["hidden"] += 1
            return False
        return True

    for file in walk_sorted(root, is_wanted):
        if not is_wanted(file.name):
            continue
        if file.is_symlink():
            skipped["link"] += 1
        elif file.is_file():
            yield file
        else:
            skipped["not a file"] += 1


class _Packer:
    """Appends documents to a stream, and removes one again if it turns out not to be text."""

    def __init__(self, stream: BinaryIO, limit_bytes: int | None, skipped: Counter[str]) -> None:
        self._stream = stream
        self._limit_bytes = limit_bytes
        self._skipped = skipped
        self._digest = hashlib.sha256()
        self._size_bytes = 0
        self._documents = 0
        self._replaced = 0

    def add(self, file: Path) -> None:
        """Append one document, or count why not."""
        try:
            size_bytes = file.stat().st_size
            source = file.open("rb")
        except OSError:
            self._skipped["unreadable"] += 1
            return
        with source:
            if size_bytes == 0:
                self._skipped["empty"] += 1
            elif self._exceeds_limit(size_bytes):
                self._skipped["over the size limit"] += 1
            else:
                self._append(source)

    def summary(self, out: Path) -> PackSummary:
        """Return what was packed."""
        return PackSummary(
            path=out,
            size_bytes=self._size_bytes,
            sha256=self._digest.hexdigest(),
            documents=self._documents,
            separators_replaced=self._replaced,
            skipped={reason: count for reason, count in sorted(self._skipped.items()) if count},
        )

    def _exceeds_limit(self, size_bytes: int) -> bool:
        total = self._size_bytes + size_bytes + len(SEPARATOR)
        return self._limit_bytes is not None and total > self._limit_bytes

    def _append(self, source: BinaryIO) -> None:
        before = (self._digest.copy(), self._size_bytes, self._replaced)
        if self._documents:
            self._write(SEPARATOR)
        fault = self._copy(source)
        if fault is None:
            self._documents += 1
            return
        self._skipped[fault] += 1
        self._digest, self._size_bytes, self._replaced = before
        self._stream.seek(self._size_bytes)
        self._stream.truncate()

    def _copy(self, source: BinaryIO) -> str | None:
        decoder = codecs.getincrementaldecoder("utf-8")()
        while chunk := source.read(_CHUNK_BYTES):
            if b"\0" in chunk:
                return "binary"
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError:
                return "not UTF-8"
            self._replaced += chunk.count(SEPARATOR)
            self._write(chunk.replace(SEPARATOR, b" "))
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "not UTF-8"
        return None

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._digest.update(data)
        self._size_bytes += len(data)
