#!/bin/bash

# Parameters
#SBATCH --account=@account@
#SBATCH --array=@array@
#SBATCH --chdir=@chdir@
#SBATCH --cpus-per-task=@cpus@
#SBATCH --exclude=@exclude@
#SBATCH --gres=@gres@
#SBATCH --job-name=@job_name@
#SBATCH --mem=@mem@
#SBATCH --no-requeue
#SBATCH --nodes=@nodes@
#SBATCH --ntasks-per-node=@tasks_per_node@
#SBATCH --open-mode=append
#SBATCH --output=@job_log@
#SBATCH --partition=@partition@
#SBATCH --propagate=CORE
#SBATCH --signal=USR2@30
#SBATCH --time=@timeout_min@

# setup
@setup@
export SRUN_CPUS_PER_TASK=@cpus@
export SLURM_EXPORT_ENV=ALL
export PYTHONPATH=@code@"${PYTHONPATH:+:$PYTHONPATH}"
ln -sfn @folder@/"task-@task@.pkl" @folder@/"@job@_submitted.pkl"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered@together@ --output @worker_log@ @worker@
