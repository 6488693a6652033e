"""Plan of a search and creation of its run: the checks, and the first event."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from elmanctl.constants import MEASURED_BEST
from elmanctl.errors import ConfigError, ElmanError, InvalidConfiguration, NotFound, UsageError
from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.state import load_run
from elmanctl.models.config import FamilyConfig
from elmanctl.models.configs.e88 import E88Config
from elmanctl.run.frozen_code import freeze_code, hash_code, package_files
from elmanctl.run.paths import RunPaths
from elmanctl.run.training import Training
from elmanctl.search.limits import check_limits
from elmanctl.search.plan import SearchPlan, plan_search
from elmanctl.search.run_creation import create_run
from elmanctl.search.workload import attempt_resources, time_limit_min
from elmanctl.settings import Settings
from tests.search.optimizers.packages import need_packages_of

pytestmark = pytest.mark.usefixtures("no_power_failures")

Plan = Callable[..., SearchPlan]


def changed(settings: Settings, **changes: dict[str, Any]) -> Settings:
    """Return settings with values of some sections replaced."""
    sections: dict[str, Any] = {
        name: values if name == "model" else replace(getattr(settings, name), **values)
        for name, values in changes.items()
    }
    return replace(settings, **sections)


@pytest.fixture
def settings(corpus: Path) -> Settings:
    return changed(
        Settings(),
        search={"space": "tiny", "params": "100K", "tolerance": 0.1, "multiple_of": 8},
        train={"minutes": 2.0, "seq_len": 32},
        data={"path": str(corpus)},
    )


@pytest.fixture
def plan(settings: Settings, tmp_path: Path) -> Plan:
    def make(name: str = "run", executor: str = "local", **changes: dict[str, Any]) -> SearchPlan:
        return plan_search(
            "E88",
            changed(settings, **changes),
            executor=executor,
            name=name,
            runs=tmp_path / "runs",
        )

    return make


def test_plan_counts_what_the_search_will_cost_and_writes_nothing(
    plan: Plan, tmp_path: Path
) -> None:
    found = plan(search={"generations": 3, "population": 5})
    assert (found.evaluations, found.confirmations) == (15, 9)
    assert found.hours == pytest.approx(24 * 2 / 60)
    assert found.most_gpu_hours == pytest.approx(24 * found.resources.timeout_min / 60)
    few = plan(search={"generations": 1, "population": 4, "confirm_top": 9, "confirm_seeds": 2})
    assert few.confirmations == 8
    plain = plan(search={"generations": 3, "population": 5, "confirm_top": 0})
    assert plain.confirmations == 0
    assert plain.hours == pytest.approx(0.5)
    assert found.model == "e88"
    assert not (tmp_path / "runs").exists()


def test_new_run_says_where_it_started_from_what_and_with_which_seed(
    plan: Plan, corpus: Path
) -> None:
    found = plan(search={"seed": 17, "start_from_best": True})
    folder = create_run(found)
    state = load_run(folder).state
    assert state.status is RunStatus.RUNNING
    assert state.run["start"]["source"] == "tried by hand on the built-in corpus"
    assert state.run["optimizer"] == {
        "name": "cma-gp",
        "seed": 17,
        "sigma": 0.3,
        "population": 8,
    }
    assert state.run["data"]["path"] == str(corpus)
    assert 0 < state.run["data"]["unigram_nats"] < 6
    assert state.run["protocol"] == {
        "name": "fair",
        "budget": {"minutes": 2.0},
        "tokens_per_step": 16 * 32,
        "seq_len": 32,
        "warmup_steps": 3,
        "grad_clip": 1.0,
        "weight_decay": 0.01,
        "holdout": 0.02,
        "decay": "matrices",
        "sampler": "uniform-windows-v1",
        "loss_definition": "held-out-nats-averaged-weights-v1",
    }
    assert set(state.run["versions"]) >= {"elmanctl", "python", "cma", "numpy", "submitit"}


def test_code_of_a_run_is_frozen_whole_with_its_hash(plan: Plan) -> None:
    folder = create_run(plan())
    code = RunPaths(folder).code / "elmanctl"
    assert load_run(folder).state.run["code"]["sha256"] == hash_code(code)
    assert (code / "space" / "spaces.toml").is_file()
    assert (code / "presets.toml").is_file()
    assert not list(code.rglob("__pycache__"))


def test_hash_of_code_differs_when_a_byte_or_a_name_does(tmp_path: Path) -> None:
    freeze_code(tmp_path)
    code = tmp_path / "elmanctl"
    before = hash_code(code)
    assert hash_code(code) == before
    (code / "errors.py").rename(code / "errors2.py")
    renamed = hash_code(code)
    (code / "errors2.py").write_text("x = 1\n", encoding="utf-8")
    assert len({before, renamed, hash_code(code)}) == 3
    assert code / "errors2.py" in package_files(code)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a b", "ü", "a%j", "a\nb", ".hidden"])
def test_name_that_a_folder_or_slurm_would_misread_is_refused(plan: Plan, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be named"):
        plan(name=name)


def test_name_of_a_run_that_exists_is_refused_with_the_way_to_go_on(plan: Plan) -> None:
    create_run(plan())
    with pytest.raises(UsageError, match="`run` exists") as caught:
        plan()
    assert caught.value.hint is not None and "elmanctl resume run" in caught.value.hint


def test_folder_that_slurm_would_misread_is_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds"):
        plan_search("e88", settings, executor="slurm", name="run", runs=tmp_path / "100%")


BAD: dict[str, tuple[dict[str, Any], type[ElmanError], str]] = {
    "generations": ({"search": {"generations": 0}}, ConfigError, "`search.generations`"),
    "jobs": ({"search": {"max_jobs": 0}}, ConfigError, "`search.max_jobs`"),
    "tolerance": ({"search": {"tolerance": -0.1}}, ConfigError, "`search.tolerance`"),
    "seed": ({"search": {"seed": -1}}, ConfigError, "`search.seed`"),
    "sigma": ({"search": {"sigma": 0.0}}, ConfigError, "`search.sigma`"),
    "population": ({"search": {"population": 3}}, ConfigError, "at least 4"),
    "batch": ({"train": {"batch": 0}}, ConfigError, "`train.batch`"),
    "micro-batch": ({"train": {"micro_batch": 5}}, ConfigError, "does not divide"),
    "window": ({"train": {"seq_len": 10**9}}, ConfigError, "shorter than one window"),
    "rate": ({"train": {"lr": float("nan")}}, ConfigError, "`train.lr`"),
    "rate of the model": ({"model": {"lr": 99.0}}, ConfigError, "`[model]`: `train.lr`"),
    "rate in words": ({"model": {"lr": "fast"}}, ConfigError, "`lr` is a number"),
    "rate of an axis": (
        {"search": {"axes": {"lr": {"kind": "float", "low": 0.0, "high": 1.0}}}},
        *(ConfigError, "axis `lr`: `train.lr` must be above 0"),
    ),
    "clip": ({"train": {"grad_clip": float("inf")}}, ConfigError, "`train.grad_clip`"),
    "precision": ({"train": {"precision": "fp8"}}, ConfigError, "`train.precision`"),
    "device": ({"train": {"device": "tpu"}}, ConfigError, "`train.device`"),
    "backend": ({"train": {"backend": "trition"}}, InvalidConfiguration, "backend"),
    "time": ({"train": {"minutes": -1.0}}, ConfigError, "`train.minutes`"),
    "no budget": ({"train": {"minutes": None}}, ConfigError, "no training budget"),
    "limit": ({"local": {"timeout_min": 2}}, ConfigError, "leaves no room"),
    "workers": ({"local": {"workers": 0}}, ConfigError, "`local.workers`"),
    "GPUs": ({"local": {"gpus": (0, 1, 0)}}, ConfigError, "names a GPU twice"),
    "space": ({"search": {"space": "tyni"}}, NotFound, "tyni"),
    "axis": ({"search": {"axes": {"n_heads": {"kind": "int"}}}}, ConfigError, "`n_heads`"),
    "corpus": ({"data": {"path": "/nowhere/corpus"}}, NotFound, "no such corpus"),
}


@pytest.mark.parametrize("name", BAD)
def test_setting_that_no_search_can_work_with_is_refused_before_it_starts(
    plan: Plan, name: str
) -> None:
    changes, error, message = BAD[name]
    with pytest.raises(error) as caught:
        plan(**changes)
    assert message in caught.value.message


def test_option_of_sbatch_that_is_not_free_is_refused_before_the_search_starts(plan: Plan) -> None:
    with pytest.raises(UsageError, match=r"`slurm\.extra` cannot set `array`"):
        plan(executor="slurm", slurm={"extra": {"array": "0-3"}})


def test_start_at_a_best_configuration_that_nobody_knows_is_refused(plan: Plan) -> None:
    axes = {"expansion": {"kind": "float", "low": 0.5, "high": 1.0}}
    with pytest.raises(ConfigError, match="no known best value of `expansion`"):
        plan(search={"start_from_best": True, "axes": axes})


def test_default_settings_are_within_all_limits() -> None:
    check_limits(Settings())


@pytest.mark.parametrize(
    ("train", "kind"),
    [
        ({"minutes": 3.0}, "minutes"),
        ({"steps": 7}, "steps"),
        ({"tokens": 9}, "tokens"),
    ],
)
def test_one_budget_that_is_set_is_the_training_budget(train: dict[str, Any], kind: str) -> None:
    budget = Training(**train).budget
    assert (budget.kind, budget.amount) == (kind, train[kind])


def test_time_limit_leaves_room_for_start_and_warm_up() -> None:
    minutes = Training(minutes=30.0)
    assert time_limit_min(minutes, None) == 43
    assert time_limit_min(minutes, 31) == 31
    with pytest.raises(ConfigError, match="leaves no room"):
        time_limit_min(minutes, 30)
    assert time_limit_min(Training(steps=5), None) == 60
    assert time_limit_min(Training(steps=5), 1) == 1
    assert time_limit_min(Training(converge=0.01, converge_cap_min=30.0), None) == 43


def test_requeue_changes_memory_and_time_of_a_slurm_job(settings: Settings) -> None:
    asked = changed(settings, slurm={"mem_gb": 32.0, "partition": "gpu", "timeout_min": 20})
    plain = attempt_resources(asked, "slurm", {})
    assert (plain.mem_gb, plain.timeout_min, plain.partition) == (32.0, 20, "gpu")
    more = attempt_resources(asked, "slurm", {"mem_gb": 48.0, "timeout_min": 40})
    assert (more.mem_gb, more.timeout_min, more.partition) == (48.0, 40, "gpu")
    with pytest.raises(ConfigError, match="leaves no room"):
        attempt_resources(asked, "slurm", {"timeout_min": 1})


def test_budget_in_flops_of_a_family_without_a_count_is_refused_before_the_search_starts(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    flops = {"minutes": None, "flops": 1e12}
    assert plan(train=flops).settings.train.budget.kind == "flops"
    monkeypatch.setattr(E88Config, "layer_flops", FamilyConfig.layer_flops)
    with pytest.raises(InvalidConfiguration, match="E88Config does not define `layer_flops`") as e:
        plan(train=flops)
    assert e.value.hint == "define it, or train under a budget in minutes, steps or tokens"
    plan()


def test_best_optimizer_is_on_record_by_its_name(plan: Plan) -> None:
    need_packages_of(MEASURED_BEST)
    found = plan(search={"optimizer": "best"})
    assert found.settings.search.optimizer == MEASURED_BEST
    assert load_run(create_run(found)).state.run["optimizer"]["name"] == MEASURED_BEST
