"""Where tests run our own kernels: on the GPU, or in Triton's interpreter where there is none.

Triton makes up its mind when it is imported, for a whole process.  So the conftest of every folder
whose tests launch kernels calls `interpret_without_gpu` before any test module is imported, and
what compiles kernels does so in a child process with the environment of `without_interpreter`.
"""

import os
import sys
from typing import Any

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""The device of the tensors that tests give to kernels."""

_VARIABLE = "TRITON_INTERPRET"


def interpret_without_gpu() -> None:
    """Have kernels interpreted in this process unless it has a CUDA device.

    Raises RuntimeError where that comes too late.
    """
    if DEVICE == "cuda":
        return
    if "triton" in sys.modules and _VARIABLE not in os.environ:
        raise RuntimeError("triton was imported before tests could choose its interpreter")
    os.environ[_VARIABLE] = "1"


def quicken_interpreter() -> None:
    """Have Triton's interpreter prepare its language once a kernel, not at every call of a helper.

    It looks through all of the language at each `tl.sum` or `silu`, to put what is interpreted in
    the place of what is compiled; that is four tenths of the time of our kernels, and all but the
    first time there is nothing left to do.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    prepare = interpreter._patch_lang
    if prepare.__module__ == __name__:
        return

    def prepare_once(fn: Any) -> Any:
        languages = [x for x in fn.__globals__.values() if x is tl or x is tl.core]
        if any(tl.core.is_builtin(language.program_id) for language in languages):
            return prepare(fn)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = prepare_once


def without_interpreter() -> dict[str, str]:
    """Return the environment of a child process that compiles kernels."""
    return {name: value for name, value in os.environ.items() if name != _VARIABLE}


def poison_undefined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let interpreted loads give NaN where they are masked and name nothing else to give.

    On a GPU they give what happens to stand in a register; in the interpreter, zero.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    patterns = {tl.float32: np.float32("nan"), tl.bfloat16: np.uint16(0x7FC0)}
    load = InterpreterBuilder.create_masked_load

    def poisoned(self: Any, pointers: Any, mask: Any, other: Any, *options: Any) -> Any:
        dtype = pointers.get_element_ty()
        if other is None and dtype in patterns:
            other = TensorHandle(np.full(pointers.data.shape, patterns[dtype]), dtype)
        return load(self, pointers, mask, other, *options)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", poisoned)
