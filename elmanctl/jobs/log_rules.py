"""What single lines of a log say of errors and signals.

The rules know trainers, launchers, Python, CUDA and Slurm, and no program in particular.
"""

import re
from dataclasses import dataclass
from enum import IntEnum

from elmanctl.ledger.records import VerdictKind

_K = VerdictKind


class Weight(IntEnum):
    """How near to the cause a line is."""

    SYMPTOM = 0
    SIGNAL = 1
    SCHEDULER = 2
    CAUSE = 3


@dataclass(frozen=True, slots=True)
class Rule:
    """A text that tells of a kind of end."""

    pattern: re.Pattern[str]
    kind: VerdictKind
    weight: Weight = Weight.CAUSE


def _rule(pattern: str, kind: VerdictKind, weight: Weight = Weight.CAUSE) -> Rule:
    return Rule(re.compile(pattern), kind, weight)


_DISK_FULL = _rule(
    r"No space left on device|Disk quota exceeded|\[Errno (28|122)\]|\bENOSPC\b"
    # torch.save keeps the reason to itself.
    r"|PytorchStreamWriter failed writing|inline_container\.cc:\d+\] \. unexpected pos",
    _K.DISK_FULL,
)
_OOM = _rule(
    r"(CUDA|HIP|XPU|MPS backend)\]?:?( error:)? out of memory|\bOutOfMemoryError\b"
    r"|Cuda failure .*out of memory|cudaErrorMemoryAllocation|RESOURCE_EXHAUSTED: Out of memory"
    r"|DefaultCPUAllocator: (can't|not enough)|_STATUS_ALLOC_FAILED|\bstd::bad_alloc\b"
    r"|(^|[\s.:])_?(Array)?MemoryError(:|$)|\bCannot allocate memory\b",
    _K.OOM,
)
_NOT_READY = _rule(
    r"No CUDA GPUs are available|Found no NVIDIA driver|no CUDA-capable device is detected"
    r"|NVIDIA driver on your system is too old|driver version is insufficient"
    r"|Torch not compiled with CUDA|no GPUs found|NVIDIA-SMI has failed|invalid device ordinal"
    r"|device\(s\) is/are busy or unavailable|no kernel image is available"
    r"|cannot open shared object file|version `GLIBC\w*_[\d.]+' not found|undefined symbol:"
    r"|environment variable \w+ expected, but not set|EADDRINUSE|[Aa]ddress already in use"
    r"|couldn't connect to 'https?://|Max retries exceeded with url|DistNetworkError"
    r"|out of shared memory|insufficient shared memory|unable to allocate shared memory"
    r"|deserialize object on a CUDA device but",
    _K.ENVIRONMENT,
)
_INVALID = _rule(
    r"^([\w.]+\.)?InvalidConfiguration\b|\bOutOfResources\b|\bConfig(Attribute|Key|Composition)\w+:"
    r"|\bValidationError: \d+ validation error"
    r"|shape '\[[^\]]*\]' is invalid for input of size"
    r"|The size of tensor a \(\d+\) must match the size of tensor b"
    r"|shapes cannot be multiplied|Sizes of tensors must match|[Ee]xpected size for first two dim"
    r"|only supports? \w+, (but )?got \w+|must be divisible by|is not divisible by"
    r"|(?i:error: (invalid|unknown|unsupported|unrecogni[sz]ed) "
    r"(level|model|config|arch|dtype|optimi[sz]er|activation|layer|backend|head|dim|hidden)\w*)"
    r"|(?i:error: .*\b(invalid|unknown|unsupported|must be one of)\b"
    r".*\b(available|choose from|supported|must be one of)\b)",
    _K.INVALID,
)
_CUDA = _rule(
    r"(?i:\b(CUDA|HIP)( driver| kernel| runtime)? error\b|\bcuDNN( Frontend)? error"
    r"|\b(CUDNN|CUBLAS|CUSOLVER|CUSPARSE|CUFFT)_STATUS_|\bTriton Error \[(CUDA|HIP)\])"
    r"|\bAcceleratorError\b|device-side assert triggered|an illegal memory access was encountered",
    _K.CUDA_ERROR,
)
_NCCL = _rule(
    r"Watchdog caught collective operation timeout|\bNCCL (\w+ )?error\b"
    r"|NCCL communicator was aborted|\bncclUnhandled|\bnccl\w+Error\b"
    r"|\bDistBackendError\b|Cuda failure ",
    _K.CUDA_ERROR,
    Weight.SYMPTOM,
)
_MISSING = _rule(
    r"^([\w.]+\.)?(ModuleNotFoundError|ImportError|FileNotFoundError|EnvironmentNotReady"
    r"|LocalEntryNotFoundError|OfflineModeIsEnabled)\b",
    _K.ENVIRONMENT,
)
_WRAPPER = _rule(
    r"ChildFailedError|CalledProcessError|ProcessRaisedException|ProcessExitedException"
    r"|RayTaskError|BrokenProcessPool|FailedJobError|Connection (reset|closed) by peer"
    r"|Socket Timeout|DistStoreError|Broken pipe",
    _K.PYTHON_ERROR,
    Weight.SYMPTOM,
)
_INTERRUPT = _rule(
    r"^(Detected )?KeyboardInterrupt\b|got signal: 2\b|exitcode\s*:\s*-2\b",
    _K.CANCELLED,
    Weight.SIGNAL,
)
_CHILD_SIGNAL = _rule(
    r"got signal: \d+|terminated with signal SIG|is killed by signal: \w+|exitcode\s*:\s*-\d+",
    _K.KILLED,
    Weight.SIGNAL,
)

