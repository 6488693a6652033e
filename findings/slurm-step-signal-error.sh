#!/usr/bin/env bash
# Slurm 22.05: scancel sends a signal to a step, says that there is no such job, and exits with 225.
#
# One would expect exit code 0 when the signal arrived, as for a step of an allocation of one node.
# Where the allocation has more nodes than its step, the step gets the signal and scancel fails all
# the same: "Kill job error on job step id 1: Invalid job id specified". That is what it says of a
# job that ended, so whoever believes it takes a step that was told to save its state for gone.
# shellcheck source=findings/slurm.bash
. "$(dirname "$(realpath "$0")")/slurm.bash"

received() { grep -c received "$folder/step.log"; }

running() { squeue --steps -h -j "$1" -o %i | grep -c "^$1.0$"; }

seen() { # nodes of the allocation, scancel's exit code
  local rc=0 said job
  salloc --no-shell --quiet -J held --nodes="$1" --mem=500
  job=$(squeue -h -n held -t running -o %i)
  : >step.log
  srun --jobid="$job" --exact --nodes=1 --ntasks=1 --mem=200 bash -c \
    'trap "echo received; exit 0" USR2; for ((i = 0; i < 600; i++)); do sleep 0.1; done' >step.log 2>&1 &
  awaited 1 running "$job" || changed "the step does not run"
  sleep 2 # until its trap is set
  said=$(scancel --signal=USR2 "$job.0" 2>&1) || rc=$?
  awaited 1 received || changed "the step got no signal"
  echo "a step on one node of $1, which received SIGUSR2: scancel exits with $rc${said:+, }$said"
  wait
  scancel "$job"
  awaited "" squeue -h -n held -t running,completing -o %i || changed "the allocation does not end"
  expect "scancel's exit code for $1 nodes" "$2" "$rc"
}

cluster bookworm
seen 1 0
seen 2 225
cluster trixie
seen 1 0
seen 2 0
cluster sid
seen 1 0
seen 2 0

# seen:
#   == Debian bookworm, slurm-wlm 22.05.8
#   a step on one node of 1, which received SIGUSR2: scancel exits with 0
#   a step on one node of 2, which received SIGUSR2: scancel exits with 225, scancel: error: Kill job error on job step id 2: Invalid job id specified
#   == Debian trixie, slurm-wlm 24.11.5
#   a step on one node of 1, which received SIGUSR2: scancel exits with 0
#   a step on one node of 2, which received SIGUSR2: scancel exits with 0
#   == Debian sid, slurm-wlm 26.05.5
#   a step on one node of 1, which received SIGUSR2: scancel exits with 0
#   a step on one node of 2, which received SIGUSR2: scancel exits with 0
