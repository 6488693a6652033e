#!/usr/bin/env bash
# Slurm: a task of an array that is cancelled while it waits leaves no record in accounting.
#
# One would expect `scancel ID_3` to be recorded like any other cancellation: sacct lists a plain job
# that was cancelled while it waited, and a task that was cancelled while it ran, as CANCELLED. But a
# task that had not started is only struck from the array's record, as from 3_[1-5] to 3_[1-2,4-5].
# A list of all jobs has it as little as `sacct -j ID_3`, nor does the end of the whole array bring it
# back. Whoever asks accounting how each task ended waits for ever
# for this one, or takes it for never submitted and submits it again.
# shellcheck source=findings/slurm.bash
. "$(dirname "$(realpath "$0")")/slurm.bash"

ended() { sacct -X -n -P -o jobid,state -j "$1"; } # job

all_recorded() { sacct -X --duplicates -n -P -o jobid -S now-1hour -E now; }

queued() { squeue -h -r -t pending -o %i -j "$1"; } # job

for release in bookworm trixie sid; do
  cluster "$release"
  plain=$(sbatch --parsable --hold -o /dev/null --wrap true)
  array=$(sbatch --parsable --array=0-5%1 -o /dev/null --wrap 'sleep 600')
  awaited "${array}_0|RUNNING" ended "${array}_0" || changed "the first task does not run"
  scancel "${array}_3" "$plain"
  scontrol hold "$array"
  scancel "${array}_0"
  awaited "$plain|CANCELLED by 0" ended "$plain" || changed "a plain job has no record"
  awaited "${array}_0|CANCELLED by 0" ended "${array}_0" || changed "a task that ran has no record"
  echo "still waiting: $(queued "$array" | sort | paste -sd' ')"
  echo "sacct of the plain job: $(ended "$plain")"
  echo "sacct of the task that ran: $(ended "${array}_0")"
  echo "sacct of the array: $(ended "$array" | paste -sd' ')"
  expect "the record of the waiting task" "" "$(ended "${array}_3")"
  scancel "$array"
  awaited "${array}_[1-2,4-5%1]|CANCELLED by 0" sh -c "sacct -X -n -P -o jobid,state -j $array | tail -n 1" ||
    changed "the rest of the array is recorded as '$(ended "$array" | tail -n 1)'"
  echo "and when all are cancelled: $(ended "$array" | paste -sd' ')"
  expect "the record of the waiting task" "" "$(ended "${array}_3")"
  expect "its line among all" "" "$(all_recorded | grep -x "${array}_3" || true)"
  echo "sacct of the waiting task: nothing"
done

# seen:
#   == Debian bookworm, slurm-wlm 22.05.8
#   still waiting: 2_1 2_2 2_4 2_5
#   sacct of the plain job: 1|CANCELLED by 0
#   sacct of the task that ran: 2_0|CANCELLED by 0
#   sacct of the array: 2_0|CANCELLED by 0 2_[1-2,4-5%1]|PENDING
#   and when all are cancelled: 2_0|CANCELLED by 0 2_[1-2,4-5%1]|CANCELLED by 0
#   sacct of the waiting task: nothing
#   == Debian trixie, slurm-wlm 24.11.5
#   still waiting: 2_1 2_2 2_4 2_5
#   sacct of the plain job: 1|CANCELLED by 0
#   sacct of the task that ran: 2_0|CANCELLED by 0
#   sacct of the array: 2_0|CANCELLED by 0 2_[1-2,4-5%1]|PENDING
#   and when all are cancelled: 2_0|CANCELLED by 0 2_[1-2,4-5%1]|CANCELLED by 0
#   sacct of the waiting task: nothing
#   == Debian sid, slurm-wlm 26.05.5
#   still waiting: 2_1 2_2 2_4 2_5
#   sacct of the plain job: 1|CANCELLED by 0
#   sacct of the task that ran: 2_0|CANCELLED by 0
#   sacct of the array: 2_0|CANCELLED by 0 2_[1-2,4-5%1]|PENDING
#   and when all are cancelled: 2_0|CANCELLED by 0 2_[1-2,4-5%1]|CANCELLED by 0
#   sacct of the waiting task: nothing