# Of the line that ends a traceback; the first that fits.
EXCEPTION_RULES = (
    _DISK_FULL,
    _OOM,
    _NOT_READY,
    _rule(r"\bnccl(Unhandled|System)\w*", _K.CUDA_ERROR, Weight.SYMPTOM),
    _INTERRUPT,
    _CHILD_SIGNAL,
    _rule(r"could not find submitted jobs", _K.LOST),
    _INVALID,
    _MISSING,
    _NCCL,
    _CUDA,
    _WRAPPER,
)

# Of any line; the first that fits.
LINE_RULES = (
    _rule(
        r"oom[-_ ]?kill|[Oo]ut of memory: Killed process|: Out Of Memory\b|OUT_OF_MEMORY"
        r"|[Ee]xceeded (job|step) memory limit|exceeded memory limit \(|TERM_MEMLIMIT"
        r"|cgroup out-of-memory handler",
        _K.OOM,
    ),
    _rule(
        r"DUE TO TIME LIMIT|^timeout: sending signal|job killed: walltime|TERM_RUNLIMIT",
        _K.TIMEOUT,
        Weight.SCHEDULER,
    ),
    _rule(r"DUE TO (PREEMPTION|JOB REQUEUE)", _K.PREEMPTED, Weight.SCHEDULER),
    _rule(r"DUE TO NODE FAILURE|srun: error: Node failure on", _K.NODE_FAILURE, Weight.SCHEDULER),
    _rule(r"\*\*\* (JOB|STEP) \S+ ON \S+ CANCELLED AT\b", _K.CANCELLED, Weight.SCHEDULER),
    _rule(r"(?i:\bwarn(ing)?\b)", _K.UNDETERMINED, Weight.SYMPTOM),  # told, and gone on
    Rule(
        re.compile(r"(?:^|: )(?:\S+: )?(?:No space left on device|Disk quota exceeded)"),
        _K.DISK_FULL,
    ),
    Rule(re.compile(r"(?:Cuda failure|CUDA error:) .*out of memory|^terminate.*bad_alloc"), _K.OOM),
    _rule(
        r"^\S*python[\d.]*: (can't open file|No module named)|^\S*python[\d.]*: Error while finding"
        r"|: (line )?\d+: .*(command not found|Permission denied|No such file or directory)"
        r"|^\S*sh: (\S+: )?(command not found|.*: Permission denied|.*: No such file or directory)"
        r"|^\(eval\):\d+: |execve\(\): |NVIDIA-SMI has failed"
        r"|^s(run|batch): error: (Unable to|Invalid|Batch job submission failed)"
        r"|error while loading shared libraries|^CommandNotFoundError:",
        _K.ENVIRONMENT,
    ),
    _rule(
        r"^[\w./-]+: error: the following arguments are required"
        r"|^\W*(Error: )?Missing (option|argument) '",
        _K.ENVIRONMENT,
    ),
    _rule(
        r"^[\w./-]+: error: (unrecognized arguments|ambiguous option|argument \S+: "
        r"|one of the arguments|No such option|Missing)"
        r"|^\W*(Error: )?(No such option: |Invalid value for )"
        r"|^Could not override '",
        _K.INVALID,
    ),
    _rule(r"\bNVRM: Xid\b|GPU has fallen off the bus", _K.CUDA_ERROR),
    _rule(r"Watchdog caught collective operation timeout", _K.CUDA_ERROR, Weight.SYMPTOM),
    _rule(r"^\s*what\(\):\s+.*CUDA error: ", _K.CUDA_ERROR),
    _rule(r"^CUDA error: ", _K.CUDA_ERROR, Weight.SYMPTOM),
    _INTERRUPT,
    # torchrun's word on the first process that failed; those it stops then have signals.
    _rule(r"failed \(exitcode: [1-9]", _K.PYTHON_ERROR, Weight.SIGNAL),
    _CHILD_SIGNAL,
    _rule(
        r"^(.*: line \d+:\s+\d+ )?(Killed|Terminated|Segmentation fault|Aborted|Bus error)"
        r"(: \d+)?(\s+\(core dumped\))?(\s{2,}.*)?$"
        r"|^srun: error: .*: (Killed|Terminated|Segmentation fault|Aborted|Bus error)"
        r"|^zsh: (killed|terminated|segmentation fault|abort|bus error)\b|STEPD TERMINATED ON"
        r"|^Fatal Python error: |^\*\*\* Process received signal",
        _K.KILLED,
        Weight.SIGNAL,
    ),
    _rule(r"^srun: error: .*: Exited with exit code [1-9]", _K.UNDETERMINED, Weight.SYMPTOM),
)
_MAY_FIT = re.compile(
    r"(?i:kill|memory|DUE TO|failure|CANCELLED|space|quota|python|sh: |eval|execve|SMI|srun|sbatch"
    r"|shared|error|Xid|fallen|watchdog|what\(\)|signal|exitcode|Terminated|Segmentation|Aborted"
    r"|found|denied|No such|Interrupt|timeout|walltime|TERM_|Missing"
    r"|Invalid value|override|TERMINATED)"
)

