"""State sizes and dtypes supported by each backend of the matrix recurrence; imports no torch."""

import importlib.util
import os
from bisect import bisect_left
from collections.abc import Mapping

from elmanctl.errors import InvalidConfiguration, meant

AUTO = "auto"

SUPPORTED: Mapping[str, tuple[int, ...]] = {
    "torch": (*range(4, 65, 4), 72, 80, 88, 96, 128),
    "triton": tuple(range(8, 65, 8)),
    "gluon": (16, 32, 64),
}
"""Supported numbers of keys of a state by backend, ascending."""

VALUES: Mapping[str, tuple[int, ...]] = {
    "triton": tuple(range(8, 129, 8)),
    "gluon": tuple(range(16, 129, 16)),
}
"""Supported numbers of values of a state, ascending; a backend not listed supports any."""

DTYPES: Mapping[str, tuple[str, ...]] = {
    "triton": ("float32", "bfloat16"),
    "gluon": ("float32", "bfloat16"),
}
"""Supported dtypes of keys and values; a backend not listed supports all."""

CHECKPOINT_EVERY = 16
"""Positions between two states saved for the backward pass, except on backend `gluon`."""


def saved_elements(key_width: int, value_width: int, state_size: int) -> int:
    """Return how many elements per position backend `torch` saves for the backward pass.

    These are unit keys and queries, deltas and read-outs, and a fraction of a checkpoint; the
    widths are those of all heads together.
    """
    return 2 * (key_width + value_width) + state_size // CHECKPOINT_EVERY


def flops_per_entry(*, squashes: bool = True) -> int:
    """Return the FLOPs per position and element of the state."""
    # Two matrix-vector products with the state, the decay, the outer product added, and the tanh.
    return 2 + 2 + 1 + 2 + squashes


def resolve_backend(name: str) -> str:
    """Return the backend called `name`, with `auto` as `torch`, which supports the most sizes.

    Raises InvalidConfiguration for an unknown name.
    """
    if name == AUTO:
        return "torch"
    if name in SUPPORTED:
        return name
    known = (AUTO, *SUPPORTED)
    raise InvalidConfiguration(
        f"unknown backend `{name}` of the matrix recurrence; known: {', '.join(known)}",
        hint=meant(name, known),
    )


def supported_sizes(backend: str) -> tuple[int, ...]:
    """Return the supported numbers of keys on `backend`, ascending; raise as `resolve_backend`."""
    return SUPPORTED[resolve_backend(backend)]


def check_size(backend: str, n_state: int) -> None:
    """Raise InvalidConfiguration unless `backend` supports states with `n_state` keys.

    The message names the nearest supported sizes.
    """
    backend = resolve_backend(backend)
    _check_supported("n_state", n_state, supported_sizes(backend), backend)


def check_values(backend: str, n_value: int) -> None:
    """Raise InvalidConfiguration unless `backend` supports states with `n_value` values per key."""
    backend = resolve_backend(backend)
    if backend in VALUES:
        _check_supported("values of a head", n_value, VALUES[backend], backend)


def _check_supported(name: str, size: int, sizes: tuple[int, ...], backend: str) -> None:
    # Checked first because torch.compile cannot trace bisect_left.
    if size in sizes:
        return
    index = bisect_left(sizes, size)
    nearest_sizes = " and ".join(str(size) for size in sizes[max(0, index - 1) : index + 1])
    raise InvalidConfiguration(
        f"{name}={size} is not supported by the {backend} backend; "
        f"nearest supported: {nearest_sizes}"
    )


def choose_backend(name: str, *, n_key: int, n_value: int, device: str, dtype: str) -> str:
    """Return the backend for these tensors: the one named, or for `auto` the fastest that applies.

    `device` and `dtype` are torch's names.  Raises InvalidConfiguration if the named backend does
    not support them.
    """
    if name != AUTO:
        backend = resolve_backend(name)
        error = _support_error(backend, n_key, n_value, device, dtype)
        if error is not None:
            raise error
        return backend
    # `auto` ignores Triton's interpreter, which is slow and only for tests that select it.
    has_triton = device == "cuda" and importlib.util.find_spec("triton") is not None
    # Decided without exceptions, which would break the graph of torch.compile.
    if has_triton and _supports("triton", n_key, n_value, dtype):
        return "triton"
    return choose_backend("torch", n_key=n_key, n_value=n_value, device=device, dtype=dtype)


def _supports(backend: str, n_key: int, n_value: int, dtype: str) -> bool:
    return (
        n_key in SUPPORTED[backend]
        and n_value in VALUES.get(backend, (n_value,))
        and dtype in DTYPES.get(backend, (dtype,))
    )


def _support_error(
    backend: str, n_key: int, n_value: int, device: str, dtype: str
) -> InvalidConfiguration | None:
    interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if backend != "torch" and device != "cuda" and not interpreted:
        return InvalidConfiguration(f"backend `{backend}` computes on cuda, not on {device}")
    if dtype not in DTYPES.get(backend, (dtype,)):
        known = " and ".join(DTYPES[backend])
        return InvalidConfiguration(f"backend `{backend}` computes in {known}, not in {dtype}")
    try:
        check_size(backend, n_key)
        check_values(backend, n_value)
    except InvalidConfiguration as exc:
        return exc
    return None
