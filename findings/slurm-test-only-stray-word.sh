#!/usr/bin/env bash
# Slurm 26.05: the answer of `sbatch --test-only` has a stray "a" after the time.
#
# One would expect the sentence of the releases before, "Job 1 to start at TIME using 1 processors on
# nodes n1 in partition gpu": it is all that the option answers, so scripts take the time and the
# nodes from it. 26.05 says "at TIME a using 1 processors". What reads the time as the words between
# "at" and "using" gets one that no parser takes. Nothing but the sentence tells: it is on standard
# error, and --parsable does not change it.
# shellcheck source=findings/slurm.bash
. "$(dirname "$(realpath "$0")")/slurm.bash"

for release in bookworm trixie sid; do
  cluster "$release"
  said=$(sbatch --test-only --parsable --wrap true 2>&1 >"$folder/stdout")
  echo "$said"
  expect "standard output" "" "$(<"$folder/stdout")"
  time=$(sed -n 's/.* to start at \(.*\) using .*/\1/p' <<<"$said")
  echo "between 'at' and 'using': '$time'"
  [[ $release != sid ]] || {
    [[ $time == *" a" ]] || changed "the stray word is gone"
    time=${time% a}
  }
  [[ $time =~ ^[0-9-]{10}T[0-9:]{8}$ ]] || changed "the time is '$time'"
done

# seen:
#   == Debian bookworm, slurm-wlm 22.05.8
#   sbatch: Job 1 to start at 2026-11-30T17:19:30 using 1 processors on nodes odd1 in partition gpu
#   between 'at' and 'using': '2026-11-30T17:19:30'
#   == Debian trixie, slurm-wlm 24.11.5
#   sbatch: Job 1 to start at 2026-11-30T17:19:47 using 1 processors on nodes odd1 in partition gpu
#   between 'at' and 'using': '2026-11-30T17:19:47'
#   == Debian sid, slurm-wlm 26.05.5
#   sbatch: Job 1 to start at 2026-11-30T17:20:07 a using 1 processors on nodes odd1 in partition gpu
#   between 'at' and 'using': '2026-11-30T17:20:07 a'
