#!/bin/bash

# Parameters
#SBATCH --array=0-0%1
#SBATCH --exclude=n1
#SBATCH --gres=gpu:1
#SBATCH --job-name=elman-e88-1a2b3c4d-s0002
#SBATCH --mem=32768M
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/cluster/runs/e88/submissions/s0002/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --propagate=CORE
#SBATCH --signal=USR2@30
#SBATCH --time=60

# setup
export SLURM_EXPORT_ENV=ALL
export PYTHONPATH=/cluster/runs/e88/code"${PYTHONPATH:+:$PYTHONPATH}"
ln -sfn /cluster/runs/e88/submissions/s0002/"task-${SLURM_ARRAY_TASK_ID}.pkl" /cluster/runs/e88/submissions/s0002/"${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}_submitted.pkl"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /cluster/runs/e88/submissions/s0002/%A_%a_%t_log.out python3 -P -u -m submitit.core._submit /cluster/runs/e88/submissions/s0002
