"""Attempts: how they are submitted, trained, watched and judged."""

# The link `jobs` at the top of a checkout must never become a second, generic import name.
if __name__ != "elmanctl.jobs":
    raise ImportError("import elmanctl.jobs, not jobs")
