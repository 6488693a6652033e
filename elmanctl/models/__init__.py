"""Model families: configuration, exact size, PyTorch modules."""

# The link `models` at the top of a checkout must never become a second, generic import name.
if __name__ != "elmanctl.models":
    raise ImportError("import elmanctl.models, not models")
