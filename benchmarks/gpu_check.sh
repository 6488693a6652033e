#!/usr/bin/env bash
# Unattended checks and benchmarks on a machine with a GPU and no network: the tests marked gpu, the
# operations, and training steps.  See docs/how-to/measure-on-a-gpu.md.
#
#   benchmarks/gpu_check.sh [--part tests|kernels|steps|all] [--out FOLDER] [--device cuda|cpu]
#                           [--without PACKAGE[,PACKAGE...]] [--python PYTHON]
#
# Each part takes at most 8 minutes, writes results as they are produced, and keeps them when it is
# stopped.  ELMAN_WHEELS is a folder of wheels to unpack in addition to the installed packages,
# ELMAN_COMMIT the commit of a copy without .git (alternatively a file COMMIT at its top).
# `--device cpu` is a dry run on tiny shapes.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly ROOT=$PWD
readonly PARTS=(tests kernels steps)

# Time limits in seconds; the rest of a part's 8 minutes is for startup and writing results.
readonly TEST_S=270 DOCTOR_S=170 MEASURE_S=450
# No row starts after this many minutes; the longest row takes one.
readonly START_MIN=6

# Import names of the packages that elmanctl needs, and of those it is compared with.
readonly NEEDED=(torch triton numpy typer rich schedulefree pytest pytest_timeout hypothesis einops)
readonly COMPARED=(fla mamba_ssm transformers)

say() { printf 'gpu_check: %s\n' "$*" >&2; }

die() {
  say "error: $1"
  [[ -z ${2:-} ]] || say "hint: $2"
  exit "${3:-4}"
}

part=all out='' device=cuda without='' python=python3
while (($#)); do
  case $1 in
  --part | --out | --device | --without | --python)
    (($# > 1)) || die "$1 needs a value" '' 2
    declare "${1#--}=$2"
    shift 2
    ;;
  -h | --help)
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
    exit 0
    ;;
  *) die "unknown argument: $1" "benchmarks/gpu_check.sh --help" 2 ;;
  esac
done
case $part in all | tests | kernels | steps) ;; *) die "no such part: $part" "${PARTS[*]} or all" 2 ;; esac
case $device in cuda | cpu) ;; *) die "no such device: $device" "cuda or cpu" 2 ;; esac
command -v "$python" >/dev/null || die "there is no $python" "--python names another"
command -v timeout >/dev/null || die "there is no timeout, of GNU coreutils"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 143' TERM INT HUP

