"""Kernels run in Triton's interpreter where there is no GPU."""

from tests.kernels.interpreted import interpret_without_gpu

interpret_without_gpu()
