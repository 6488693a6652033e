"""Which state sizes each backend of the matrix recurrence computes; imports no torch."""

from bisect import bisect_left
from collections.abc import Mapping

from elmanctl.errors import InvalidConfiguration, nearest

AUTO = "auto"

SUPPORTED: Mapping[str, tuple[int, ...]] = {
    "torch": (*range(4, 65, 4), 72, 80, 88, 96, 128),
}

CHECKPOINT_EVERY = 16
"""Positions between two states that backend `torch` stores for the backward pass."""


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
    sizes = sizes_of(backend)
    place = bisect_left(sizes, n_state)
    if place < len(sizes) and sizes[place] == n_state:
        return
    around = " and ".join(str(size) for size in sizes[max(0, place - 1) : place + 1])
    raise InvalidConfiguration(
        f"n_state={n_state} is not supported by the {backend} backend; nearest supported: {around}"
    )
