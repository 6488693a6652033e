"""Model families: configuration, exact size, PyTorch modules."""

# The symlink of this name at the top of a checkout must not be importable as a package `models`.
if __name__ != "elmanctl.models":
    raise ImportError("import elmanctl.models, not models")
