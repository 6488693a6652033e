"""What the probes of a card's rates are compiled to, and what they compute."""

import importlib.util
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from elmanctl.bench.ceilings import measure_ceilings, rates_of
from elmanctl.bench.probes import BLOCK, CHAINS, KINDS, instructions, probe
from tests.kernels.interpreted import without_interpreter

ROOT = Path(__file__).parents[2]

# Compiles every probe for an H100 in a process whose Triton interprets nothing.
PROGRAM = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from elmanctl.bench.probes import KINDS, probe
for kind in KINDS:
    for unrolled in (16, 48):
        launch = probe(kind, unrolled=unrolled, interpreted=False)
        types = {name: "constexpr" for name in launch.constants}
        types |= dict(launch.pointers) | dict.fromkeys(launch.integers, "i32")
        source = ASTSource(fn=launch.kernel, signature=types, constexprs=dict(launch.constants))
        made = compile(source, target=GPUTarget("cuda", 90, 32), options=launch.options)
        open(f"{sys.argv[1]}/{kind}-{unrolled}.cubin", "wb").write(made.asm["cubin"])
"""


@pytest.fixture(scope="module")
def machine_code(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[str]]:
    """How often every instruction stands in each probe, by kind and how far it is unrolled."""
    folder = tmp_path_factory.mktemp("probes")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder)],
        env=without_interpreter() | {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    spec = importlib.util.find_spec("triton")
    assert spec is not None and spec.origin is not None
    disassembler = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    found = {}
    for path in folder.glob("*.cubin"):
        listing = subprocess.run(
            [disassembler, "--dump-sass", path], capture_output=True, text=True, check=True
        ).stdout
        found[path.stem] = Counter(re.findall(r"/\*[0-9a-f]{4,}\*/ +(?:@\S+ +)?([\w.]+)", listing))
    return found


@pytest.mark.parametrize(
    ("kind", "instruction"), [("tanh", "MUFU.TANH"), ("exp2", "MUFU.EX2"), ("fma", "FFMA")]
)
def test_probe_does_what_it_counts_and_nothing_else(
    machine_code: dict[str, Counter[str]], kind: str, instruction: str
) -> None:
    short, long = machine_code[f"{kind}-16"], machine_code[f"{kind}-48"]
    assert short[instruction] >= 16 * CHAINS
    # What is unrolled further holds the instruction, and none but those that pad the code.
    assert long - short - Counter(NOP=99) == Counter({instruction: 32 * CHAINS})


def test_one_round_of_a_thread_is_what_the_count_says() -> None:
    assert instructions(rounds=3, unrolled=16, programs=7) == 3 * 16 * 7 * BLOCK * CHAINS


@pytest.mark.parametrize("kind", KINDS)
def test_probe_computes_chains_of_its_function(kind: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out = torch.full((2 * BLOCK,), torch.nan, device=device)
    launch = probe(kind, unrolled=2, interpreted=device == "cpu")
    launch((2,), out=out, rounds=3)
    thread = torch.arange(2 * BLOCK, dtype=torch.float64).unsqueeze(-1)
    x = 0.5 + 1e-3 * torch.arange(CHAINS, dtype=torch.float64) + 1e-9 * thread
    for _ in range(6):
        x = {"tanh": x.tanh(), "exp2": (-x).exp2(), "fma": 0.999 * x + 0.001}[kind]
    expected = x.sum(-1)
    tolerance = 1e-5 if device == "cpu" or kind == "fma" else 1e-2
    torch.testing.assert_close(out.double().cpu(), expected, rtol=tolerance, atol=0)


def test_every_ceiling_is_measured_or_says_why_not() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ceilings = list(measure_ceilings(device))
    assert [c.name for c in ceilings] == ["copy", "matrix product", *KINDS]
    assert all((c.value or 0) > 0 for c in ceilings), ceilings
    rates = rates_of(ceilings)
    by_name = {c.name: c.value for c in ceilings}
    assert rates.special_functions == by_name["tanh"]
    assert rates.float_instructions == by_name["fma"]
    assert rates.copied_bytes == by_name["copy"] and rates.matrix_flops
