#!/bin/sh
# click, and typer with its own copy of it: what completes an option's value does not see the arguments.
#
# One would expect the context of a completion to hold what stands on the line before it. It does when
# an argument is completed, and when the value is tied to its option, `--task=<TAB>`. But at
# `show runs/a --task <TAB>` ctx.params["ledger"] is None: the option that still lacks its value ends
# the parsing before the arguments are given out. A completion that looks up its words in the file or
# host named before offers nothing, or those of the default, in the spelling that users type most.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check click==8.5.1 typer==0.27.3

cat >"$folder/by_click.py" <<'PYTHON'
import click


def complete(ctx, param, incomplete):
    return [f"ledger={ctx.params['ledger']}"]


@click.command()
@click.argument("ledger")
@click.argument("other", required=False, shell_complete=complete)
@click.option("--task", shell_complete=complete)
def show(ledger, other, task):
    """Never called: only completions are asked for."""


show(prog_name="show")
PYTHON

cat >"$folder/by_typer.py" <<'PYTHON'
from typing import Annotated

import typer


def complete(ctx: typer.Context):
    return [f"ledger={ctx.params['ledger']}"]


app = typer.Typer()


@app.command()
def show(
    ledger: str,
    other: Annotated[str, typer.Argument(autocompletion=complete)] = "",
    task: Annotated[str, typer.Option(autocompletion=complete)] = "",
):
    """Never called: only completions are asked for."""


app(prog_name="show")
PYTHON

completed() { # program, value of the variable by which its shell function calls it, line, word
  _SHOW_COMPLETE=$2 COMP_WORDS=$3 COMP_CWORD=$4 "$folder/venv/bin/python" "$folder/$1.py"
}

expect() { # what is wanted, arguments of completed...
  wanted=$1
  shift
  said=$(completed "$@")
  said=${said#plain,}
  echo "$1, $3<TAB>: $said"
  [ "$said" = "$wanted" ] || {
    echo "changed: was $wanted" >&2
    exit 1
  }
}

"$folder/venv/bin/python" -c '
from importlib.metadata import version
from platform import python_version
print("python", python_version() + ", click", version("click") + ", typer", version("typer"))'
for program in by_click:bash_complete by_typer:complete_bash; do
  expect ledger=runs/a "${program%:*}" "${program#*:}" "show runs/a " 2
  expect ledger=None "${program%:*}" "${program#*:}" "show runs/a --task " 3
done
expect ledger=runs/a by_click bash_complete "show runs/a --task=" 2
echo "seen: the argument is lost where an option awaits its value"

# seen:
#   python 3.11.7, click 8.5.1, typer 0.27.3
#   by_click, show runs/a <TAB>: ledger=runs/a
#   by_click, show runs/a --task <TAB>: ledger=None
#   by_typer, show runs/a <TAB>: ledger=runs/a
#   by_typer, show runs/a --task <TAB>: ledger=None
#   by_click, show runs/a --task=<TAB>: ledger=runs/a
#   seen: the argument is lost where an option awaits its value
