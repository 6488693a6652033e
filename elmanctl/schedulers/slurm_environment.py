"""The environment of Slurm's commands: what of the user's passes, and what is left behind.

Every variable of Slurm's own namespaces is an option to some command: a filter of squeue in a
profile hides jobs, and what an allocation sets says how *its* jobs run.  Only what is needed to
reach the cluster passes.  Everything else of the user's environment goes on as it is, since
sbatch hands it to the jobs.
"""

import re
from collections.abc import Mapping

from elmanctl.constants import ALLOCATION_VARIABLES, CLUSTERS_VARIABLE

# What the user's shell may say to Slurm's commands: which cluster, and how to be known there.
PASSED = (
    CLUSTERS_VARIABLE,
    "SLURM_CONF",
    "SLURM_CONF_SERVER",
    "SLURM_JWT",
    "SLURM_SACK_JWKS",
    "SLURM_SACK_KEY",
    "SLURM_SACK_SOCKET",
)

# Options of commands, and what Slurm, its plugins and process managers set for one job.
_OF_SLURM = re.compile(
    r"_?SLURM(D|_|STEPD_)|S(BATCH|RUN|ALLOC|QUEUE|ACCT|ACCTMGR|CANCEL|INFO|PRIO|CONTROL|STAT|REPORT"
    r"|SHARE|DIAG|TRIGGER|CRONTAB|BCAST|ATTACH|PANK)_|PMI_|PMI2_|PMIX_|OMPI_COMM_WORLD_"
)

# What Slurm's plugins set to the devices of one job.
_DEVICES = (
    "CUDA_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "HIP_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
    "CUDA_MPS_PIPE_DIRECTORY",
)

# Folders that sites and users make for each job, and that are gone after it.
_FOLDERS = re.compile(r"TMP|TEMP|SCRATCH|CACHE|JOBFS|RUNTIME_DIR")


def allocation(environ: Mapping[str, str]) -> str | None:
    """Return the id of the job in which a process with this environment sits, None outside."""
    return next((environ[name] for name in ALLOCATION_VARIABLES if environ.get(name)), None)


def without_options(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what Slurm's commands and jobs read and set."""
    return {k: v for k, v in environ.items() if k in PASSED or not _OF_SLURM.match(k)}


def job_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what sbatch gets, and by it the jobs: the user's own, nothing of another job's."""
    kept = without_options(environ)
    job_id = allocation(environ)
    if job_id is None:
        return kept
    own_folder = re.compile(rf"(?<!\d){re.escape(job_id)}(?!\d)")
    return {
        k: v
        for k, v in kept.items()
        if k not in _DEVICES and not (_FOLDERS.search(k) and own_folder.search(v))
    }


def query_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what the commands get that ask and cancel: their answers are read by a program."""
    return {**job_environment(environ), "LC_ALL": "C"}
