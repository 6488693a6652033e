#!/usr/bin/env bash
# Slurm: whether a job for more nodes than the cluster has is refused depends on the release.
#
# One would expect one answer. sbatch's manual says of --nodes that such a job "will be rejected";
# slurm.conf's says of EnforcePartLimits=NO, the default, that limits do not matter when a job is
# submitted, and in 26.05 names this very case. 22.05 accepts the job and lets it wait for ever, with
# the reason PartitionConfig; 24.11 refuses it, yet accounting has a FAILED job of it, which never
# was; 26.05 accepts it again. Whoever takes a job ID for a promise that the job can run waits for
# ever on two of the three, and whoever counts failed jobs counts what was refused on the third.
# shellcheck source=findings/slurm.bash
. "$(dirname "$(realpath "$0")")/slurm.bash"

reason() { squeue -h -o '%T %r'; }

last_recorded() { sacct -X -n -P -o jobid,state,nnodes,exitcode; }

seen() { # one node more than there are
  local rc=0 said
  said=$(sbatch --nodes=5 -o /dev/null --wrap true 2>&1) || rc=$?
  echo "sbatch --nodes=5 on 4 nodes: exit $rc, $said"
  case $1 in
    accepted)
      expect "sbatch's exit code" 0 "$rc"
      awaited "PENDING PartitionConfig" reason || changed "squeue says '$(reason)'"
      echo "squeue: $(reason)"
      ;;
    refused)
      expect "sbatch's exit code" 1 "$rc"
      expect "the queue" "" "$(reason)"
      awaited "1|FAILED|5|1:0" last_recorded || changed "sacct says '$(last_recorded)'"
      echo "squeue: nothing; sacct: $(last_recorded)"
      ;;
  esac
}

cluster bookworm
seen accepted
cluster trixie
seen refused
cluster sid
seen accepted

# seen:
#   == Debian bookworm, slurm-wlm 22.05.8
#   sbatch --nodes=5 on 4 nodes: exit 0, Submitted batch job 1
#   squeue: PENDING PartitionConfig
#   == Debian trixie, slurm-wlm 24.11.5
#   sbatch --nodes=5 on 4 nodes: exit 1, sbatch: error: Batch job submission failed: Requested node configuration is not available
#   squeue: nothing; sacct: 1|FAILED|5|1:0
#   == Debian sid, slurm-wlm 26.05.5
#   sbatch --nodes=5 on 4 nodes: exit 0, Submitted batch job 1
#   squeue: PENDING PartitionConfig
