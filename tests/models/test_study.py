import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from elmanctl.errors import InvalidConfiguration
from elmanctl.models import study
from elmanctl.models.config import STUDY
from elmanctl.models.params import count_parameters, solve_dim
from elmanctl.models.registry import FAMILIES, decode_config
from elmanctl.models.study import translate
from tests.models.samples import SMALL, drawn_configs

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "param_counts.py"
SIZE: dict[str, Any] = {"dim": 64, "depth": 2}

# Levels and flags as the study's runs had them, with the count that each printed.
PRINTED: list[tuple[str, int, int, dict[str, Any], int]] = [
    (
        "E88",
        2944,
        29,
        {"n_heads": 68, "n_state": 16, "use_gate": 1, "linear_state": 0},
        471_096_936,
    ),
    (
        "E88",
        1792,
        12,
        {"n_heads": 117, "n_state": 16, "expansion": 1.0385722851353048},
        208_923_128,
    ),
    (
        "E88",
        4864,
        22,
        {"n_heads": 68, "n_state": 16, "use_gate": 0, "output_norm_weight": "unused weight"},
        474_335_760,
    ),
    ("E88h16", 1152, 20, {"n_state": 32, "expansion": 2.0}, 95_225_344),
    ("E88h8", 1280, 20, {"n_state": 128, "expansion": 0.5}, 92_516_160),
    ("E88h4", 768, 20, {"expansion": 2.0}, 31_816_096),
    ("E88h8n48", 640, 20, {"n_state": 48, "expansion": 2.0}, 39_726_400),
    ("E88_h5n128", 6144, 32, {}, 506_079_552),
    ("E88b_nonorm", 1536, 20, {}, 79_561_472),
    ("E88c_h8n64", 2432, 20, {}, 125_582_784),
    ("E88d_h20", 1920, 20, {}, 99_605_280),
    ("E88e_h8_75m", 1920, 20, {}, 40_161_600),
    ("E88f_h32n16", 2432, 20, {}, 101_846_464),
    ("E90", 2560, 14, {"n_heads": 93, "k_fast": 8, "k_slow": 24, "use_gate": 1}, 497_337_754),
    ("E75h10n32", 1920, 13, {"n_state": 64, "expansion": 0.9120037467042718}, 81_351_360),
    ("E75h4n24", 2048, 20, {"n_state": 24}, 104_116_096),
    ("E75pch4n32", 4352, 20, {"n_state": 32, "expansion": 2.0}, 56_952_064),
    ("MoME88", 2048, 9, {"n_heads": 101, "n_state": 64, "top_k": 17, "use_gate": 1}, 482_027_290),
    ("mamba2", 1536, 28, {"mamba_d_state": 64, "mamba_expand": 2}, 404_951_488),
    ("mamba2", 896, 20, {"mamba_d_state": 128, "mamba_expand": 2}, 101_936_528),
    ("fla-gdn", 768, 20, {}, 59_566_576),
    ("fla-gdn", 1792, 17, {"expansion": 2.0, "n_heads": 22, "use_conv": 1}, 438_568_156),
    ("llama", 640, 20, {"expansion": 2.0}, 101_783_680),
    ("llama", 1536, 15, {"expansion": 3.0, "n_heads": 32}, 472_323_072),
    ("mingru", 2560, 18, {"expansion": 1.0}, 236_682_240),
    ("minlstm", 1280, 19, {"expansion": 2.0}, 249_415_680),
    ("cudagru", 1792, 26, {"expansion": 1.0}, 668_638_208),
    ("cudalstm", 1536, 24, {"expansion": 1.0}, 566_848_512),
    ("1", 640, 20, {"expansion": 2.0, "r_h_mode": "auto"}, 114_890_880),
    ("0", 640, 20, {"expansion": 2.0}, 131_300_480),
    ("42", 1280, 17, {"expansion": 1.0, "r_h_mode": "auto"}, 83_930_880),
]


@pytest.mark.parametrize(("level", "dim", "depth", "flags", "count"), PRINTED)
def test_count_is_the_one_that_the_run_printed(
    level: str, dim: int, depth: int, flags: dict[str, Any], count: int
) -> None:
    config = {"dim": dim, "depth": depth, **flags}
    assert count_parameters(level, config, STUDY) == count
    assert count_parameters(level.upper(), config, STUDY) == count
    # What a worker is given: the whole configuration, under our name of the family.
    whole = decode_config(level, config, STUDY)
    assert decode_config(whole.level, whole.encode()) == whole
    assert decode_config(level, whole.encode()) == whole


