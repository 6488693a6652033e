"""Settings from flags, presets, variables, files and templates: which one wins, what is refused."""

import json
import math
import tomllib
import typing
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from elmanctl.bounds import Bounds
from elmanctl.cli.init import commented_config
from elmanctl.config import Resolved, decode_settings, merge, parse_assignments, resolve
from elmanctl.errors import ConfigError, NotFound
from elmanctl.settings import (
    SECTIONS,
    PathSettings,
    Settings,
    flat,
    setting_bounds,
    setting_help,
)
from elmanctl.sources import Source, read_file


class Sources:
    """A user's folder, home and environment; each source can be given text."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.folder = root / "study" / "deep"
        self.folder.mkdir(parents=True)
        self.environment = {"HOME": str(self.home)}

    def write(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def user_file(self, text: str) -> None:
        self.write(self.home / ".config" / "elmanctl" / "config.toml", text)

    def file(self, text: str) -> Path:
        return self.write(self.folder / "elman.toml", text)

    def resolve(self, flags: dict[str, Any] | None = None, **options: Any) -> Resolved:
        return resolve(flags or {}, folder=self.folder, environment=self.environment, **options)


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(tmp_path)


def test_without_any_source_every_setting_is_its_default(sources: Sources) -> None:
    resolved = sources.resolve()
    assert resolved.settings == Settings()
    assert resolved.origins == {}


def test_each_source_beats_all_below_it(sources: Sources) -> None:
    """Flag > preset > environment > file > user's file > default, one source added at a time."""
    found = [sources.resolve()]
    sources.user_file("[search]\npopulation = 11\n")
    found.append(sources.resolve())
    sources.file("[search]\npopulation = 12\n")
    found.append(sources.resolve())
    sources.environment["ELMAN_SEARCH_POPULATION"] = "13"
    found.append(sources.resolve())
    found.append(sources.resolve(preset="tiny"))
    found.append(sources.resolve({"search.population": 15}, preset="tiny"))
    origins = [resolved.origins.get("search.population", "default") for resolved in found]
    assert [resolved.settings.search.population for resolved in found] == [8, 11, 12, 13, 4, 15]
    assert origins == [
        "default",
        "config.toml",
        "elman.toml",
        "the environment",
        "preset tiny",
        "the command line",
    ]


def test_flag_that_was_not_given_sets_nothing(sources: Sources) -> None:
    sources.file("[search]\npopulation = 12\n")
    assert sources.resolve({"search.population": None}).settings.search.population == 12


def test_nearest_parent_with_a_file_is_the_one_that_counts(sources: Sources) -> None:
    sources.write(sources.folder.parents[1] / "elman.toml", "[search]\nseed = 1000\nsigma = 0.5\n")
    sources.write(sources.folder.parent / "elman.toml", "[search]\nseed = 2000\n")
    search = sources.resolve().settings.search
    assert (search.seed, search.sigma) == (2000, 0.3)
    sources.file("[search]\nseed = 3000\n")
    assert sources.resolve().settings.search.seed == 3000


def test_path_in_a_file_is_relative_to_that_file_wherever_a_command_starts(
    sources: Sources,
) -> None:
    parent = sources.folder.parent
    sources.write(parent / "elman.toml", "[paths]\nruns = 'here'\n[data]\npath = '/a/corpus'\n")
    settings = sources.resolve().settings
    assert settings.paths.runs == str(parent / "here")
    assert settings.data.path == "/a/corpus"
    assert sources.resolve({"paths.runs": "there"}).settings.paths.runs == "there"


def test_named_file_stands_in_for_all_that_would_be_found(sources: Sources) -> None:
    sources.user_file("[search]\nsigma = 0.9\n")
    sources.file("[search]\nseed = 5\n")
    other = sources.write(sources.home / "other.toml", "[search]\npopulation = 6\n")
    search = sources.resolve(config=other).settings.search
    assert (search.population, search.seed, search.sigma) == (6, 1, 0.3)


def test_named_file_that_is_missing_is_not_found(sources: Sources) -> None:
    with pytest.raises(NotFound, match="no such configuration file"):
        sources.resolve(config=sources.folder / "absent.toml")


