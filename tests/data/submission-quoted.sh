#!/bin/bash

# Parameters
#SBATCH --account='$(touch pwned)'"'"'"'
#SBATCH --array=0-2%3
#SBATCH --comment='it'"'"'s; $(touch pwned)'
#SBATCH --gres='gpu:a b:1'
#SBATCH --job-name=elman-e88-480m-1a2b3c4d-s0007
#SBATCH --mem=1536M
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/cluster/it'"'"'s a "run"/-x $(touch pwned) `touch pwned`; #/submissions/s0007/%A_%a_0_log.out'
#SBATCH --partition='-p two words'
#SBATCH --propagate=CORE
#SBATCH --signal=USR2@30
#SBATCH --time=21

# setup
export SLURM_EXPORT_ENV=ALL
export PYTHONPATH='/cluster/it'"'"'s a "run"/-x $(touch pwned) `touch pwned`; #/code'"${PYTHONPATH:+:$PYTHONPATH}"
ln -sfn '/cluster/it'"'"'s a "run"/-x $(touch pwned) `touch pwned`; #/submissions/s0007'/"task-${SLURM_ARRAY_TASK_ID}.pkl" '/cluster/it'"'"'s a "run"/-x $(touch pwned) `touch pwned`; #/submissions/s0007'/"${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}_submitted.pkl"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/cluster/it'"'"'s a "run"/-x $(touch pwned) `touch pwned`; #/submissions/s0007/%A_%a_%t_log.out' python3 -P -u -m submitit.core._submit '/cluster/it'"'"'s a "run"/-x $(touch pwned) `touch pwned`; #/submissions/s0007'
