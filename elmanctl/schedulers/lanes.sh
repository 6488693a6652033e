export SUBMITIT_EXECUTOR=slurm
first=@task@
for ((task = first; task < first + @per_job@ && task < @count@; task++)); do
  lane=@folder@/"task-$task"
  mkdir -p "$lane"
  ln -sfn ../"task-$task.pkl" "$lane"/@job@_submitted.pkl
  (
    # Each step has its share of the memory, or the first one would have all of it.
    [[ -e $lane/cancel ]] || srun --exact --nodes=1 --ntasks=1@lane_gres@ \
      ${SLURM_MEM_PER_NODE:+--mem=$((SLURM_MEM_PER_NODE / @lanes@))} --unbuffered \
      sh -c 'echo "$SLURM_STEP_ID" >"$0/step" && exec "$@"' "$lane" \
      @python@ -P -u -m submitit.core._submit "$lane"
    echo $? >"$lane/exit.new" && mv "$lane/exit.new" "$lane/exit"
  ) >>@folder@/@job@.lane$((task - first))_0_log.out 2>&1 &
done
wait
