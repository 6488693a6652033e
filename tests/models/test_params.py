import math
import re
from typing import Any

import pytest

from elmanctl.errors import InvalidConfiguration, NotFound
from elmanctl.models import params
from elmanctl.models.params import (
    count_parameters,
    format_count,
    parameter_breakdown,
    parse_count,
    solve_dim,
    state_size,
)

# Sizes that runs of the January and February 2026 study printed.
MEASURED = [
    (2176, 14, 98, 32, 481_253_432),
    (1920, 17, 83, 32, 436_697_222),
    (896, 32, 104, 32, 480_349_568),
    (1792, 31, 49, 32, 438_768_862),
    (2176, 25, 104, 16, 458_884_432),
    (2944, 29, 68, 16, 471_096_936),
    (3200, 15, 122, 16, 475_210_060),
    (1280, 20, 116, 32, 478_464_800),
    (1664, 29, 123, 16, 481_257_566),
    (4224, 14, 101, 16, 484_939_148),
    (1920, 24, 66, 32, 490_188_768),
]
WITHOUT_DIM: dict[str, Any] = {"depth": 14, "n_heads": 98, "n_state": 32}


@pytest.mark.parametrize(("dim", "depth", "n_heads", "n_state", "count"), MEASURED)
def test_count_is_the_one_that_training_printed(
    dim: int, depth: int, n_heads: int, n_state: int, count: int
) -> None:
    config = {"dim": dim, "depth": depth, "n_heads": n_heads, "n_state": n_state}
    assert count_parameters("E88", config) == count


def test_count_without_a_gate_is_the_one_that_training_printed() -> None:
    config = {"dim": 4864, "depth": 22, "n_heads": 68, "n_state": 16, "use_gate": False}
    # That revision kept an unused norm weight of n_state numbers in each layer.
    assert count_parameters("e88", config) == 474_335_760 - 22 * 16


def test_parts_sum_to_the_count_and_the_head_is_free() -> None:
    config = {"dim": 64, "depth": 2, "n_heads": 4, "n_state": 16}
    parts = parameter_breakdown("e88", config)
    layer = 5 * 64 * 64 + 64 * 4 + 2 * 4
    assert parts == {"embedding": 256 * 64, "blocks": 2 * layer, "norms": 3 * 64, "head": 0}
    assert count_parameters("e88", config) == sum(parts.values())


def test_unknown_way_to_count_is_refused() -> None:
    config = {"dim": 64, "depth": 2, "n_heads": 4, "n_state": 16}
    with pytest.raises(InvalidConfiguration, match="known: documented") as caught:
        count_parameters("e88", config, "documentd")
    assert caught.value.hint == "did you mean `documented`?"


def test_unknown_level_has_no_count() -> None:
    with pytest.raises(NotFound):
        count_parameters("e99", {})


def test_state_of_a_layer_is_keys_by_values_by_heads() -> None:
    config = {"dim": 64, "depth": 2, "n_heads": 4, "n_state": 16, "expansion": 2.0}
    assert state_size("e88", config) == 4 * 16 * 32


def test_solved_dim_has_the_nearest_count_of_all() -> None:
    dim = solve_dim("e88", WITHOUT_DIM, target=480_000_000, tolerance=0.02)
    assert dim == 2176
    errors = {
        other: abs(count_parameters("e88", {**WITHOUT_DIM, "dim": other}) - 480_000_000)
        for other in range(128, 8192, 128)
    }
    assert min(errors, key=errors.__getitem__) == dim


@pytest.mark.parametrize("multiple_of", [1, 32, 128])
def test_dim_of_an_exact_count_is_found_again(multiple_of: int) -> None:
    target = count_parameters("e88", {**WITHOUT_DIM, "dim": 1920})
    found = solve_dim("e88", WITHOUT_DIM, target=target, tolerance=0.0, multiple_of=multiple_of)
    assert found == 1920


def test_dims_stay_inside_their_range() -> None:
    wide: dict[str, Any] = {"target": 480_000_000, "tolerance": 10.0}
    assert solve_dim("e88", WITHOUT_DIM, **wide, high=2100) == 2048
    assert solve_dim("e88", WITHOUT_DIM, **wide, low=2200) == 2304
    assert solve_dim("e88", WITHOUT_DIM, target=1, tolerance=1e9) == 128


def test_budget_out_of_reach_names_both_neighbours() -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        solve_dim("e88", WITHOUT_DIM, target=470_000_000, tolerance=0.005)
    below, above = (count_parameters("e88", {**WITHOUT_DIM, "dim": d}) for d in (2048, 2176))
    assert caught.value.message == (
        "no dim that is a multiple of 128 gives 470,000,000 parameters within 0.50%: "
        f"dim 2048 has {below:,} and dim 2176 has {above:,}"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 129, "high": 255}, "there is no multiple of 128 from 129 to 255"),
        ({"multiple_of": 0}, "`multiple_of` is 0, but must be at least 1"),
        ({"target": 0}, "`target` is 0, but must be at least 1"),
    ],
)
def test_impossible_question_for_a_dim_is_refused(arguments: Any, message: str) -> None:
    question = {"target": 480_000_000, "tolerance": 0.02, **arguments}
    with pytest.raises(InvalidConfiguration) as caught:
        solve_dim("e88", WITHOUT_DIM, **question)
    assert caught.value.message == message


