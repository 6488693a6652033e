"""Recurrences with hand-written gradients, one folder an operation."""

# The link of this name at the top of a checkout must not become a second, generic import.
if __name__ != "elmanctl.kernels":
    raise ImportError("import elmanctl.kernels, not kernels")
