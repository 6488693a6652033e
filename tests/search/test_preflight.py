"""What is refused before a job could be spent on it: sizes, memory, axes, levels, dead axes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from elmanctl.errors import ConfigError, InvalidConfiguration
from elmanctl.ledger.records import Evaluation
from elmanctl.models.config import STUDY, FamilyConfig
from elmanctl.models.memory import training_memory_bytes
from elmanctl.models.registry import decode_config
from elmanctl.search.axis import Axis
from elmanctl.search.candidates import CandidateBuilder, ask_candidates
from elmanctl.search.preflight import Preflight, check_space, mixed_backends
from elmanctl.search.space import SearchSpace, load_space
from elmanctl.search.start import SearchPlan, create_run, plan_search
from elmanctl.search.workload import attempt_spec
from elmanctl.settings import (
    DataSettings,
    LocalSettings,
    SearchSettings,
    Settings,
    SlurmSettings,
    TrainSettings,
)
from tests.search.test_candidates import Scripted

pytestmark = pytest.mark.usefixtures("no_power_failures")

TRAIN: dict[str, Any] = {"steps": 1, "batch": 64, "seq_len": 512, "precision": "fp32"}

Plan = Callable[..., SearchPlan]


def large_model() -> FamilyConfig:
    settings = {"dim": 512, "depth": 8, "n_heads": 16, "n_state": 32}
    return decode_config("e88", settings)


def needed_gb(micro_batch: int) -> float:
    needed = training_memory_bytes(
        large_model(), micro_batch=micro_batch, seq_len=512, precision="fp32"
    )
    return needed / 1e9


def space_of(model: str, axes: dict[str, Any], fixed: dict[str, Any]) -> SearchSpace:
    decoded = tuple(Axis.decode(name, table) for name, table in axes.items())
    return SearchSpace(model=model, name="test", axes=decoded, fixed=fixed)


@pytest.fixture
def plan(corpus: Path, tmp_path: Path) -> Plan:
    """Plan a tiny local search of a level."""

    def make(level: str, *, model: dict[str, Any] | None = None, **search: Any) -> SearchPlan:
        train = search.pop("train", {"steps": 2, "seq_len": 32})
        tiny = {"space": "tiny", "params": "100K", "tolerance": 0.1, "multiple_of": 8}
        settings = Settings(
            model=model or {},
            search=SearchSettings(**{**tiny, **search}),
            train=TrainSettings(**train),
            data=DataSettings(path=str(corpus)),
        )
        return plan_search(level, settings, executor="local", name="run", runs=tmp_path / "runs")

    return make


@pytest.mark.parametrize("executor", ["slurm", "local"])
def test_model_that_its_gpu_cannot_hold_is_refused_with_both_numbers(executor: str) -> None:
    limit = needed_gb(32)
    places: dict[str, Any] = {
        "slurm": {"slurm": SlurmSettings(gpu_memory_gb=limit)},
        "local": {"local": LocalSettings(gpu_memory_gb=limit)},
    }
    settings = Settings(train=TrainSettings(**TRAIN, micro_batch=64), **places[executor])
    told_sizes = rf"about {needed_gb(64):.1f} GB of the GPU's {limit:.1f} GB"
    with pytest.raises(InvalidConfiguration, match=told_sizes) as told:
        Preflight(settings, executor).check(large_model())
    assert told.value.hint is not None and "`train.micro_batch`" in told.value.hint
    # The limit of the other place is not this one's.
    Preflight(settings, "local" if executor == "slurm" else "slurm").check(large_model())


@pytest.mark.parametrize(("micro_batch", "fits"), [(64, False), (32, True), (1, True)])
def test_smaller_micro_batch_lets_a_model_through(micro_batch: int, fits: bool) -> None:
    settings = Settings(
        train=TrainSettings(**TRAIN, micro_batch=micro_batch),
        slurm=SlurmSettings(gpu_memory_gb=needed_gb(32)),
    )
    preflight = Preflight(settings, "slurm")
    if fits:
        preflight.check(large_model())
        return
    with pytest.raises(InvalidConfiguration, match="would need about"):
        preflight.check(large_model())


@pytest.mark.parametrize(
    ("fitting", "chosen"),
    [(100, 0), (64, 0), (63, 32), (32, 32), (31, 16), (1, 1)],
)
def test_micro_batch_that_nobody_set_is_the_most_that_divides_the_batch_and_fits(
    fitting: int, chosen: int
) -> None:
    slurm = SlurmSettings(gpu_memory_gb=needed_gb(fitting) * 1.0001)
    settings = Settings(train=TrainSettings(**TRAIN), slurm=slurm)
    assert Preflight(settings, "slurm").micro_batch(large_model()) == chosen


def test_model_too_large_for_one_sequence_is_not_sent_to_the_micro_batch() -> None:
    slurm = SlurmSettings(gpu_memory_gb=needed_gb(1) / 2)
    with pytest.raises(InvalidConfiguration) as told:
        Preflight(Settings(train=TrainSettings(**TRAIN), slurm=slurm), "slurm").check(large_model())
    assert told.value.hint is not None and "micro_batch" not in told.value.hint
    assert "`train.seq_len`" in told.value.hint


def test_without_a_limit_and_on_the_cpu_no_memory_is_checked() -> None:
    Preflight(Settings(train=TrainSettings(**TRAIN)), "slurm").check(large_model())
    tiny_gpu = SlurmSettings(gpu_memory_gb=0.001)
    on_cpu = Settings(train=TrainSettings(**TRAIN, device="cpu"), slurm=tiny_gpu)
    Preflight(on_cpu, "slurm").check(large_model())


def test_micro_batch_leaves_candidates_and_tokens_of_a_step_alone(plan: Plan) -> None:
    train = {"steps": 2, "seq_len": 32, "batch": 16}
    whole = plan("e88", train=train)
    parts = plan("e88", train={**train, "micro_batch": 2})
    one, other = (
        CandidateBuilder(found.space, found.settings, "local").build(found.start)
        for found in (whole, parts)
    )
    assert one == other
    folder = create_run(parts)
    assert f'"tokens_per_step":{16 * 32}' in (folder / "ledger.jsonl").read_text().replace(" ", "")


@pytest.mark.parametrize(
    ("family", "settings", "backend", "message"),
    [
        ("fla-gdn", {"n_heads": 2, "head_dim": 264}, "fla", "at most 256 keys"),
        ("fla-gdn", {"n_heads": 2, "head_dim": 33}, "fla", "even widths"),
        ("gru", {"reset_after": False}, "cudnn", "`reset_after` false"),
        ("lstm", {"two_biases": False}, "cudnn", "`two_biases` false"),
    ],
)
def test_named_backend_refuses_what_it_does_not_compute_and_auto_accepts_it(
    family: str, settings: dict[str, Any], backend: str, message: str
) -> None:
    config = decode_config(family, {"dim": 64, "depth": 1, **settings})
    named = Settings(train=TrainSettings(steps=1, backend=backend))
    with pytest.raises(InvalidConfiguration, match=message) as told:
        Preflight(named, "slurm").check(config)
    assert told.value.hint is not None and "torch" in told.value.hint
    for name in ("auto", "torch"):
        Preflight(Settings(train=TrainSettings(steps=1, backend=name)), "slurm").check(config)


def test_points_that_the_backend_refuses_are_asked_again_and_counted_and_never_told() -> None:
    axes = {"expansion": {"kind": "float", "low": 1.0, "high": 2.0}}
    space = space_of("fla-gdn", axes, {"dim": 64, "depth": 1, "n_heads": 2, "head_dim": 10})
    settings = Settings(
        search=SearchSettings(params=None), train=TrainSettings(steps=1, backend="fla")
    )
    builder = CandidateBuilder(space, settings, "slurm")
    # 10 keys and 10, 15 or 20 values: an odd number is none of fla's.
    even, odd, double = (0.0,), (0.5,), (1.0,)
    optimizer = Scripted([even, odd, odd, double, odd, even])
    built, refused = ask_candidates(optimizer, builder, 3)
    assert [candidate.point for candidate in built] == [even, double, even]
    assert refused == 3
    assert optimizer.asked == [3, 1, 1, 1]


def test_points_over_the_memory_are_asked_again_and_counted() -> None:
    axes = {"depth": {"kind": "int", "low": 1, "high": 8}}
    space = space_of("e88", axes, {"dim": 512, "n_heads": 16, "n_state": 32})
    settings = Settings(
        search=SearchSettings(params=None),
        train=TrainSettings(**TRAIN, micro_batch=64),
        slurm=SlurmSettings(gpu_memory_gb=needed_gb(32)),
    )
    builder = CandidateBuilder(space, settings, "slurm")
    optimizer = Scripted([(7.0,), (0.0,), (7.0,), (1.0,)])
    built, refused = ask_candidates(optimizer, builder, 2)
    assert [candidate.config["depth"] for candidate in built] == [1, 2]
    assert refused == 2


@pytest.mark.parametrize(
    ("model", "axis", "table", "told"),
    [
        ("e88", "n_state", {"kind": "choice", "values": [16, 20, 33]}, "axis `n_state` at 33"),
        ("e88", "gate_activation", {"kind": "choice", "values": ["silu", "relu"]}, "at relu"),
        ("mamba2", "head_dim", {"kind": "pow2", "low": 32, "high": 256}, "`head_dim` at 256"),
    ],
)
def test_value_that_no_model_has_is_refused_by_axis_and_value(
    model: str, axis: str, table: dict[str, Any], told: str
) -> None:
    space = load_space(model, "3d", axes={axis: table}, fixed={})
    with pytest.raises(InvalidConfiguration, match=told) as caught:
        check_space(space, Settings(), "slurm")
    assert caught.value.hint


def test_value_that_the_named_backend_never_computes_is_refused_by_axis_and_value() -> None:
    # False is the middle of the axis, too, and `depth` beside it is not to blame.
    axes = {"depth": {"kind": "int", "low": 1, "high": 3}, "reset_after": {"kind": "bool"}}
    space = space_of("gru", axes, {})
    with pytest.raises(InvalidConfiguration, match=r"axis `reset_after` at False: .*cuDNN"):
        check_space(space, Settings(train=TrainSettings(backend="cudnn")), "slurm")
    check_space(space, Settings(), "slurm")


def test_value_that_runs_with_some_values_of_another_axis_is_left_to_the_points() -> None:
    # 33 values cannot be shared out to 2 heads of 16 keys; with 32 keys there are 66.
    axes = {
        "n_state": {"kind": "choice", "values": [16, 32]},
        "expansion": {"kind": "choice", "values": [1.0, 1.03125]},
    }
    space = space_of("e88", axes, {"dim": 32, "depth": 1, "n_heads": 2})
    check_space(space, Settings(), "slurm")
    builder = CandidateBuilder(space, Settings(search=SearchSettings(params=None)), "slurm")
    assert builder.build((1.0, 1.0)).config["expansion"] == 1.03125
    with pytest.raises(InvalidConfiguration, match="cannot be shared out"):
        builder.build((0.0, 1.0))


def test_constant_that_no_model_has_is_not_blamed_on_an_axis() -> None:
    space = load_space("e88", "3d", axes={}, fixed={"n_state": 33})
    with pytest.raises(InvalidConfiguration, match=r"^n_state=33 is not supported"):
        check_space(space, Settings(), "slurm")


def test_axis_above_its_limit_refuses_the_point_and_not_the_space() -> None:
    axes = {
        "n_blocks": {"kind": "choice", "values": [2, 8]},
        "top_k": {"kind": "int", "low": 1, "high": 8, "at_most": "n_blocks"},
    }
    space = space_of("e87", axes, {"dim": 32, "depth": 1, "n_state": 8})
    check_space(space, Settings(), "slurm")
    builder = CandidateBuilder(space, Settings(search=SearchSettings(params=None)), "slurm")
    assert builder.build((1.0, 7.0)).config["top_k"] == 8
    with pytest.raises(InvalidConfiguration, match="`top_k` 8 is above `n_blocks` 2"):
        builder.build((0.0, 7.0))
    optimizer = Scripted([(0.0, 7.0), (1.0, 7.0), (0.0, 2.0), (0.0, 1.0)])
    built, refused = ask_candidates(optimizer, builder, 2)
    assert [(c.config["n_blocks"], c.config["top_k"]) for c in built] == [(8, 8), (2, 2)]
    assert refused == 2


def test_axis_may_be_limited_by_a_constant() -> None:
    axes = {"top_k": {"kind": "int", "low": 1, "high": 8, "at_most": "n_blocks"}}
    space = space_of("e87", axes, {"dim": 32, "depth": 1, "n_state": 8, "n_blocks": 4})
    check_space(space, Settings(), "slurm")
    assert space.allows(space.values((3.0,)))
    assert not space.allows(space.values((4.0,)))


def test_power_of_two_axis_has_the_powers_in_its_range_and_survives_the_ledger() -> None:
    axis = Axis.decode("head_dim", {"kind": "pow2", "low": 10, "high": 128})
    assert axis.levels == (16, 32, 64, 128)
    assert axis.describe() == "10 to 128, powers of two"
    low, high = axis.coordinate.low, axis.coordinate.high
    assert (axis.value(low), axis.value(high)) == (16, 128)
    assert axis.value(axis.position(64)) == 64
    assert Axis.decode("head_dim", axis.encode()) == axis
    with pytest.raises(ConfigError, match="does not reach `48`"):
        axis.position(48)
    with pytest.raises(ConfigError, match="two or more different values"):
        Axis.decode("head_dim", {"kind": "pow2", "low": 9, "high": 31})


@pytest.mark.parametrize(
    ("model", "values"), [("e88", "16, 32"), ("e75", "16, 24, 32, 40, 48, 56, 64")]
)
def test_swept_space_without_its_value_is_refused_with_the_values(
    plan: Plan, model: str, values: str
) -> None:
    with pytest.raises(ConfigError, match=f"each value of `n_state`: {values}") as told:
        plan(model, space="sweep")
    assert told.value.hint is not None and "n_state" in told.value.hint
    space = load_space(model, "sweep", axes={}, fixed={"n_state": 32})
    assert "n_state" not in [axis.name for axis in space.axes]
    assert space.values(space.middle)["n_state"] == 32


def test_level_that_fixes_a_setting_takes_its_axis_out_of_the_search(plan: Plan) -> None:
    free = plan("E88")
    assert [axis.name for axis in free.space.axes] == ["n_heads", "n_state", "depth", "lr"]
    found = plan("E88n32")
    assert found.model == "e88"
    assert [axis.name for axis in found.space.axes] == ["n_heads", "depth", "lr"]
    assert found.space.fixed["n_state"] == 32
    assert [effect.axis for effect in found.effects] == ["n_heads", "depth", "lr"]
    candidate = CandidateBuilder(found.space, found.settings, "local").build(found.start)
    assert candidate.config["n_state"] == 32
    both = plan("E88h4n32")
    assert [axis.name for axis in both.space.axes] == ["depth", "lr"]
    assert both.space.fixed["n_heads"] == 4


def test_level_and_model_section_must_not_contradict_each_other(plan: Plan) -> None:
    with pytest.raises(InvalidConfiguration, match="`n_state` is 16, but level `E88n32`"):
        plan("E88n32", model={"n_state": 16})
    same = plan("E88n32", model={"n_state": 32})
    assert same.space.fixed["n_state"] == 32


def test_axis_of_the_user_must_not_contradict_the_level(plan: Plan) -> None:
    axes = {"n_state": {"kind": "choice", "values": [8, 16]}}
    with pytest.raises(ConfigError, match="`n_state` is both a constant"):
        plan("E88n32", axes=axes)


@pytest.mark.parametrize(
    ("model", "space", "dead"),
    [
        ("fla-gdn", "3d", "n_heads"),
        ("transformer", "3d", "expansion"),
        ("mingru", "4d", "use_conv"),
    ],
)
def test_search_of_the_study_with_a_dead_axis_is_refused_by_its_name(
    plan: Plan, tmp_path: Path, model: str, space: str, dead: str
) -> None:
    with pytest.raises(InvalidConfiguration, match=f"`{dead}`.* changes neither") as told:
        plan(model, model={"variant": STUDY}, space=space, params="480M", multiple_of=128)
    assert told.value.hint is not None and "`[model]`" in told.value.hint
    assert not (tmp_path / "runs").exists()


def test_search_of_the_study_takes_its_own_names(plan: Plan) -> None:
    model = {"variant": STUDY, "head_dim": 64, "expansion": 8 / 3}
    found = plan("llama", model=model, params="1M", tolerance=0.5)
    assert found.model == "transformer"
    assert "head_dim" not in [axis.name for axis in found.space.axes]
    candidate = CandidateBuilder(found.space, found.settings, "local").build(found.start)
    assert candidate.config["variant"] == STUDY


@pytest.mark.parametrize(
    "table",
    [
        {"kind": "float", "low": 0.0, "high": 1e-2},
        {"kind": "choice", "values": [-1e-3, 1e-3]},
        {"kind": "choice", "values": ["small", "large"]},
        {"kind": "bool"},
    ],
)
def test_learning_rates_that_are_none_are_refused_before_the_search(table: dict[str, Any]) -> None:
    space = load_space("e88", "tiny", axes={"lr": table}, fixed={})
    with pytest.raises(InvalidConfiguration, match="a learning rate is above 0"):
        check_space(space, Settings(), "local")


@pytest.mark.parametrize("lr", [0, -1e-3, float("nan"), float("inf"), "fast", True])
def test_learning_rate_that_is_held_fixed_is_checked_too(lr: object) -> None:
    space = load_space("e88", "tiny", axes={}, fixed={"lr": lr})
    with pytest.raises(InvalidConfiguration, match="a learning rate is above 0"):
        check_space(space, Settings(), "local")


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("n_stat", "e88 has no setting `n_stat` to be limited by"),
        ("gate_activation", "at_most names `gate_activation`, which is no number"),
        ("use_gate", "at_most names `use_gate`, which is no number"),
    ],
)
def test_limit_that_is_no_number_of_the_model_is_refused(limit: str, message: str) -> None:
    axes = {"n_heads": {"kind": "int", "low": 2, "high": 8, "at_most": limit}}
    space = load_space("e88", "tiny", axes=axes, fixed={})
    with pytest.raises(ConfigError, match=message):
        check_space(space, Settings(), "local")


def test_axis_limited_by_the_dim_that_is_solved_is_held_to_it() -> None:
    axes = {"n_heads": {"kind": "int", "low": 2, "high": 512, "at_most": "dim"}}
    settings = Settings(
        search=SearchSettings(params="100K", tolerance=0.5, multiple_of=8),
        train=TrainSettings(steps=1),
    )
    space = load_space("e88", "tiny", axes=axes, fixed={"n_state": 4, "depth": 1, "lr": 1e-2})
    check_space(space, settings, "local")
    builder = CandidateBuilder(space, settings, "local")
    assert builder.build((6.0,)).config["n_heads"] == 8
    with pytest.raises(InvalidConfiguration, match="`n_heads` 202 is above `dim`"):
        builder.build((200.0,))


def test_attempt_is_told_the_micro_batch_that_fits_and_keeps_its_tokens(plan: Plan) -> None:
    found = plan("e88", train={"steps": 2, "seq_len": 32, "batch": 16, "device": "auto"})
    model = decode_config("e88", {"dim": 64, "depth": 1, "n_heads": 2, "n_state": 8})
    limit = training_memory_bytes(model, micro_batch=4, seq_len=32, precision="bf16") / 1e9
    small = replace(found.settings, local=LocalSettings(gpu_memory_gb=limit))
    evaluation = Evaluation(
        id="g000-e00",
        generation=0,
        point=(0.0,),
        config={**model.encode(), "lr": 1e-3},
        parameters=1,
        seed=1,
    )
    run = {
        "name": "run",
        "model": "e88",
        "executor": "local",
        "data": {"path": "x", "sha256": "", "size_bytes": 1},
    }
    specs = [attempt_spec(run, s, evaluation, 1, 60) for s in (found.settings, small)]
    assert [spec.micro_batch for spec in specs] == [0, 4]
    assert {spec.tokens_per_step for spec in specs} == {16 * 32}


@pytest.mark.parametrize(
    ("head_dims", "train", "warning"),
    [
        ([64, 264], {}, "1 of the first 2 points are not computed by backend `fla`"),
        ([64, 128], {}, None),
        ([264, 272], {}, None),
        ([64, 264], {"backend": "torch"}, None),
        ([64, 264], {"device": "cpu"}, None),
    ],
)
def test_search_whose_models_would_run_on_different_backends_is_warned_of(
    head_dims: list[int], train: dict[str, Any], warning: str | None
) -> None:
    fields = {"dim": 64, "depth": 1, "n_heads": 1}
    models = [decode_config("fla-gdn", {**fields, "head_dim": size}) for size in head_dims]
    settings = Settings(train=TrainSettings(minutes=10, **train))
    told = mixed_backends(settings, models)
    assert (told is None) if warning is None else (told is not None and warning in told)
