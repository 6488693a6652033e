"""`doctor`: check of this machine's environment and GPU."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Context, Exit, Option

from elmanctl.bench.machine import require_device
from elmanctl.cli import output
from elmanctl.cli.context import JsonFlag, resolve_settings
from elmanctl.doctor import examine
from elmanctl.errors import EnvironmentNotReady
from elmanctl.folders import as_written
from elmanctl.models.backends import BACKENDS

if TYPE_CHECKING:
    import torch

INTERPRETED = "cpu, Triton's interpreter: checks the formulas, not a GPU"


def doctor(
    ctx: Context,
    gpu: Annotated[
        bool, Option("--gpu", help="Check the kernels against float64 on this GPU instead")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check this machine: packages, model backends, Slurm, disk; or its GPU

    Nothing is changed.  Not everything is needed everywhere: a login node does not train, and a
    workstation has no Slurm.

    With `--gpu` all kernels run on this machine's GPU, at several sizes and in all supported
    dtypes, and outputs and gradients are compared with a float64 loop. The exit code is 1 if any
    of them is wrong, and 4 without a GPU. With TRITON_INTERPRET=1 and no GPU, elmanctl's own
    kernels run on the CPU in Triton's interpreter.

    \b
    Examples:
        elmanctl doctor
        elmanctl doctor --json
        elmanctl doctor --gpu
    """
    if gpu:
        _check_kernels(as_json)
        return
    settings = resolve_settings(ctx, {}).settings
    runs = as_written(Path(settings.paths.runs))
    is_rounded = output.is_terminal() and not as_json
    format_bytes = output.format_bytes if is_rounded else "{:.0f} bytes".format
    findings = examine(runs, settings.disk.floor_gb, format_bytes)
    if as_json:
        keys = ("part", "name", "is_fine", "detail", "fix")
        rows = [{key: getattr(finding, key) for key in keys} for finding in findings]
        output.print_json({"findings": rows})
        return
    output.print_table(
        [*output.columns("PART", "NAME", "OK"), output.Column("DETAIL", wraps=True)],
        [[f.part, f.name, "yes" if f.is_fine else "no", f.detail] for f in findings],
    )
    for finding in findings:
        if finding.fix:
            output.hint(f"{finding.name}: {finding.fix}")


def _check_kernels(as_json: bool) -> None:
    """Check all kernels and print the results.

    Raises Exit if any is wrong, EnvironmentNotReady if none of our own could run.
    """
    device = _device()
    from elmanctl.bench.machine import describe

    machine = describe(device)
    if device.type == "cpu":
        machine["label"] = INTERPRETED
    output.say(str(machine.get("label") or machine["name"]))
    checks = list(_checks(device))
    if as_json:
        output.print_json({"machine": machine, "checks": checks})
    else:
        output.print_table(_COLUMNS, [_cells(check) for check in checks])
    if any(check["status"] in ("wrong", "failed") for check in checks):
        raise Exit(1)
    ours = [check for check in checks if check["is_ours"]]
    if device.type == "cuda" and all(check["status"] == "not run" for check in ours):
        raise EnvironmentNotReady(
            f"none of our own kernels ran on this GPU: {ours[0]['reason']}",
            hint=BACKENDS["triton"].fix,
        )


def _device() -> "torch.device":
    try:
        return require_device("cuda")
    except EnvironmentNotReady:
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise
    return require_device("cpu")


def _checks(device: "torch.device") -> Iterator[dict[str, Any]]:
    """Yield all checks as plain data, reporting each as it finishes."""
    from elmanctl.bench.selftest import check_all

    for check in check_all(device):
        output.say(f"{check.operation} {check.path} {check.size} {check.dtype}: {check.status}")
        yield check.encode()


_COLUMNS = [
    *output.columns("OPERATION", "PATH", "SIZE", "DTYPE", "RESULT"),
    output.Column("ERROR", right=True),
    output.Column("ALLOWED", right=True, dispensable=1),
    output.Column("OF", dispensable=2),
    *output.columns("FORWARD MS", "BOTH MS", right=True, dispensable=1),
    output.Column("NOTE", wraps=True, may_be_empty=True),
]


def _cells(check: dict[str, Any]) -> list[str | None]:
    def formatted(key: str, spec: str) -> str | None:
        return None if check[key] is None else format(check[key], spec)

    return [
        *(check[key] for key in ("operation", "path", "size", "dtype", "status")),
        formatted("error", ".1e"),
        formatted("allowed", ".0e"),
        check["worst"],
        formatted("forward_ms", ".3g"),
        formatted("forward_backward_ms", ".3g"),
        check["reason"],
    ]
