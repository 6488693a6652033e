"""What an operation must do at the least, and the time that this takes on a card; pure.

The floor of a call is the longest of four times: its bytes over the bandwidth of memory, each input
read once and each output written once; its products of matrices over the rate of the matrix units;
its float32 instructions and its special functions over the rates of theirs.  No version that does
the same work, in the same way, runs faster.  The rates are measured on the card, in the same run.
"""

from collections.abc import Callable
from dataclasses import dataclass

from elmanctl.bench.size import Size

CHECKPOINT_EVERY = 16
"""Positions between two states that recurrences of ours keep for their backward pass."""

_STATE_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one call must do at the least; a product and its addition are two matrix FLOPs."""

    moved_bytes: float
    matrix_flops: float = 0.0
    float_instructions: float = 0.0
    special_functions: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            moved_bytes=self.moved_bytes + other.moved_bytes,
            matrix_flops=self.matrix_flops + other.matrix_flops,
            float_instructions=self.float_instructions + other.float_instructions,
            special_functions=self.special_functions + other.special_functions,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a card does in a second, as measured; None is not measured."""

    copied_bytes: float | None = None
    matrix_flops: float | None = None
    float_instructions: float | None = None
    special_functions: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The least time of a call, and what sets it."""

    ms: float
    bound: str


def floor_of(work: Work, rates: Rates) -> Floor | None:
    """Return the least time of some work; None where a rate that it needs was not measured.

    A floor without one of its terms could be too low, and would flatter nothing but the floor.
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
    """What an operation must do at a size: forward alone, and backward alone."""

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
    """Return the counts of the recurrence of E88, for each number of the state and position.

    Forward: the sum with the key, decay times state (one), the written product added (one), the
    read-out, and the tanh.  Backward: the replay of the forward's first three and its tanh, then
    the read-out and its gradients by query and state, two for the derivative of the tanh, one for
    the value, two for the key, one for the decay, two for the state before.  The forward pass keeps
    a state in float32 every 16 positions, and the backward pass reads it.  `scores` are the numbers
    of each head and position beside q, k, v and gate: decay, write gate, blend.  What activations
    and gates of the vectors take is left out: an eighth of the tanh of 32 by 32 states.
    With `routed`, the few heads of `routed_heads` are at work at each position: nothing else is
    read, but outputs and gradients are written for all heads.
    """

    def share(size: Size) -> float:
        return routed_heads(size) / size.heads if routed else 1.0

    def entries(size: Size) -> float:
        return share(size) * size.head_steps * size.keys * size.values

    def small(size: Size) -> float:
        each = scores - 1 + size.values if per_value_decay else scores
        return float(_STATE_BYTES * each * size.head_steps)

    def kept(size: Size) -> float:
        return _STATE_BYTES * entries(size) / CHECKPOINT_EVERY

    def forward(size: Size, itemsize: int) -> Work:
        inputs = itemsize * (2 * size.keys + (1 + gated) * size.values) * size.head_steps
        output = itemsize * size.values * size.head_steps
        return Work(
            moved_bytes=share(size) * (inputs + small(size)) + output + kept(size),
            float_instructions=4 * entries(size),
            special_functions=squashes * entries(size),
        )

    def backward(size: Size, itemsize: int) -> Work:
        inputs = itemsize * (2 * size.keys + (1 + gated) * size.values) * size.head_steps
        d_output = itemsize * size.values * size.head_steps
        read = share(size) * (inputs + d_output + small(size)) + kept(size)
        return Work(
            moved_bytes=read + inputs + small(size),
            float_instructions=(14 if squashes else 12) * entries(size),
            special_functions=squashes * entries(size),
        )

    return Counts(forward=forward, backward=backward)


def routed_heads(size: Size) -> int:
    """Return how many heads a router picks at each position: a fifth, as 8 of 40, at least one."""
    return max(1, size.heads // 5)


def gated_scan_counts(scores: int) -> Counts:
    """Return the counts of a linear scan from so many scores of each channel on, gates included.

    A special function and a product for each score, and a product added to the state.  The forward
    pass keeps a state in float32 every 16 positions, and the backward pass reads it.
    """
    kept = _STATE_BYTES / CHECKPOINT_EVERY

    def forward(size: Size, itemsize: int) -> Work:
        return Work(
            moved_bytes=((scores + 1) * itemsize + kept) * size.head_steps,
            float_instructions=float((scores + 1) * size.head_steps),
            special_functions=float(scores * size.head_steps),
        )

    def backward(size: Size, itemsize: int) -> Work:
        return Work(
            moved_bytes=((2 * scores + 1) * itemsize + kept) * size.head_steps,
            float_instructions=float(2 * (scores + 1) * size.head_steps),
            special_functions=float(scores * size.head_steps),
        )

    return Counts(forward=forward, backward=backward)


def _delta_rule_forward(size: Size, itemsize: int) -> Work:
    """Read q, k, v, two scores, write the output; state by key, outer product, state by query."""
    vectors, scores = 2 * size.keys + 2 * size.values, 2
    return Work(
        moved_bytes=(itemsize * vectors + _STATE_BYTES * scores) * size.head_steps,
        matrix_flops=6.0 * size.keys * size.values * size.head_steps,
    )


def _delta_rule_backward(size: Size, itemsize: int) -> Work:
    """The same inputs and the output's gradient in, a gradient for each input out."""
    vectors, scores = 4 * size.keys + 3 * size.values, 4
    return Work(
        moved_bytes=(itemsize * vectors + _STATE_BYTES * scores) * size.head_steps,
        matrix_flops=12.0 * size.keys * size.values * size.head_steps,
    )


def _state_space_forward(size: Size, itemsize: int) -> Work:
    """Values and steps of each head, two key vectors for all heads; outer product and read-out."""
    moved = itemsize * (2 * size.heads * size.values + 2 * size.keys) + _STATE_BYTES * size.heads
    return Work(
        moved_bytes=float(moved * size.tokens),
        matrix_flops=4.0 * size.keys * size.values * size.head_steps,
    )


def _state_space_backward(size: Size, itemsize: int) -> Work:
    """The same inputs and the output's gradient in, a gradient for each input out."""
    moved = itemsize * (3 * size.heads * size.values + 4 * size.keys)
    return Work(
        moved_bytes=float((moved + 2 * _STATE_BYTES * size.heads) * size.tokens),
        matrix_flops=8.0 * size.keys * size.values * size.head_steps,
    )


def _attention_forward(size: Size, itemsize: int) -> Work:
    """Two products and an exponential for each pair of a position with itself or an earlier one."""
    pairs = _pairs(size)
    return Work(
        moved_bytes=float(itemsize * 4 * size.keys * size.head_steps),
        matrix_flops=4 * size.keys * pairs,
        special_functions=pairs,
    )


def _attention_backward(size: Size, itemsize: int) -> Work:
    """Five products for each pair, of which one, with the exponential, is the forward's again."""
    pairs = _pairs(size)
    return Work(
        moved_bytes=float(itemsize * 8 * size.keys * size.head_steps),
        matrix_flops=10 * size.keys * pairs,
        special_functions=pairs,
    )


def _pairs(size: Size) -> float:
    return size.head_steps * (size.length + 1) / 2


GATED_DELTA_RULE = Counts(forward=_delta_rule_forward, backward=_delta_rule_backward)
STATE_SPACE_DUAL = Counts(forward=_state_space_forward, backward=_state_space_backward)
ATTENTION = Counts(forward=_attention_forward, backward=_attention_backward)
