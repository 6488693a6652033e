"""Instructions of a warp on small matrices: ldmatrix, stmatrix, mma.

Of a matrix of 8 x 8 words of 16 bits each lane holds two neighbours in a row: lane 4 r + c those
of row r in columns 2 c and 2 c + 1.
"""

from collections.abc import Callable

import numpy as np

from tests.kernels.ptx.access import addresses_of, memory_of, space_of
from tests.kernels.ptx.faults import Misaligned, Unsupported
from tests.kernels.ptx.floats import unpack
from tests.kernels.ptx.parse import Instruction
from tests.kernels.ptx.races import WARP
from tests.kernels.ptx.rounding import Array, from_half
from tests.kernels.ptx.threads import TYPES, Builder, Mask, Modifiers, Step, Threads

_ROW_BYTES = 16


def _shape(instruction: Instruction) -> tuple[int, bool, str]:
    """How many matrices, whether transposed, and where they are."""
    modifiers = Modifiers(instruction)
    if not modifiers.take("sync", "aligned", "m8n8"):
        raise Unsupported("matrices of this shape")
    count = modifiers.one_of("x1", "x2", "x4")
    is_transposed = modifiers.take("trans")
    space = space_of(modifiers)
    if count is None or not modifiers.take("b16"):
        raise Unsupported("matrices of this type")
    modifiers.end()
    return int(count[1]), is_transposed, space


def _word_addresses(
    rows: Callable[[], Array], matrix: int, is_transposed: bool, threads: Threads
) -> Callable[[Mask], list[Array]]:
    """Where a thread's part of a matrix is: one word of 32 bits, or two of 16 if transposed.

    Lanes 8 m to 8 m + 7 give the addresses of the rows of matrix m.
    """
    warp = threads.ids - threads.lane + 8 * matrix
    row, column = threads.lane // 4, threads.lane % 4

    def addresses(mask: Mask) -> list[Array]:
        starts = rows()
        if is_transposed:
            found = [starts[warp + 2 * column + i] for i in (0, 1)]
            offset = 2 * row
        else:
            found, offset = [starts[warp + row]], 4 * column
        crooked = sum(one % _ROW_BYTES for one in found)
        if (crooked if mask is None else crooked[mask]).any():
            raise Misaligned(f"a row of a matrix at no multiple of {_ROW_BYTES}")
        return [one + offset for one in found]

    return addresses


def load(instruction: Instruction, threads: Threads) -> Step:
    count, is_transposed, space = _shape(instruction)
    result, address = instruction.operands
    results = result if isinstance(result, tuple) else (result,)
    if len(results) != count:
        raise Unsupported(f"{count} matrices into {len(results)} registers")
    memory, rows = memory_of(space, threads), addresses_of(address, threads)
    writes = [threads.writer(one, TYPES["b32"]) for one in results]
    places = [_word_addresses(rows, i, is_transposed, threads) for i in range(count)]
    width = 2 if is_transposed else 4

    def step(mask: Mask) -> None:
        ids = threads.active(mask)
        values = []
        for place in places:
            words = [
                memory.load(at if mask is None else at[mask], width, 1, ids)[:, 0]
                for at in place(mask)
            ]
            joined = np.stack(words, axis=1).view(np.uint32)[:, 0]
            values.append(threads.spread(joined, mask))
        for write, value in zip(writes, values, strict=True):
            write(value, mask)

    return step


def store(instruction: Instruction, threads: Threads) -> Step:
    count, is_transposed, space = _shape(instruction)
    address, source = instruction.operands
    sources = source if isinstance(source, tuple) else (source,)
    if len(sources) != count:
        raise Unsupported(f"{count} matrices from {len(sources)} registers")
    memory, rows = memory_of(space, threads), addresses_of(address, threads)
    reads = [threads.reader(one, TYPES["b32"]) for one in sources]
    places = [_word_addresses(rows, i, is_transposed, threads) for i in range(count)]

    def step(mask: Mask) -> None:
        ids = threads.active(mask)
        for place, read in zip(places, reads, strict=True):
            words = read() if mask is None else read()[mask]
            parts = words.reshape(-1, 1).view(np.uint16 if is_transposed else np.uint32)
            for i, at in enumerate(place(mask)):
                memory.store(at if mask is None else at[mask], parts[:, i : i + 1], ids)

    return step


