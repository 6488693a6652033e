"""Who may import whom, how soon, and what every module owes its readers.

Read from the source alone: nothing is imported.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "elmanctl"

# What costs time or is not installed everywhere: never imported while the command line starts.
HEAVY = {
    *("torch", "triton", "cma", "submitit", "numpy", "rich", "schedulefree", "transformers"),
    *("fla", "mamba_ssm", "tensorboardX", "wandb", "optuna", "cmaes", "sklearn", "scipy"),
}

# For each part, the parts that it may import, by the first rule whose names fit.  A name stands
# for a module or for everything in a package.
LEAVES = (*("errors", "constants", "clock", "folders", "codec", "bounds", "command", "processes"),)
SIZES = (
    *("models.config", "models.configs", "models.levels", "models.registry", "models.params"),
    *("models.backends", "models.study", "models.memory", "kernels.matrix_recurrence.sizes"),
    *("kernels.gated_delta_rule.sizes", "kernels.state_space_dual.sizes"),
)
FILES = ("ledger.records", "ledger.submissions", "ledger.files", "ledger.mounts", "ledger.reserve")
RULES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("codec",), ("errors",)),
    (LEAVES, ()),
    (
        ("settings",),
        (
            "constants",
            "errors",
            "bounds",
            "run.training",
            "run.metrics_settings",
            "run.stopping_settings",
        ),
    ),
    (("sources",), (*LEAVES, "settings")),
    (("sbatch_variables",), (*LEAVES, "settings")),
    (("config",), (*LEAVES, "settings", "sources", "sbatch_variables")),
    (("ledger",), (*LEAVES, "ledger")),
    (("kernels",), ("errors", "constants", "kernels")),
    (SIZES, ("errors", "constants", *SIZES)),
    (("models",), ("errors", "constants", "models", "kernels")),
    (("run",), (*LEAVES, *FILES, "run")),
    (("schedulers.executor",), (*LEAVES, *FILES, "settings")),
    (("verdicts",), (*LEAVES, *FILES, "settings", "run", "schedulers.executor", "verdicts")),
    # What is pickled is the worker's entry; the rest of its room is reached from there alone.
    (
        ("schedulers",),
        (*LEAVES, *FILES, "settings", "sbatch_variables", "run", "schedulers", "jobs.evaluation"),
    ),
    (("jobs",), (*LEAVES, *FILES, "run", "verdicts", "jobs", "models", "kernels")),
    (("space",), (*LEAVES, "settings", "run.training", *SIZES, "models.trial", "space")),
    (
        ("search",),
        (
            *(*LEAVES, "settings", "config", "ledger", "run", "schedulers", "verdicts", "space"),
            *(*SIZES, "search", "jobs.evaluation", "jobs.claim"),
        ),
    ),
    (
        ("replay",),
        (
            *(
                *LEAVES,
                "ledger.records",
                "ledger.submissions",
                "ledger.run_state",
                "settings",
                "sources",
                "config",
            ),
            *("verdicts.policy", "space", "search", "replay"),
        ),
    ),
    # What measures may use all that trains; the command line reaches it late.
    (("bench",), (*LEAVES, "ledger.files", "kernels", "models", "run", "jobs", "bench")),
    (("doctor",), (*LEAVES, *SIZES, "ledger.disk", "ledger.files", "schedulers.slurm")),
    (("cli",), ("",)),
    (("__main__",), (*LEAVES, "cli")),
    # The package itself, which every rule before this one would fit: what a user imports.
    (("",), ("constants", "errors", "jobs.saved_model")),
)

# The rooms whose modules may need torch at once; what they are entered by does not.
TORCH_ROOMS = ("jobs", "models", "kernels", "bench")
ENTRIES = ("jobs.evaluation", "jobs.claim", *SIZES)

PRINTING = {"cli.output", "__main__"}


@dataclass(frozen=True)
class Import:
    """One import in a module: `late` inside a function, `typing` for type checkers only."""

    target: str
    late: bool
    typing: bool


@cache
def modules() -> dict[str, Path]:
    """Return every module of the package by its name without `elmanctl.`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


@cache
def imports(module: str) -> tuple[Import, ...]:
    """Return every import of a module, by the module that it really names."""
    return tuple(_imports(tree(module), late=False, typing=False))


def _imports(node: ast.AST, *, late: bool, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, late, typing) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0 and child.module is not None, "imports are absolute"
            for alias in child.names:
                whole = f"{child.module}.{alias.name}"
                known = whole.removeprefix("elmanctl.") in modules()
                yield Import(whole if known else child.module, late, typing)
        inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from _imports(child, late=late or inner, typing=typing or checking)


