#!/usr/bin/env bash
# Unattended comparison on one GPU: the study's best configurations of eight families at 480M
# parameters, trained in turn under protocol `fair`, in one table.  See
# docs/how-to/measure-on-a-gpu.md.
#
#   benchmarks/head_to_head.sh [CORPUS] [--minutes N] [--out FOLDER] [--only FAMILY]...
#                              [--device cuda|cpu] [--seed N] [--tiny]
#
# CORPUS is a file of bytes; without it the built-in corpus is used.  PYTHON names the Python to
# run, if it is not that of .venv.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

python=${PYTHON:-python3}
[[ -n ${PYTHON:-} || ! -x $here/../.venv/bin/python ]] || python=$here/../.venv/bin/python
export PYTHONPATH=$here/..${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

# Relative paths are the caller's.
exec "$python" "$here/head_to_head.py" "$@"
