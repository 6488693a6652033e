"""Runs elmanctl as a process that dies at a chosen instant, or believes to be another machine.

    dying.py [--die POINT:MOMENT:N [--stop]] [--host NAME --stale-s S] -- ARGUMENTS...

POINT is fsync, link, replace, tell, submit for sbatch or the start of a worker, or save for the
optimizer's state; MOMENT is before or after; the process gets SIGKILL at the Nth call, with --stop
SIGSTOP instead.  With --host it takes over leases of other machines after S seconds of silence.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any


def dies_at(
    real: Callable[..., Any],
    moment: str,
    count: int,
    number: signal.Signals,
    counts: Callable[..., bool] = lambda *arguments: True,
) -> Callable[..., Any]:
    """Return `real`, with a signal to this process before or after its `count`th call.

    Only calls with arguments that `counts` says yes to are counted.
    """
    seen = 0

    def called(*arguments: Any, **named: Any) -> Any:
        nonlocal seen
        if not counts(*arguments):
            return real(*arguments, **named)
        seen += 1
        if seen == count and moment == "before":
            os.kill(os.getpid(), number)
        result = real(*arguments, **named)
        if seen == count and moment == "after":
            os.kill(os.getpid(), number)
        return result

    return called


def prepare_death(text: str, number: signal.Signals) -> None:
    """Replace the functions that `text` names by ones that send this process a signal."""
    from elmanctl.schedulers import slurm_executor
    from elmanctl.search.point_source import PointSource

    point, moment, count = text.split(":")
    owners: dict[str, list[tuple[Any, str]]] = {
        "fsync": [(os, "fsync")],
        "link": [(os, "link")],
        "replace": [(os, "replace")],
        "tell": [(PointSource, "report")],
        # Of a worker of this machine, and of sbatch.
        "submit": [(subprocess, "run"), (slurm_executor, "run_command")],
    }
    counts = _submits if point == "submit" else lambda *arguments: True
    for owner, name in owners[point]:
        setattr(owner, name, dies_at(getattr(owner, name), moment, int(count), number, counts))


def _submits(command: Sequence[str], *others: Any) -> bool:
    """Whether a command hands work over: sbatch does on Slurm, setsid on one machine."""
    return command[0] in ("sbatch", "setsid")


def become_another_machine(name: str, stale_s: float) -> None:
    """Give this process another machine's name and less patience with silent leases."""
    from elmanctl.ledger.lease import Lease

    acquire = Lease.acquire.__func__  # type: ignore[attr-defined]
    acquire.__kwdefaults__["stale_s"] = stale_s
    socket.gethostname = lambda: name


def main() -> None:
    """Read the own options and run elmanctl with the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--die")
    parser.add_argument("--stop", action="store_true")
    parser.add_argument("--host")
    parser.add_argument("--stale-s", type=float, default=2.0)
    parser.add_argument("arguments", nargs="*")
    own = parser.parse_args()
    if own.host:
        become_another_machine(own.host, own.stale_s)
    if own.die:
        prepare_death(own.die, signal.SIGSTOP if own.stop else signal.SIGKILL)
    from elmanctl.__main__ import main as elmanctl

    sys.argv = ["elmanctl", *own.arguments]
    elmanctl()


if __name__ == "__main__":
    main()
