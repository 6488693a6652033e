"""The kernels of `machine_kernels` as they are compiled for the machine."""

from typing import Any

from elmanctl.kernels.launch import Launch

ARCHITECTURES = (80, 90)
DTYPES = ("fp32", "bf16")
WARPS = (1, 4)

ROWS, COLUMNS = 32, 64
SIZE = 32
BLOCK = 256
BINS = 7
KEPT = 8

Named = dict[str, str]


def _case(
    name: str, pointers: Named, warps: int, integers: tuple[str, ...] = (), **c: Any
) -> Launch:
    return Launch(
        kernel=f"tests.kernels.machine_kernels:{name}",
        pointers=pointers,
        integers=integers,
        constants=c,
        num_warps=warps,
    )


# What the architectures have instructions of their own for.
OF_EACH = {
    f"{name}-{dtype}-{warps}": case
    for dtype in DTYPES
    for warps in WARPS
    for name, case in {
        "elementwise": _case(
            "elementwise", {"x": f"*{dtype}", "y": f"*{dtype}"}, warps, ("n",), BLOCK=BLOCK
        ),
        "carried": _case(
            "carried",
            {"x": f"*{dtype}", "state": "*fp32", "largest": "*fp32"},
            warps,
            ("m", "steps"),
            M=ROWS,
            N=COLUMNS,
        ),
        "product": _case(
            "product",
            {"x": f"*{dtype}", "y": f"*{dtype}", "z": "*fp32"},
            warps,
            ("k",),
            SIZE=SIZE,
        ),
        "transposed": _case(
            "transposed", {"x": f"*{dtype}", "y": f"*{dtype}"}, warps, M=ROWS, N=COLUMNS
        ),
    }.items()
} | {
    **{
        f"converted-{warps}": _case("converted", {"x": "*fp32", "y": "*fp32"}, warps, BLOCK=BLOCK)
        for warps in WARPS
    },
    "stashed": _case("stashed", {"x": "*fp32", "y": "*fp32"}, 1, ("steps",), N=SIZE, KEPT=KEPT),
}
OTHERS = {
    f"{name}-{warps}": case
    for warps in WARPS
    for name, case in {
        "whole_numbers": _case(
            "whole_numbers", {"x": "*i32", "y": "*i32"}, warps, ("divisor",), BLOCK=BLOCK
        ),
        "counted": _case(
            "counted",
            {"x": "*i32", "counts": "*i32", "total": "*fp32"},
            warps,
            BINS=BINS,
            BLOCK=BLOCK,
        ),
        "reversed": _case(
            "reversed_by_scratch",
            {"x": "*fp32", "y": "*fp32", "scratch": "*fp32"},
            warps,
            BLOCK=BLOCK,
            WAITS=True,
        ),
        "reversed-at-once": _case(
            "reversed_by_scratch",
            {"x": "*fp32", "y": "*fp32", "scratch": "*fp32"},
            warps,
            BLOCK=BLOCK,
            WAITS=False,
        ),
        "shared_by_programs": _case(
            "shared_by_programs", {"x": "*fp32", "y": "*fp32"}, warps, BLOCK=BLOCK
        ),
        "programs_of_their_own": _case(
            "programs_of_their_own", {"x": "*i32", "y": "*fp32"}, warps, BLOCK=BLOCK
        ),
    }.items()
} | {
    "copied_from": _case("copied_from", {"x": "*fp32", "y": "*fp32"}, 1, ("first",), BLOCK=BLOCK),
}

CASES = OF_EACH | OTHERS
WANTED = [
    *((name, architecture) for name in OF_EACH for architecture in ARCHITECTURES),
    *((name, 90) for name in OTHERS),
]
