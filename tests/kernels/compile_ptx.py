"""Compiles launches under the Triton that is first on the path; started by `machines`.

Each line of stdin is a JSON object that describes a launch, with the architecture that it is for
and the file that the answer shall be: the PTX, the number of warps and the bytes of shared memory,
or under `error` why there is none.
"""

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from benchmarks.kernel_code.compile import compile_launch
from elmanctl.kernels.launch import Launch


def main() -> None:
    """Answer every request until there are no more."""
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _compiled(request["launch"], request["architecture"])
        except Exception:
            # One kernel that cannot be compiled must not stop the others.
            answer = {"error": traceback.format_exc()}
        path = Path(request["file"])
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(answer), encoding="utf-8")
        unfinished.rename(path)


def _compiled(described: dict[str, Any], architecture: int) -> dict[str, str | int]:
    module, _, name = described["kernel"].partition(":")
    kernel = getattr(importlib.import_module(module), name)
    integers = tuple(described["integers"])
    launch = Launch(**{**described, "kernel": kernel, "integers": integers})
    compiled = compile_launch(launch, architecture)
    return {"ptx": compiled.ptx, "warps": compiled.warps, "shared_bytes": compiled.shared_bytes}


if __name__ == "__main__":
    main()
