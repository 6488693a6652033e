# The Slurm of another Debian release in a slurmbox; scripts/slurmbox sources this.
#
# The release's programs lie in a root made by debootstrap, kept between boxes. They run in a mount
# namespace in which the root's /usr lies over this machine's: all other paths, processes and
# network are this machine's own, and so is each program that the release does not bring, as the
# Python of jobs.
# Reads: box, SLURMBOX_RELEASE, PACKAGES; say, die.
# shellcheck shell=bash disable=SC2153,SC2154

# Lies in every root; who sees it is in the namespace.
readonly RELEASE_FILE=/usr/lib/slurmbox-release
readonly CLIENTS=slurmbox-clients # the folder of the box that `up` puts on PATH

own_release() { sed -n 's/^VERSION_CODENAME=//p' /etc/os-release; }

has_own_slurm() { [[ ! -e $RELEASE_FILE && $SLURMBOX_RELEASE == "$(own_release)" ]]; }

locate_root() {
  root=$SLURMBOX_ROOTS/$SLURMBOX_RELEASE
  [[ $root =~ ^[A-Za-z0-9_./+-]+$ ]] ||
    die 2 "overlayfs cannot name this folder: $root" "set SLURMBOX_ROOTS to plain characters"
}

# shellcheck disable=SC2016  # the placeholders are apt's
mirror() { # the one this machine takes Debian from
  apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 'Created-By: Packages' |
    sed -n '/^Debian|Debian|/{s///p;q}'
}

# shellcheck disable=SC2016  # the inner shell's
in_new_root() { # command...
  unshare --mount sh -c 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"' "$root.new" "$@"
}

fill_root() { # its packages, of which none starts a service
  local mirror packages
  mirror=$(mirror)
  # Whose a mirror is stands in the lists that apt fetches.
  [[ -n $mirror ]] || { apt-get update && mirror=$(mirror); }
  [[ -n $mirror ]] || die 4 "apt knows no mirror of Debian" "apt-get update"
  read -ra packages <<<"$PACKAGES"
  debootstrap --variant=minbase "$SLURMBOX_RELEASE" "$root.new" "$mirror"
  printf '#!/bin/sh\nexit 101\n' >"$root.new/usr/sbin/policy-rc.d"
  chmod 755 "$root.new/usr/sbin/policy-rc.d"
  echo force-unsafe-io >"$root.new/etc/dpkg/dpkg.cfg.d/slurmbox" # it is whole or not there
  DEBIAN_FRONTEND=noninteractive \
    in_new_root apt-get install -y --no-install-recommends "${packages[@]}"
  in_new_root apt-get clean
  echo "$SLURMBOX_RELEASE" >"$root.new$RELEASE_FILE"
}

make_root() { # under another name until it is whole
  local rc=0
  command -v debootstrap >/dev/null ||
    die 4 "missing: debootstrap" "apt-get install -y --no-install-recommends debootstrap"
  mkdir -p "$(dirname "$root")"
  exec 8>"$root.lock" && flock 8
  if [[ ! -d $root ]]; then
    say "making a root of Debian $SLURMBOX_RELEASE in $root; this takes a minute"
    rm -rf "$root.new"
    # Not in a condition: `set -e` would not hold inside.
    (set -e && fill_root) >"$root.log" 2>&1 9>&- &
    wait $! || rc=$?
    ((rc == 0)) || {
      tail -n 5 "$root.log" >&2
      die 1 "no root of Debian $SLURMBOX_RELEASE" "the whole log is $root.log"
    }
    mv "$root.new" "$root"
  fi
  exec 8>&-
}

mounts() { # shell commands that make the namespace what it shall be, each with `&&` behind it
  local folder over="mount -t overlay -o ro,lowerdir=$root"
  echo "$over/etc/alternatives:/etc/alternatives slurmbox /etc/alternatives &&"
  echo "$over/usr:/usr slurmbox /usr &&"
  # Slurm looks at every plugin it finds, and must find none of this machine's own Slurm.
  for folder in "$root"/usr/lib/*/slurm-wlm; do
    echo "mount --bind $folder ${folder#"$root"} &&"
  done
}

share_mounts() { # what is mounted later, say by a test, is to be seen by the daemons
  [[ $(findmnt -no PROPAGATION /) == *shared* ]] || mount --make-rshared /
}

enter() { # command...
  [[ -d $root ]] || die 4 "there is no root of Debian $SLURMBOX_RELEASE" "run '$0 up --release $SLURMBOX_RELEASE'"
  [[ -L /bin && -L /lib ]] || die 4 "/bin and /lib are no links into /usr" "install usrmerge"
  share_mounts
  exec unshare --mount --propagation slave sh -c "$(mounts) exec \"\$@\"" slurmbox "$@"
}

use_release() { # subcommand, all arguments of this script: goes on in the namespace of SLURMBOX_RELEASE
  locate_root
  if [[ -e $RELEASE_FILE ]]; then
    [[ $(<$RELEASE_FILE) == "$SLURMBOX_RELEASE" ]] ||
      die 2 "this shell lives in Debian $(<$RELEASE_FILE)" "leave the job that started it"
    return 0
  fi
  case $1 in
    down | stop) return 0 ;; # signals are enough, whatever became of the root
    up)
      check_options_unchanged # sooner than a minute later
      check_cgroups # what it mounts is for all
      make_root
      ;;
  esac
  SLURMBOX_CALLERS_PATH=$CALLERS_PATH enter "$0" "${@:2}"
}

write_clients() { # commands that run the release's own, for PATH
  local name
  rm -rf "${box:?}/$CLIENTS"
  mkdir "$box/$CLIENTS"
  while read -r name; do
    cat >"$box/$CLIENTS/$name" <<SH
#!/bin/sh
[ ! -e $RELEASE_FILE ] || exec /usr/bin/$name "\$@"
exec unshare --mount --propagation slave sh -c '$(mounts)
exec "\$0" "\$@"' /usr/bin/$name "\$@"
SH
    chmod 755 "$box/$CLIENTS/$name"
  done < <(sed -n 's|^/usr/bin/||p' "$root/var/lib/dpkg/info/slurm-client.list")
}
