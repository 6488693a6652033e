#!/usr/bin/env bash
# MariaDB 10.11 and 11.8: a server that starts removes the temporary tables of one that runs.
#
# At its start mariadbd removes every file of its tmpdir whose name begins with `#sql-temptable-`,
# whichever server made it, and the default tmpdir of all is /tmp.  So two servers of one machine,
# each with a data folder, a socket and a port of its own, are not apart: a session of the first
# loses its table without any error at the time.  The bootstrap of a data folder, which starts a
# server too, fails for the same reason where two run at the same moment.
#
# Needs root and debootstrap.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 143' TERM INT HUP

cat >"$folder/both.sh" <<'BOTH'
set -euo pipefail
cd "$(mktemp -d)"
mkdir tmp
server() { # name, command... -> the command with the options of this server
  local name=$1 command=$2
  shift 2
  "$command" --no-defaults --user=root --datadir="$PWD/$name" --tmpdir="$PWD/tmp" "$@"
}
start() { # name
  server "$1" mariadbd --socket="$PWD/$1.sock" --pid-file="$PWD/$1.pid" --skip-networking \
    >"$1.log" 2>&1 &
  for _ in {1..300}; do
    ! client "$1" -e 'select 1' >/dev/null 2>&1 || return 0
    sleep 0.2
  done
  return 1
}
client() { mariadb --no-defaults --user=root --socket="$PWD/$1.sock" "${@:2}"; }
for name in one two; do
  server "$name" mariadb-install-db --force --auth-root-authentication-method=normal >/dev/null 2>&1
done
start one
{
  echo 'create temporary table mysql.mine (a int) engine=myisam; insert into mysql.mine values (1);'
  echo "select 'ready';"
  while [[ ! -e go ]]; do sleep 0.1; done
  echo 'alter table mysql.mine add b int;'
} | client one --unbuffered --force >said.out 2>said.err &
session=$!
until grep -q ready said.out; do sleep 0.1; done
echo "version $(client one -N -e 'select version()')"
echo "files of the temporary table before: $(find tmp -name '#sql-temptable-*' | wc -l)"
start two
echo "after another server has started: $(find tmp -name '#sql-temptable-*' | wc -l)"
touch go
wait "$session" || true
echo "the session that made it: $(grep -o '^ERROR [0-9]*' said.err)"
kill "$(<one.pid)" "$(<two.pid)"
wait
BOTH

for release in bookworm trixie; do
  root=$folder/$release
  debootstrap --variant=minbase --include=mariadb-server "$release" "$root" >"$folder/log" 2>&1 || {
    tail -n 5 "$folder/log" >&2
    exit 1
  }
  cp "$folder/both.sh" "$root/both.sh"
  echo "== Debian $release"
  chroot "$root" bash /both.sh | tee "$folder/seen"
  grep -q 'before: 2$' "$folder/seen"
  grep -q 'has started: 0$' "$folder/seen"
  grep -q 'ERROR 6$' "$folder/seen"
done
# Seen:
#   == Debian bookworm
#   version 10.11.18-MariaDB-0+deb12u1
#   files of the temporary table before: 2
#   after another server has started: 0
#   the session that made it: ERROR 6
#   == Debian trixie, version 11.8.9-MariaDB-0+deb13u1: the same
