import pytest

from elmanctl.bench.floors import (
    ATTENTION,
    GATED_DELTA_RULE,
    STATE_SPACE_DUAL,
    Floor,
    Rates,
    Work,
    floor_of,
    gated_scan_counts,
    matrix_recurrence_counts,
)
from elmanctl.bench.size import Size, matrix_size

E88 = matrix_size(16, 512, 83, 32)
BF16, FP32 = 2, 4


def h100(clock_hz: float) -> Rates:
    """An H100 by its counts: 132 processors, 128 lanes and 16 special functions in each."""
    return Rates(
        copied_bytes=3.0e12,
        matrix_flops=8.0e14,
        float_instructions=132 * 128 * clock_hz,
        special_functions=132 * 16 * clock_hz,
    )


def test_sizes_are_counted_and_written_in_letters() -> None:
    assert (E88.tokens, E88.head_steps) == (8192, 679_936)
    assert E88.label == "B16 T512 H83 n32"
    assert matrix_size(2, 3, 4, 5, 6).label == "B2 T3 H4 K5 V6"
    assert Size(batch=1, length=9, heads=7).label == "B1 T9 D7"


# By hand for B16 T512 H83 n32: 696.3 M numbers of states and positions; forward one tanh and four
# instructions each, backward one and fourteen.
@pytest.mark.parametrize(
    ("clock_hz", "forward_ms", "backward_ms"), [(1.98e9, 0.1665, 0.2914), (1.755e9, 0.1878, 0.3287)]
)
def test_floor_of_the_recurrence_is_that_of_the_design(
    clock_hz: float, forward_ms: float, backward_ms: float
) -> None:
    counts, rates = matrix_recurrence_counts(), h100(clock_hz)
    forward = floor_of(counts.forward(E88, BF16), rates)
    backward = floor_of(counts.backward(E88, BF16), rates)
    assert forward and backward
    assert forward.ms == pytest.approx(forward_ms, 1e-3)
    assert forward.bound == "special functions"
    assert backward.ms == pytest.approx(backward_ms, 1e-3)
    assert backward.bound == "float32 instructions"


def test_recurrence_moves_its_vectors_once_and_a_state_every_sixteen_positions() -> None:
    counts = matrix_recurrence_counts()
    vector, decays = 2 * 679_936 * 32, 4 * 679_936
    states = 4 * 679_936 * 32 * 32 / 16
    assert counts.forward(E88, BF16).moved_bytes == 5 * vector + decays + states
    assert counts.backward(E88, BF16).moved_bytes == 9 * vector + 2 * decays + states


def test_forms_of_the_recurrence_do_what_they_do_and_no_more() -> None:
    plain = matrix_recurrence_counts()
    linear = matrix_recurrence_counts(squashes=False)
    assert linear.forward(E88, BF16).special_functions == 0
    assert linear.backward(E88, BF16).float_instructions == 12 * 679_936 * 1024
    ungated = matrix_recurrence_counts(gated=False)
    vector = 2 * 679_936 * 32
    assert plain.forward(E88, BF16).moved_bytes - ungated.forward(E88, BF16).moved_bytes == vector
    assert (
        plain.backward(E88, BF16).moved_bytes - ungated.backward(E88, BF16).moved_bytes
        == 2 * vector
    )
    each = matrix_recurrence_counts(gated=False, per_value_decay=True)
    more = each.forward(E88, BF16).moved_bytes - ungated.forward(E88, BF16).moved_bytes
    assert more == 4 * 31 * 679_936
    written = matrix_recurrence_counts(scores=2)
    more = written.backward(E88, BF16).moved_bytes - plain.backward(E88, BF16).moved_bytes
    assert more == 2 * 4 * 679_936


def test_routed_heads_alone_are_read_and_all_of_them_written() -> None:
    size, hs = matrix_size(16, 512, 40, 64), 16 * 512 * 40
    counts = matrix_recurrence_counts(gated=False, routed=True)
    entries, vector, scores = hs / 5 * 64 * 64, 2 * hs * 64, 4 * hs
    forward, backward = counts.forward(size, BF16), counts.backward(size, BF16)
    assert forward.special_functions == entries and backward.float_instructions == 14 * entries
    kept = 4 * entries / 16
    assert forward.moved_bytes == (3 * vector + scores) / 5 + vector + kept
    assert backward.moved_bytes == (4 * vector + scores) / 5 + kept + 3 * vector + scores


def test_other_operations_count_their_inputs_outputs_and_products() -> None:
    scan = Size(batch=2, length=3, heads=5)
    gru = gated_scan_counts(2)
    assert gru.forward(scan, BF16) == Work(
        moved_bytes=30 * 6.25, float_instructions=90, special_functions=60
    )
    assert gru.backward(scan, BF16) == Work(
        moved_bytes=30 * 10.25, float_instructions=180, special_functions=60
    )
    rule = matrix_size(1, 2, 3, 4, 8)
    assert GATED_DELTA_RULE.forward(rule, BF16) == Work(
        moved_bytes=6 * (2 * (4 + 4 + 8 + 8) + 8), matrix_flops=6 * 3 * 2 * 4 * 8
    )
    assert GATED_DELTA_RULE.backward(rule, BF16) == Work(
        moved_bytes=6 * (2 * (2 * (4 + 4 + 8) + 8) + 16), matrix_flops=6 * 6 * 2 * 4 * 8
    )
    assert STATE_SPACE_DUAL.forward(rule, BF16) == Work(
        moved_bytes=2 * (2 * (2 * 3 * 8 + 2 * 4) + 4 * 3), matrix_flops=6 * 2 * 2 * 4 * 8
    )
    assert STATE_SPACE_DUAL.backward(rule, BF16) == Work(
        moved_bytes=2 * (2 * (3 * 3 * 8 + 4 * 4) + 8 * 3), matrix_flops=6 * 4 * 2 * 4 * 8
    )
    # Three positions see one, two and three of them.
    heads = matrix_size(1, 3, 2, 4)
    assert ATTENTION.forward(heads, BF16) == Work(
        moved_bytes=6 * 4 * 4 * 2, matrix_flops=12 * 2 * 2 * 4, special_functions=12
    )
    assert ATTENTION.backward(heads, BF16) == Work(
        moved_bytes=6 * 8 * 4 * 2, matrix_flops=12 * 5 * 2 * 4, special_functions=12
    )


def test_floor_is_the_longest_of_its_terms() -> None:
    rates = Rates(copied_bytes=1e3, matrix_flops=1e3, float_instructions=1e3, special_functions=1e3)
    work = Work(moved_bytes=1, matrix_flops=2, float_instructions=3, special_functions=1)
    assert floor_of(work, rates) == Floor(ms=3.0, bound="float32 instructions")
    assert floor_of(Work(moved_bytes=5, matrix_flops=2), rates) == Floor(ms=5.0, bound="memory")


def test_there_is_no_floor_where_a_rate_it_needs_was_not_measured() -> None:
    rates = Rates(copied_bytes=1e3)
    assert floor_of(Work(moved_bytes=1, special_functions=1), rates) is None
    assert floor_of(Work(moved_bytes=1), rates) == Floor(ms=1.0, bound="memory")
