import errno
import importlib
from typing import Any

import pytest

from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration, NotFound
from elmanctl.jobs.failure import TEXT_LIMIT, classify_exception
from elmanctl.ledger.records import VerdictKind

OOM = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 1.56 GiB is free. Process 41120 has 60.02 GiB memory in use. Including non-PyTorch "
    "memory, this process has 17.50 GiB memory in use. Of the allocated memory 16.80 GiB is "
    "allocated by PyTorch, and 201.11 MiB is reserved by PyTorch but unallocated."
)
ILLEGAL = (
    "CUDA error: an illegal memory access was encountered\n"
    "CUDA kernel errors might be asynchronously reported at some other API call"
)


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


class AcceleratorError(RuntimeError):
    """As torch names it."""


class OutOfResources(Exception):
    """As Triton names it."""


class MoreSpecial(OutOfMemoryError):
    """A subclass must be recognised too."""


@pytest.mark.parametrize(
    ("exc", "kind"),
    [
        (MemoryError(), VerdictKind.OOM),
        (OutOfMemoryError(OOM), VerdictKind.OOM),
        (MoreSpecial("of its own words"), VerdictKind.OOM),
        (RuntimeError("CUDA error: out of memory"), VerdictKind.OOM),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), VerdictKind.OOM),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            VerdictKind.OOM,
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), VerdictKind.OOM),
        (AcceleratorError(ILLEGAL), VerdictKind.CUDA_ERROR),
        (RuntimeError(ILLEGAL), VerdictKind.CUDA_ERROR),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), VerdictKind.CUDA_ERROR),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), VerdictKind.CUDA_ERROR),
        (RuntimeError("NCCL error in: x.cpp:5, unhandled"), VerdictKind.CUDA_ERROR),
        (RuntimeError("Triton Error [CUDA]: misaligned address"), VerdictKind.CUDA_ERROR),
        (OSError(errno.ENOSPC, "No space left on device"), VerdictKind.DISK_FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), VerdictKind.DISK_FULL),
        (RuntimeError("write failed: No space left on device"), VerdictKind.DISK_FULL),
        (ModuleNotFoundError("No module named 'torch'"), VerdictKind.ENVIRONMENT),
        (ImportError("libcudart.so.12: cannot open shared object"), VerdictKind.ENVIRONMENT),
        (OSError("libcublas.so.12: cannot open shared object file"), VerdictKind.ENVIRONMENT),
        (EnvironmentNotReady("the corpus is missing"), VerdictKind.ENVIRONMENT),
        (RuntimeError("No CUDA GPUs are available"), VerdictKind.ENVIRONMENT),
        (
            RuntimeError("CUDA error: no kernel image is available for execution on the device"),
            VerdictKind.ENVIRONMENT,
        ),
        (InvalidConfiguration("n_state=20 is not supported"), VerdictKind.INVALID),
        (NotFound("no model level `e99`"), VerdictKind.INVALID),
        (OutOfResources("out of resource: shared memory, Required: 300000"), VerdictKind.INVALID),
        (ValueError("wrong"), VerdictKind.PYTHON_ERROR),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), VerdictKind.PYTHON_ERROR),
        (KeyError("x"), VerdictKind.PYTHON_ERROR),
        (FileNotFoundError(errno.ENOENT, "No such file"), VerdictKind.PYTHON_ERROR),
    ],
)
def test_an_exception_means_its_verdict(exc: Exception, kind: VerdictKind) -> None:
    found, text = classify_exception(exc)
    assert found is kind
    assert text.startswith(type(exc).__name__)
    assert str(exc).splitlines()[0:1] == [] or str(exc).splitlines()[0] in text


def test_the_neighbour_on_the_gpu_stays_in_the_evidence() -> None:
    _, text = classify_exception(OutOfMemoryError(OOM))
    assert "Process 41120 has 60.02 GiB memory in use." in text


def raised(build: Any) -> Exception:
    try:
        build()
    except Exception as exc:
        return exc
    raise AssertionError("nothing was raised")


def test_what_it_was_raised_from_decides_when_it_is_otherwise_unknown() -> None:
    def build() -> None:
        try:
            raise OutOfMemoryError(OOM)
        except OutOfMemoryError as exc:
            raise ValueError("training failed") from exc

    kind, text = classify_exception(raised(build))
    assert kind is VerdictKind.OOM
    assert text.startswith("OutOfMemoryError")


def test_a_handled_failure_is_not_the_cause_of_a_later_bug() -> None:
    def build() -> None:
        try:
            importlib.import_module("no_such_module")
        except ImportError:
            raise ValueError("the bug")  # noqa: B904

    kind, text = classify_exception(raised(build))
    assert kind is VerdictKind.PYTHON_ERROR
    assert text.startswith("ValueError: the bug (test_failure.py line ")


def test_a_full_disk_is_seen_behind_whatever_it_made_fail() -> None:
    def build() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise AttributeError("while cleaning up")  # noqa: B904

    assert classify_exception(raised(build))[0] is VerdictKind.DISK_FULL


def test_a_full_disk_that_was_dealt_with_is_not_blamed() -> None:
    def build() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise ValueError("another thing") from None

    assert classify_exception(raised(build))[0] is VerdictKind.PYTHON_ERROR


def test_a_python_error_names_the_innermost_frame() -> None:
    def inner() -> None:
        raise ZeroDivisionError("division by zero")

    _, text = classify_exception(raised(inner))
    assert text.startswith("ZeroDivisionError: division by zero (test_failure.py line ")
    assert text.endswith(", in inner)")


def test_a_message_of_many_lines_keeps_its_first_line_apart_and_is_bounded() -> None:
    kind, text = classify_exception(ValueError("first\nsecond\n" + "x" * 10_000))
    assert kind is VerdictKind.PYTHON_ERROR
    assert text.splitlines()[:2] == ["ValueError: first", "second"]
    assert len(text) == TEXT_LIMIT


def test_exceptions_that_refer_to_each_other_end() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert classify_exception(one)[0] is VerdictKind.PYTHON_ERROR
