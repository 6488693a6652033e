"""Byte stream of the corpus that a worker trains on."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration, os_errors_as


class ByteStream:
    """A memory-mapped corpus that is read in random windows.

    The windows of a step are a pure function of the seed and the step's number: every model of
    a search reads the same bytes at the same step, and neither micro-batches nor a restart
    change them.  Raises EnvironmentNotReady when the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        with os_errors_as(EnvironmentNotReady, f"cannot read the corpus {path}"):
            self.size_bytes = path.stat().st_size
            # An empty file cannot be mapped; `rows` rejects it by its size.
            self._bytes: npt.NDArray[np.uint8] = (
                np.memmap(path, dtype=np.uint8, mode="r")
                if self.size_bytes
                else np.zeros(0, dtype=np.uint8)
            )

    def rows(self, seed: int, step: int, batch: int, seq_len: int) -> npt.NDArray[np.uint8]:
        """Return the windows of one step, uint8 [batch, seq_len + 1].

        Windows are independent and uniform over the corpus (the modulo makes probabilities differ
        by less than size/2**64).  A smaller batch is a prefix of a larger one.  Raises
        InvalidConfiguration when the corpus is shorter than one window.
        """
        width = seq_len + 1
        places = self.size_bytes - width + 1
        if places < 1:
            raise InvalidConfiguration(
                f"a corpus of {self.size_bytes} bytes is shorter than one window of {width}",
                hint="use a larger corpus or a smaller seq_len",
            )
        # The raw stream of a bit generator is the same in every numpy, unlike Generator.integers.
        # The first word of the counter advances within a step, so steps never overlap.
        generator = np.random.Philox(key=seed, counter=[0, step, 0, 0])
        starts = (int(start) for start in generator.random_raw(batch) % np.uint64(places))
        return np.stack([self._bytes[start : start + width] for start in starts])
