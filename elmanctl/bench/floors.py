"""Floors: lower bounds of the time of an operation by the roofline model; pure.

The floor of a call is the maximum of four times: its bytes over the memory bandwidth, with each
input read once and each output written once; its matrix FLOPs over the rate of the matrix units;
and its float32 instructions and special functions over their rates.  No implementation of the same
algorithm is faster.  The rates are measured on the device in the same run.
"""

from collections.abc import Callable
from dataclasses import dataclass

from elmanctl.bench.size import Size

CHECKPOINT_EVERY = 16
"""Positions between two states that our recurrences save for the backward pass."""

_STATE_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Minimum work of one call; a multiply-add counts as two matrix FLOPs."""

    moved_bytes: float
    matrix_flops: float = 0.0
    float_instructions: float = 0.0
    special_functions: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Measured rates of a device per second; None if not measured."""

    copied_bytes: float | None = None
    matrix_flops: float | None = None
    float_instructions: float | None = None
    special_functions: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """Lower bound of the time of a call, and the resource that determines it."""

    ms: float
    bound: str


def floor_of(work: Work, rates: Rates) -> Floor | None:
    """Return the lower bound of the time of some work, or None if a required rate is unknown.

    A floor that ignores one of its terms would be too low.
    """
    terms = (
        ("memory", work.moved_bytes, rates.copied_bytes),
        ("matrix products", work.matrix_flops, rates.matrix_flops),
        ("float32 instructions", work.float_instructions, rates.float_instructions),
        ("special functions", work.special_functions, rates.special_functions),
    )
    times = []
    for name, amount, rate in terms:
        if not amount:
            continue
        if not rate:
            return None
        times.append((amount / rate * 1e3, name))
    ms, bound = max(times)
    return Floor(ms=ms, bound=bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Work of an operation by size and item size: forward only, and backward only."""

    forward: Callable[[Size, int], Work]
    backward: Callable[[Size, int], Work]


def matrix_recurrence_counts(
    *,
    gated: bool = True,
    squashes: bool = True,
    per_value_decay: bool = False,
    scores: int = 1,
    routed: bool = False,
) -> Counts:
    """Return the counts of E88's recurrence.

    Per state element and position, forward: the product with the key, decay times state (one), the
    outer product added (one), the read-out, and the tanh.  Backward: the replay of the forward's
    first three and its tanh, then the read-out and its gradients for query and state, two for the
    derivative of the tanh, one for the value, two for the key, one for the decay, two for the
    previous state.  The forward pass writes a float32 state every 16 positions, which the backward
    pass reads.  `scores` is the number of scalars per head and position besides q, k, v and gate:
    decay, write gate, blend.  Activations and gates of the vectors are not counted; for 32 by 32
    states they take an eighth of the tanh.
    With `routed`, only `routed_heads` heads are active at each position: nothing else is read, but
    outputs and gradients are written for all heads.
    """

    def active_fraction(size: Size) -> float:
        return routed_heads(size) / size.heads if routed else 1.0

    def entries(size: Size) -> float:
        return active_fraction(size) * size.head_steps * size.keys * size.values

    def scalar_bytes(size: Size) -> float:
        each = scores - 1 + size.values if per_value_decay else scores
        return float(_STATE_BYTES * each * size.head_steps)

    def checkpoint_bytes(size: Size) -> float:
        return _STATE_BYTES * entries(size) / CHECKPOINT_EVERY

    def forward(size: Size, itemsize: int) -> Work:
        inputs = itemsize * (2 * size.keys + (1 + gated) * size.values) * size.head_steps
        output = itemsize * size.values * size.head_steps
        return Work(
            moved_bytes=active_fraction(size) * (inputs + scalar_bytes(size))
            + output
            + checkpoint_bytes(size),
            float_instructions=4 * entries(size),
            special_functions=squashes * entries(size),
        )

    def backward(size: Size, itemsize: int) -> Work:
        inputs = itemsize * (2 * size.keys + (1 + gated) * size.values) * size.head_steps
        d_output = itemsize * size.values * size.head_steps
        read = active_fraction(size) * (inputs + d_output + scalar_bytes(size))
        read += checkpoint_bytes(size)
        return Work(
            moved_bytes=read + inputs + scalar_bytes(size),
            float_instructions=(14 if squashes else 12) * entries(size),
            special_functions=squashes * entries(size),
        )

    return Counts(forward=forward, backward=backward)


def routed_heads(size: Size) -> int:
    """Return how many heads a router selects per position: a fifth, such as 8 of 40, at least 1."""
    return max(1, size.heads // 5)


def gated_scan_counts(scores: int) -> Counts:
    """Return the counts of a linear scan with `scores` scores per channel, gates included.

    Each score takes a special function and a product, the state a multiply-add.  The forward pass
    writes a float32 state every 16 positions, which the backward pass reads.
    """
    checkpoint_bytes = _STATE_BYTES / CHECKPOINT_EVERY

    def work_of(elements: int, instructions: int) -> Callable[[Size, int], Work]:
        return lambda size, itemsize: Work(
            moved_bytes=(elements * itemsize + checkpoint_bytes) * size.head_steps,
            float_instructions=float(instructions * size.head_steps),
            special_functions=float(scores * size.head_steps),
        )

    return Counts(
        forward=work_of(scores + 1, scores + 1), backward=work_of(2 * scores + 1, 2 * (scores + 1))
    )


def _linear_state(
    elements: Callable[[Size], int], *, scores: int, products: int
) -> Callable[[Size, int], Work]:
    """Return the work with matrix states that have no tanh.

    Each position moves `elements` elements of vectors and `scores` scalars a head, and takes
    `products` multiply-adds for each element of the state.
    """
    return lambda size, itemsize: Work(
        moved_bytes=float(
            (itemsize * elements(size) + _STATE_BYTES * scores * size.heads) * size.tokens
        ),
        matrix_flops=2.0 * products * size.keys * size.values * size.head_steps,
    )


# Forward moves q, k, v, two scalars and the output; it takes state by key, outer product, state by
# query.  Backward reads the inputs and the output's gradient and writes a gradient for each input.
GATED_DELTA_RULE = Counts(
    forward=_linear_state(
        lambda size: size.heads * (2 * size.keys + 2 * size.values), scores=2, products=3
    ),
    backward=_linear_state(
        lambda size: size.heads * (4 * size.keys + 3 * size.values), scores=4, products=6
    ),
)

# The same with one scalar a head, the step, and with two key vectors that all heads share; forward
# takes outer product and read-out.
STATE_SPACE_DUAL = Counts(
    forward=_linear_state(
        lambda size: 2 * size.heads * size.values + 2 * size.keys, scores=1, products=2
    ),
    backward=_linear_state(
        lambda size: 3 * size.heads * size.values + 4 * size.keys, scores=2, products=4
    ),
)


def _attention(elements: int, products: int) -> Callable[[Size, int], Work]:
    """Return the work of `products` products and an exponential per causal pair of positions."""

    def work(size: Size, itemsize: int) -> Work:
        pairs = size.head_steps * (size.length + 1) / 2
        return Work(
            moved_bytes=float(itemsize * elements * size.keys * size.head_steps),
            matrix_flops=2 * products * size.keys * pairs,
            special_functions=pairs,
        )

    return work


# Backward recomputes one of the products, with the exponential.
ATTENTION = Counts(forward=_attention(4, 2), backward=_attention(8, 5))
