"""Every kernel that is compiled and counted: one entry a size, a dtype and a set of flags.

A new kernel needs a line in `CASES`: a name, a function that returns its `Launch`, and its loops in
the order of their addresses, outer ones first, each with the steps of time that one pass covers.
The functions import what they launch, so that the names can be had without Triton.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from elmanctl.kernels.launch import Launch

ARCHITECTURES = (80, 89, 90)


@dataclass(frozen=True, slots=True)
class Counted:
    """A loop whose step has so many instructions of a kind, such as 32 of MUFU.TANH.

    Compilers write several steps of a short loop out in one pass, and add a loop for what is left.
    Then the first of them, which most steps are done by, is the one that is meant.
    """

    kind: str
    each: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kernel to compile, and how its loops are to be read.

    `loops` gives for each loop its name, and how many steps of time one pass covers: a number where
    the compiler leaves the loop as it is, or what to count.
    `programs_per_head` is there for the sizes of E88 whose time is estimated in docs/kernels.md.
    """

    launch: "Callable[[], Launch]"
    loops: Mapping[str, int | Counted]
    programs_per_head: float | None = None


CASES: dict[str, Case] = {}
