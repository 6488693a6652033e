# Sourced by the findings about Slurm: `cluster RELEASE` makes a cluster of four nodes with the Slurm
# of that Debian release by scripts/slurmbox, in place of the one before; it is gone at exit.
#
# Needs root and debootstrap. FINDINGS_PORT and FINDINGS_PREFIX keep two runs apart.
# shellcheck shell=bash
set -euo pipefail
repository=$(dirname "$(dirname "$(realpath "${BASH_SOURCE[0]}")")")
folder=$(mktemp -d)
export SLURMBOX=$folder/box
export SLURMBOX_PORT=${FINDINGS_PORT:-18910} SLURMBOX_PREFIX=${FINDINGS_PREFIX:-odd}
trap 'no_cluster && rm -rf "$folder"' EXIT
trap 'exit 143' TERM INT HUP

no_cluster() {
  [[ ! -d $SLURMBOX ]] || "$repository/scripts/slurmbox" down || return
  rm -rf "$SLURMBOX"
}

cluster() { # release of Debian
  local exports
  no_cluster
  exports=$("$repository/scripts/slurmbox" up --release "$1" 2>"$folder/up.log") || {
    cat "$folder/up.log" >&2
    return 1
  }
  eval "$exports"
  cd "$folder"
  echo "== Debian $1, $(sinfo -V)"
}

changed() {
  echo "changed: $*" >&2
  exit 1
}

expect() { # what it is, what was seen before, what is seen now
  [[ $3 == "$2" ]] || changed "$1 is '$3', was '$2'"
}

awaited() { # what is wanted, command... -> whether it says so within a minute
  local since=$SECONDS wanted=$1
  shift
  until [[ $("$@") == "$wanted" ]]; do
    ((SECONDS - since < 60)) || return 1
    sleep 0.5
  done
}