@pytest.mark.parametrize(
    ("level", "convention"),
    [
        ("gru", {"reset_after": True}),
        ("lstm", {"two_biases": True}),
        ("cudagru", {"reset_after": False}),
        ("cudalstm", {"two_biases": False}),
    ],
)
def test_two_makes_of_one_cell_are_told_apart(level: str, convention: dict[str, bool]) -> None:
    config = decode_config(level, SIZE, STUDY)
    assert convention.items() <= config.encode().items()
    assert config.level == level.removeprefix("cuda")


@pytest.mark.parametrize(
    ("level", "blocks", "top_k", "n_state"),
    [
        ("87", 4, 2, 32),
        ("87b4k1", 4, 1, 32),
        ("87b8k3", 8, 3, 24),
        ("87b16k4", 16, 4, 16),
        ("87b32k12", 32, 12, 16),
        ("87b4k2n48", 4, 2, 48),
        ("E87b6k2", 6, 2, 32),
    ],
)
def test_blocks_fix_their_state_size(level: str, blocks: int, top_k: int, n_state: int) -> None:
    config = decode_config(level, {**SIZE, "n_state": 64}, STUDY).encode()
    assert (config["n_blocks"], config["top_k"], config["n_state"]) == (blocks, top_k, n_state)


@pytest.mark.parametrize(
    ("level", "flags", "fixed"),
    [
        ("E75h10n32", {"n_state": 64, "n_heads": 3}, {"n_heads": 10, "n_state": 32}),
        ("E75h10", {"n_state": 64}, {"n_heads": 10, "n_state": 32}),
        ("E88_h10n16", {"n_state": 64, "n_heads": 3}, {"n_heads": 10, "n_state": 16}),
        ("E88d_h12", {"n_state": 64}, {"n_heads": 12, "n_state": 32}),
        ("E88b_nonorm", {"n_state": 64, "n_heads": 3}, {"n_heads": 16, "n_state": 32}),
    ],
)
def test_level_outranks_its_flags(level: str, flags: dict[str, Any], fixed: dict[str, Any]) -> None:
    assert fixed.items() <= decode_config(level, {**SIZE, **flags}, STUDY).encode().items()


@pytest.mark.parametrize("level", ["E75h2", "E75h4", "E75h8"])
def test_three_levels_of_e75_leave_the_state_to_the_command_line(level: str) -> None:
    assert decode_config(level, {**SIZE, "n_state": 24}, STUDY).encode()["n_state"] == 24
    assert decode_config(level, SIZE, STUDY).encode()["n_state"] == 64


@pytest.mark.parametrize(
    ("level", "flags", "silent"),
    [
        ("E88", {"n_heads": 4}, {"n_state": 64, "use_gate": True, "gate_activation": "sigmoid"}),
        ("E88", {"n_heads": 4}, {"use_conv": False, "output_norm": False, "expansion": 1.0}),
        ("E88h4n16", {}, {"use_conv": True, "output_norm": True, "gate_activation": "sigmoid"}),
        ("E88_h4n16", {}, {"use_gate": False, "unused_norm_weight": True, "use_conv": False}),
        ("E90", {"n_heads": 4}, {"k_fast": 16, "k_slow": 48, "gate_activation": "sigmoid"}),
        ("MoM", {"n_heads": 40}, {"top_k": 32, "n_state": 64}),
        ("MoM", {"n_heads": 8}, {"top_k": 8}),
        ("mamba2", {}, {"d_state": 64, "expand": 2, "head_dim": 64}),
        ("fla-gdn", {}, {"expansion": 1.0}),
        ("1", {}, {"spectral_norm": True}),
        ("0", {}, {"spectral_norm": False}),
        ("0", {"r_h_mode": "auto"}, {"spectral_norm": False}),
        ("0", {"r_h_mode": "spectral_norm"}, {"spectral_norm": True}),
        ("1", {"r_h_mode": "none"}, {"spectral_norm": False}),
    ],
)
def test_silent_command_line_stands_for_the_defaults_of_its_day(
    level: str, flags: dict[str, Any], silent: dict[str, Any]
) -> None:
    assert silent.items() <= decode_config(level, {**SIZE, **flags}, STUDY).encode().items()


def test_flags_of_other_models_changed_nothing() -> None:
    flags = {"n_state": 64, "top_k": 4, "k_fast": 16, "mamba_d_state": 96, "r_h_mode": "none"}
    assert translate("mingru", {**SIZE, **flags}) == translate("mingru", SIZE)
    assert translate("E88", {"n_heads": 4, "mamba_expand": 3}) == translate("E88", {"n_heads": 4})


def test_setting_that_no_trainer_knew_is_refused() -> None:
    for level in ("E88_h4n16", "llama", "42", "mamba2"):
        with pytest.raises(InvalidConfiguration, match="has no setting `colour`"):
            decode_config(level, {**SIZE, "colour": 1}, STUDY)


