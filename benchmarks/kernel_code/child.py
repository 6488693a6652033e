"""Child process that compiles cases with the first Triton on the path; started by `children`.

stdin is one JSON object: `registry`, the module with CASES; `folder`, for PTX and machine code; and
`wanted`, pairs of case and architecture.  stdout has one JSON object per line, in the order of
`wanted`: the case's counts, or `error`.
"""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import triton

from benchmarks.kernel_code.cases import Case
from benchmarks.kernel_code.compile import compile_launch
from benchmarks.kernel_code.measure import measure
from benchmarks.kernel_code.tools import disassemble, resource_usage


def main() -> None:
    """Answer the request on stdin."""
    request = json.load(sys.stdin)
    cases: dict[str, Case] = importlib.import_module(request["registry"]).CASES
    for name, architecture in request["wanted"]:
        answer: dict[str, Any] = {"case": name, "architecture": architecture}
        before_s = _processor_s()
        answer["triton"] = triton.__version__
        try:
            answer |= _compiled(cases[name], architecture, Path(request["folder"]) / name)
        except Exception:
            # Continue with the other kernels.
            answer["error"] = traceback.format_exc()
        answer["processor_s"] = _processor_s() - before_s
        answer["torch"] = "torch" in sys.modules
        print(json.dumps(answer), flush=True)


def _processor_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _compiled(case: Case, architecture: int, stem: Path) -> dict[str, Any]:
    compiled = compile_launch(case.launch(), architecture)
    ptx = stem.with_name(f"{stem.name}.sm_{architecture}.ptx")
    listing = disassemble(compiled.cubin)
    ptx.write_text(compiled.ptx, encoding="utf-8")
    ptx.with_suffix(".cubin").write_bytes(compiled.cubin)
    ptx.with_suffix(".sass").write_text(listing, encoding="utf-8")
    measured = measure(listing, resource_usage(compiled.cubin), compiled.shared_bytes)
    return {
        "kernel": compiled.name,
        "warps": compiled.warps,
        "ptx": str(ptx),
        "measured": measured.encode(),
    }


if __name__ == "__main__":
    main()