TRACEBACK = re.compile(r"Traceback \(most recent call last\):")
EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?=: |:$|$)")
NAMED_EXCEPTION = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*(?:\w+(?:Error|Exception|Interrupt)|InvalidConfiguration|OutOfResources)\b(?=:|$|\()"
)
IGNORED = re.compile(r"^Exception ignored (in|on)\b")
SUPERSEDED = re.compile(r"^During handling of the above exception")
# submitit's own word on a job it stopped says nothing of why.
_SAYS_NOTHING = re.compile(r"UncompletedJobError")
_OF_NUMBERS = re.compile(r"(?i)\b(nan|inf|infinite|non-?finite|not finite|diverged)\b")


def may_be_error(line: str) -> bool:
    """Whether a line outside of tracebacks need be held against the rules."""
    return bool(NAMED_EXCEPTION.match(line) or _MAY_FIT.search(line))


def read_error(line: str, *, ends_traceback: bool) -> Rule | None:
    """Return the rule that a line of a log fits, None for a line that tells of no error."""
    if ends_traceback or NAMED_EXCEPTION.match(line):
        if _SAYS_NOTHING.search(line):
            return None
        for rule in EXCEPTION_RULES:
            if rule.pattern.search(line):
                return rule
        return Rule(EXCEPTION, _K.PYTHON_ERROR)
    for rule in LINE_RULES:
        if rule.pattern.search(line):
            return None if rule.kind is _K.UNDETERMINED else rule
    return None


def is_of_numbers(line: str) -> bool:
    """Whether an error complains of numbers that are not finite."""
    return bool(_OF_NUMBERS.search(line))