def own(module: str) -> list[Import]:
    """Return the imports of our own modules, named without `elmanctl.`."""
    return [
        Import(found.target.removeprefix("elmanctl").removeprefix("."), found.late, found.typing)
        for found in imports(module)
        if found.target.split(".")[0] == "elmanctl"
    ]


def is_in(module: str, parts: tuple[str, ...]) -> bool:
    return any(part == "" or module == part or module.startswith(f"{part}.") for part in parts)


def test_modules_import_only_what_their_part_may_know() -> None:
    wrong = []
    for module in modules():
        allowed = next((allowed for parts, allowed in RULES if is_in(module, parts)), ())
        # The package's own name holds the version alone.
        wrong += [
            f"{module} -> {found.target}"
            for found in own(module)
            if found.target and not is_in(found.target, allowed)
        ]
    assert wrong == []


def test_torch_is_imported_in_its_rooms_alone() -> None:
    users = {
        module
        for module in modules()
        for found in imports(module)
        if found.target.split(".")[0] in ("torch", "triton") and not (found.late or found.typing)
    }
    assert users
    assert [module for module in sorted(users) if not is_in(module, TORCH_ROOMS)] == []
    waiting = [module for module in modules() if not is_in(module, TORCH_ROOMS)]
    reached = set().union(*(reached_at_once(module) for module in (*waiting, *ENTRIES)))
    assert sorted(users & reached) == []


def test_no_module_depends_on_itself_by_way_of_others() -> None:
    edges = {module: {f.target for f in own(module) if f.target} for module in modules()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in done:
            return
        for target in sorted(edges[module]):
            visit(target, (*path, module))
        done.add(module)

    for module in edges:
        visit(module, ())


def test_no_import_of_our_own_is_hidden_from_python() -> None:
    hidden = [(module, found) for module in modules() for found in own(module) if found.typing]
    assert hidden == []


def reached_at_once(start: str) -> set[str]:
    """Return every module that is imported as soon as `start` is, packages included."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        waiting += [f.target for f in own(module) if f.target and not f.late and not f.typing]
        package = module.rpartition(".")[0]
        if package:
            waiting.append(package)
    return seen


def test_nothing_heavy_is_imported_while_the_command_line_starts() -> None:
    # Each command's module is imported when the command is run, or listed for `--help`.
    reached = set().union(*(reached_at_once(m) for m in modules() if m.startswith("cli.")))
    assert len(reached) > 40
    heavy = [
        f"{module} imports {found.target}"
        for module in sorted(reached)
        for found in imports(module)
        if found.target.split(".")[0] in HEAVY and not found.late and not found.typing
    ]
    assert heavy == []


def test_status_waits_for_nothing_that_only_a_search_needs() -> None:
    reached = reached_at_once("cli.app") | reached_at_once("cli.status")
    assert "ledger.snapshot" in reached
    slow = (
        "schedulers.submission",
        "verdicts.logs.classifier",
        "search.loop",
        "space.audit",
        "verdicts.policy",
    )
    assert [module for module in sorted(reached) if is_in(module, slow)] == []


def test_commands_on_a_run_need_neither_the_audit_of_spaces_nor_the_optimizer() -> None:
    reached = set().union(
        *(reached_at_once(f"cli.{name}") for name in ("requeue", "cancel", "clean"))
    )
    assert {"search.actions", "search.session"} <= reached
    unneeded = (
        "space.audit",
        "space.candidates",
        "models.trial",
        "search.optimizers",
        "search.loop",
    )
    assert [module for module in sorted(reached) if is_in(module, unneeded)] == []


def test_only_the_output_module_knows_rich_and_only_the_optimizer_knows_pycma() -> None:
    users: dict[str, set[str]] = {"rich": set(), "cma": set()}
    for module in modules():
        for found in imports(module):
            if found.target.split(".")[0] in users:
                users[found.target.split(".")[0]].add(module)
    assert users == {
        "rich": {"cli.evaluation_view", "cli.output", "cli.search_view"},
        "cma": {"search.optimizers.pycma"},
    }


def _public_definitions(module: str) -> Iterator[tuple[str, ast.AST]]:
    """Yield the public functions and classes of a module, and their public methods."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    for node in tree(module).body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            yield node.name, node
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, kinds) and not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", inner


