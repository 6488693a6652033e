"""Compiles cases under the Triton that is first on the path; started by `machines`, reads stdin.

stdin is one JSON object: `registry`, the module whose CASES are meant, `folder`, where the code is
left, and `wanted`, pairs of a case and an architecture.  Each becomes a file as soon as it is
there, with the PTX, the number of warps and the bytes of shared memory, or under `error` why not.
"""

import importlib
import json
import sys
import traceback
from pathlib import Path

from benchmarks.kernel_code.compile import compile_launch
from elmanctl.kernels.launch import Launch


def main() -> None:
    """Answer the request on stdin."""
    request = json.load(sys.stdin)
    cases = importlib.import_module(request["registry"]).CASES
    for name, architecture in request["wanted"]:
        try:
            answer = _compiled(cases[name](), architecture)
        except Exception:
            # One kernel that cannot be compiled must not stop the others.
            answer = {"error": traceback.format_exc()}
        path = Path(request["folder"]) / f"{name}.sm_{architecture}.json"
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(answer), encoding="utf-8")
        unfinished.rename(path)


def _compiled(launch: Launch, architecture: int) -> dict[str, str | int]:
    compiled = compile_launch(launch, architecture)
    return {"ptx": compiled.ptx, "warps": compiled.warps, "shared_bytes": compiled.shared_bytes}


if __name__ == "__main__":
    main()
