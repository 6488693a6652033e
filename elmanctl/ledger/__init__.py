"""The record of a run: append-only events, state by replay, one writer at a time."""

# The link of this name at the top of a checkout must not become a second, generic import.
if __name__ != "elmanctl.ledger":
    raise ImportError("import elmanctl.ledger, not ledger")
