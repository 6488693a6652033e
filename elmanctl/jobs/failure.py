"""From the exception that ended a worker to its verdict.

Only names and texts are looked at, so that torch need not be importable: a machine without it
must still be told from a mistake in the model.
"""

import errno
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from elmanctl.errors import ElmanError, EnvironmentNotReady, InvalidConfiguration, NotFound
from elmanctl.ledger.records import VerdictKind

# An error message may be a page long; the evidence keeps its beginning.
TEXT_LIMIT = 2000

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXT = re.compile(r"No space left on device|Disk quota exceeded")

_OOM_CLASS = "OutOfMemoryError"
_OOM_TEXT = re.compile(
    r"(CUDA|HIP|XPU)( error:)? out of memory"
    r"|DefaultCPUAllocator: (can't|not enough)"
    r"|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_ALLOC_FAILED"
)

# A machine on which no such job can run is no fault of the job.
_NOT_READY_TEXT = re.compile(
    r"No CUDA GPUs are available"
    r"|Found no NVIDIA driver"
    r"|NVIDIA driver on your system is too old"
    r"|Torch not compiled with CUDA enabled"
    r"|no kernel image is available"
    r"|cannot open shared object file"
)

_ACCELERATOR_CLASS = "AcceleratorError"
_ACCELERATOR_TEXT = re.compile(
    r"\b(CUDA|HIP)( driver| kernel| runtime)? error"
    r"|\bNCCL\b.*error|\bncclUnhandled|\bnccl\w+Error"
    r"|\bcuDNN( Frontend)? error|\b(CUDNN|CUBLAS|CUSOLVER|CUSPARSE|CUFFT)_STATUS_"
    r"|\bTriton Error \[(CUDA|HIP)\]",
    re.IGNORECASE,
)

# Triton's word for a tile that does not fit the device: the same everywhere, whatever is free.
_NOT_FITTING_CLASS = "OutOfResources"


def classify_exception(exc: BaseException) -> tuple[VerdictKind, str]:
    """Return the verdict that an exception means, and the text that says so.

    The first line of the text is a summary.  What was raised decides, then what it was raised
    from; a full disk is found in the whole chain, since it makes anything fail.
    """
    for link in (*_causes(exc), *_contexts(exc)):
        if _is_disk_full(link):
            return VerdictKind.DISK_FULL, _text(link)
    for link in _causes(exc):
        kind = _kind(link)
        if kind is not None:
            return kind, _text(link)
    return VerdictKind.PYTHON_ERROR, _text(exc, with_frame=True)


def _kind(exc: BaseException) -> VerdictKind | None:
    text = str(exc)
    names = {base.__name__ for base in type(exc).__mro__}
    if isinstance(exc, MemoryError) or _OOM_CLASS in names or _OOM_TEXT.search(text):
        return VerdictKind.OOM
    if isinstance(exc, OSError) and exc.errno == errno.ENOMEM:
        return VerdictKind.OOM
    if isinstance(exc, EnvironmentNotReady | ImportError) or _NOT_READY_TEXT.search(text):
        return VerdictKind.ENVIRONMENT
    if isinstance(exc, InvalidConfiguration | NotFound) or _NOT_FITTING_CLASS in names:
        return VerdictKind.INVALID
    if _ACCELERATOR_CLASS in names or _ACCELERATOR_TEXT.search(text):
        return VerdictKind.CUDA_ERROR
    return None


def _is_disk_full(exc: BaseException) -> bool:
    if isinstance(exc, OSError) and exc.errno in _FULL:
        return True
    return bool(_FULL_TEXT.search(str(exc)))


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what it was raised from, explicitly."""
    seen: set[int] = set()
    link: BaseException | None = exc
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _contexts(exc: BaseException) -> Iterator[BaseException]:
    """Yield what was being handled when an exception, or one it came from, was raised."""
    seen: set[int] = set()
    link: BaseException | None = exc
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _text(exc: BaseException, *, with_frame: bool = False) -> str:
    first, *rest = str(exc).strip().splitlines() or [""]
    name = type(exc).__name__
    summary = f"{name}: {first}" if first else name
    if with_frame and (place := _innermost_frame(exc)):
        summary = f"{summary} ({place})"
    if isinstance(exc, ElmanError) and exc.hint:
        rest = [*rest, f"hint: {exc.hint}"]
    return "\n".join([summary, *rest])[:TEXT_LIMIT]


def frame_of(exc: BaseException, root: Path) -> tuple[str, int] | None:
    """Return file and line of the innermost frame below `root`, or else of the innermost one.

    Files below `root` are named relative to it.
    """
    places = [
        (Path(frame.filename), frame.lineno)
        for frame in traceback.extract_tb(exc.__traceback__)
        if frame.lineno is not None
    ]
    for path, line in reversed(places):
        if path.is_relative_to(root):
            return str(path.relative_to(root)), line
    return (str(places[-1][0]), places[-1][1]) if places else None


def _innermost_frame(exc: BaseException) -> str | None:
    frames = traceback.extract_tb(exc.__traceback__)
    if not frames:
        return None
    frame = frames[-1]
    return f"{Path(frame.filename).name} line {frame.lineno}, in {frame.name}"
