#!/bin/sh
# FSDP2: after a forward pass without a backward pass (a validation, say), the next forward pass of
# the root module computes with the weights of before, whatever an optimizer has changed meanwhile.
#
# By default the root keeps its weights put together after a forward pass, for the backward pass
# that is expected next; under no_grad none follows, and nothing puts them together again. So a loop
# of "validate, update, forward" trains on stale weights of the root, without an error: here the
# weights are doubled through the optimizer's parameters, and the loss stays as it was until
# `module.reshard()` is called. Worse, module.parameters() then names the copies, so that a change
# made through it is seen at once and lost with the next reshard(). A single process, or
# DistributedDataParallel, sees every update. Two processes over gloo on the CPU show it.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat >"$folder/stale.py" <<'PYTHON'
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard


def losses(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Linear(4, 4, bias=False)
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    inputs = torch.ones(1, 4)

    def loss():
        with torch.no_grad():
            return model(inputs).square().sum().item()

    def doubled(parameters):
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(2)

    before = loss()
    doubled(optimizer.param_groups[0]["params"])
    stale = loss()
    model.reshard()
    after = loss()
    doubled(model.parameters())
    seen = loss()
    model.reshard()
    lost = loss()
    if rank == 0:
        print(f"loss before: {before:.4f}")
        print(f"after the optimizer's parameters were doubled: {stale:.4f}")
        print(f"and after reshard(): {after:.4f}, which is {after / before:.1f} times as much")
        print(f"after model.parameters() were doubled: {seen:.4f}, after reshard(): {lost:.4f}")
        is_as_known = stale == before and abs(after - 4 * before) < 1e-4 * after
        is_as_known = is_as_known and abs(seen - 4 * after) < 1e-4 * seen and lost == after
        if not is_as_known:
            sys.exit("changed: a forward pass sees the update")
    dist.destroy_process_group()


if __name__ == "__main__":
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}")
    mp.spawn(losses, args=(sys.argv[1],), nprocs=2)
PYTHON
"$folder/venv/bin/python" "$folder/stale.py" "$folder"

# Seen with Python 3.11.7 and torch 2.13.0 for the CPU:
#
#   loss before: 1.3917
#   after the optimizer's parameters were doubled: 1.3917
#   and after reshard(): 5.5670, which is 4.0 times as much
#   after model.parameters() were doubled: 22.2678, after reshard(): 5.5670
