"""Recurrences with hand-written gradients, one folder an operation."""

# The link `kernels` at the top of a checkout must never become a second, generic import name.
if __name__ != "elmanctl.kernels":
    raise ImportError("import elmanctl.kernels, not kernels")
