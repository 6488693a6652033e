#!/usr/bin/env bash
# Slurm 24.11 and 26.05: under enable_stepmgr squeue has no exit code of a job's steps.
#
# One would expect squeue's DerivedEC, "the highest exit code returned by the job's job steps", to be
# what sacct calls DerivedExitCode. It is, until the administrator sets
# SlurmctldParameters=enable_stepmgr, by which steps are managed on the node: then it stays 0:0,
# whether a step exits with 7 or is killed for its memory (0:125), while sacct has both. Jobs whose
# script goes on after a failed step look clean to whoever asks squeue, and a retry with more memory
# that depends on 0:125 is never made, on the clusters with that setting only.
# shellcheck source=findings/slurm.bash
. "$(dirname "$(realpath "$0")")/slurm.bash"

by_squeue() { squeue -h -t all -j "$1" -O derivedec | tr -d ' '; } # job

by_sacct() { sacct -X -n -P -o derivedexitcode -j "$1"; } # job

job() { # what its step runs
  sbatch --parsable --wait --mem=100 -D "$folder" -o out --wrap "srun sh -c '$1'; true"
}

compare() { # what the step runs, what squeue is to say, what sacct is to say
  local id
  id=$(job "$1")
  awaited "$3" by_sacct "$id" || changed "sacct says '$(by_sacct "$id")', said '$3'"
  echo "step '$1': squeue $(by_squeue "$id"), sacct $(by_sacct "$id")"
  expect "squeue's DerivedEC" "$2" "$(by_squeue "$id")"
}

readonly HUNGRY='head -c 300M /dev/zero | tail'
for release_and_setting in trixie:0 trixie:1 sid:1; do
  STEPMGR=${release_and_setting#*:}
  export STEPMGR
  cluster "${release_and_setting%:*}"
  echo "SlurmctldParameters=$(scontrol show config | sed -n 's/^SlurmctldParameters *= //p')"
  compare 'exit 7' "$([[ $STEPMGR == 0 ]] && echo 7:0 || echo 0:0)" 7:0
  compare "$HUNGRY" "$([[ $STEPMGR == 0 ]] && echo 0:125 || echo 0:0)" 0:125
done

# seen:
#   == Debian trixie, slurm-wlm 24.11.5
#   SlurmctldParameters=(null)
#   step 'exit 7': squeue 7:0, sacct 7:0
#   step 'head -c 300M /dev/zero | tail': squeue 0:125, sacct 0:125
#   == Debian trixie, slurm-wlm 24.11.5
#   SlurmctldParameters=enable_stepmgr
#   step 'exit 7': squeue 0:0, sacct 7:0
#   step 'head -c 300M /dev/zero | tail': squeue 0:0, sacct 0:125
#   == Debian sid, slurm-wlm 26.05.5
#   SlurmctldParameters=enable_stepmgr
#   step 'exit 7': squeue 0:0, sacct 7:0
#   step 'head -c 300M /dev/zero | tail': squeue 0:0, sacct 0:125
