import importlib.util
import re
from pathlib import Path

import pytest

from elmanctl.bench.parts import (
    ATTENTION,
    CONVOLUTION,
    OPTIMIZER,
    OTHER,
    POINTWISE,
    PRODUCTS,
    RECURRENCE,
    by_part,
    part_of,
)

# As torch, cuBLAS, cuDNN, Triton, fla and mamba-ssm name their kernels.
NAMES = {
    "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT": PRODUCTS,
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1": PRODUCTS,
    "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn": PRODUCTS,
    "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x1>": PRODUCTS,
    "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>": PRODUCTS,
    "void gemv2T_kernel_val<int, int, __nv_bfloat16, __nv_bfloat16>": PRODUCTS,
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, cutlass::bfloat16_t>>": (
        ATTENTION
    ),
    "fmha_cutlassF_bf16_aligned_64x64_rf_sm80": ATTENTION,
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7": ATTENTION,
    "void at::native::(anonymous namespace)::conv_depthwise2d_forward_kernel<4, float>": (
        CONVOLUTION
    ),
    "void implicit_convolve_sgemm<float, float, 128, 5, 5, 3, 3, 3, 1>": CONVOLUTION,
    "sm90_xmma_wgrad_implicit_gemm_indexed_bf16bf16_bf16f32": CONVOLUTION,
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<TensorListMetadata<1>>": (
        OPTIMIZER
    ),
    "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>": POINTWISE,
    "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>": POINTWISE,
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>": POINTWISE,
    "void at::native::(anonymous namespace)::CatArrayBatchedCopy<float, unsigned int>": POINTWISE,
    "void (anonymous namespace)::softmax_warp_forward<float, float, float, 8, true, false>": (
        POINTWISE
    ),
    "triton_poi_fused_silu_mul_3": POINTWISE,
    "Memcpy HtoD (Pageable -> Device)": POINTWISE,
    "Memset (Device)": POINTWISE,
    "chunk_gated_delta_rule_fwd_kernel_h_blockdim64": RECURRENCE,
    "chunk_bwd_kernel_dqkwg": RECURRENCE,
    "recompute_w_u_fwd_kernel": RECURRENCE,
    "merge_16x16_to_64x64_inverse_kernel": RECURRENCE,
    "prepare_wy_repr_bwd_kernel": RECURRENCE,
    "_chunk_scan_fwd_kernel": RECURRENCE,
    "_chunk_state_bwd_db_kernel": RECURRENCE,
    "_bmm_chunk_fwd_kernel": RECURRENCE,
    "_state_passing_bwd_kernel": RECURRENCE,
    "_chunk_cumsum_bwd_kernel": RECURRENCE,
    "aten::mm": PRODUCTS,
    "aten::_foreach_addcmul_": OPTIMIZER,
    "Optimizer.step#AdamWScheduleFree.step": OPTIMIZER,
    "aten::mul": POINTWISE,
    "aten::mkldnn_convolution": CONVOLUTION,
    "something_that_nobody_knows": OTHER,
}


@pytest.mark.parametrize("name", NAMES)
def test_kernel_belongs_to_the_part_that_its_name_tells(name: str) -> None:
    assert part_of(name) == NAMES[name]


def test_times_of_a_part_are_summed_and_nothing_is_lost() -> None:
    times = [("aten::mm", 1.0), ("nvjet_x", 2.0), ("aten::mul", 4.0), ("unknown", 8.0)]
    assert by_part(times) == {PRODUCTS: 3.0, POINTWISE: 4.0, OTHER: 8.0}


def jitted(package: str, *patterns: str) -> list[str]:
    """Return the names of what Triton compiles in the files of an installed package."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    texts = [path.read_text() for pattern in patterns for path in sorted(root.glob(pattern))]
    return re.findall(r"^@(?:triton|gluon)\.jit.*?^def (\w+)", "\n".join(texts), re.M | re.S)


@pytest.mark.parametrize(
    ("package", "patterns"),
    [
        (
            "fla",
            (
                *(
                    "ops/gated_delta_rule/*.py",
                    "ops/common/chunk_delta_h.py",
                    "ops/common/chunk_o.py",
                ),
                *("ops/common/chunk_scaled_dot_kkt.py", "ops/utils/cumsum.py"),
                *("ops/utils/solve_tril.py", "modules/norm/l2norm.py"),
            ),
        ),
        ("mamba_ssm", ("ops/triton/ssd_*.py",)),
    ],
)
def test_every_kernel_of_the_packages_beside_ours_is_recurrence(
    package: str, patterns: tuple[str, ...]
) -> None:
    names = jitted(package, *patterns)
    assert len(names) > 15
    assert [name for name in names if part_of(name) != RECURRENCE] == []


def test_every_kernel_of_ours_is_recurrence() -> None:
    # What is launched is called so; the others are parts of these, and no profiler sees them.
    launched = re.compile(r"\w+_kernel|forward|backward")
    ours = [name for name in jitted("elmanctl", "kernels/**/*.py") if launched.fullmatch(name)]
    assert len(ours) >= 5
    assert [name for name in ours if part_of(name) != RECURRENCE] == []
