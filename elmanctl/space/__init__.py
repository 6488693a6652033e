"""Search spaces: axes, candidates, preflight checks, the audit of what each axis changes."""
