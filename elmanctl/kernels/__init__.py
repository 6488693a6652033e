"""Recurrences with hand-written gradients, one folder per operation."""

# The symlink of this name at the top of a checkout must not be importable as a package `kernels`.
if __name__ != "elmanctl.kernels":
    raise ImportError("import elmanctl.kernels, not kernels")
