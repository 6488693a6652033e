"""Byte stream of the corpus that a worker trains on, and the held-out windows it is tested on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.run.corpus_packing import SEPARATOR
from elmanctl.run.split import Split, whole

Rows = npt.NDArray[np.uint8]

# Of the windows of every validation: they are the same for every seed.
_VALIDATION_KEY = 0x1E

# RandomState takes no larger ones.
_LEGACY_SEEDS = 2**32

_SCAN_BYTES = 1 << 20


class ByteStream:
    """The part of a memory-mapped corpus that is trained on, read in windows.

    The windows of a step are a pure function of the seed and the step's number: every model of
    a search reads the same bytes at the same step, and neither micro-batches, nor a restart, nor
    the number of ranks that share a step change them.  `sampler` is a word of `SAMPLERS`.  Raises
    EnvironmentNotReady when the file cannot be read.
    """

    def __init__(self, path: Path, split: Split | None = None, sampler: str = "windows") -> None:
        self._file = map_corpus(path)
        parts = (whole(len(self._file)) if split is None else split).trained
        self._starts = parts[:, 0]
        # Where each part begins in the stream, and where the stream ends.
        self._places = np.concatenate([[0], np.cumsum(parts[:, 1] - parts[:, 0])])
        self.size_bytes = int(self._places[-1])
        self._generator = np.random.Philox(key=0)
        # By seed: the generator's state before a step, and where the sequential windows begin.
        self._states: dict[int, Any] = {}
        self._firsts: dict[int, int] = {}
        self._find = {
            "windows": self._random_windows,
            "documents": self._document_windows,
            "stream": self._sequential_windows,
        }[sampler]

    def rows(
        self, seed: int, step: int, batch: int, seq_len: int, *, rank: int = 0, ranks: int = 1
    ) -> Rows:
        """Return the windows of one step, uint8 [batch, seq_len + 1].

        With several ranks the rows of one are every `ranks`-th, from the `rank`-th on.  A smaller
        batch is a prefix of a larger one, but for the sampler `stream`.  Raises
        InvalidConfiguration when the stream is shorter than one window.
        """
        width = seq_len + 1
        if self.size_bytes < width:
            raise InvalidConfiguration(
                f"a corpus of {self.size_bytes} bytes is shorter than one window of {width}",
                hint="use a larger corpus or a smaller seq_len",
            )
        starts = self._find(seed, step, batch, width)[rank::ranks]
        rows = np.empty((len(starts), width), dtype=np.uint8)
        for row, start in zip(rows, starts, strict=True):
            row[:] = self._read(start, width)
        return rows

    def _random_windows(self, seed: int, step: int, batch: int, width: int) -> list[int]:
        """Return independent places, uniform but for a modulo of less than size/2**64."""
        # The raw stream of a bit generator is the same in every numpy, unlike Generator.integers.
        # The first word of the counter advances within a step, so steps never overlap.
        if seed not in self._states:
            # A new generator takes as long as the rest of a step's reading.
            self._states = {seed: np.random.Philox(key=seed).state}
        state = self._states[seed]
        state["state"]["counter"][:] = 0, step, 0, 0
        self._generator.state = state
        places = np.uint64(self.size_bytes - width + 1)
        return (self._generator.random_raw(batch) % places).tolist()  # type: ignore[no-any-return]

    def _document_windows(self, seed: int, step: int, batch: int, width: int) -> list[int]:
        """Return the same places, moved so that no window begins with the end of a document.

        A window that would cross the end of its document ends there instead; in a document shorter
        than a window it begins with the document and goes on into the next ones.
        """
        return [
            self._within_document(start, width)
            for start in self._random_windows(seed, step, batch, width)
        ]

    def _within_document(self, start: int, width: int) -> int:
        # From one window before, so that the whole of a short document is seen.
        low = max(0, start - width)
        seen = self._read(low, start + width - low).tobytes()
        ahead = seen.find(SEPARATOR, start - low, start - low + width - 1)
        if ahead < 0:
            return start
        behind = seen.rfind(SEPARATOR, 0, start - low)
        begin, end = low + behind + 1, low + ahead + 1
        return min(max(begin, end - width), self.size_bytes - width)

    def _sequential_windows(self, seed: int, step: int, batch: int, width: int) -> list[int]:
        """Return the next places of one pass over the stream, which begins anew at its end.

        The first window begins with the first document behind a random place.
        """
        if seed not in self._firsts:
            draw = np.random.RandomState(seed % _LEGACY_SEEDS)
            place = int(draw.randint(0, max(1, self.size_bytes - 1000)))
            self._firsts = {seed: self._next_document(place)}
        first, begin = self._firsts[seed], (step - 1) * batch
        return [(first + (begin + row) * width) % self.size_bytes for row in range(batch)]

    def _next_document(self, start: int) -> int:
        """Return the place behind the next separator, 0 if none follows."""
        for low in range(start, self.size_bytes, _SCAN_BYTES):
            block = self._read(low, min(_SCAN_BYTES, self.size_bytes - low))
            separators = np.flatnonzero(block == SEPARATOR[0])
            if len(separators):
                return (low + int(separators[0]) + 1) % self.size_bytes
        return 0

    def _read(self, start: int, width: int) -> npt.NDArray[np.uint8]:
        """Return `width` bytes of the stream from a place on, across its parts and its end."""
        part = int(self._places.searchsorted(start, side="right")) - 1
        pieces = []
        while width:
            begin = int(self._starts[part]) + start - int(self._places[part])
            size = min(width, int(self._places[part + 1]) - start)
            pieces.append(self._file[begin : begin + size])
            width -= size
            start, part = start + size, part + 1
            if part == len(self._starts):
                start = part = 0
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutWindows:
    """Windows of held-out documents, in the order of the corpus.

    `rows`, uint8 [n, seq_len + 1], are filled up with separators; of row i the first `scored[i]`
    predictions count.  The first byte of a document is predicted from a separator, so every byte of
    a document is in one window.  `document[i]` is the number of its document.
    """

    rows: Rows
    scored: npt.NDArray[np.int64]
    document: npt.NDArray[np.int64]

    @property
    def documents(self) -> int:
        """The number of documents that the windows are from."""
        return len(np.unique(self.document))

    @property
    def scored_bytes(self) -> int:
        """The number of bytes whose predictions count."""
        return int(self.scored.sum())


def held_out_windows(path: Path, split: Split, *, count: int, seq_len: int) -> HeldOutWindows:
    """Return `count` windows of `seq_len` bytes, or all there are.

    They are drawn at random without replacement, the same for every model and seed.  Raises
    EnvironmentNotReady when the file cannot be read.
    """
    corpus = map_corpus(path)
    starts, ends = split.held_out[:, 0], split.held_out[:, 1]
    windows = -(-(ends - starts) // seq_len)
    first = np.concatenate([[0], np.cumsum(windows)])
    chosen = _draw(int(first[-1]), count)
    document = np.searchsorted(first, chosen, side="right") - 1
    begin = starts[document] + (chosen - first[document]) * seq_len
    scored = np.minimum(seq_len, ends[document] - begin)
    rows = np.full((len(chosen), seq_len + 1), SEPARATOR[0], dtype=np.uint8)
    for row, low, size, number in zip(rows, begin, scored, document, strict=True):
        # In the file a separator stands before every document but the first.
        context = int(low > starts[number])
        row[1 - context : 1 + size] = corpus[low - context : low + size]
    return HeldOutWindows(rows=rows, scored=scored, document=document)


def _draw(total: int, count: int) -> npt.NDArray[np.int64]:
    if count >= total:
        return np.arange(total, dtype=np.int64)
    generator = np.random.Philox(key=_VALIDATION_KEY)
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        chosen |= dict.fromkeys((generator.random_raw(count) % np.uint64(total)).tolist())
    return np.array(sorted(list(chosen)[:count]), dtype=np.int64)


def map_corpus(path: Path) -> npt.NDArray[np.uint8]:
    """Return the bytes of a corpus, mapped; raises EnvironmentNotReady."""
    try:
        # An empty file cannot be mapped.
        if not path.stat().st_size:
            return np.zeros(0, dtype=np.uint8)
        # A plain array of the same bytes: parts of a memmap are slow to make.
        return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except OSError as exc:
        raise EnvironmentNotReady(f"cannot read the corpus {path}: {exc.strerror}") from exc
