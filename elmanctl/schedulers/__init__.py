"""Executors on Slurm and on one machine, and the commands of Slurm."""

from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.executor import Executor
from elmanctl.settings import Settings


def make_executor(paths: RunPaths, name: str, settings: Settings) -> Executor:
    """Return the executor of a run."""
    if name == "local":
        from elmanctl.schedulers.local_executor import LocalExecutor

        return LocalExecutor(paths, settings.local, ranks=settings.train.gpus)
    from elmanctl.schedulers.slurm_executor import SlurmExecutor

    return SlurmExecutor(paths, max_jobs=settings.search.max_jobs, per_job=settings.slurm.per_job)