def test_user_folder_follows_xdg_config_home(sources: Sources) -> None:
    elsewhere = sources.home / "elsewhere"
    sources.write(elsewhere / "elmanctl" / "config.toml", "[search]\nseed = 7\n")
    sources.environment["XDG_CONFIG_HOME"] = str(elsewhere)
    assert sources.resolve().settings.search.seed == 7


WRONG_FILES = [
    (
        "[search]\n\npopulaton = 4\n",
        "`elman.toml` line 3: unknown key `search.populaton`",
        "did you mean `search.population`?",
    ),
    (
        "# head\n[serach]\npopulation = 4\n",
        "`elman.toml` line 2: unknown section `serach`",
        "did you mean `search`?",
    ),
    ("population = 4\n", "`elman.toml` line 1: unknown section `population`", None),
    (
        "[train]\n[search]\npopulation = 'four'\n",
        "`elman.toml` line 3: `search.population` must be a whole number, not 'four'",
        None,
    ),
    (
        "[search]\npopulation = true\n",
        "`elman.toml` line 2: `search.population` must be a whole number, not True",
        None,
    ),
    (
        "[search]\nsigma = '0.3'\n",
        "`elman.toml` line 2: `search.sigma` must be a number, not '0.3'",
        None,
    ),
    (
        "[local]\nworkers = 2\ngpus = [0, 1.5]\n",
        "`elman.toml` line 3: `local.gpus[1]` must be a whole number or a text, not 1.5",
        None,
    ),
    (
        "[slurm]\nsetup = 'module load cuda'\n",
        "`elman.toml` line 2: `slurm.setup` must be an array, not 'module load cuda'",
        None,
    ),
    (
        "[slurm]\nextra = 3\n",
        "`elman.toml` line 2: `slurm.extra` must be an object, not 3",
        None,
    ),
    ("search = 3\n", "`elman.toml` line 1: `search` is a section, not a value", None),
    (
        "search.populaton = 4\n",
        "`elman.toml` line 1: unknown key `search.populaton`",
        "did you mean `search.population`?",
    ),
    (
        "[train]\nminutes = 5\nsteps = 100\n",
        "`elman.toml` line 3: `train.minutes` and `train.steps` exclude each other",
        "keep one training budget: train.minutes, train.steps, train.tokens, train.flops, "
        "train.converge",
    ),
]


@pytest.mark.parametrize(("text", "message", "hint"), WRONG_FILES)
def test_what_is_wrong_in_a_file_is_named_with_its_line(
    sources: Sources, text: str, message: str, hint: str | None
) -> None:
    sources.file(text)
    with pytest.raises(ConfigError) as caught:
        sources.resolve()
    assert caught.value.message == message
    assert hint is None or caught.value.hint == hint


def test_file_that_is_not_toml_is_refused_by_its_path(sources: Sources) -> None:
    path = sources.file("[search\n")
    with pytest.raises(ConfigError, match="cannot read") as caught:
        sources.resolve()
    assert str(path) in caught.value.message and caught.value.hint is None
    sources.file("[slurm]\npartition = gpu\n")
    with pytest.raises(ConfigError, match="at line 2") as caught:
        sources.resolve()
    assert caught.value.hint == 'text goes in quotes, as in `partition = "gpu"`'


def test_number_without_a_fraction_is_accepted_for_any_number(sources: Sources) -> None:
    sources.file("[search]\nsigma = 1\n[train]\nminutes = 10\n")
    settings = sources.resolve().settings
    assert type(settings.search.sigma) is float
    assert type(settings.train.minutes) is float


def test_variables_are_read_as_toml_or_else_as_text(sources: Sources) -> None:
    sources.environment |= {
        "ELMAN_TRAIN_LR": "1e-3",
        "ELMAN_LOCAL_GPUS": "[0, 2]",
        "ELMAN_SLURM_PARTITION": "7",
        "ELMAN_SEARCH_START_FROM_BEST": "true",
        "ELMAN_SLURM_EXTRA": "{qos = 'high'}",
    }
    settings = sources.resolve().settings
    assert settings.train.lr == 1e-3
    assert settings.local.gpus == (0, 2)
    assert settings.slurm.partition == "7"
    assert settings.search.start_from_best is True
    assert settings.slurm.extra == {"qos": "high"}


