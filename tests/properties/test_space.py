"""Laws of axes: positions and values belong together, and no value is favoured."""

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from elmanctl.space.axis import Axis

words = st.text("abcdef", min_size=1, max_size=4)


@st.composite
def int_axes(draw: st.DrawFn) -> dict[str, Any]:
    step = draw(st.integers(1, 16))
    low = draw(st.integers(-500, 500))
    steps = draw(st.integers(2, 40))
    return {"kind": "int", "low": low, "high": low + step * steps, "multiple_of": step}


@st.composite
def continuous_axes(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["float", "log"]))
    low = draw(st.floats(1e-6, 1e3) if kind == "log" else st.floats(-1e3, 1e3))
    width = draw(st.floats(1.01, 1e4) if kind == "log" else st.floats(1e-3, 1e4))
    return {"kind": kind, "low": low, "high": low * width if kind == "log" else low + width}


finite_axes = st.one_of(
    int_axes(),
    st.builds(
        lambda values: {"kind": "choice", "values": values},
        st.lists(st.one_of(st.integers(), words), min_size=2, max_size=9, unique=True),
    ),
    st.just({"kind": "bool"}),
).map(lambda table: Axis.decode("axis", table))
endless_axes = continuous_axes().map(lambda table: Axis.decode("axis", table))
any_axes = st.one_of(finite_axes, endless_axes)
coordinates = st.floats(-1e6, 1e6)


@given(axis=finite_axes, data=st.data())
def test_value_at_the_position_of_a_value_is_that_value(axis: Axis, data: st.DataObject) -> None:
    assert axis.levels is not None
    value = data.draw(st.sampled_from(axis.levels))
    assert axis.value(axis.position(value)) == value


@given(axis=endless_axes, share=st.floats(0, 1))
def test_position_of_a_continuous_value_is_where_it_came_from(axis: Axis, share: float) -> None:
    assert abs(axis.position(axis.value(share)) - share) < 1e-6


@given(axis=any_axes, x=coordinates)
def test_every_coordinate_decodes_into_the_axis(axis: Axis, x: float) -> None:
    value = axis.value(x)
    if axis.levels is not None:
        assert value in axis.levels
    else:
        assert isinstance(value, float) and axis.low is not None and axis.high is not None
        assert axis.low <= value <= axis.high


@given(axis=any_axes)
def test_middle_is_inside_the_bounds(axis: Axis) -> None:
    assert axis.coordinate.low <= axis.middle <= axis.coordinate.high


@given(axis=finite_axes)
def test_every_value_has_an_equal_share_of_the_coordinate_ends_included(axis: Axis) -> None:
    assert axis.levels is not None
    low, high = axis.coordinate.low, axis.coordinate.high
    # Four probes a step, none of them on a border.
    probes = [low + (i + 0.5) / 4 for i in range(4 * len(axis.levels))]
    assert high == probes[-1] + 0.125
    assert Counter(map(axis.value, probes)) == dict.fromkeys(axis.levels, 4)


@given(axis=any_axes)
def test_axis_reads_back_from_its_own_table(axis: Axis) -> None:
    assert Axis.decode(axis.name, axis.encode()) == axis
