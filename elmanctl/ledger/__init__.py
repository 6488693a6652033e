"""The record of a run: append-only events, state by replay, one writer at a time."""

# The link `ledger` at the top of a checkout must never become a second, generic import name.
if __name__ != "elmanctl.ledger":
    raise ImportError("import elmanctl.ledger, not ledger")