@pytest.mark.parametrize("tolerance", [math.nan, math.inf, -math.inf, -0.01])
def test_tolerance_that_is_none_is_refused(tolerance: float) -> None:
    with pytest.raises(InvalidConfiguration, match=r"`tolerance` is .* a finite number") as caught:
        solve_dim("e88", WITHOUT_DIM, target=480_000_000, tolerance=tolerance)
    assert caught.value.hint


# At the tolerances between, multiples of 128 have no dim that fits.
@pytest.mark.parametrize(
    ("target", "tolerance", "finer"),
    [
        (472_000_000, 0.012, 64),
        (472_000_000, 0.005, 32),
        (470_000_000, 0.005, 16),
        (472_000_000, 0.002, 8),
        (470_000_000, 1e-4, None),
        (3_000_000, 0.5, 16),
    ],
)
def test_hint_names_the_coarsest_multiple_and_the_tolerance_that_fit(
    target: int, tolerance: float, finer: int | None
) -> None:
    def solve(multiple_of: int = 128, tolerance: float = tolerance) -> int:
        return solve_dim(
            "e88", WITHOUT_DIM, target=target, tolerance=tolerance, multiple_of=multiple_of
        )

    with pytest.raises(InvalidConfiguration) as caught:
        solve()
    hint = caught.value.hint
    assert hint is not None
    told = re.match(r"with `multiple_of` (\d+) a dim fits; ", hint)
    assert (told and int(told[1])) == finer
    for coarser in (64, 32, 16, 8):
        if finer is not None and coarser <= finer:
            assert solve(coarser) % coarser == 0
        else:
            with pytest.raises(InvalidConfiguration):
                solve(coarser)
    wider = re.search(r"with `tolerance` ([0-9.]+) dim (\d+) fits$", hint)
    if wider is None:
        assert hint.endswith("no dim comes near; change `depth`, the other sizes or the target")
    else:
        assert solve(tolerance=float(wider[1])) == int(wider[2])
        with pytest.raises(InvalidConfiguration):
            solve(tolerance=float(wider[1]) - 1e-4)


def test_hint_of_a_study_model_of_128_from_128_names_no_multiple() -> None:
    settings = {"depth": 17, "variant": "study-2026-01"}
    with pytest.raises(InvalidConfiguration, match="multiple of 128") as caught:
        solve_dim("fla-gdn", settings, target=470_000_000, tolerance=0.001, multiple_of=32)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("with `tolerance` ")


def test_hint_costs_nothing_until_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    counting = params.count_parameters

    def counting_calls(*given: Any) -> int:
        counted.append(given)
        return counting(*given)

    monkeypatch.setattr(
        params,
        "count_parameters",
        counting_calls,
    )
    with pytest.raises(InvalidConfiguration) as caught:
        solve_dim("e88", WITHOUT_DIM, target=470_000_000, tolerance=0.005)
    before = len(counted)
    assert str(caught.value) == caught.value.message
    assert len(counted) == before
    assert caught.value.hint is not None
    assert len(counted) > before


def test_dim_that_is_set_is_not_solved_for() -> None:
    with pytest.raises(InvalidConfiguration, match="`dim` is set"):
        solve_dim("e88", {**WITHOUT_DIM, "dim": 64}, target=10**6, tolerance=0.1)


def test_other_faults_of_a_configuration_are_told_as_they_are() -> None:
    with pytest.raises(InvalidConfiguration, match="n_state=30 is not supported"):
        solve_dim("e88", {**WITHOUT_DIM, "n_state": 30}, target=10**6, tolerance=0.1)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("480M", 480_000_000),
        ("480m", 480_000_000),
        ("1.5M", 1_500_000),
        ("2B", 2_000_000_000),
        ("2G", 2_000_000_000),
        ("60K", 60_000),
        ("60.5 k", 60_500),
        ("65536", 65_536),
        ("65_536", 65_536),
        ("480,349,568", 480_349_568),
        (" 7 ", 7),
        ("480.349568M", 480_349_568),
    ],
)
def test_counts_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "M", "480T", "1.5.5M", "-1M", "1,5M", "1e6", "nan", "4 80M"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(InvalidConfiguration, match="is not a number of parameters"):
        parse_count(text)


@pytest.mark.parametrize("text", ["0", "0M", "1.5", "1.2345678K"])
def test_count_that_is_not_whole_and_positive_is_refused(text: str) -> None:
    with pytest.raises(InvalidConfiguration, match="is not a whole positive number"):
        parse_count(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1.0K"),
        (999_949, "999.9K"),
        (999_950, "1.0M"),
        (480_349_568, "480.3M"),
        (999_950_000, "1.0B"),
        (2_000_000_000, "2.0B"),
    ],
)
def test_counts_are_written_for_people(count: int, text: str) -> None:
    assert format_count(count) == text
