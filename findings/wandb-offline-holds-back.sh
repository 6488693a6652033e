#!/bin/sh
# Weights & Biases, offline: nothing of a run is in its file for the first seconds, so a run that is
# killed early is empty, though log() had returned long before.
#
# An offline run is what a node without a network is told to use, and its file is all that `wandb
# sync` has later. The service that writes it holds records back. Here 41 steps are logged in 8 s,
# and after 6 more seconds all processes of the run are killed, as a scheduler does: the file has its
# header of 7 bytes and nothing else. With 30 s of logging most steps are there; after finish(), all
# of them.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --pre wandb==0.31.0

cat >"$folder/run.py" <<'PYTHON'
import os
import signal
import sys
import time

import wandb

folder, log_s, wait_s, end = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
run = wandb.init(project="p", mode="offline", dir=folder, settings=wandb.Settings(silent=True))
for step in range(41):
    run.log({"loss": 1 / (step + 1)}, step=step)
    time.sleep(log_s / 41)
time.sleep(wait_s)
if end == "kill":
    os.killpg(0, signal.SIGKILL)
run.finish()
PYTHON

size_of() {
    mkdir "$folder/$1"
    # Each run leads a group of its own, with the service that it starts.
    setsid --wait "$folder/venv/bin/python" "$folder/run.py" "$folder/$1" "$2" "$3" "$4" >/dev/null 2>&1 || true
    stat -c %s "$folder/$1"/wandb/offline-run-*/*.wandb
}

"$folder/venv/bin/python" -c 'import sys, wandb; print(f"python {sys.version.split()[0]}, wandb {wandb.__version__}")'
killed=$(size_of killed 8 6 kill)
late=$(size_of late 30 0 kill)
finished=$(size_of finished 1 0 finish)
echo "killed 6 s after the last of 41 steps in 8 s: $killed bytes"
echo "killed after 41 steps in 30 s: $late bytes"
echo "finished after 41 steps: $finished bytes"
if [ "$killed" -gt 7 ] || [ "$late" -le 7 ] || [ "$finished" -le 7 ]; then
    echo "changed: another part of the steps is on the disk" >&2
    exit 1
fi

# Seen with Python 3.11.7 and wandb 0.31.0:
#
#   killed 6 s after the last of 41 steps in 8 s: 7 bytes
#   killed after 41 steps in 30 s: 13210 bytes
#   finished after 41 steps: 13105 bytes
