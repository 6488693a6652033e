#!/usr/bin/env bash
# Slurm 22.05: srun exits with 0 when the node dies on which all of its step ran.
#
# One would expect a failure, as 24.11 and 26.05 report it with exit code 1. srun prints "Node failure
# on" and the node, but a script that runs steps in an allocation and looks at exit codes, as scripts
# do, takes a training that died in the middle for one that ended well.
# shellcheck source=findings/slurm.bash
. "$(dirname "$(realpath "$0")")/slurm.bash"

running() { squeue --steps -h -j "$1" -o %i | grep -c "^$1.0$"; }

seen() { # srun's exit code
  local rc=0 job node
  salloc --no-shell --quiet -J held --nodes=2 --mem=500
  job=$(squeue -h -n held -t running -o %i)
  node=$(scontrol show hostnames "$(squeue -h -j "$job" -o %N)" | head -1)
  srun --jobid="$job" --exact --nodes=1 --ntasks=1 --nodelist="$node" --mem=200 sleep 300 >step.log 2>&1 &
  awaited 1 running "$job" || changed "the step does not run"
  "$repository/scripts/slurmbox" kill-node "$node" >/dev/null 2>&1
  wait $! || rc=$?
  grep "Node failure on $node" step.log || changed "srun says '$(cat step.log)'"
  echo "srun exits with $rc"
  expect "srun's exit code" "$1" "$rc"
}

cluster bookworm
seen 0
cluster trixie
seen 1
cluster sid
seen 1

# seen:
#   == Debian bookworm, slurm-wlm 22.05.8
#   srun: error: Node failure on odd1
#   srun exits with 0
#   == Debian trixie, slurm-wlm 24.11.5
#   srun: error: Node failure on odd1
#   srun exits with 1
#   == Debian sid, slurm-wlm 26.05.5
#   srun: error: Node failure on odd1
#   srun exits with 1