unpack_wheels() {
  [[ -n ${ELMAN_WHEELS:-} ]] || return 0
  local wheels=("$ELMAN_WHEELS"/*.whl)
  [[ -f ${wheels[0]} ]] || die "ELMAN_WHEELS=$ELMAN_WHEELS contains no wheel"
  say "unpacking ${#wheels[@]} wheels"
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --disable-pip-version-check --target "$scratch/site" "${wheels[@]}" ||
    die "the wheels of $ELMAN_WHEELS cannot be installed"
}

# Prints the given packages that are not installed.
missing_of() {
  "$python" - "$@" <<'PYTHON'
import importlib.util
import sys

print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))
PYTHON
}

check_machine() {
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$("$python" --version) is too old" "Python 3.11 or newer: --python names another"
  local missing name
  missing=$(missing_of "${NEEDED[@]}")
  [[ -z $missing ]] || die "not installed: $missing" "put their wheels into the folder ELMAN_WHEELS"
  for name in $(missing_of "${COMPARED[@]}"); do
    [[ ,$without, == *,"$name",* ]] ||
      die "not installed: $name, which elmanctl is compared with" \
        "put its wheel into the folder ELMAN_WHEELS, or pass --without $name"
    say "WITHOUT $name: its rows will be listed as missing"
  done
  [[ $device == cpu ]] && return
  "$python" - <<'PYTHON' || die "torch sees no GPU" "--device cpu is a dry run on tiny shapes"
import sys

import torch

sys.exit(not torch.cuda.is_available())
PYTHON
}

# Sets the commit of the code for the reports: from the environment, a file, or git.
find_commit() {
  [[ -z ${ELMAN_COMMIT:-} && -f COMMIT ]] && ELMAN_COMMIT=$(head -n 1 COMMIT)
  export ELMAN_COMMIT=${ELMAN_COMMIT:-}
  [[ -n $ELMAN_COMMIT || -e .git ]] ||
    die "the commit of this copy is unknown" "set ELMAN_COMMIT, or write it into a file COMMIT"
}

name_of_card() {
  "$python" - "$device" <<'PYTHON'
import re
import sys

import torch

name = torch.cuda.get_device_name() if sys.argv[1] == "cuda" else "cpu"
print(re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"))
PYTHON
}

# Runs a command with a time limit and reports a timeout.  SIGINT lets pytest write its results.
limited() {
  local seconds=$1 rc=0
  shift
  timeout --signal=INT --kill-after=15 "$seconds" "$@" || rc=$?
  ((rc == 124 || rc == 137)) && say "STOPPED after ${seconds} s: $*"
  return "$rc"
}

elmanctl() { "$python" -P -m elmanctl "$@"; }

part_tests() {
  local rc=0 ran workers=()
  # Compilation takes most of the time and runs in parallel.
  [[ $device == cpu || -n $(missing_of xdist) ]] || workers=(-n "$(($(nproc) > 16 ? 8 : ($(nproc) + 1) / 2))")
  # Warnings of other torch releases are not failures.
  limited "$TEST_S" "$python" -m pytest -m gpu tests/kernels tests/models -q -rfE "${workers[@]}" \
    --continue-on-collection-errors -p no:cacheprovider -o filterwarnings=default --junitxml="$scratch/tests.xml" \
    >"$out/tests.log" 2>&1 || rc=$?
  tail -n 25 "$out/tests.log" >&2
  ran=$(tests_that_ran)
  if [[ $device == cuda ]] && ((rc == 0 && ran == 0)); then
    say "FAILED: every test was skipped"
    rc=1
  fi
  say "tests: $ran ran, exit code $rc"
  ((rc == 0)) || failed+=("tests marked gpu, see $out/tests.log")
  rc=0
  limited "$DOCTOR_S" "$python" -P -m elmanctl doctor --gpu --json \
    >"$out/doctor.json" 2>"$scratch/doctor.log" || rc=$?
  ((rc == 0)) && return
  grep -E ': (wrong|failed)$|^error' "$scratch/doctor.log" >&2 || tail -n 5 "$scratch/doctor.log" >&2
  failed+=("doctor --gpu, exit code $rc")
}

# Prints the number of tests that were not skipped.
tests_that_ran() {
  "$python" - "$scratch/tests.xml" <<'PYTHON'
import sys
from pathlib import Path
from xml.etree import ElementTree

path = Path(sys.argv[1])
cases = list(ElementTree.parse(path).iter("testcase")) if path.exists() else []
print(sum(case.find("skipped") is None for case in cases))
PYTHON
}

part_kernels() { measure kernels kernels; }

part_steps() { measure step steps; }

# Runs `bench NAME` and keeps its table, even if unfinished.
measure() {
  local rc=0
  limited "$MEASURE_S" "$python" -P -m elmanctl bench "$1" --device "$device" \
    --minutes "$START_MIN" --out "$out/$2.json" >"$scratch/$2.txt" || rc=$?
  ((rc == 0)) || failed+=("bench $1, exit code $rc")
  [[ -f $out/$2.json ]] || failed+=("bench $1 wrote nothing")
}

# Merges the reports, including those of earlier calls with the same --out, and prints the targets.
summarize() {
  local measured=()
  [[ ! -f $out/kernels.json ]] || measured+=("$out/kernels.json")
  [[ ! -f $out/steps.json ]] || measured+=("$out/steps.json")
  if ((${#measured[@]})); then
    elmanctl bench report "${measured[@]}" --out "$scratch/results.json" \
      >"$scratch/results.txt" 2>"$scratch/report.log" || {
      cat "$scratch/report.log" >&2
      failed+=("bench report")
    }
    [[ ! -f $scratch/results.md ]] || cp "$scratch/results.md" "$out/results.md"
    # The first table is that of the targets.
    [[ ! -f $scratch/results.txt ]] || sed '/^CEILING\t/,$d' "$scratch/results.txt"
  fi
  ls -l "$out" >&2
}

unpack_wheels
export PYTHONPATH=$scratch/site:$ROOT${PYTHONPATH:+:$PYTHONPATH}
# The built-in corpus is packed anew; Triton's cache is kept.
export XDG_CACHE_HOME=$scratch/cache PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Share the autotuning results of fla and mamba-ssm between processes.
export TRITON_CACHE_AUTOTUNING=1
unset TRITON_INTERPRET
[[ $device == cuda ]] || export TRITON_INTERPRET=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
check_machine
find_commit
[[ -n $out ]] || out=benchmarks/results/gpu/$(name_of_card)-$(date -u +%Y-%m-%d)
mkdir -p "$out"
out=$(cd "$out" && pwd)
failed=()

for name in "${PARTS[@]}"; do
  [[ $part == all || $part == "$name" ]] || continue
  say "part $name, results in $out"
  SECONDS=0
  "part_$name"
  say "part $name took $SECONDS s"
done
summarize

if ((${#failed[@]})); then
  printf 'gpu_check: FAILED: %s\n' "${failed[@]}" >&2
  exit 1
fi
say "all done"
