"""The one place that loads the package mamba_ssm, and the scan of its Triton kernels.

Its import wants the CUDA extension of Mamba-1, `selective_scan_cuda`, which is a long compilation
and nothing that Mamba2 uses.  Where that extension is missing, a stand-in takes its name during the
import, and says so if anything of Mamba-1 is called.
"""

import importlib.util
import sys
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.kernels.third_party import import_third_party

INSTALL = "scripts/install-mamba-ssm"

CHUNK = 256
"""Positions of one chunk: the default of the package."""

_EXTENSION = "selective_scan_cuda"


@cache
def load(module: str = "mamba_ssm") -> Any:
    """Import and return a module of the package.

    Raises EnvironmentNotReady when it is not installed or cannot be imported.
    """
    stand_in = _EXTENSION not in sys.modules and importlib.util.find_spec(_EXTENSION) is None
    if stand_in:
        sys.modules[_EXTENSION] = _absent_extension()
    try:
        return import_third_party(module)
    except ImportError as exc:
        raise EnvironmentNotReady(
            f"mamba-ssm cannot be imported: {exc}", hint=f"install it with `{INSTALL}`"
        ) from exc
    finally:
        # Others ask whether the extension exists by importing it.
        if stand_in:
            del sys.modules[_EXTENSION]


def scan_on_cuda(
    x: Tensor,
    step: Tensor,
    rate: Tensor,
    write: Tensor,
    read: Tensor,
    *,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence of `state_space_dual` on the kernels of mamba-ssm.

    x, y: [B, T, H, P]; write, read: [B, T, N]; step: [B, T, H]; rate: [H]; states: [B, H, P, N],
    the last three in float32.  The kernels accumulate in float32; a product of float32 tensors
    takes TF32 on the GPU.  Gradients reach every argument and come back from both results.  Tests
    hold them against plain torch, in Triton's interpreter and, if marked gpu, on a device.
    Raises InvalidConfiguration on float64 and on tensors that are not on a CUDA device.
    """
    if not x.is_cuda:
        raise InvalidConfiguration(f"backend `mamba-ssm` runs on cuda, but x is on {x.device}")
    if x.dtype == torch.float64:
        raise InvalidConfiguration(
            "backend `mamba-ssm` computes no float64", hint="backend `torch` does"
        )
    combined = load("mamba_ssm.ops.triton.ssd_combined")
    # The kernels know groups of heads; here all heads are one.
    y, state = combined.mamba_chunk_scan_combined(
        x,
        step,
        -rate,
        write.unsqueeze(2),
        read.unsqueeze(2),
        CHUNK,
        initial_states=initial_state,
        return_final_states=True,
    )
    return y, state


def _absent_extension() -> ModuleType:
    absent = ModuleType(_EXTENSION)

    def refuse(name: str) -> Any:
        # What looks at modules, such as inspect, asks for names like __file__.
        if name.startswith("__"):
            raise AttributeError(name)
        raise EnvironmentNotReady(
            f"{_EXTENSION}.{name} belongs to Mamba-1, whose CUDA extension is not installed"
        )

    absent.__getattr__ = refuse  # type: ignore[method-assign]
    return absent
