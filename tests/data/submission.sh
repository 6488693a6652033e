#!/bin/bash

# Parameters
#SBATCH --account=lm
#SBATCH --array=0-2%3
#SBATCH --cpus-per-task=4
#SBATCH --exclusive
#SBATCH --gres=gpu:1
#SBATCH --job-name=elman-e88-480m-1a2b3c4d-s0007
#SBATCH --mem=32768M
#SBATCH --nice=100
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/cluster/runs/e88-480m/submissions/s0007/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --propagate=CORE
#SBATCH --qos=high
#SBATCH --signal=USR2@30
#SBATCH --time=21

# setup
module load cuda
ulimit -n 4096
export SRUN_CPUS_PER_TASK=4
export SLURM_EXPORT_ENV=ALL
export PYTHONPATH=/cluster/runs/e88-480m/code"${PYTHONPATH:+:$PYTHONPATH}"
ln -sfn /cluster/runs/e88-480m/submissions/s0007/"task-${SLURM_ARRAY_TASK_ID}.pkl" /cluster/runs/e88-480m/submissions/s0007/"${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}_submitted.pkl"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /cluster/runs/e88-480m/submissions/s0007/%A_%a_%t_log.out python3 -P -u -m submitit.core._submit /cluster/runs/e88-480m/submissions/s0007