@pytest.mark.parametrize(
    ("level", "flags"),
    [
        ("E88_h4n16", {"use_gate": 2}),
        ("E88_h4n16", {"output_norm_weight": "used"}),
        ("E88_h4n16", {"output_norm_weight": [1]}),
        ("1", {"r_h_mode": "learned"}),
        ("42", {"r_h_mode": "none"}),
        ("E90", {"n_heads": 4, "use_conv": 1}),
    ],
)
def test_value_whose_effect_is_not_known_is_refused(level: str, flags: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfiguration):
        decode_config(level, SIZE | flags, STUDY)


def test_setting_told_twice_must_agree() -> None:
    assert translate("mamba2", {"d_state": 8, "mamba_d_state": 8})[1]["d_state"] == 8
    with pytest.raises(InvalidConfiguration) as caught:
        translate("mamba2", {"d_state": 8, "mamba_d_state": 16})
    assert caught.value.message == "mamba2: `mamba_d_state` is 16, but `d_state` is already 8"


def test_documented_models_do_not_know_the_study_names() -> None:
    with pytest.raises(InvalidConfiguration, match="`use_gate` must be true or false, not 1"):
        decode_config("e88h4n16", {**SIZE, "use_gate": 1})
    for level in ("E88b_nonorm", "E75h4_"):
        with pytest.raises(InvalidConfiguration, match="unknown letter"):
            decode_config(level, SIZE)


@pytest.mark.parametrize("level", ["75", "75n32", "E99", "74v2-delta", "83k2nb", "10", "E88z_h4"])
def test_levels_that_are_no_models_of_ours_are_left_as_they_are(level: str) -> None:
    assert translate(level, {"n_state": 1}) == (level, {"n_state": 1})


def test_tables_name_every_family_of_the_study_and_settings_that_it_has() -> None:
    families = {spelling.family for spelling in study._SPELLINGS}
    # A family that was added later has no names of the study.
    assert families == set(study._READ) == set(study._DEFAULTS) <= set(FAMILIES)
    assert len(families) == 15
    for name in families:
        known = {item.name for item in fields(FAMILIES[name].load_config())}
        assert known >= set(study._DEFAULTS[name])
        assert known & study._FLAGS == study._READ[name] - {"r_h_mode"}
    for spelling in study._SPELLINGS:
        known = {item.name for item in fields(FAMILIES[spelling.family].load_config())}
        assert known >= set(spelling.fixes) | set(spelling.implies)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_configuration_of_ours_is_left_as_it_is(family: str, data: st.DataObject) -> None:
    config = data.draw(drawn_configs(family))
    try:
        same = replace(config, variant="study-2026-01")
    except InvalidConfiguration:
        reject()
    assert decode_config(family, {**config.encode(), "variant": STUDY}) == same
    assert decode_config(family, same.encode(), STUDY) == same


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_worker_decodes_is_what_was_meant(family: str) -> None:
    small = {name: value for name, value in SMALL[family].items() if name != "lr"}
    config = decode_config(family, small, STUDY)
    assert decode_config(family, config.encode(), STUDY) == config
    level, translated = translate(family, dict(small))
    assert translate(level, dict(translated)) == (level, translated)


def test_dim_is_solved_for_a_level_of_the_study() -> None:
    for level, dim, depth, flags, count in PRINTED:
        if dim % 128 == 0:
            config = {"depth": depth, **flags}
            found = solve_dim(level, config, target=count, tolerance=0.0, variant=STUDY)
            assert found == dim, level


def test_script_counts_and_names_each_miss(tmp_path: Path) -> None:
    table = tmp_path / "counts.csv"
    rows = [
        'E88,2176,14,"{""n_heads"": 98, ""n_state"": 32}",481253432,1',
        "fla-gdn,768,20,{},59566576,1",
        "83k2nb,768,20,{},1,",
        "mamba2,,,{},101936528,",
    ]
    header = "level,dim,depth,config,params,formula_exact"
    table.write_text("\n".join([header, *rows]))
    right = subprocess.run([sys.executable, SCRIPT, table], capture_output=True, text=True)
    assert right.returncode == 0, right.stderr
    assert right.stdout.splitlines() == [
        "e88              1 of 1",
        "fla-gdn          1 of 1",
        "total            2 of 2",
        "not compared: 1 rows without a configuration, 1 rows of 1 levels outside all families",
    ]
    table.write_text("\n".join([header, rows[0], rows[1].replace("576", "577"), "E90,8,2,{},9,1"]))
    wrong = subprocess.run([sys.executable, SCRIPT, table], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert 'fla-gdn {"dim": 768, "depth": 20}: 59566577, not 59566576' in wrong.stdout
    assert "e90 needs the setting `n_heads`" in wrong.stdout
    assert "total            1 of 3" in wrong.stdout
