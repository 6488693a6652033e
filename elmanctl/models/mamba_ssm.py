"""Scan on the Triton kernels of mamba-ssm, and the import of that package.

Importing mamba_ssm requires Mamba-1's CUDA extension `selective_scan_cuda`, which takes long to
compile and which Mamba2 does not use.  Where it is missing, a stub replaces it during the import
and raises if Mamba-1 is called.
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
"""Chunk size in positions, the package's default."""

_EXTENSION = "selective_scan_cuda"


@cache
def load(module: str = "mamba_ssm") -> Any:
    """Import a module of the package.

    Raises EnvironmentNotReady if it is not installed or cannot be imported.
    """
    is_missing = _EXTENSION not in sys.modules and importlib.util.find_spec(_EXTENSION) is None
    if is_missing:
        sys.modules[_EXTENSION] = _stub_extension()
    try:
        return import_third_party(module)
    except ImportError as exc:
        raise EnvironmentNotReady(
            f"mamba-ssm cannot be imported: {exc}", hint=f"install it with `{INSTALL}`"
        ) from exc
    finally:
        # Other code detects the extension by importing it.
        if is_missing:
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
    the last three in float32.  The kernels accumulate in float32; products of float32 tensors use
    TF32 on the GPU.  All arguments receive gradients, from both results.
    Raises InvalidConfiguration for float64 and for tensors that are not on a CUDA device.
    """
    if not x.is_cuda:
        raise InvalidConfiguration(f"backend `mamba-ssm` runs on cuda, but x is on {x.device}")
    if x.dtype == torch.float64:
        raise InvalidConfiguration(
            "backend `mamba-ssm` does not support float64", hint="use backend `torch`"
        )
    combined = load("mamba_ssm.ops.triton.ssd_combined")
    # The kernels support groups of heads; here all heads form one group.
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


def _stub_extension() -> ModuleType:
    stub = ModuleType(_EXTENSION)

    def refuse(name: str) -> Any:
        # Introspection, such as the inspect module, reads names like __file__.
        if name.startswith("__"):
            raise AttributeError(name)
        raise EnvironmentNotReady(
            f"{_EXTENSION}.{name} belongs to Mamba-1, whose CUDA extension is not installed"
        )

    stub.__getattr__ = refuse  # type: ignore[method-assign]
    return stub
