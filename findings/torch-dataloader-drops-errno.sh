#!/bin/sh
# An OSError raised in a worker of torch's DataLoader arrives without its errno and its filename.
#
# With num_workers=0 the exception of the dataset arrives as it was raised. With one worker the same
# exception arrives as an OSError that was made anew from the text of the traceback: errno and
# filename are None. Code that retries on ESTALE, or tells a full disk by ENOSPC, works until
# somebody sets num_workers.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat >"$folder/load.py" <<'PYTHON'
import errno
import sys

import torch
from torch.utils.data import DataLoader, Dataset


class Stale(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise OSError(errno.ESTALE, "Stale file handle", "corpus.bin")


def seen_with(workers):
    try:
        list(DataLoader(Stale(), num_workers=workers))
    except OSError as exc:
        last = str(exc).strip().splitlines()[-1]
        print(f"num_workers={workers}: errno {exc.errno}, filename {exc.filename}, text ...{last}")
        return exc.errno, exc.filename
    return "no error"


if __name__ == "__main__":
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}")
    if seen_with(0) != (errno.ESTALE, "corpus.bin"):
        sys.exit("changed: the exception does not arrive as it was raised without workers")
    if seen_with(1) != (None, None):
        sys.exit("changed: the exception of a worker keeps its errno")
    print("seen: errno and filename are lost on the way from a worker")
PYTHON
"$folder/venv/bin/python" "$folder/load.py"
