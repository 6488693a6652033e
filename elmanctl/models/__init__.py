"""Model families: configuration, exact size, PyTorch modules."""

# The link of this name at the top of a checkout must not become a second, generic import.
if __name__ != "elmanctl.models":
    raise ImportError("import elmanctl.models, not models")
