#!/bin/bash

# setup
@setup@
export PYTHONPATH=@code@"${PYTHONPATH:+:$PYTHONPATH}"

# command
[[ -e @folder@/cancel ]] && exit 143
echo "$SLURM_STEP_ID $SLURMD_NODENAME" >@folder@/step.new && mv @folder@/step.new @folder@/step
exec @worker@
