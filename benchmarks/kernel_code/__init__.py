"""The machine code of our Triton kernels, made and read on a machine without a GPU."""
