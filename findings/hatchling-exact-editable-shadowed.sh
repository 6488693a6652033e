#!/bin/sh
# hatchling's dev-mode-exact: beside the clone, its folder is imported instead of the package.
#
# One would expect an editable installation to be found wherever Python is started. The default one
# is: a folder without __init__.py loses against a package on sys.path. With dev-mode-exact the package
# is found by a finder of the library editables, which stands behind Python's own; so in the folder
# that holds the clone, and clones are mostly named like their package, `import thing` gives an empty
# namespace package made of the clone's folder, without an error. `python -m thing` and whatever else
# puts the working folder on sys.path fail there with names that are not found, and nowhere else.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"

mkdir -p "$folder/clones/thing/thing" "$folder/empty"
echo 'answer = 42' >"$folder/clones/thing/thing/__init__.py"

install_editable() { # dev-mode-exact
  cat >"$folder/clones/thing/pyproject.toml" <<TOML
[build-system]
requires = ["hatchling==1.33.0", "editables==0.6"]
build-backend = "hatchling.build"

[project]
name = "thing"
version = "1"

[tool.hatch.build]
dev-mode-exact = $1
TOML
  "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --force-reinstall --editable "$folder/clones/thing"
}

expect() { # what is wanted, dev-mode-exact, folder to start in
  said=$(cd "$folder/$3" && "$folder/venv/bin/python" -c '
import thing
print(getattr(thing, "answer", "no answer"), "from", type(thing.__loader__ or 0).__name__)')
  echo "dev-mode-exact = $2, in $3/: $said"
  [ "${said%% from*}" = "$1" ] || {
    echo "changed: was $1" >&2
    exit 1
  }
}

echo "$("$folder/venv/bin/python" --version), hatchling 1.33.0, editables 0.6"
install_editable false
expect 42 false empty
expect 42 false clones
install_editable true
expect 42 true empty
expect "no answer" true clones
echo "seen: the clone's folder wins against the package that dev-mode-exact installed"

# seen:
#   Python 3.11.7, hatchling 1.33.0, editables 0.6
#   dev-mode-exact = false, in empty/: 42 from SourceFileLoader
#   dev-mode-exact = false, in clones/: 42 from SourceFileLoader
#   dev-mode-exact = true, in empty/: 42 from SourceFileLoader
#   dev-mode-exact = true, in clones/: no answer from NamespaceLoader
#   seen: the clone's folder wins against the package that dev-mode-exact installed
