"""The worker inside a job: training, checkpoints, heartbeat, metrics, result."""

# The link of this name at the top of a checkout must not become a second, generic import.
if __name__ != "elmanctl.jobs":
    raise ImportError("import elmanctl.jobs, not jobs")
