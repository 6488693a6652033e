"""What single lines of a log say of errors and signals.

The rules know trainers, launchers, Python, CUDA and Slurm, and no program in particular.  Each
names the substrings of which a line must hold one: most lines hold none, and are not looked at
any further.  No pattern takes more than linear time on what it may be given.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum

from elmanctl.jobs.causes import BAD_ARGUMENTS, NO_SCHEDULER
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
    """A text that tells of a kind of end.

    `keys` are lower-case substrings, one of which stands in every line that fits; of `patterns`,
    each is looked for behind the one before.
    """

    keys: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]
    kind: VerdictKind
    weight: Weight = Weight.CAUSE

    def fits(self, line: str) -> bool:
        """Whether a line tells so."""
        start = 0
        for pattern in self.patterns:
            # Not from `start` on: `^` and `\\b` look at what is before.
            found = pattern.search(line) if start == 0 else pattern.search(line, start)
            if found is None:
                return False
            start = found.end()
        return True


def _rule(
    keys: str, pattern: str, kind: VerdictKind, weight: Weight = Weight.CAUSE, then: str = ""
) -> Rule:
    patterns = [re.compile(pattern)] + ([re.compile(then)] if then else [])
    return Rule(tuple(keys.split()), tuple(patterns), kind, weight)


_DISK_FULL = _rule(
    "space quota errno enospc storagefull pytorchstreamwriter inline_container",
    r"No space left on device|Disk quota exceeded|\[Errno (28|122)\]|\bENOSPC\b|\bStorageFull\b"
    r"|FilesystemQuotaExceeded"
    # torch.save keeps the reason to itself.
    r"|PytorchStreamWriter failed writing|inline_container\.cc:\d+\] \. unexpected pos",
    _K.DISK_FULL,
)
_OOM = _rule(
    "memory bad_alloc alloc_failed resource_exhausted oom",
    r"(CUDA|HIP|XPU|MPS backend)\]?( driver| runtime)?:?( error)?:? out of memory"
    r"|\bOutOfMemoryError\b|runtime error \(2\) ?: out of memory|_ERROR_OUT_OF_MEMORY"
    r"|Cuda failure .{0,80}out of memory|cudaErrorMemoryAllocation|hipErrorOutOfMemory"
    r"|RESOURCE_EXHAUSTED: Out of memory|OOM when allocating"
    r"|DefaultCPUAllocator: (can't|not enough)|_STATUS_ALLOC_FAILED|\bstd::bad_alloc\b"
    r"|(^|[\s.:])_?(Array)?MemoryError(:|$)|\bCannot allocate memory\b",
    _K.OOM,
)
_NOT_READY = _rule(
    "gpu driver device cuda glibc shared symbol expected address couldn't retries "
    "distnetwork smi rendezvous client repo identifier handle endpoint input/output "
    "read-only many setup yet",
    r"No CUDA GPUs are available|Found no NVIDIA driver|no CUDA-capable device is detected"
    r"|NVIDIA driver on your system is too old|driver version is insufficient"
    r"|Torch not compiled with CUDA|no GPUs found|NVIDIA-SMI has failed|invalid device ordinal"
    r"|device\(s\) is/are busy or unavailable|no kernel image is available"
    r"|system not yet initialized|forward compatibility was attempted|CUDA unknown error"
    r"|_ERROR_(NO_DEVICE|SYSTEM_NOT_READY|SYSTEM_DRIVER_MISMATCH)"
    r"|You requested gpu|No supported gpu backend|Your setup doesn't support"
    r"|cannot open shared object file|version `GLIBC\w*_[\d.]+' not found|undefined symbol:"
    r"|environment variable \w+ expected, but not set|EADDRINUSE|[Aa]ddress already in use"
    r"|[Cc]ouldn't connect to '?https?://|Max retries exceeded with url|DistNetworkError"
    r"|Rendezvous\w+Error|\b40[134] Client Error|access a gated repo|Repository Not Found"
    r"|is not a valid model identifier"
    r"|Stale file handle|Transport endpoint is not connected|Input/output error"
    r"|Read-only file system|Too many open files"
    r"|out of shared memory|insufficient shared memory|unable to allocate shared memory"
    r"|deserialize object on a CUDA device but",
    _K.ENVIRONMENT,
)
_INVALID = _rule(
    "invalid outofresources config validation size shape support divisible related used",
    r"^([\w.]+\.)?InvalidConfiguration\b|\bOutOfResources\b|\bConfig(Attribute|Key|Composition)\w+:"
    r"|\bValidationError: \d+ validation error|DeepSpeedConfigError"
    r"|shape '\[[^\]]*\]' is invalid for input of size"
    r"|The size of tensor a \(\d+\) must match the size of tensor b"
    r"|shapes cannot be multiplied|Sizes of tensors must match|[Ee]xpected size for first two dim"
    r"|only supports? \w+, (but )?got \w+|must be divisible by|is not divisible by"
    r"|[Cc]heck batch related parameters|arguments are not used by the"
    r"|(?i:error: (invalid|unknown|unsupported|unrecogni[sz]ed) "
    r"(level|model|config|arch|dtype|optimi[sz]er|activation|layer|backend|head|dim|hidden)\w*)",
    _K.INVALID,
)
_INVALID_CHOICE = _rule(
    "available choose supported must",
    r"(?i:error: .{0,200}?\b(invalid|unknown|unsupported|must be one of)\b)",
    _K.INVALID,
    then=r"(?i:\b(available|choose from|supported|must be one of|one of)\b)",
)
_CUDA = _rule(
    "cuda hip cudnn cublas cusolver cusparse cufft accelerator device-side illegal",
    r"(?i:\b(CUDA|HIP)( driver| kernel| runtime)? error\b|\bcuDNN( Frontend)? error"
    r"|\b(CUDNN|CUBLAS|CUSOLVER|CUSPARSE|CUFFT)_STATUS_|\bTriton Error \[(CUDA|HIP)\])"
    r"|\bAcceleratorError\b|device-side assert triggered|an illegal memory access was encountered"
    r"|\bCUDA_ERROR_[A-Z]+|\b(cuda|hip)Error[A-Z]\w+",
    _K.CUDA_ERROR,
)
_NCCL = _rule(
    "nccl watchdog distbackend cuda",
    r"Watchdog caught collective operation timeout|\bNCCL (\w+ )?error\b"
    r"|NCCL communicator was aborted|\bncclUnhandled|\bnccl\w+Error\b"
    r"|ProcessGroupNCCL.{0,200}(timed out|[Hh]eartbeat monitor|watchdog thread terminated)"
    r"|\bDistBackendError\b|Cuda failure ",
    _K.CUDA_ERROR,
    Weight.SYMPTOM,
)
_MISSING = _rule(
    "notfound import notready offline permissionerror",
    r"^([\w.]+\.)?(ModuleNotFoundError|ImportError|FileNotFoundError|EnvironmentNotReady"
    r"|PermissionError|LocalEntryNotFoundError|OfflineModeIsEnabled)\b",
    _K.ENVIRONMENT,
)
_WRAPPER = _rule(
    "childfailed calledprocess processraised processexited raytask brokenprocess "
    "failedjob connection socket diststore pipe dataloader recv",
    r"ChildFailedError|CalledProcessError|ProcessRaisedException|ProcessExitedException"
    r"|RayTaskError|BrokenProcessPool|FailedJobError|Connection (reset|closed) by peer"
    r"|Socket Timeout|DistStoreError|Broken pipe|failed to recv, got 0 bytes"
    r"|Connection was likely closed"
    r"|DataLoader worker .{0,40}exited unexpectedly",
    _K.PYTHON_ERROR,
    Weight.SYMPTOM,
)
_INTERRUPT = _rule(
    "keyboardinterrupt signal exitcode",
    r"^(Detected )?KeyboardInterrupt\b|got signal: 2\b|exitcode\s*:\s*-2\b",
    _K.CANCELLED,
    Weight.SIGNAL,
)
# A launcher that ends the other ranks sends them SIGTERM; SIGABRT a process sends itself.
_CHILD_ENDED = _rule(
    "signal exitcode return sigterm",
    r"terminated with signal SIG(TERM|ABRT)|exitcode\s*:\s*-(6|15)\b|return code = -(6|15)\b"
    r"|\b[Rr]eceived (SIGTERM|signal 15\b)|\bSIGTERM received\b|is killed by signal: Aborted",
    _K.KILLED,
    Weight.SYMPTOM,
)
_CHILD_SIGNAL = _rule(
    "signal exitcode return",
    r"got signal: \d+|terminated with signal SIG|is killed by signal: \w+|exitcode\s*:\s*-\d+"
    r"|return code = -\d+",
    _K.KILLED,
    Weight.SIGNAL,
)

# Of the line that ends a traceback; the first that fits.
EXCEPTION_RULES = (
    _DISK_FULL,
    _OOM,
    _NOT_READY,
    _rule("nccl", r"\bnccl(Unhandled|System)\w*", _K.CUDA_ERROR, Weight.SYMPTOM),
    _INTERRUPT,
    _CHILD_ENDED,
    _CHILD_SIGNAL,
    _rule("submitted", r"could not find submitted jobs", _K.LOST),
    _INVALID,
    _INVALID_CHOICE,
    _MISSING,
    _NCCL,
    _CUDA,
    _WRAPPER,
)

# Of any line; the first that fits.
LINE_RULES = (
    _rule(
        "oom killed memory out_of_memory memlimit cgroup",
        r"oom[-_ ]?kill|[Oo]ut of memory: Killed process|: Out Of Memory\b|OUT_OF_MEMORY"
        r"|[Ee]xceeded (job|step) memory limit|exceeded memory limit \(|TERM_MEMLIMIT"
        r"|cgroup out-of-memory handler",
        _K.OOM,
    ),
    _rule(
        "due sending walltime runlimit timed",
        r"DUE TO TIME LIMIT|^timeout: sending signal|job killed: walltime|TERM_RUNLIMIT"
        r"|this job is timed-out|\bJob has timed out\. Ran\b",
        _K.TIMEOUT,
        Weight.SCHEDULER,
    ),
    _rule(
        "due preempted",
        r"DUE TO (PREEMPTION|JOB REQUEUE)|this job is preempted",
        _K.PREEMPTED,
        Weight.SCHEDULER,
    ),
    _rule(
        "due failure prolog",
        r"DUE TO NODE FAILURE|srun: error: Node failure on|^Prolog failure on node \S+$"
        r"|^Error running slurm prolog: \d+",
        _K.NODE_FAILURE,
        Weight.SCHEDULER,
    ),
    # The node's own daemon does not answer.
    _rule(
        "launch",
        r"^srun: error: (Task launch for .{1,60} failed on node \S+"
        r"|Application launch failed): (Communication|Socket timed out|Zero Bytes)",
        _K.NODE_FAILURE,
        Weight.SCHEDULER,
    ),
    _rule(
        "cancelled",
        r"\*\*\* (JOB|STEP) \S+ ON \S+ CANCELLED AT\b",
        _K.CANCELLED,
        Weight.SCHEDULER,
    ),
    _rule("warn", r"(?i:\bwarn(ing)?\b)", _K.UNDETERMINED, Weight.SYMPTOM),  # told, and gone on
    _rule(
        "space quota",
        r"(?:^|: )(?:\S+: )?(?:No space left on device|Disk quota exceeded)",
        _K.DISK_FULL,
    ),
    _rule(
        "memory bad_alloc",
        r"(?:Cuda failure|CUDA error:) .{0,80}out of memory|^terminate.*bad_alloc",
        _K.OOM,
    ),
    _rule(
        "python sh: eval execve smi srun sbatch shared commandnot namenotfound lmod "
        "modulefile launch found",
        r"^\S*python[\d.]*: (can't open file|No module named)|^\S*python[\d.]*: Error while finding"
        r"|^\S*sh: (\S+: )?(command not found|.*: Permission denied|.*: No such file or directory)"
        r"|^\(eval\):\d+: |execve\(\): |NVIDIA-SMI has failed"
        r"|^s(run|batch): (fatal: |error: (Unable to|Invalid|Batch job submission failed))"
        r"|\btask \d+ launch failed|^Fatal Python error: init_"
        r"|error while loading shared libraries|^(CommandNotFoundError|EnvironmentNameNotFound):"
        r"|^Lmod has detected the following error|Unable to locate a modulefile",
        _K.ENVIRONMENT,
    ),
    Rule(("srun:",), (NO_SCHEDULER,), _K.ENVIRONMENT),
    Rule(("srun:",), (BAD_ARGUMENTS,), _K.ENVIRONMENT),
    _rule(
        "found denied such",
        r": (line )?\d+: ",
        _K.ENVIRONMENT,
        then=r"command not found|Permission denied|No such file or directory",
    ),
    _rule(
        "required missing",
        r"^[\w./-]+: error: the following arguments are required"
        r"|^\W*(Error: )?Missing (option|argument) '",
        _K.ENVIRONMENT,
    ),
    _rule(
        "error such invalid override",
        r"^[\w./-]+: error: (unrecognized arguments|ambiguous option|argument \S+: "
        r"|one of the arguments|No such option|Missing|Parser key|Configuration check|Validation)"
        r"|^\W*(Error: )?(No such option: |Invalid value for )"
        r"|^Could not override '",
        _K.INVALID,
    ),
    _rule(
        "xid fallen lost ecc",
        r"\bNVRM: Xid\b|GPU has fallen off the bus|\bGPU is lost\b|[Uu]ncorrectable ECC error",
        _K.CUDA_ERROR,
    ),
    _rule(
        "watchdog heartbeat",
        r"Watchdog caught collective operation timeout"
        r"|ProcessGroupNCCL.{0,200}[Hh]eartbeat monitor",
        _K.CUDA_ERROR,
        Weight.SYMPTOM,
    ),
    _rule("what()", r"^\s*what\(\):\s+.*CUDA error: ", _K.CUDA_ERROR),
    _rule("cuda", r"^CUDA error: ", _K.CUDA_ERROR, Weight.SYMPTOM),
    _INTERRUPT,
    # The launchers' word on a process that failed; those they stop then have signals.
    _rule(
        "exitcode return",
        r"failed \(exitcode: [1-9]|exits with return code = [1-9]",
        _K.PYTHON_ERROR,
        Weight.SIGNAL,
    ),
    _CHILD_ENDED,
    _CHILD_SIGNAL,
    _rule(
        "abort",
        r"^(.*: line \d+:\s+\d+ )?Aborted(: \d+)?(\s+\(core dumped\))?(\s{2,}.*)?$"
        r"|^srun: error: .*: Aborted|^zsh: abort\b|^Fatal Python error: Aborted",
        _K.KILLED,
        Weight.SYMPTOM,
    ),
    _rule(
        "killed terminated segmentation error fatal received illegal floating",
        r"^(.*: line \d+:\s+\d+ )?(Killed|Terminated|Segmentation fault|Bus error"
        r"|Illegal instruction|Floating point exception)"
        r"(: \d+)?(\s+\(core dumped\))?(\s{2,}.*)?$"
        r"|^srun: error: .*: (Killed|Terminated|Segmentation fault|Bus error|Illegal instruction)"
        r"|^zsh: (killed|terminated|segmentation fault|bus error)\b|STEPD TERMINATED ON"
        r"|^Fatal Python error: |^\*\*\* Process received signal",
        _K.KILLED,
        Weight.SIGNAL,
    ),
    _rule(
        "exited",
        r"^srun: error: .*: Exited with exit code [1-9]",
        _K.UNDETERMINED,
        Weight.SYMPTOM,
    ),
)

TRACEBACK = re.compile(r"Traceback \(most recent call last\):")
EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?=: |:$|$)")
NAMED_EXCEPTION = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*(?:\w+(?:Error|Exception|Interrupt)|InvalidConfiguration"
    r"|OutOfResources)\b(?=:|$|\()"
)
_NAMED_KEYS = ("error", "exception", "interrupt", "invalidconfiguration", "outofresources")
IGNORED = re.compile(r"^Exception ignored (in|on)\b")
SUPERSEDED = re.compile(r"^During handling of the above exception")
# A record of a logger: whoever wrote it has caught the exception that follows.
TOLD = re.compile(
    r"^[^\w]{0,3}(?:[\d:., TZ+-]{8,40}\W{0,4})?(?:\S{1,40} ){0,4}\W?(?:ERROR|WARN(?:ING)?)\b"
)
# submitit's own word on a job it stopped says nothing of why.
_SAYS_NOTHING = re.compile(r"UncompletedJobError")
_OF_NUMBERS = re.compile(r"(?i)\b(nan|inf|infinite|non-?finite|not finite|diverged)\b")

ERROR_KEYS = frozenset(
    {
        *(key for rule in (*EXCEPTION_RULES, *LINE_RULES) for key in rule.keys),
        *_NAMED_KEYS,
        "traceback",
        "during",
    }
)


def _by_key(rules: Sequence[Rule]) -> dict[str, list[int]]:
    table: dict[str, list[int]] = {}
    for place, rule in enumerate(rules):
        for key in rule.keys:
            table.setdefault(key, []).append(place)
    return table


_EXCEPTIONS_BY_KEY = _by_key(EXCEPTION_RULES)
_LINES_BY_KEY = _by_key(LINE_RULES)


def read_error(line: str, keys: Collection[str], *, ends_traceback: bool) -> Rule | None:
    """Return the rule that a line of a log fits, None for a line that tells of no error.

    `keys` are those of ERROR_KEYS that the line holds, in lower case.
    """
    named = any(key in keys for key in _NAMED_KEYS) and NAMED_EXCEPTION.match(line)
    if ends_traceback or named:
        if _SAYS_NOTHING.search(line):
            return None
        rule = _first_fitting(EXCEPTION_RULES, _EXCEPTIONS_BY_KEY, line, keys)
        return rule or Rule((), (EXCEPTION,), _K.PYTHON_ERROR)
    rule = _first_fitting(LINE_RULES, _LINES_BY_KEY, line, keys)
    return None if rule is None or rule.kind is _K.UNDETERMINED else rule


def _first_fitting(
    rules: Sequence[Rule], by_key: dict[str, list[int]], line: str, keys: Collection[str]
) -> Rule | None:
    places = {place for key in keys for place in by_key.get(key, ())}
    for place in sorted(places):
        if rules[place].fits(line):
            return rules[place]
    return None


def is_of_numbers(line: str) -> bool:
    """Whether an error complains of numbers that are not finite."""
    return bool(_OF_NUMBERS.search(line))
