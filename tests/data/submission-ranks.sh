#!/bin/bash

# Parameters
#SBATCH --array=0-2%3
#SBATCH --gres=gpu:8
#SBATCH --job-name=elman-e88-480m-1a2b3c4d-s0007
#SBATCH --no-requeue
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/cluster/runs/e88-27b/submissions/s0007/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --propagate=CORE
#SBATCH --signal=USR2@30
#SBATCH --time=21

# setup
export SLURM_EXPORT_ENV=ALL
export PYTHONPATH=/cluster/runs/e88-27b/code"${PYTHONPATH:+:$PYTHONPATH}"
ln -sfn /cluster/runs/e88-27b/submissions/s0007/"task-${SLURM_ARRAY_TASK_ID}.pkl" /cluster/runs/e88-27b/submissions/s0007/"${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}_submitted.pkl"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --kill-on-bad-exit=0 --wait=60 --output /cluster/runs/e88-27b/submissions/s0007/%A_%a_%t_log.out python3 -P -u -m submitit.core._submit /cluster/runs/e88-27b/submissions/s0007
