#!/bin/sh
# torch.nn.init.orthogonal_ draws other weights from one seed when the number of threads changes.
#
# The normal numbers that it starts from are the same bits; their QR decomposition is not. Two runs
# with one seed that differ only in OMP_NUM_THREADS when the model is built (a batch job with more
# cores, a login node, a laptop) start from different weights, even if both set the threads to one
# before they train.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat >"$folder/draw.py" <<'PYTHON'
import sys

import torch

SIZES = (64, 128, 256)


def draw(threads, size, how):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return how(torch.empty(size, size))


print(f"python {sys.version.split()[0]}, torch {torch.__version__}")
differing = []
for size in SIZES:
    if not torch.equal(draw(1, size, torch.nn.init.normal_), draw(2, size, torch.nn.init.normal_)):
        sys.exit("changed: normal_ depends on the number of threads")
    one, two = (draw(threads, size, torch.nn.init.orthogonal_) for threads in (1, 2))
    again = draw(1, size, torch.nn.init.orthogonal_)
    if not torch.equal(one, again):
        sys.exit("changed: orthogonal_ is not reproducible on one thread")
    share = (one != two).double().mean().item()
    print(f"{size} x {size}: {share:.0%} of the weights differ, by {(one - two).abs().max():.1e} at most")
    differing.append(share > 0)
if not any(differing):
    sys.exit("changed: orthogonal_ gives the same bits on one thread and on two")
print("seen: the same seed gives other orthogonal weights on two threads than on one")
PYTHON
"$folder/venv/bin/python" "$folder/draw.py"
