"""Names, units and limits shared by several modules; no logic."""

PROGRAM = "elmanctl"
COMPLETION_VARIABLE = "_ELMANCTL_COMPLETE"
CONFIG_NAME = "elman.toml"
ENVIRONMENT_PREFIX = "ELMAN_"

# Set in a worker's environment so that processes can be told apart; never read by users.
LOCAL_JOB_VARIABLE = "ELMAN_LOCAL_JOB"

VOCABULARY = 256

# A search needs at least this many points a generation: pycma's weights need parents.
MIN_POPULATION = 4
