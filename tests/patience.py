"""How long a test waits for what must come."""

PATIENCE_S = 300.0
"""Only what hangs takes longer, on a machine however slow or busy."""