def test_variable_that_is_not_toml_is_refused_by_its_name(sources: Sources) -> None:
    sources.environment["ELMAN_SEARCH_SEED"] = "one"
    told = "`ELMAN_SEARCH_SEED` must be a whole number, not 'one'"
    with pytest.raises(ConfigError, match=told):
        sources.resolve()


def test_variable_of_the_wrong_type_is_refused(sources: Sources) -> None:
    sources.environment["ELMAN_SEARCH_SEED"] = "1.5"
    with pytest.raises(ConfigError, match=r"`search\.seed` must be a whole number, not 1\.5"):
        sources.resolve()


def test_misspelled_variable_is_refused_and_other_programs_are_left_alone(
    sources: Sources,
) -> None:
    sources.environment["ELMAN_LOCAL_JOB"] = "s0001_0"
    sources.environment["ELMANISH_SEARCH_SEED"] = "1"
    sources.resolve()
    sources.environment["ELMAN_SEARCH_POPULATON"] = "4"
    with pytest.raises(ConfigError, match="ELMAN_SEARCH_POPULATON") as caught:
        sources.resolve()
    assert caught.value.hint == "did you mean `ELMAN_SEARCH_POPULATION`?"


def test_budget_of_a_higher_source_replaces_that_of_a_lower_one(sources: Sources) -> None:
    sources.file("[train]\nminutes = 10\n")
    train = sources.resolve({"train.steps": 300}).settings.train
    assert (train.minutes, train.steps, train.tokens) == (None, 300, None)
    assert "train.minutes" not in sources.resolve({"train.steps": 300}).origins
    train = sources.resolve({"train.tokens": 999}, preset="tiny").settings.train
    assert (train.minutes, train.steps, train.tokens) == (None, None, 999)


def test_two_budgets_of_one_source_exclude_each_other(sources: Sources) -> None:
    with pytest.raises(ConfigError, match=r"the command line.*exclude"):
        sources.resolve({"train.steps": 300, "train.tokens": 999})


def test_unknown_preset_is_answered_with_the_nearest(sources: Sources) -> None:
    with pytest.raises(NotFound, match="no preset named `tinny`") as caught:
        sources.resolve(preset="tinny")
    assert caught.value.hint == "did you mean `tiny`?"


def test_template_stands_just_under_the_source_that_chose_it(sources: Sources) -> None:
    """h100 asks for 8 CPUs and 64 GB."""
    sources.user_file("[slurm]\ncpus = 1\nmem_gb = 1\ngres = 'gpu:9'\n")
    sources.file("[slurm]\ntemplate = 'h100'\ncpus = 3\n")
    slurm = sources.resolve().settings.slurm
    # The file's own line beats its template, the template beats the user's file.
    assert (slurm.cpus, slurm.mem_gb, slurm.gres) == (3, 64, "gpu:h100:1")
    # Chosen by a flag, the template beats the file too.
    slurm = sources.resolve({"slurm.template": "cpu"}).settings.slurm
    assert (slurm.cpus, slurm.mem_gb, slurm.gres) == (2, 4, "")
    slurm = sources.resolve({"slurm.template": "cpu", "slurm.cpus": 5}).settings.slurm
    assert (slurm.cpus, slurm.mem_gb) == (5, 4)


def test_origin_of_a_templates_value_is_the_template(sources: Sources) -> None:
    resolved = sources.resolve({"slurm.template": "h100"})
    assert resolved.origins["slurm.mem_gb"] == "template h100"
    assert resolved.origins["slurm.template"] == "the command line"


def test_own_templates_come_before_the_users_and_those_before_the_shipped_ones(
    sources: Sources,
) -> None:
    in_home = sources.home / ".config" / "elmanctl" / "sbatch_templates"
    flags = {"slurm.template": "h100"}
    memory = [sources.resolve(flags).settings.slurm.mem_gb]
    sources.write(in_home / "h100.toml", "mem_gb = 200\n")
    memory.append(sources.resolve(flags).settings.slurm.mem_gb)
    sources.write(sources.folder / "sbatch_templates" / "h100.toml", "mem_gb = 300\n")
    memory.append(sources.resolve(flags).settings.slurm.mem_gb)
    sources.write(sources.folder / "elsewhere" / "h100.toml", "mem_gb = 400\n")
    sources.file("[paths]\ntemplates = 'elsewhere'\n")
    memory.append(sources.resolve(flags).settings.slurm.mem_gb)
    assert memory == [64, 200, 300, 400]


