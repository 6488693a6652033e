"""What a program can do wrong on the machine; raised where it happens, never worked around."""


class PtxFault(Exception):
    """Something that the machine refuses; its message ends with the instruction at fault."""


class Unsupported(PtxFault):
    """An instruction, a modifier or an operand that the machine does not have."""


class OutOfBounds(PtxFault):
    """An access outside every allocation, or a write to what may only be read."""


class Misaligned(PtxFault):
    """An access whose address is not a multiple of its size."""


class NeverWritten(PtxFault):
    """A read of bytes that hold nothing yet."""


class DataRace(PtxFault):
    """Two threads met at one address, one of them writing, with no barrier between them."""


class Divergence(PtxFault):
    """Threads wait at a barrier, or for a shuffle, for others that cannot come."""


class Trapped(PtxFault):
    """The program ended itself: a failed assertion."""
