import subprocess
import sys
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch

from elmanctl.errors import InvalidConfiguration, NotFound
from elmanctl.models.config import FamilyConfig
from elmanctl.models.configs.e88 import E88Config
from elmanctl.models.registry import FAMILIES, build_model, decode_config, find_family

SMALL: dict[str, Any] = {"dim": 32, "depth": 2, "n_heads": 3, "n_state": 8}


def test_defaults_are_those_of_the_study() -> None:
    config = E88Config.decode(SMALL)
    assert config == E88Config(dim=32, depth=2, n_heads=3, n_state=8)
    assert (config.expansion, config.use_gate, config.gate_activation) == (1.0, True, "silu")
    assert config.decay == "mamba"


def test_encoded_configuration_decodes_to_itself() -> None:
    config = E88Config.decode({**SMALL, "expansion": 2, "decay": "none", "tie_kv": False})
    assert E88Config.decode(config.encode()) == config
    assert config.encode()["level"] == "e88"


def test_whole_number_widens_to_a_fraction() -> None:
    assert type(E88Config.decode({**SMALL, "expansion": 2}).expansion) is float


def test_configuration_cannot_be_changed() -> None:
    config = E88Config.decode(SMALL)
    with pytest.raises(FrozenInstanceError):
        config.dim = 64  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"n_head": 3}, "e88 has no setting `n_head`", "did you mean `n_heads`?"),
        ({"dim": 0}, "e88: `dim` is 0, but must be from 1 to 65536", None),
        ({"dim": 64.0}, "e88: `dim` must be a whole number, not 64.0", None),
        ({"dim": True}, "e88: `dim` must be a whole number, not True", None),
        ({"depth": "2"}, "e88: `depth` must be a whole number, not '2'", None),
        ({"depth": 2000}, "e88: `depth` is 2000, but must be from 1 to 1024", None),
        ({"use_gate": 1}, "e88: `use_gate` must be true or false, not 1", None),
        ({"expansion": "1"}, "e88: `expansion` must be a number, not '1'", None),
        ({"expansion": -1}, "e88: `expansion` is -1.0, but must be from 0 to 16", None),
        ({"expansion": float("nan")}, "e88: `expansion` is nan, but must be from 0 to 16", None),
        ({"d_conv": 1}, "e88: `d_conv` is 1, but must be from 2 to 16", None),
        ({"decay": 1}, "e88: `decay` must be a word, not 1", None),
        (
            {"gate_activation": "slu"},
            "e88: `gate_activation` is 'slu', but must be one of silu, sigmoid",
            "did you mean `silu`?",
        ),
        (
            {"n_state": 10},
            "n_state=10 is not supported by the torch backend; nearest supported: 8 and 12",
            None,
        ),
        (
            {"expansion": 1.1},
            "e88: 26.4 values (`expansion` 1.1) cannot be divided evenly among 3 heads",
            "the nearest valid expansions are 1.0 and 1.125",
        ),
        (
            {"expansion": 0},
            "e88: 0 values (`expansion` 0) cannot be divided evenly among 3 heads",
            "the nearest valid expansions are 0.125",
        ),
        (
            {"tie_kv": True, "expansion": 2},
            "e88: `tie_kv` uses the keys as values and needs `expansion` 1, not 2",
            None,
        ),
    ],
)
def test_impossible_setting_is_refused_in_plain_words(
    change: dict[str, Any], message: str, hint: str | None
) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        E88Config.decode({**SMALL, **change})
    assert caught.value.message == message
    assert caught.value.hint == hint


def test_name_like_no_setting_is_answered_with_all_of_them() -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        E88Config.decode({**SMALL, "zzz": 1})
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("it has level, dim, depth, variant, n_heads")


def test_missing_setting_is_named() -> None:
    with pytest.raises(InvalidConfiguration, match=r"^e88 needs the setting `n_heads`$"):
        E88Config.decode({"dim": 32, "depth": 2, "n_state": 8})


def test_configuration_built_directly_is_checked_too() -> None:
    with pytest.raises(InvalidConfiguration, match="`n_heads` is 0"):
        E88Config(dim=32, depth=2, n_heads=0, n_state=8)


@pytest.mark.parametrize("n_state", [12, 24, 48])
def test_expansion_offered_by_the_hint_is_accepted(n_state: int) -> None:
    settings = {**SMALL, "n_heads": 7, "n_state": n_state}
    with pytest.raises(InvalidConfiguration) as caught:
        E88Config.decode({**settings, "expansion": 1.0 + 0.5 / n_state})
    assert caught.value.hint is not None
    offered = [float(word) for word in caught.value.hint.split() if word[0].isdigit()]
    values = [E88Config.decode({**settings, "expansion": e}).head_values for e in offered]
    assert values == [n_state, n_state + 1]


@pytest.mark.parametrize("level", ["e88", "E88"])
def test_family_is_found_in_either_case(level: str) -> None:
    assert find_family(level) is FAMILIES["e88"]
    assert decode_config(level, SMALL) == E88Config.decode(SMALL)


def test_unknown_level_names_the_nearest() -> None:
    with pytest.raises(NotFound, match="there is no model `e887`") as caught:
        find_family("e887")
    assert caught.value.hint == "did you mean `e88`?"
    with pytest.raises(NotFound) as caught:
        find_family("perceptron")
    assert caught.value.hint == f"there are: {', '.join(FAMILIES)}"


@pytest.mark.parametrize("told", ["mamba2", 88])
def test_configuration_of_another_level_is_refused(told: object) -> None:
    with pytest.raises(InvalidConfiguration, match="not of e88"):
        decode_config("e88", {**SMALL, "level": told})


def test_level_inside_a_configuration_may_repeat_it() -> None:
    assert decode_config("E88", {**SMALL, "level": "E88"}).level == "e88"


def test_every_family_can_be_loaded_and_says_what_it_is() -> None:
    for name, family in FAMILIES.items():
        assert family.name == name and family.summary
        assert issubclass(family.load_config(), FamilyConfig)
        assert callable(family.load_layer())
        model: Any = family.load_model()
        assert issubclass(model, torch.nn.Module)


def test_equal_seeds_build_equal_models_and_others_do_not() -> None:
    config = decode_config("e88", {**SMALL, "write_gate": True, "use_conv": True})
    first, second, third = (build_model(config, seed=seed) for seed in (5, 5, 6))
    for one, same in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, same)
    assert any(
        not torch.equal(one, other)
        for one, other in zip(first.parameters(), third.parameters(), strict=True)
    )


def test_building_leaves_the_random_state_of_the_caller_alone() -> None:
    before = torch.random.get_rng_state()
    build_model(decode_config("e88", SMALL), seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_unknown_backend_is_refused_when_a_model_is_built() -> None:
    with pytest.raises(
        InvalidConfiguration, match="e88 has no backend `cuda`; it has: auto, triton, gluon, torch"
    ):
        build_model(decode_config("e88", SMALL), seed=5, backend="cuda")


def test_backend_that_runs_is_named_by_the_model() -> None:
    assert build_model(decode_config("e88", SMALL), seed=5).backend == "torch"


def test_configurations_are_read_without_importing_torch() -> None:
    code = (
        "import sys\n"
        "from elmanctl.models.params import count_parameters\n"
        "from elmanctl.models.registry import FAMILIES\n"
        f"assert count_parameters('e88', {SMALL}) and FAMILIES\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
