#!/bin/sh
# numpy's ndarray.tofile on a device that is full raises an OSError without an errno.
#
# A write of Python's own tells ENOSPC by number. tofile, which numpy.save calls for the values of an
# array, writes by itself and counts what was written; its OSError has errno
# None, and its words, "N requested and M written", name no cause. Code that tells a full disk from
# other faults by errno takes this one for an error of the program.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check numpy==2.4.6

"$folder/venv/bin/python" - <<'PYTHON'
import errno
import sys

import numpy

print(f"python {sys.version.split()[0]}, numpy {numpy.__version__}")
values = numpy.zeros(10**6)


def written_by(name, write):
    with open("/dev/full", "wb", buffering=0) as full:
        try:
            write(full)
        except OSError as exc:
            print(f"{name}: {type(exc).__name__}, errno {exc.errno}: {exc}")
            return exc.errno
    print(f"{name}: no error")
    return 0


by_python = written_by("file.write", lambda full: full.write(values.data))
by_tofile = written_by("ndarray.tofile", values.tofile)
if by_python != errno.ENOSPC:
    sys.exit("changed: Python itself does not say ENOSPC")
if by_tofile is not None:
    sys.exit("changed: tofile has an errno, or no error")
print("seen: the errno of tofile is None")
PYTHON
