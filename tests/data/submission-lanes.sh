#!/bin/bash

# Parameters
#SBATCH --array=0-1%2
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:a100:4,lic:4
#SBATCH --job-name=elman-e88-480m-1a2b3c4d-s0007
#SBATCH --mem=163840M
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/cluster/runs/e88/submissions/s0007/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --propagate=CORE
#SBATCH --signal=USR2@30
#SBATCH --time=21

# setup
export SRUN_CPUS_PER_TASK=8
export SLURM_EXPORT_ENV=ALL
export PYTHONPATH=/cluster/runs/e88/code"${PYTHONPATH:+:$PYTHONPATH}"
ln -sfn /cluster/runs/e88/submissions/s0007/"task-$((${SLURM_ARRAY_TASK_ID} * 4)).pkl" /cluster/runs/e88/submissions/s0007/"${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}_submitted.pkl"

# command
export SUBMITIT_EXECUTOR=slurm
first=$((${SLURM_ARRAY_TASK_ID} * 4))
for ((task = first; task < first + 4 && task < 6; task++)); do
  lane=/cluster/runs/e88/submissions/s0007/"task-$task"
  mkdir -p "$lane"
  ln -sfn ../"task-$task.pkl" "$lane"/${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}_submitted.pkl
  (
    # Each step has its share of the memory, or the first one would have all of it.
    [[ -e $lane/cancel ]] || srun --exact --nodes=1 --ntasks=1 --gres=gpu:a100:1,lic \
      ${SLURM_MEM_PER_NODE:+--mem=$((SLURM_MEM_PER_NODE / 4))} --unbuffered \
      sh -c 'echo "$SLURM_STEP_ID" >"$0/step" && exec "$@"' "$lane" \
      python3 -P -u -m submitit.core._submit "$lane"
    echo $? >"$lane/exit.new" && mv "$lane/exit.new" "$lane/exit"
  ) >>/cluster/runs/e88/submissions/s0007/${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}.lane$((task - first))_0_log.out 2>&1 &
done
wait