def _half_fragment(kind: str) -> Callable[[Array], Array]:
    return lambda words: from_half(unpack(words), kind).transpose(1, 0)


def _tf32_fragment(words: Array) -> Array:
    """The hardware does not read the last 13 bits."""
    return (words & np.uint32(0xFFFFE000)).view(np.float32)[:, None]


# For a type of A and B: the size of the sum, the numbers in a register, and how they are read.
_INPUTS: dict[str, tuple[int, int, Callable[[Array], Array]]] = {
    "bf16": (16, 2, _half_fragment("bf16")),
    "f16": (16, 2, _half_fragment("f16")),
    "tf32": (8, 1, _tf32_fragment),
}


def multiply(instruction: Instruction, threads: Threads) -> Step:
    """mma of 16 x 8 x k: D = A B + C, summed in float64 and rounded to float32 once."""
    modifiers = Modifiers(instruction)
    if not modifiers.take("sync", "aligned"):
        raise Unsupported("mma in this form")
    shape = modifiers.word()
    if not modifiers.take("row", "col", "f32"):
        raise Unsupported("mma with another result than float32")
    kind, same, addend = modifiers.word(), modifiers.word(), modifiers.word()
    modifiers.end()
    if kind not in _INPUTS or same != kind or addend != "f32":
        raise Unsupported(f"mma of {kind}, {same} and {addend}")
    depth, packed, fragment = _INPUTS[kind]
    if shape not in (f"m16n8k{depth}", f"m16n8k{depth // 2}"):
        raise Unsupported(f"mma of shape {shape}")
    depth = int(shape.rpartition("k")[2])
    d, a, b, c = instruction.operands
    if not (
        isinstance(d, tuple)
        and isinstance(a, tuple)
        and isinstance(b, tuple)
        and isinstance(c, tuple)
    ):
        raise Unsupported("mma of single registers")
    reads_a, reads_b = ([threads.reader(x, TYPES["b32"]) for x in one] for one in (a, b))
    reads_c = [threads.reader(x, TYPES["f32"]) for x in c]
    writes = [threads.writer(x, TYPES["f32"]) for x in d]
    row, column = np.arange(WARP) // 4, np.arange(WARP) % 4
    at_a = _positions_a(row, column, depth, packed)
    at_b = _positions_b(row, column, depth, packed)

    def matrix(
        reads: list[Callable[[], Array]], shape: tuple[int, int], at: list[tuple[Array, Array]]
    ) -> Array:
        made = np.empty((threads.count // WARP, *shape))
        for read, (rows, columns) in zip(reads, at, strict=True):
            made[:, rows, columns] = fragment(read()).reshape(-1, WARP, packed)
        return made

    def step(mask: Mask) -> None:
        product = matrix(reads_a, (16, depth), at_a) @ matrix(reads_b, (depth, 8), at_b)
        for i, (read, write) in enumerate(zip(reads_c, writes, strict=True)):
            part = product[:, row + 8 * (i // 2), 2 * column + i % 2].ravel()
            write((part + read()).astype(np.float32), mask)

    return step


def _positions_a(row: Array, column: Array, depth: int, packed: int) -> list[tuple[Array, Array]]:
    """Rows and columns of A, [lanes, numbers], for each of its registers."""
    inner = np.arange(packed)
    registers = 2 * depth // (4 * packed)
    return [
        (
            (row + 8 * (i % 2))[:, None] + 0 * inner,
            (packed * column + 4 * packed * (i // 2))[:, None] + inner,
        )
        for i in range(registers)
    ]


def _positions_b(row: Array, column: Array, depth: int, packed: int) -> list[tuple[Array, Array]]:
    inner = np.arange(packed)
    registers = depth // (4 * packed)
    return [
        ((packed * column + 4 * packed * i)[:, None] + inner, row[:, None] + 0 * inner)
        for i in range(registers)
    ]


BUILDERS: dict[str, Builder] = {"ldmatrix": load, "stmatrix": store, "mma": multiply}
