"""Environment of Slurm's commands: the user's, without Slurm's own variables.

Every variable in Slurm's namespaces is an option of some command: a filter of squeue in a profile
hides jobs, and an allocation's variables say how *its* jobs run.  Only those needed to reach the
cluster pass.  The rest of the user's environment is unchanged, since sbatch hands it to the jobs.
"""

import re
from collections.abc import Mapping

from elmanctl.constants import ALLOCATION_VARIABLES, CLUSTERS_VARIABLE

# Variables that select the cluster and authenticate the user there.
PASSED = (
    *(CLUSTERS_VARIABLE, "SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"),
    *("SLURM_SACK_JWKS", "SLURM_SACK_KEY", "SLURM_SACK_SOCKET"),
)

# Options of commands, and variables that Slurm, its plugins and process managers set for a job.
_OF_SLURM = re.compile(
    r"_?SLURM(D|_|STEPD_)|S(BATCH|RUN|ALLOC|QUEUE|ACCT|ACCTMGR|CANCEL|INFO|PRIO|CONTROL|STAT|REPORT"
    r"|SHARE|DIAG|TRIGGER|CRONTAB|BCAST|ATTACH|PANK)_|PMI_|PMI2_|PMIX_|OMPI_COMM_WORLD_"
)

# Variables that Slurm's plugins set to the devices of a job.
_DEVICES = (
    *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"),
    *("ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"),
    *("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "CUDA_MPS_PIPE_DIRECTORY"),
)

# Variables of folders that sites and users create for each job and remove after it.
_FOLDERS = re.compile(r"TMP|TEMP|SCRATCH|CACHE|JOBFS|RUNTIME_DIR")


def allocation(environ: Mapping[str, str]) -> str | None:
    """Return the id of the job that a process with this environment runs in, None outside."""
    return next((environ[name] for name in ALLOCATION_VARIABLES if environ.get(name)), None)


def without_options(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables of Slurm's commands and jobs."""
    return {k: v for k, v in environ.items() if k in PASSED or not _OF_SLURM.match(k)}


def job_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of sbatch, and so of the jobs: without that of another job."""
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
    """Return the environment of commands whose output is parsed."""
    return {**job_environment(environ), "LC_ALL": "C"}
