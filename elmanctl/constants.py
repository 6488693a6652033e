"""Names, units and limits shared by several modules; no logic."""

PROGRAM = "elmanctl"
COMPLETION_VARIABLE = "_ELMANCTL_COMPLETE"
CONFIG_NAME = "elman.toml"
ENVIRONMENT_PREFIX = "ELMAN_"

# Set in a worker's environment so that processes can be told apart; never read by users.
LOCAL_JOB_VARIABLE = "ELMAN_LOCAL_JOB"

# Set to 1 by a user who means to work in a folder that somebody else may write to.
TRUST_VARIABLE = "ELMAN_TRUST_OWNER"

# With the same prefix, and read by programs beside the package.
OTHER_VARIABLES = ("ELMAN_REQUIRE_SLURM",)

VOCABULARY = 256

# A search needs at least this many points a generation: pycma's weights need parents.
MIN_POPULATION = 4
