"""Global and shared memory: flat bytes behind addresses that are checked at every access."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.kernels.ptx.faults import DataRace, Misaligned, OutOfBounds
from tests.kernels.ptx.races import Clock, Shadow

Array = NDArray[Any]
Integers = NDArray[np.int64]

# Each buffer has a range of addresses of its own, so far from the next that no mistake of an index
# leads from one into another.
_RANGE_BITS = 40
_ALIGNED_TO = 512  # as torch's allocator for a GPU has it
SHARED_BASE = 1024  # not zero, so that an address that was never computed is refused


def _rounded_up(size: int) -> int:
    return -(-size // _ALIGNED_TO) * _ALIGNED_TO


class Memory:
    """Bytes, and which thread touched which; `granule` bytes are the least ever accessed."""

    def __init__(self, data: NDArray[np.uint8], granule: int, clock: Clock | None, written: bool):
        self.data = data
        self.granule = granule
        self.shadow = (
            Shadow(len(data) // granule, clock, written=written) if clock is not None else None
        )
        self._clock = clock
        self._views: dict[tuple[int, int], Array] = {}

    def locate(self, addresses: Integers, size: int, threads: Integers, writes: bool) -> Integers:
        """Where the bytes of each address are in `data`."""
        raise NotImplementedError

    def load(self, addresses: Integers, width: int, count: int, threads: Integers) -> Array:
        """`count` words of `width` bytes at each address, [threads, count]."""
        at = self._checked(addresses, width * count, threads, writes=False)
        if self.shadow is not None:
            self.shadow.read(*self._granules(at, width * count, threads))
        return self._view(width, count)[at // (width * count)]

    def store(self, addresses: Integers, words: Array, threads: Integers) -> None:
        """Write words [threads, count]."""
        count, width = words.shape[1], words.itemsize
        at = self._checked(addresses, width * count, threads, writes=True)
        view, index = self._view(width, count), at // (width * count)
        before = view[index]
        view[index] = words
        clashes = (view[index] != words).any(axis=1)
        if clashes.any():
            raise DataRace(
                f"threads {threads[clashes].tolist()} and others write different words to one"
                " address at once"
            )
        if self.shadow is not None:
            granules, by = self._granules(at, width * count, threads)
            changed = np.repeat((before != words).any(axis=1), len(granules) // len(at))
            self.shadow.write(granules, by, changed)

    def update(
        self, addresses: Integers, values: Array, threads: Integers, function: Callable[..., Any]
    ) -> Array:
        """Replace words by `function(word, value)`, thread after thread; returns the old ones."""
        width = values.itemsize
        at = self._checked(addresses, width, threads, writes=True)
        if self.shadow is not None:
            self.shadow.update(*self._granules(at, width, threads))
        words = self._view(width, 1)[:, 0].view(values.dtype)
        old = np.empty_like(values)
        for i, index in enumerate(at // width):
            old[i] = words[index]
            words[index] = function(words[index], values[i])
        return old

    def _checked(self, addresses: Integers, size: int, threads: Integers, writes: bool) -> Integers:
        crooked = addresses % size != 0
        if crooked.any():
            i = int(np.argmax(crooked))
            raise Misaligned(
                f"address {int(addresses[i]):#x} of thread {threads[i]} is no multiple of {size}"
            )
        return self.locate(addresses, size, threads, writes)

    def _granules(self, at: Integers, size: int, threads: Integers) -> tuple[Integers, Integers]:
        first, count = at // self.granule, size // self.granule
        if count == 1:
            return first, threads
        return (first[:, None] + np.arange(count)).ravel(), np.repeat(threads, count)

    def _view(self, width: int, count: int) -> Array:
        key = width, count
        if key not in self._views:
            self._views[key] = self.data.view(f"u{width}").reshape(-1, count)
        return self._views[key]


class SharedMemory(Memory):
    """`size` bytes for each program, at the same addresses for all of them."""

    def __init__(self, programs: int, size: int, granule: int, clock: Clock | None, threads: int):
        self.size, self.stride, self.threads = size, _rounded_up(size), threads
        data = np.full(programs * self.stride, 0xFF, np.uint8)
        super().__init__(data, granule, clock, written=False)

    def locate(self, addresses: Integers, size: int, threads: Integers, writes: bool) -> Integers:
        at = addresses - SHARED_BASE
        outside = (at < 0) | (at > self.size - size)
        if outside.any():
            i = int(np.argmax(outside))
            raise OutOfBounds(
                f"thread {threads[i]} at byte {at[i]} of {self.size} bytes of shared memory"
            )
        return at + threads // self.threads * self.stride


@dataclass(slots=True)
class Buffer:
    """A piece of memory that arguments lie in, as its own bytes; `name` is for messages."""

    name: str
    bytes: NDArray[np.uint8]
    holes: NDArray[np.bool_] | None = None  # the bytes that hold nothing yet

    @property
    def is_constant(self) -> bool:
        return not self.bytes.flags.writeable


class GlobalMemory(Memory):
    """Copies of buffers, each in a range of addresses of its own."""

    def __init__(self, buffers: list[Buffer], granule: int, clock: Clock | None) -> None:
        self.buffers = buffers
        # A range before the first and one behind the last stand for all that is outside.
        self.sizes = np.array([0, *(len(one.bytes) for one in buffers), 0])
        self.constant = np.array([True, *(one.is_constant for one in buffers), True])
        spans = [_rounded_up(int(size)) for size in self.sizes]
        self.starts = np.cumsum([0, *spans[:-1]])
        super().__init__(np.full(sum(spans), 0xFF, np.uint8), granule, clock, written=True)
        for one, place in zip(buffers, self._places(), strict=True):
            self.data[place] = one.bytes
            if one.holes is not None and self.shadow is not None:
                self.shadow.forget(np.unique((place.start + np.flatnonzero(one.holes)) // granule))

    def address(self, buffer: int, offset: int) -> int:
        return ((buffer + 1) << _RANGE_BITS) + offset

    def write_back(self) -> None:
        """Copy what the buffers hold now to where they came from."""
        for one, place in zip(self.buffers, self._places(), strict=True):
            if not one.is_constant:
                one.bytes[:] = self.data[place]

    def locate(self, addresses: Integers, size: int, threads: Integers, writes: bool) -> Integers:
        number = np.minimum((addresses >> _RANGE_BITS).astype(np.uint64), len(self.sizes) - 1)
        number = number.astype(np.int64)
        offset = addresses & ((1 << _RANGE_BITS) - 1)
        outside = offset > self.sizes[number] - size
        if outside.any():
            i = int(np.argmax(outside))
            raise OutOfBounds(f"thread {threads[i]} {self._describe(int(addresses[i]), size)}")
        if writes and self.constant[number].any():
            raise OutOfBounds("a write to an argument that may only be read")
        return self.starts[number] + offset

    def _places(self) -> list[slice]:
        pairs = zip(self.starts[1:-1], self.sizes[1:-1], strict=True)
        return [slice(int(start), int(start + size)) for start, size in pairs]

    def _describe(self, address: int, size: int) -> str:
        number, offset = address >> _RANGE_BITS, address & ((1 << _RANGE_BITS) - 1)
        if offset >> (_RANGE_BITS - 1):  # nearer to the next
            number, offset = number + 1, offset - (1 << _RANGE_BITS)
        if not 1 <= number <= len(self.buffers):
            return f"at {size} bytes of no argument (address {address:#x})"
        one = self.buffers[number - 1]
        return f"at {size} bytes from byte {offset} of {one.name}, which has {len(one.bytes)}"
