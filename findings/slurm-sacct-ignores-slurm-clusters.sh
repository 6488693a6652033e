#!/usr/bin/env bash
# Slurm: sacct has the option --clusters, but does not read SLURM_CLUSTERS as the other commands do.
#
# One would expect the variable to mean --clusters to every client, as the manuals of squeue, sinfo,
# scontrol, scancel and sbatch say. To sacct, which has the option as well but not the variable in its
# manual, it means nothing: it answers for the cluster it runs on. With the variable set to another
# cluster, sbatch submits there and sacct then looks here, where the job ID may be that of a stranger,
# whose end it reports.
# shellcheck source=findings/slurm.bash
. "$(dirname "$(realpath "$0")")/slurm.bash"

ended() { sacct -X -n -P -o cluster,jobid,state "$@"; } # options

for release in bookworm trixie sid; do
  cluster "$release"
  sbatch --wait -o /dev/null --wrap true >/dev/null
  awaited "slurmbox|1|COMPLETED" ended || changed "sacct says '$(ended)'"
  sacctmgr -i add cluster elsewhere >"$folder/added"
  echo "sacct: $(ended)"
  echo "sacct --clusters=elsewhere: $(ended --clusters=elsewhere)"
  expect "what sacct says by option" "" "$(ended --clusters=elsewhere)"
  export SLURM_CLUSTERS=elsewhere
  echo "SLURM_CLUSTERS=elsewhere sacct: $(ended)"
  expect "what sacct says by variable" "slurmbox|1|COMPLETED" "$(ended)"
  for client in squeue sinfo "scontrol show config" "scancel 1" "sbatch --wrap true"; do
    # shellcheck disable=SC2086  # the words of a command
    said=$($client 2>&1 | head -n 1) || true
    [[ $said == *elsewhere* ]] || changed "$client does not speak of the other cluster: $said"
    echo "SLURM_CLUSTERS=elsewhere $client: ${said%%,*}"
  done
  unset SLURM_CLUSTERS
done

# seen:
#   == Debian bookworm, slurm-wlm 22.05.8
#   sacct: slurmbox|1|COMPLETED
#   sacct --clusters=elsewhere:
#   SLURM_CLUSTERS=elsewhere sacct: slurmbox|1|COMPLETED
#   SLURM_CLUSTERS=elsewhere squeue: squeue: error: 'elsewhere' can't be reached now
#   SLURM_CLUSTERS=elsewhere sinfo: sinfo: error: 'elsewhere' can't be reached now
#   SLURM_CLUSTERS=elsewhere scontrol show config: scontrol: error: 'elsewhere' can't be reached now
#   SLURM_CLUSTERS=elsewhere scancel 1: scancel: error: 'elsewhere' can't be reached now
#   SLURM_CLUSTERS=elsewhere sbatch --wrap true: sbatch: error: 'elsewhere' can't be reached now
#   == Debian trixie, slurm-wlm 24.11.5
#   sacct: slurmbox|1|COMPLETED
#   sacct --clusters=elsewhere:
#   SLURM_CLUSTERS=elsewhere sacct: slurmbox|1|COMPLETED
#   SLURM_CLUSTERS=elsewhere squeue: squeue: error: 'elsewhere' can't be reached now
#   SLURM_CLUSTERS=elsewhere sinfo: sinfo: error: 'elsewhere' can't be reached now
#   SLURM_CLUSTERS=elsewhere scontrol show config: scontrol: error: 'elsewhere' can't be reached now
#   SLURM_CLUSTERS=elsewhere scancel 1: scancel: error: 'elsewhere' can't be reached now
#   SLURM_CLUSTERS=elsewhere sbatch --wrap true: sbatch: error: 'elsewhere' can't be reached now
#   == Debian sid, slurm-wlm 26.05.5
#   sacct: slurmbox|1|COMPLETED
#   sacct --clusters=elsewhere:
#   SLURM_CLUSTERS=elsewhere sacct: slurmbox|1|COMPLETED
#   SLURM_CLUSTERS=elsewhere squeue: squeue: error: 'elsewhere' can't be reached now
#   SLURM_CLUSTERS=elsewhere sinfo: sinfo: error: 'elsewhere' can't be reached now
#   SLURM_CLUSTERS=elsewhere scontrol show config: scontrol: error: 'elsewhere' can't be reached now
#   SLURM_CLUSTERS=elsewhere scancel 1: scancel: error: 'elsewhere' can't be reached now
#   SLURM_CLUSTERS=elsewhere sbatch --wrap true: sbatch: error: 'elsewhere' can't be reached now
