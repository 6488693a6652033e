"""The worker that caught an exception and the log that prints it agree on its kind.

Each exception is raised and judged by the worker, and Python's own traceback of it by the rules
for logs; the right kind is written down by hand.
"""

import errno
import traceback
from typing import Any

import pytest

from elmanctl.jobs.failure import classify_exception
from elmanctl.ledger.records import VerdictKind
from elmanctl.verdicts import classify_log
from elmanctl.verdicts.exception_rules import EXCEPTION_RULES
from elmanctl.verdicts.logs.signs import shape_of
from tests.verdicts.exceptions import (
    OF_MEMORY,
    OF_THE_ACCELERATOR,
    OF_THE_CODE,
    OF_THE_CONFIGURATION,
    OF_THE_DISK,
    OF_THE_NODE,
    named,
)

ENVIRONMENT, OOM, DISK_FULL = VerdictKind.ENVIRONMENT, VerdictKind.OOM, VerdictKind.DISK_FULL
CUDA_ERROR, INVALID = VerdictKind.CUDA_ERROR, VerdictKind.INVALID
PYTHON_ERROR, KILLED, TIMEOUT = VerdictKind.PYTHON_ERROR, VerdictKind.KILLED, VerdictKind.TIMEOUT


def in_loader(inner: Exception) -> Exception:
    """Return what the main process raises for a worker of a DataLoader."""
    printed = "".join(traceback.format_exception(raised(inner)))
    text = f"Caught {type(inner).__name__} in DataLoader worker process 2.\nOriginal {printed}"
    return type(inner)(text)


def raised(exc: BaseException) -> BaseException:
    try:
        raise exc
    except BaseException as caught:
        return caught


def both(exc: BaseException) -> tuple[VerdictKind, VerdictKind]:
    """Return what the worker says of an exception, and what its printed traceback says."""
    caught = raised(exc)
    text = "step 10 loss 3.2\n" + "".join(traceback.format_exception(caught))
    return classify_exception(caught)[0], classify_log(text).kind


ALONE = [
    *((exc, ENVIRONMENT) for exc in OF_THE_NODE),
    *((exc, OOM) for exc in OF_MEMORY),
    *((exc, DISK_FULL) for exc in OF_THE_DISK),
    *((exc, CUDA_ERROR) for exc in OF_THE_ACCELERATOR),
    *((exc, INVALID) for exc in OF_THE_CONFIGURATION),
    *((exc, PYTHON_ERROR) for exc in OF_THE_CODE),
    (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. "), KILLED),
    (RuntimeError("DataLoader worker is killed by signal: CPU time limit exceeded"), TIMEOUT),
    *(
        (
            named("subprocess", "CalledProcessError", Exception)(
                f"Command '['fit']' died with <Signals.{name}>."
            ),
            kind,
        )
        for name, kind in (
            ("SIGKILL: 9", KILLED),
            ("SIGXCPU: 24", TIMEOUT),
            ("SIGINT: 2", VerdictKind.CANCELLED),
        )
    ),
    (
        named("joblib", "TerminatedWorkerError", Exception)(
            "A worker process was unexpectedly terminated.\nExit codes: {SIGKILL(-9)}"
        ),
        KILLED,
    ),
    (
        named("torch.multiprocessing.spawn", "ProcessExitedException", Exception)(
            "process 0 terminated with signal SIGKILL"
        ),
        KILLED,
    ),
]


def shown(value: Any) -> str:
    return f"{type(value).__name__}: {value}"[:60] if isinstance(value, Exception) else str(value)


@pytest.mark.parametrize(("exc", "kind"), ALONE, ids=shown)
def test_worker_and_log_give_an_exception_the_same_kind(exc: Exception, kind: VerdictKind) -> None:
    assert both(exc) == (kind, kind)


@pytest.mark.parametrize(("exc", "kind"), ALONE, ids=shown)
def test_every_rule_is_found_by_one_of_its_words(exc: Exception, kind: VerdictKind) -> None:
    for line in "".join(traceback.format_exception_only(exc)).splitlines():
        lowered = shape_of(line).lower()
        for rule in EXCEPTION_RULES:
            assert not rule.matches(line) or any(key in lowered for key in rule.keys), (line, rule)


WRAPPED = [OF_THE_NODE[0], OF_THE_NODE[21], OF_MEMORY[0], OF_THE_DISK[0], OF_THE_CODE[0]]


@pytest.mark.parametrize("inner", WRAPPED, ids=shown)
def test_worker_of_a_loader_is_judged_by_what_it_raised(inner: Exception) -> None:
    kind = both(inner)[0]
    assert both(in_loader(inner)) == (kind, kind)
    assert both(RuntimeError(str(in_loader(inner)))) == (kind, kind)


@pytest.mark.parametrize("inner", WRAPPED, ids=shown)
def test_what_an_exception_was_raised_from_decides(inner: Exception) -> None:
    kind = both(inner)[0]
    outer = RuntimeError("the training failed")
    outer.__cause__ = raised(inner)
    outermost = ValueError("evaluation 3")
    outermost.__cause__ = raised(outer)
    assert both(outermost) == (kind, kind)


@pytest.mark.parametrize("inner", WRAPPED, ids=shown)
def test_what_was_being_handled_decides_only_where_it_outlasts_that(inner: Exception) -> None:
    kind = both(inner)[0] if both(inner)[0] in (OOM, DISK_FULL) else PYTHON_ERROR
    middle = RuntimeError("no longer needed")
    middle.__cause__ = raised(inner)
    outer = TypeError("while cleaning up")
    outer.__context__ = raised(middle)
    assert both(outer) == (kind, kind)
    outer.__suppress_context__ = True
    assert both(outer) == (PYTHON_ERROR, PYTHON_ERROR)


@pytest.mark.parametrize("inner", WRAPPED, ids=shown)
def test_what_a_group_holds_decides(inner: Exception) -> None:
    kind = both(inner)[0]
    held: list[Any] = [ValueError("one"), raised(inner), KeyError("two")]
    group = ExceptionGroup("workers", held)
    assert both(group) == (kind, kind)
    assert both(ExceptionGroup("outer", [group])) == (kind, kind)


def test_end_of_a_program_is_judged_by_its_words() -> None:
    assert classify_exception(SystemExit("CUDA out of memory, giving up"))[0] is OOM
    assert classify_exception(SystemExit(3)) == (PYTHON_ERROR, "SystemExit: 3")


def test_worker_knows_the_number_of_a_call_and_the_classes_behind_a_class() -> None:
    assert classify_exception(OSError(errno.ESTALE))[0] is PYTHON_ERROR
    quiet = type("Quiet", (OSError,), {"__str__": lambda self: "it failed"})
    assert classify_exception(quiet(errno.ESTALE, "Stale file handle"))[0] is ENVIRONMENT
    own = type("OurOwn", (MemoryError,), {})
    assert classify_exception(own("no more"))[0] is OOM


def test_exception_whose_text_cannot_be_had_has_a_verdict() -> None:
    mute = type("Mute", (ValueError,), {"__str__": lambda self: 1 / 0})
    kind, text = classify_exception(mute("x"))
    assert (kind, text) == (PYTHON_ERROR, "Mute: its text cannot be had: ZeroDivisionError")