def test_unknown_template_is_answered_with_the_nearest_or_all_names(sources: Sources) -> None:
    sources.write(sources.folder / "sbatch_templates" / "mine.toml", "cpus = 1\n")
    with pytest.raises(NotFound, match="no resource template named `h10`") as caught:
        sources.resolve({"slurm.template": "h10"})
    assert caught.value.hint == "did you mean `h100`?"
    with pytest.raises(NotFound) as caught:
        sources.resolve({"slurm.template": "zzzz"})
    assert caught.value.hint == "templates: cpu, gpu, h100, mine"


def test_template_with_an_unknown_key_is_refused(sources: Sources) -> None:
    sources.write(sources.folder / "sbatch_templates" / "mine.toml", "cpus = 1\nmem_bg = 4\n")
    with pytest.raises(ConfigError, match="`template mine` line 2: unknown key `mem_bg`") as told:
        sources.resolve({"slurm.template": "mine"})
    assert told.value.hint == "did you mean `mem_gb`?"


def test_assignments_are_read_as_a_file_would_be() -> None:
    words = ["slurm.partition=long", "slurm.mem_gb=80", "local.gpus=[0, 1]", "slurm.setup=['a=b']"]
    assert parse_assignments(words) == {
        "slurm.partition": "long",
        "slurm.mem_gb": 80.0,
        "local.gpus": (0, 1),
        "slurm.setup": ("a=b",),
    }


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("nonsense", "not of the form"),
        ("partition=long", "not of the form"),
        ("slurn.partition=long", "unknown section `slurn`"),
        ("slurm.partitoin=long", "unknown key `slurm.partitoin`"),
        ("slurm.mem_gb=much", "`slurm.mem_gb` must be a number, not 'much'"),
        ("local.workers=1.5", "must be a whole number"),
    ],
)
def test_assignment_that_says_nothing_is_refused(word: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_assignments([word])


def test_settings_in_the_ledger_decode_to_themselves(sources: Sources) -> None:
    sources.file(
        "[model]\nuse_gate = false\n"
        "[search.axes]\nn_heads = { kind = 'int', low = 2, high = 4 }\n"
        "[slurm]\nsetup = ['module load cuda', 'ulimit -n 4096']\nextra = { qos = 'high' }\n"
        "[local]\ngpus = [0, 3]\n"
        "[train]\ntokens = 1_000_000\n"
    )
    settings = sources.resolve(preset=None).settings
    assert decode_settings(settings.encode()) == settings
    assert decode_settings(Settings().encode()) == Settings()
    assert settings.local.gpus == (0, 3)


def test_training_settings_stand_in_the_ledger_in_the_order_they_always_had() -> None:
    recorded = (
        '{"minutes":null,"steps":300,"tokens":null,"batch":16,"micro_batch":0,"seq_len":512,'
        '"lr":0.0003,"warmup_steps":3,"grad_clip":1.0,"weight_decay":0.01,"seed":42,'
        '"precision":"auto","device":"auto","backend":"auto","threads":0,"heartbeat_s":10.0,'
        '"checkpoint_min":0.0}'
    )
    settings = merge([Source(name="test", values={"train.steps": 300})]).settings
    train = settings.encode()["train"]
    # What was added since stands among them.
    kept = {name: value for name, value in train.items() if f'"{name}":' in recorded}
    assert json.dumps(kept, separators=(",", ":")) == recorded


def test_settings_of_another_version_in_the_ledger_are_refused_by_name() -> None:
    data = Settings().encode()
    data["search"]["populace"] = 3
    with pytest.raises(ConfigError, match=r"`the ledger`: unknown key `search\.populace`"):
        decode_settings(data)


def test_every_setting_has_its_meaning_and_its_default_is_of_its_type() -> None:
    meanings = setting_help()
    keys = [f"{section}.{f.name}" for section, record in SECTIONS.items() for f in fields(record)]
    assert sorted(meanings) == sorted(keys)
    for key, meaning in meanings.items():
        assert meaning and not meaning.endswith("."), key
    defaults = {key: value for key, value in flat(Settings().encode()) if value is not None}
    assert merge([Source(name="defaults", values=defaults)]).settings == Settings()


def test_file_that_init_writes_holds_every_setting_at_its_default(tmp_path: Path) -> None:
    path = tmp_path / "elman.toml"
    path.write_text(commented_config(), encoding="utf-8")
    assert merge([read_file(path)]).settings == Settings()
    assigned = [line[2:] for line in commented_config().splitlines() if " = " in line]
    # Settings without a default are shown as dots.
    keys = {line.split(" = ")[0] for line in assigned}
    assert {key.partition(".")[2] for key in setting_help()} <= keys
    for line in assigned:
        if not line.endswith("= ...") and line.split(" = ")[0].isidentifier():
            tomllib.loads(line)


def test_every_line_of_the_file_that_init_writes_can_be_uncommented(tmp_path: Path) -> None:
    text = "".join(
        f"{line[2:] if _is_setting(line) else line}\n" for line in commented_config().splitlines()
    )
    path = tmp_path / "elman.toml"
    path.write_text(text, encoding="utf-8")
    settings = merge([read_file(path)]).settings
    # Paths are relative to the file that sets them.
    assert settings.paths.runs == str(tmp_path / "runs")
    assert replace(settings, paths=PathSettings()) == Settings(model={"use_gate": True})


def _is_setting(line: str) -> bool:
    key, _, value = line.removeprefix("# ").partition(" = ")
    return line.startswith("# ") and key.isidentifier() and value not in ("", "...")


BOUNDED = setting_bounds()


def beyond(bounds: Bounds) -> list[str]:
    """Values just outside, as TOML."""
    if bounds.words:
        return ["'nothing'"]
    outside = [bounds.low if bounds.is_open else bounds.low - 1, bounds.high + max(1, bounds.high)]
    return [str(int(number) if number == int(number) else number) for number in outside]


@pytest.mark.parametrize("key", BOUNDED)
def test_value_outside_its_bounds_is_refused_wherever_it_is_set(sources: Sources, key: str) -> None:
    section, _, name = key.partition(".")
    bounds = BOUNDED[key]
    variable = f"ELMAN_{section}_{name}".upper()
    for text in beyond(bounds):
        value = tomllib.loads(f"value = {text}")["value"]
        plain = text.strip("'")
        for where in ("`elman.toml` line 2", "`the environment`"):
            if "line" in where:
                sources.file(f"[{section}]\n{name} = {text}\n")
            else:
                sources.environment[variable] = plain
            with pytest.raises(ConfigError) as told:
                sources.resolve()
            assert told.value.message.startswith(f"{where}: `{key}` must be "), told.value.message
            assert told.value.hint is not None and bounds.describe() in told.value.hint
            sources.file("")
            sources.environment.pop(variable, None)
        with pytest.raises(ConfigError, match=f"`the command line`: `{key}` must be "):
            sources.resolve({key: value})
        with pytest.raises(ConfigError, match=f"`the command line`: `{key}` must be "):
            parse_assignments([f"{key}={plain}"])
        # What a run began with is no affair of the bounds.
        assert decode_settings({section: {name: value}}).encode()[section][name] == value


def test_bounds_stand_in_the_file_that_init_writes() -> None:
    lines = commented_config().splitlines()
    for key, bounds in BOUNDED.items():
        place = lines.index(f"[{key.partition('.')[0]}]")
        name = key.partition(".")[2]
        line = next(i for i in range(place, len(lines)) if lines[i].startswith(f"# {name} = "))
        assert lines[line - 1].endswith(f" ({bounds.describe()})")


def test_numbers_have_bounds_and_defaults_are_within_them() -> None:
    defaults = asdict(Settings())
    for section, record in SECTIONS.items():
        for name, kind in typing.get_type_hints(record).items():
            bounds = BOUNDED.get(f"{section}.{name}")
            is_number = kind in (int, float, int | None, float | None)
            assert (bounds is not None and not bounds.words) == is_number, f"{section}.{name}"
            if bounds is not None:
                assert bounds.refusal(defaults[section][name]) is None
                assert is_number is False or bounds.refusal(math.nan) is not None