@pytest.mark.parametrize("module", sorted(modules()))
def test_every_public_thing_says_in_one_sentence_what_it_is(module: str) -> None:
    if not module.endswith("__main__") and modules()[module].read_text(encoding="utf-8").strip():
        assert ast.get_docstring(tree(module)), "the module has no docstring"
    for name, node in _public_definitions(module):
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        text = ast.get_docstring(node)
        assert text, f"{name} has no docstring"
        # A command's docstring is its help, whose first line is a title.
        if not module.startswith("cli."):
            assert text.split("\n\n")[0].rstrip().endswith("."), f"{name}: no sentence"


# Every value that crosses the border of these rooms has a type.
TYPED_ROOMS = ("ledger", "verdicts", "schedulers", "space")


@pytest.mark.parametrize("module", [name for name in sorted(modules()) if is_in(name, TYPED_ROOMS)])
def test_no_public_signature_of_a_typed_room_holds_any(module: str) -> None:
    found = [
        name
        for name, node in _public_definitions(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for hint in (
            node.returns,
            *(found.annotation for found in ast.walk(node.args) if isinstance(found, ast.arg)),
        )
        if hint is not None
        and "Any" in {part.id for part in ast.walk(hint) if isinstance(part, ast.Name)}
    ]
    assert found == []


def _prints(node: ast.Call) -> bool:
    called = ast.unparse(node.func)
    written = called in ("sys.stdout.write", "sys.stderr.write", "sys.stdout.buffer.write")
    return written or called == "print" or called.endswith(".echo") or called == "pprint"


@pytest.mark.parametrize("module", sorted(set(modules()) - PRINTING))
def test_nothing_is_printed_but_by_the_output_module(module: str) -> None:
    calls = [node for node in ast.walk(tree(module)) if isinstance(node, ast.Call)]
    assert [f"line {call.lineno}" for call in calls if _prints(call)] == []


@pytest.mark.parametrize("module", sorted(modules()))
def test_files_are_short_enough_to_be_read(module: str) -> None:
    limit = 600 if module.startswith("kernels.") else 400
    assert len(modules()[module].read_text(encoding="utf-8").splitlines()) <= limit


@pytest.mark.parametrize("room", ["models", "kernels", "jobs", "ledger", "sbatch_templates"])
def test_link_at_the_top_leads_to_its_room_and_cannot_be_imported(room: str) -> None:
    assert (ROOT / room).readlink() == Path("elmanctl") / room


def test_rooms_refuse_to_be_imported_by_their_short_names() -> None:
    program = (
        "import importlib, sys\n"
        "for room in sys.argv[1:]:\n"
        "    try:\n"
        "        importlib.import_module(room)\n"
        "    except ImportError as exc:\n"
        "        assert f'elmanctl.{room}' in str(exc), exc\n"
        "    else:\n"
        "        raise AssertionError(room)\n"
    )
    rooms = ["models", "kernels", "jobs", "ledger", "sbatch_templates"]
    subprocess.run([sys.executable, "-c", program, *rooms], cwd=ROOT, check=True)


# What starts programs: the one door to commands, and what starts workers and their other ranks,
# writes their metrics or fills a disk.
STARTING = {
    *("command", "schedulers.supervisor"),
    *("jobs.local_ranks", "jobs.metrics_feed", "jobs.full_disk"),
}

# Who sends Slurm's commands through that door, each with the environment that is meant for it.
ASKING_SLURM = {"schedulers.slurm", "schedulers.slurm_executor"}


def test_slurm_is_asked_through_one_bounded_door() -> None:
    """Nobody else starts its commands, with another environment or without a limit."""
    starting = {
        module
        for module in modules()
        if any(found.target.split(".")[0] == "subprocess" for found in imports(module))
    }
    assert starting == STARTING
    named = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "sinfo", "srun")
    through = {
        module
        for module in modules()
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Name) and node.id == "run_command"
    }
    assert through > ASKING_SLURM
    for module in (STARTING | through) - ASKING_SLURM:
        words = {node.value for node in ast.walk(tree(module)) if isinstance(node, ast.Constant)}
        assert not words & set(named), module


def test_no_test_gives_up_on_a_slow_machine() -> None:
    """What must come is waited for up to `tests/patience.py`, and examples have no deadline."""
    short = re.compile(r"\b(?:communicate|join|wait)\(timeout=\d|time\.monotonic\(\) \+ \d+\)?$")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if short.search(line)
    ]
    assert found == []
    assert settings().deadline is None
