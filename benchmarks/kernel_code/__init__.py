"""Compilation and analysis of the kernels' machine code on a machine without a GPU."""
