"""Who touched each piece of memory last, and whether a barrier lies between.

Threads run in lockstep here, so a missing barrier would never show in the results.  PTX orders two
accesses of different threads by a barrier alone: `bar.warp.sync` in a warp, `bar.sync` in a program
(a CTA), and nothing at all between programs; a shuffle orders no memory.
"""

import numpy as np
from numpy.typing import NDArray

from tests.kernels.ptx.faults import DataRace, NeverWritten

WARP = 32

# How far apart the threads are that read a piece since it was last known to be ordered.
_ONE_THREAD, _ONE_WARP, _ONE_PROGRAM, _PROGRAMS = range(4)
_BEFORE_LAUNCH = 0
_NEVER = -1
_ATOMIC = -1  # in place of a thread: accesses that are ordered among themselves


class Clock:
    """Counts barriers; knows the last one of each program and of each warp."""

    def __init__(self, programs: int, threads: int) -> None:
        self.threads = threads
        self.now = 1
        self.program_at = np.ones(programs, np.int32)
        self.warp_at = np.ones(programs * threads // WARP, np.int32)

    def program_barrier(self, threads: NDArray[np.int64]) -> None:
        """All the programs of these threads met."""
        self.now += 1
        self.program_at[np.unique(threads // self.threads)] = self.now

    def warp_barrier(self, threads: NDArray[np.int64]) -> None:
        """All the warps of these threads met, each for itself."""
        self.now += 1
        self.warp_at[np.unique(threads // WARP)] = self.now

    def name(self, thread: int) -> str:
        program, thread = divmod(thread, self.threads)
        return f"thread {thread} of program {program}"


class Shadow:
    """The last write and the last reads of every granule of a memory.

    An array of numbers of granules comes with one of threads, as long: who touches which.
    """

    def __init__(self, granules: int, clock: Clock, *, written: bool) -> None:
        self.clock = clock
        start = _BEFORE_LAUNCH if written else _NEVER
        self.written_at = np.full(granules, start, np.int32)
        self.written_by = np.zeros(granules, np.int32)
        self.read_at = np.zeros(granules, np.int32)
        self.read_by = np.zeros(granules, np.int32)
        self.read_scope = np.zeros(granules, np.int8)

    def forget(self, granules: NDArray[np.int64]) -> None:
        """From now on these hold nothing that may be read."""
        self.written_at[granules] = _NEVER

    def read(self, granules: NDArray[np.int64], threads: NDArray[np.int64]) -> None:
        """Note reads.

        Raises:
            NeverWritten: there is nothing in one of them.
            DataRace: another thread wrote it, and nothing orders the two.
        """
        at = self.written_at[granules]
        if at.any():
            if at.min() == _NEVER:
                who = int(threads[np.argmin(at)])
                raise NeverWritten(f"{self.clock.name(who)} reads what was never written")
            self._refuse(
                ~self._is_ordered(at, self.written_by[granules], _ONE_THREAD, threads),
                "reads", threads, "wrote", self.written_by[granules],
            )  # fmt: skip
        self._note_read(granules, threads)

    def write(
        self, granules: NDArray[np.int64], threads: NDArray[np.int64], changed: NDArray[np.bool_]
    ) -> None:
        """Note writes; `changed` says where the value is another than before.

        To write once more what is there already is harmless, and common: a value of which
        several threads have a copy.

        Raises:
            DataRace: another thread read it, or wrote something else, and nothing orders the two.
        """
        self._refuse_unordered_reads(granules, threads, "writes")
        at = self.written_at[granules]
        if (at > _BEFORE_LAUNCH).any():
            by = self.written_by[granules]
            unordered = ~self._is_ordered(at, by, _ONE_THREAD, threads) & changed
            self._refuse(unordered, "writes", threads, "wrote something else to", by)
        self.written_at[granules] = self.clock.now
        self.written_by[granules] = threads

    def update(self, granules: NDArray[np.int64], threads: NDArray[np.int64]) -> None:
        """Note atomic updates, which are ordered among themselves only."""
        at, by = self.written_at[granules], self.written_by[granules]
        if at.min() == _NEVER:
            who = int(threads[np.argmin(at)])
            raise NeverWritten(f"{self.clock.name(who)} updates what was never written")
        unordered = ~self._is_ordered(at, by, _ONE_THREAD, threads) & (by != _ATOMIC)
        self._refuse(unordered, "updates", threads, "wrote", by)
        self._refuse_unordered_reads(granules, threads, "updates")
        self.written_at[granules] = self.clock.now
        self.written_by[granules] = _ATOMIC

    def _is_ordered(
        self,
        at: NDArray[np.int32],
        by: NDArray[np.int32],
        scope: "NDArray[np.int8] | int",
        threads: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Whether accesses at `at` by `by`, and others so far from it, come before now."""
        program, warp = threads // self.clock.threads, threads // WARP
        met = at < self.clock.program_at[program]
        warp_met = (by // WARP == warp) & (at < self.clock.warp_at[warp])
        own = (by == threads) & (scope == _ONE_THREAD)
        near = (by // self.clock.threads == program) & (scope != _PROGRAMS)
        return (at <= _BEFORE_LAUNCH) | near & (met | own | warp_met & (scope <= _ONE_WARP))

    def _refuse_unordered_reads(
        self, granules: NDArray[np.int64], threads: NDArray[np.int64], verb: str
    ) -> None:
        at = self.read_at[granules]
        if not at.any():
            return
        by = self.read_by[granules]
        unordered = ~self._is_ordered(at, by, self.read_scope[granules], threads)
        self._refuse(unordered, verb, threads, "read", by)

    def _refuse(
        self,
        unordered: NDArray[np.bool_],
        verb: str,
        threads: NDArray[np.int64],
        other_verb: str,
        others: NDArray[np.int32],
    ) -> None:
        if not unordered.any():
            return
        i = int(np.argmax(unordered))
        other = "an atomic update" if others[i] == _ATOMIC else self.clock.name(int(others[i]))
        raise DataRace(
            f"{self.clock.name(int(threads[i]))} {verb} what {other} {other_verb}, or threads with"
            f" it, and no barrier lies between ({unordered.sum()} such)"
        )

    def _note_read(self, granules: NDArray[np.int64], threads: NDArray[np.int64]) -> None:
        at, by = self.read_at[granules], self.read_by[granules]
        scope = np.zeros(len(granules), np.int8)
        if at.any():
            # Reads that are not ordered before this one stay on record beside it.
            before = self.read_scope[granules]
            stay = ~self._is_ordered(at, by, before, threads)
            if stay.any():
                scope = np.where(stay, np.maximum(before, self._distance(by, threads)), scope)
        self.read_at[granules] = self.clock.now
        self.read_by[granules] = threads
        self.read_scope[granules] = scope
        # Several threads of this very instruction at one granule: the last of them stands there.
        last = self.read_by[granules]
        others = last != threads
        if others.any():
            # Reads from before that stay beside theirs are no farther from it than they are.
            distance = self._distance(last[others], threads[others])
            np.maximum.at(self.read_scope, granules[others], distance)

    def _distance(self, one: NDArray[np.int32], other: NDArray[np.int64]) -> NDArray[np.int8]:
        threads = self.clock.threads
        distance = np.where(one // threads == other // threads, _ONE_PROGRAM, _PROGRAMS)
        distance[one // WARP == other // WARP] = _ONE_WARP
        distance[one == other] = _ONE_THREAD
        return distance.astype(np.int8)
