"""Preflight checks, before any job: sizes, memory, axes, levels, dead axes."""

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
from elmanctl.run.training import Training
from elmanctl.search.plan import SearchPlan, plan_search
from elmanctl.search.run_creation import create_run
from elmanctl.search.workload import attempt_spec
from elmanctl.settings import (
    DataSettings,
    LocalSettings,
    SearchSettings,
    Settings,
    SlurmSettings,
)
from elmanctl.space.axis import Axis
from elmanctl.space.candidates import CandidateBuilder, ask_candidates
from elmanctl.space.preflight import Preflight, mixed_backends
from elmanctl.space.space import SearchSpace, load_space
from tests.space.test_candidates import Scripted

pytestmark = pytest.mark.usefixtures("no_power_failures")

TRAIN: dict[str, Any] = {"steps": 1, "batch": 64, "seq_len": 512, "precision": "fp32"}

Plan = Callable[..., SearchPlan]


def large_model() -> FamilyConfig:
    settings = {"dim": 512, "depth": 8, "n_heads": 16, "n_state": 32}
    return decode_config("e88", settings)


def needed_gb(micro_batch: int, *, is_recomputing: bool = False) -> float:
    needed = training_memory_bytes(
        large_model(),
        micro_batch=micro_batch,
        seq_len=512,
        precision="fp32",
        is_recomputing=is_recomputing,
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
            train=Training(**train),
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
    settings = Settings(train=Training(**TRAIN, micro_batch=64), **places[executor])
    told_sizes = rf"about {needed_gb(64):.1f} GB of the GPU's {limit:.1f} GB"
    with pytest.raises(InvalidConfiguration, match=told_sizes) as caught:
        Preflight(settings, executor).check(large_model())
    assert caught.value.hint is not None and "`train.micro_batch`" in caught.value.hint
    # The limit of the other place is not this one's.
    Preflight(settings, "local" if executor == "slurm" else "slurm").check(large_model())


@pytest.mark.parametrize(("micro_batch", "fits"), [(64, False), (32, True), (1, True)])
def test_smaller_micro_batch_lets_a_model_through(micro_batch: int, fits: bool) -> None:
    settings = Settings(
        train=Training(**TRAIN, micro_batch=micro_batch),
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
    settings = Settings(train=Training(**TRAIN), slurm=slurm)
    assert Preflight(settings, "slurm").micro_batch(large_model()) == chosen


@pytest.mark.parametrize(
    ("asked", "micro_batch", "chosen"),
    [
        ("on", 0, 16),
        ("on", 16, 16),
        ("on", 32, None),
        # By need, where it alone makes a single sequence fit.
        ("auto", 0, 4),
        ("auto", 8, None),
        ("off", 0, 4),
    ],
)
def test_recomputed_activations_leave_room_for_more_sequences(
    asked: str, micro_batch: int, chosen: int | None
) -> None:
    limit = max(needed_gb(4), needed_gb(16, is_recomputing=True)) * 1.0001
    assert limit < min(needed_gb(8), needed_gb(32, is_recomputing=True))
    slurm = SlurmSettings(gpu_memory_gb=limit)
    train = Training(**TRAIN, micro_batch=micro_batch, activation_checkpointing=asked)
    preflight = Preflight(Settings(train=train, slurm=slurm), "slurm")
    if chosen is None:
        with pytest.raises(InvalidConfiguration, match="would need about"):
            preflight.micro_batch(large_model())
    else:
        assert preflight.micro_batch(large_model()) == chosen


@pytest.mark.parametrize(("asked", "fits"), [("auto", True), ("on", True), ("off", False)])
@pytest.mark.parametrize("micro_batch", [0, 1])
def test_a_single_sequence_that_fits_only_with_recomputation_is_sent(
    asked: str, fits: bool, micro_batch: int
) -> None:
    limit = (needed_gb(1, is_recomputing=True) + needed_gb(1)) / 2
    slurm = SlurmSettings(gpu_memory_gb=limit)
    train = Training(**TRAIN, micro_batch=micro_batch, activation_checkpointing=asked)
    preflight = Preflight(Settings(train=train, slurm=slurm), "slurm")
    if fits:
        found = preflight.micro_batch(large_model())
        assert found == 1 or (asked == "on" and found > 1 and not micro_batch)
    else:
        with pytest.raises(InvalidConfiguration, match="would need about"):
            preflight.micro_batch(large_model())


def test_model_too_large_for_one_sequence_is_not_sent_to_the_micro_batch() -> None:
    slurm = SlurmSettings(gpu_memory_gb=needed_gb(1) / 2)
    with pytest.raises(InvalidConfiguration) as caught:
        Preflight(Settings(train=Training(**TRAIN), slurm=slurm), "slurm").check(large_model())
    assert caught.value.hint is not None and "micro_batch" not in caught.value.hint
    assert "`train.seq_len`" in caught.value.hint


def test_without_a_limit_and_on_the_cpu_no_memory_is_checked() -> None:
    Preflight(Settings(train=Training(**TRAIN)), "slurm").check(large_model())
    tiny_gpu = SlurmSettings(gpu_memory_gb=0.001)
    on_cpu = Settings(train=Training(**TRAIN, device="cpu"), slurm=tiny_gpu)
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
    named = Settings(train=Training(steps=1, backend=backend))
    with pytest.raises(InvalidConfiguration, match=message) as caught:
        Preflight(named, "slurm").check(config)
    assert caught.value.hint is not None and "torch" in caught.value.hint
    for name in ("auto", "torch"):
        Preflight(Settings(train=Training(steps=1, backend=name)), "slurm").check(config)


def test_points_that_the_backend_refuses_are_asked_again_and_counted_and_never_told() -> None:
    axes = {"expansion": {"kind": "float", "low": 1.0, "high": 2.0}}
    space = space_of("fla-gdn", axes, {"dim": 64, "depth": 1, "n_heads": 2, "head_dim": 10})
    settings = Settings(search=SearchSettings(params=None), train=Training(steps=1, backend="fla"))
    builder = CandidateBuilder(space, settings, "slurm")
    # 10 keys and 10, 15 or 20 values: an odd number is none of fla's.
    even, odd, double = (0.0,), (0.5,), (1.0,)
    optimizer = Scripted([even, odd, odd, double, odd, even])
    built, refused = ask_candidates(optimizer.ask, builder, 3)
    assert [candidate.point for candidate in built] == [even, double, even]
    assert refused == 3
    assert optimizer.drawn == 6


def test_points_over_the_memory_are_asked_again_and_counted() -> None:
    axes = {"depth": {"kind": "int", "low": 1, "high": 8}}
    space = space_of("e88", axes, {"dim": 512, "n_heads": 16, "n_state": 32})
    settings = Settings(
        search=SearchSettings(params=None),
        train=Training(**TRAIN, micro_batch=64),
        slurm=SlurmSettings(gpu_memory_gb=needed_gb(32)),
    )
    builder = CandidateBuilder(space, settings, "slurm")
    optimizer = Scripted([(7.0,), (0.0,), (7.0,), (1.0,)])
    built, refused = ask_candidates(optimizer.ask, builder, 2)
    assert [candidate.config["depth"] for candidate in built] == [1, 2]
    assert refused == 2


def test_level_that_fixes_a_setting_takes_its_axis_out_of_the_search(plan: Plan) -> None:
    free = plan("E88")
    assert [axis.name for axis in free.space.axes] == ["n_heads", "n_state", "depth", "lr"]
    found = plan("E88n32")
    assert found.model == "e88"
    assert [axis.name for axis in found.space.axes] == ["n_heads", "depth", "lr"]
    assert found.space.fixed["n_state"] == 32
    assert list(found.effects) == ["n_heads", "depth", "lr"]
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
    with pytest.raises(InvalidConfiguration, match=f"`{dead}`.* changes neither") as caught:
        plan(model, model={"variant": STUDY}, space=space, params="480M", multiple_of=128)
    assert caught.value.hint is not None and "`[model]`" in caught.value.hint
    assert not (tmp_path / "runs").exists()


def test_search_of_the_study_takes_its_own_names(plan: Plan) -> None:
    model = {"variant": STUDY, "head_dim": 64, "expansion": 8 / 3}
    found = plan("llama", model=model, params="1M", tolerance=0.5)
    assert found.model == "transformer"
    assert "head_dim" not in [axis.name for axis in found.space.axes]
    candidate = CandidateBuilder(found.space, found.settings, "local").build(found.start)
    assert candidate.config["variant"] == STUDY


def test_attempt_is_told_the_micro_batch_that_fits_and_keeps_its_tokens(plan: Plan) -> None:
    found = plan("e88", train={"steps": 2, "seq_len": 32, "batch": 16, "device": "auto"})
    model = decode_config("e88", {"dim": 64, "depth": 1, "n_heads": 2, "n_state": 8})
    limit = training_memory_bytes(model, micro_batch=4, seq_len=32, precision="bf16") / 1e9
    small = replace(found.settings, local=LocalSettings(gpu_memory_gb=limit))
    evaluation = Evaluation(
        id="g000-e00",
        generation=0,
        point=(0.0,),
        config=model.encode(),
        lr=1e-3,
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
    assert [spec.training.micro_batch for spec in specs] == [0, 4]
    assert {spec.training.tokens_per_step for spec in specs} == {16 * 32}


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
    settings = Settings(train=Training(minutes=10, **train))
    told = mixed_backends(settings, models)
    assert (told is None) if warning is None else (told is not None and warning in told)


@pytest.mark.parametrize(
    ("model", "values"), [("e88", "16, 32"), ("e75", "16, 24, 32, 40, 48, 56, 64")]
)
def test_swept_space_without_its_value_is_refused_with_the_values(
    plan: Plan, model: str, values: str
) -> None:
    with pytest.raises(ConfigError, match=f"each value of `n_state`: {values}") as caught:
        plan(model, space="sweep")
    assert caught.value.hint is not None and "n_state" in caught.value.hint
    space = load_space(model, "sweep", axes={}, fixed={"n_state": 32})
    assert "n_state" not in [axis.name for axis in space.axes]
    assert space.values(space.middle)["n_state"] == 32
