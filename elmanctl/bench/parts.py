"""Classification of kernels into parts of a training step, by name; pure."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

ATTENTION = "attention"
RECURRENCE = "recurrence"
CONVOLUTION = "convolution"
PRODUCTS = "matrix products"
OPTIMIZER = "optimizer"
POINTWISE = "norms and pointwise"
OTHER = "other"

PARTS = (PRODUCTS, RECURRENCE, ATTENTION, CONVOLUTION, POINTWISE, OPTIMIZER, OTHER)

# The first match wins, since names of attention kernels contain those of products.  cuBLAS kernels
# are called nvjet, xmma or gemm; the optimizer and clipping use multi-tensor kernels.
_RULES: tuple[tuple[str, str], ...] = (
    (ATTENTION, r"flash|fmha|sdpa|attention"),
    # Ours, then those of fla, then those of mamba-ssm.
    (
        RECURRENCE,
        r"recurrence|gated_scan|prepare_wy|recompute_w_u|solve_tril|_inverse_kernel|l2norm"
        r"|^_?chunk_|_chunk_|fused_recurrent|_state_passing|_cumsum_kernel|^kda_|^gdn_",
    ),
    (CONVOLUTION, r"convol|conv_|conv[12]d|depthwise|fprop|dgrad|wgrad"),
    (PRODUCTS, r"gemm|nvjet|xmma|cutlass|gemv|split_?k|cublas"),
    (PRODUCTS, r"^aten::(mm|addmm|bmm|baddbmm|matmul|linear|einsum)$"),
    (OPTIMIZER, r"multi_tensor_apply|^aten::_foreach|^optimizer\."),
    (
        POINTWISE,
        r"elementwise|reduce|norm|softmax|embedding|catarray|copy|fill|index|nll_loss|memcpy"
        r"|memset|distribution|gather|scatter|arange|triton_(poi|red|per)_|^aten::",
    ),
)
_COMPILED = tuple((part, re.compile(pattern, re.IGNORECASE)) for part, pattern in _RULES)


def part_of(kernel: str) -> str:
    """Return the part of a kernel, or on a CPU of a torch operator."""
    return next((part for part, pattern in _COMPILED if pattern.search(kernel)), OTHER)


def by_part(times: Iterable[tuple[str, float]]) -> Mapping[str, float]:
    """Sum times by part, omitting parts without kernels."""
    sums: defaultdict[str, float] = defaultdict(float)
    for kernel, duration in times:
        sums[part_of(kernel)] += duration
    return {part: sums[part] for part in PARTS if part in sums}
