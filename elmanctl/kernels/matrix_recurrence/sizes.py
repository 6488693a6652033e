"""Which state sizes each backend of the matrix recurrence computes; imports no torch."""

import importlib.util
import os
from bisect import bisect_left
from collections.abc import Mapping

from elmanctl.errors import InvalidConfiguration, nearest

AUTO = "auto"

SUPPORTED: Mapping[str, tuple[int, ...]] = {
    "torch": (*range(4, 65, 4), 72, 80, 88, 96, 128),
    "triton": tuple(range(8, 65, 8)),
    "gluon": (16, 32, 64),
}
"""Keys of a state, rising."""

VALUES: Mapping[str, tuple[int, ...]] = {
    "triton": tuple(range(8, 129, 8)),
    "gluon": tuple(range(16, 129, 16)),
}
"""Values of a state, rising; a backend that is not named computes any number."""

DTYPES: Mapping[str, tuple[str, ...]] = {
    "triton": ("float32", "bfloat16"),
    "gluon": ("float32", "bfloat16"),
}
"""Dtypes of keys and values; a backend that is not named computes all."""

CHECKPOINT_EVERY = 16
"""Positions between two states that are stored for the backward pass, but on backend `gluon`."""


def numbers_kept(key_width: int, value_width: int, state_size: int) -> int:
    """Return how many numbers of one position backend `torch` keeps for the gradient.

    The widths are those of all heads together: unit keys and queries, deltas and read-outs, and
    the share of a stored state.
    """
    return 2 * (key_width + value_width) + state_size // CHECKPOINT_EVERY


def flops_per_entry(*, squashes: bool = True) -> int:
    """Return the FLOPs of one position for each number of the state."""
    # Two products with the state, its decay, the outer product added to it, and the tanh.
    return 2 + 2 + 1 + 2 + squashes


def resolve_backend(name: str) -> str:
    """Return the backend that `name` stands for; `auto` is the best one that exists.

    Raises InvalidConfiguration on a name that no backend has.
    """
    if name == AUTO:
        return "torch"
    if name in SUPPORTED:
        return name
    known = (AUTO, *SUPPORTED)
    guess = nearest(name, known)
    raise InvalidConfiguration(
        f"unknown backend `{name}` of the matrix recurrence; known: {', '.join(known)}",
        hint=f"did you mean `{guess}`?" if guess else None,
    )


def sizes_of(backend: str) -> tuple[int, ...]:
    """Return how many keys a state may have on `backend`, rising; raise as `resolve_backend`."""
    return SUPPORTED[resolve_backend(backend)]


def check_size(backend: str, n_state: int) -> None:
    """Raise InvalidConfiguration unless `backend` computes states with `n_state` keys.

    The message names the nearest sizes that it does compute.
    """
    backend = resolve_backend(backend)
    _check_among("n_state", n_state, sizes_of(backend), backend)


def check_values(backend: str, n_value: int) -> None:
    """Raise InvalidConfiguration unless `backend` computes states with `n_value` values a key."""
    backend = resolve_backend(backend)
    if backend in VALUES:
        _check_among("values of a head", n_value, VALUES[backend], backend)


def _check_among(name: str, size: int, sizes: tuple[int, ...], backend: str) -> None:
    # First of all, since torch.compile cannot look into bisect_left.
    if size in sizes:
        return
    place = bisect_left(sizes, size)
    around = " and ".join(str(size) for size in sizes[max(0, place - 1) : place + 1])
    raise InvalidConfiguration(
        f"{name}={size} is not supported by the {backend} backend; nearest supported: {around}"
    )


def choose_backend(name: str, *, n_key: int, n_value: int, device: str, dtype: str) -> str:
    """Return the backend that computes these tensors: the one named, or for `auto` the fastest.

    `device` and `dtype` are as torch names them.  Raises InvalidConfiguration where the backend
    that is named does not compute them.
    """
    if name != AUTO:
        backend = resolve_backend(name)
        fault = _fault(backend, n_key, n_value, device, dtype)
        if fault is not None:
            raise fault
        return backend
    # The interpreter is for tests that name it, and slower than anything.
    can = device == "cuda" and importlib.util.find_spec("triton") is not None
    # Asked without an exception, which would break the graph of torch.compile.
    if can and _has_code("triton", n_key, n_value, dtype):
        return "triton"
    return choose_backend("torch", n_key=n_key, n_value=n_value, device=device, dtype=dtype)


def _has_code(backend: str, n_key: int, n_value: int, dtype: str) -> bool:
    return (
        n_key in SUPPORTED[backend]
        and n_value in VALUES.get(backend, (n_value,))
        and dtype in DTYPES.get(backend, (dtype,))
    )


def _fault(
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
