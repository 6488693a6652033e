"""Names, units and limits shared by several modules; no logic."""

import re

PROGRAM = "elmanctl"
COMPLETION_VARIABLE = "_ELMANCTL_COMPLETE"
CONFIG_NAME = "elman.toml"
ENVIRONMENT_PREFIX = "ELMAN_"

# Set in the environment of a worker to identify its process; not for users.
LOCAL_JOB_VARIABLE = "ELMAN_LOCAL_JOB"

# Slurm sets them for all that runs inside a job: its id.
ALLOCATION_VARIABLES = ("SLURM_JOB_ID", "SLURM_JOBID")

# How rank 0 describes the end of another rank whose node no longer answers.
UNREACHABLE = "cannot be reached any more"

# Which clusters Slurm's commands speak to, where there are several.
CLUSTERS_VARIABLE = "SLURM_CLUSTERS"

# Set to 1 by a user who means to work in a folder that other users may write to.
TRUST_VARIABLE = "ELMAN_TRUST_OWNER"

# What brings the extras of pyproject.toml to any installation: no index has elmanctl itself.
INSTALL_TRAIN = "pip install 'torch>=2.7' 'schedulefree>=1.4' 'safetensors>=0.5'"
INSTALL_GPU = "pip install 'triton>=3.5' 'flash-linear-attention>=0.6,<0.7'"
INSTALL_TENSORBOARD = "pip install 'tensorboardX>=2.6.4'"
INSTALL_WANDB = "pip install 'wandb>=0.19'"
INSTALL_REPLAY = "pip install 'scikit-learn>=1.5'"
INSTALL_OPTIMIZERS = (
    "pip install 'optuna>=5' 'cmaes>=0.13' 'scikit-learn>=1.5' 'scipy>=1.15' 'greenlet>=3'"
)

# Names the commit of a copy without a history, for the head of what is measured.
COMMIT_VARIABLE = "ELMAN_COMMIT"
LAUNCHES_VARIABLE = "ELMAN_LAUNCHES"

# With the same prefix, and read by programs beside the package.
OTHER_VARIABLES = ("ELMAN_REQUIRE_SLURM", "ELMAN_WHEELS")

# How the driver names a whole GPU and a part of one; the beginning of a name will do for it.
GPU_NAME = re.compile(r"(GPU|MIG)-[A-Za-z0-9][A-Za-z0-9/-]*")

YEAR_MIN = 365 * 24 * 60

VOCABULARY = 256
"""Models read and predict bytes."""

# A search needs at least this many points a generation: pycma's weights need parents.
MIN_POPULATION = 4

# numpy seeds are below 2**32, and the optimizer uses the next one too.
MAX_SEED = 2**32 - 2

# What may end a search before its last generation; changing one may let it go on.
STOP_RULES = frozenset(
    {
        "search.evaluations",
        "search.patience",
        "search.min_generations",
        "search.min_improvement",
        "search.min_improvement_sd",
    }
)

# The words of `train.device`, `train.precision`, `search.repeats`, `search.mode` and
# `search.optimizer`.
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16")
ANSWER = "answer"
RESEED = "reseed"
AGAIN = "again"
REPEATS = (ANSWER, RESEED, AGAIN)
GENERATIONAL = "generational"
ASYNCHRONOUS = "asynchronous"
MODES = (GENERATIONAL, ASYNCHRONOUS)
CMA_GP = "cma-gp"
CMA = "cma"
CATCMA = "catcma"
TPE = "tpe"
GP = "gp"
GP_OPTUNA = "gp-optuna"
TPE_GP = "tpe-gp"
# The name of whichever was measured to be the best, and that one: see docs/search.md.
BEST = "best"
MEASURED_BEST = TPE_GP
LHS_CMA = "lhs-cma"
STUDY = "study"
RANDOM = "random"
SOBOL = "sobol"
LHS = "lhs"
OPTIMIZERS = (
    *(CMA_GP, CMA, LHS_CMA, CATCMA, TPE, GP, GP_OPTUNA, TPE_GP),
    *(STUDY, RANDOM, SOBOL, LHS),
)

# The loss that the study of January 2026 told for whatever gave none.
STUDY_FAILURE = 10.0

# The words of `stopping.rule`.
OFF = "off"
CURVE = "curve"
ASHA = "asha"
STOPPING_RULES = (OFF, CURVE, ASHA)

# Losses of a training are compared at so many evenly spaced shares of its budget.
LOOKS = 40
