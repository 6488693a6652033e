"""Rules that recognize errors and signals in single log lines.

The rules know trainers, launchers, Python, CUDA and Slurm, and no particular program.  A line
without any of the keys of the rules is not looked at any further, which is most of them.  Every
pattern takes linear time at most on any input.
"""

import re
from collections.abc import Collection

from elmanctl.ledger.records import VerdictKind
from elmanctl.verdicts import exception_rules
from elmanctl.verdicts.causes import BAD_ARGUMENTS, NO_SCHEDULER
from elmanctl.verdicts.errnos import MESSAGES
from elmanctl.verdicts.node_disk import NODE_DISK, NODE_DISK_KEYS
from elmanctl.verdicts.text_rule import RuleTable, TextRule, Weight, rule

_K = VerdictKind

# Prefix of bash's messages: the script, `line` in the user's language, a number; in some languages
# the number comes first, and the separator is not a colon.
_SCRIPT_LINE = (
    r"^(?:(?:\.{0,2}/)\S{0,200}?(?<!\.py)|\S{1,80}\.(?:sh|bash|sbatch|slurm|job|sub)"
    r"|-?(?:ba|da|k)?sh|slurm_script)"
    r"(?: ?[:,\uff1a] ?|(?<=script) |(?<=\.sh) )"
    r"(?:[^\W\d]{1,12}:? ?)?\d{1,6}\W?\s?[^\W\d]{0,12}\s?[:\uff1a]\s{0,6}"
)
_SCRIPT_KEYS = ("0: ", "0 : ", "\u884c:", "\u884c\uff1a", "slurm_script", ".sh")

# Rules for any line; the first match decides.
LINE_RULES = (
    rule(
        "oom killed memory out_of_memory memlimit cgroup",
        r"oom[-_ ]?kill|[Oo]ut of memory: Killed process|: Out Of Memory\b|OUT_OF_MEMORY"
        r"|[Ee]xceeded (job|step) memory limit|exceeded memory limit \(|TERM_MEMLIMIT"
        r"|cgroup out-of-memory handler",
        _K.OOM,
    ),
    rule(
        "due sending walltime runlimit timed",
        r"DUE TO TIME LIMIT|^timeout: sending signal|job killed: walltime|TERM_RUNLIMIT"
        r"|this job is timed-out|\bJob has timed out\. Ran\b",
        _K.TIMEOUT,
        Weight.SCHEDULER,
    ),
    # The limit on CPU time, by its signal.
    rule(
        "limit exited",
        r"^(?:\S+: (?:line )?\d+:\s+\d+ |srun: error: .*: |zsh: )?"
        r"(?:CPU time limit exceeded|Cputime limit exceeded|cpu limit exceeded)\b"
        r"|^srun: error: .*: Exited with exit code 152\b",
        _K.TIMEOUT,
        Weight.SCHEDULER,
    ),
    exception_rules.CPU_LIMIT,
    rule(
        "due preempted",
        r"DUE TO (PREEMPTION|JOB REQUEUE)|this job is preempted",
        _K.PREEMPTED,
        Weight.SCHEDULER,
    ),
    rule(
        "due failure prolog",
        r"DUE TO NODE FAILURE|srun: error: Node failure on|^Prolog failure on node \S+$"
        r"|^Error running slurm prolog: \d+",
        _K.NODE_FAILURE,
        Weight.SCHEDULER,
    ),
    # The node's own daemon does not answer.
    rule(
        "launch",
        r"^srun: error: (Task launch for .{1,60} failed on node \S+"
        r"|Application launch failed): (Communication|Socket timed out|Zero Bytes)",
        _K.NODE_FAILURE,
        Weight.SCHEDULER,
    ),
    rule(
        "cancelled",
        r"\*\*\* (JOB|STEP) \S+ ON \S+ CANCELLED AT\b",
        _K.CANCELLED,
        Weight.SCHEDULER,
    ),
    rule("warn", r"(?i:\bwarn(ing)?\b)", _K.UNDETERMINED, Weight.SYMPTOM),  # a warning ends nothing
    rule(
        "shared posix_fallocate",
        r"while creating shared memory segment|Call to posix_fallocate failed"
        r"|caused by insufficient shared memory",
        _K.ENVIRONMENT,
    ),
    rule(
        "namespace inotify cgroup",
        r"\b(?:namespace|inotify|cgroup)\b.{0,200}No space left on device",
        _K.ENVIRONMENT,
    ),
    rule(NODE_DISK_KEYS, NODE_DISK, _K.ENVIRONMENT),
    rule(
        "space quota",
        r"(?:^|: )(?:\S+: )?(?:No space left on device|Disk quota exceeded)",
        _K.DISK_FULL,
    ),
    # The job script's `ln`, in any language: the node cannot write to the run folder.
    rule("ln:", r"^(?:\S*/)?ln: .*_submitted\.pkl\b", _K.ENVIRONMENT),
    rule(
        "memory bad_alloc",
        r"(?i:(?:^|: |\b(?:cuda|hip|gpuassert|error|failure|cudaMalloc)\b.{0,80}\b)out of memory\b)"
        r"|^terminate.*bad_alloc"
        r"|: fork: (?:\w+: )?Cannot allocate memory|^memory allocation of \d+ bytes failed",
        _K.OOM,
    ),
    rule(
        "python sh: eval execve smi shared environment lmod modulefile launch found could symbol "
        "nvml libmamba conda mamba",
        r"^NVIDIA-SMI couldn't|^Failed to initialize NVML|^critical libmamba"
        r"|^(?:conda|mamba): error: |^\S{1,60}: command not found$"
        r"|^\S*python[\d.]*: (can't open file|No module named|Error while finding)"
        r"|^\S*sh: (\S+: )?(command not found|.*: Permission denied|.*: No such file or directory)"
        r"|^\(eval\):\d+: |execve\(\): |NVIDIA-SMI has failed"
        r"|\btask \d+ launch failed|^Fatal Python error: init_"
        r"|error while loading shared libraries|: symbol lookup error: "
        r"|: version `\w+_[\d.]+' not found|^Environment\w+NotFound: "
        r"|^Lmod has detected the following error|Unable to locate a modulefile"
        r"|^Could not (?:find conda environment|load library lib)",
        _K.ENVIRONMENT,
    ),
    rule(
        "srun: sbatch:",
        r"^s(run|batch): (fatal: |error: (Unable to|Invalid|Batch job submission failed"
        r"|Task launch for .{1,60} failed on node \S+: |Application launch failed: ))",
        _K.ENVIRONMENT,
    ),
    # A program's last line about a system call that failed.
    rule(
        "error unavailable busy device many read-only locks symbolic network timed refused host "
        "handle endpoint cleaning address format severed required",
        rf"^[\w./-]{{1,200}}: .{{0,300}}(?:{MESSAGES[_K.ENVIRONMENT]})(?: \(\d+\))?\W*$",
        _K.ENVIRONMENT,
        Weight.SYMPTOM,
    ),
    # Containers that do not start.
    rule(
        "fatal pyxis daemon enroot container",
        # Apptainer writes three spaces.
        r"^FATAL:\s{2,6}\S|: pyxis: (?:couldn't|could not|.{0,40}\bfailed\b)"
        r"|\bnvidia-container-cli: \w+ error|^docker: Error response from daemon"
        r"|^enroot-\w+: error|\[ERROR\] .*enroot",
        _K.ENVIRONMENT,
    ),
    # No further process or thread; a shell reports that of itself, in any language.
    rule(
        "fork thread pthread_create terminated",
        r"^\S+: (?:\w+ \d+: )?v?fork: |: Cannot fork$|^\S+: (?:\d+: )?cannot fork\b"
        r"|pthread_create failed|[Tt]hread creation failed"
        r"|^BLAS : Program is Terminated|^OMP: Error #\d+: .{0,80}\bthread",
        _K.ENVIRONMENT,
    ),
    TextRule(("srun:",), (NO_SCHEDULER,), _K.ENVIRONMENT),
    TextRule(("srun:",), (BAD_ARGUMENTS,), _K.ENVIRONMENT),
    rule(
        "found denied such",
        r": (line )?\d+: ",
        _K.ENVIRONMENT,
        then=r"command not found|Permission denied|No such file or directory",
    ),
    rule(
        "required missing",
        r"^[\w./-]+: error: the following arguments are required"
        r"|^\W*(Error: )?Missing (option|argument) '",
        _K.ENVIRONMENT,
    ),
    rule(
        "error such invalid override",
        r"^[\w./-]+: error: (unrecognized arguments|ambiguous option|argument \S+: "
        r"|one of the arguments|No such option|Missing|Parser key|Configuration check|Validation)"
        r"|^\W*(Error: )?(No such option: |Invalid value for )"
        r"|^Could not override '",
        _K.INVALID,
    ),
    rule(
        "memory_allocation_failure hsa_status_error openblas",
        r"^OpenBLAS.{0,40}Memory allocation still failed|\bMemory_Allocation_Failure\("
        r"|\bHSA_STATUS_ERROR_OUT_OF_RESOURCES\b",
        _K.OOM,
    ),
    rule("resource_busy", r"\bResource_Busy\(", _K.ENVIRONMENT),
    rule(
        "fault hsa_status_error",
        r"^Memory access fault by GPU\b|\baborting with error : HSA_STATUS_ERROR",
        _K.CUDA_ERROR,
    ),
    rule(
        "xid fallen lost ecc",
        r"\bNVRM: Xid\b|GPU has fallen off the bus|\bGPU is lost\b|[Uu]ncorrectable ECC error",
        _K.CUDA_ERROR,
    ),
    rule(
        "watchdog heartbeat",
        r"Watchdog caught collective operation timeout"
        r"|ProcessGroupNCCL.{0,200}[Hh]eartbeat monitor",
        _K.CUDA_ERROR,
        Weight.SYMPTOM,
    ),
    rule("cuda gpuassert", r"^(?:CUDA error|GPUassert): ", _K.CUDA_ERROR, Weight.SYMPTOM),
    exception_rules.INTERRUPT,
    # Launchers report the process that failed; those that they stop then have signals.
    rule(
        "exitcode return",
        r"failed \(exitcode: [1-9]|exits with return code = [1-9]",
        _K.PYTHON_ERROR,
        Weight.SIGNAL,
    ),
    exception_rules.CHILD_ENDED,
    exception_rules.CHILD_SIGNAL,
    rule(
        "abort",
        r"^(.*: line \d+:\s+\d+ )?Aborted(: \d+)?(\s+\(core dumped\))?(\s{2,}.*)?$"
        r"|^srun: error: .*: Aborted|^zsh: abort\b|^Fatal Python error: Aborted",
        _K.KILLED,
        Weight.SYMPTOM,
    ),
    rule(
        "killed terminated segmentation error fatal received illegal floating make",
        r"^(.*: line \d+:\s+\d+ )?(Killed|Terminated|Segmentation fault|Bus error"
        r"|Illegal instruction|Floating point exception)"
        r"(: \d+)?(\s+\(core dumped\))?(\s{2,}.*)?$"
        r"|^srun: error: .*: (Killed|Terminated|Segmentation fault|Bus error|Illegal instruction)"
        r"|^zsh: (killed|terminated|segmentation fault|bus error)\b|STEPD TERMINATED ON"
        r"|^make\b.{0,200}\] (Killed|Terminated|Segmentation fault|Bus error|Error 1(3[1-9]|43)\b)"
        r"|^Fatal Python error: |^\*\*\* Process received signal",
        _K.KILLED,
        Weight.SIGNAL,
    ),
    # Exit codes of a shell: 128 and the number of a signal, 127 for a missing command.
    rule(
        "exited",
        r"^srun: error: .*: Exited with exit code (?:129|13[1-9]|14\d|15[013-9])\b",
        _K.KILLED,
        Weight.SIGNAL,
    ),
    rule("exited", r"^srun: error: .*: Exited with exit code 130\b", _K.CANCELLED, Weight.SIGNAL),
    rule(
        "exited",
        r"^srun: error: .*: Exited with exit code 12[67]\b",
        _K.ENVIRONMENT,
        Weight.SYMPTOM,
    ),
    rule(
        "exited",
        r"^srun: error: .*: Exited with exit code [1-9]",
        _K.UNDETERMINED,
        Weight.SYMPTOM,
    ),
    # Recognized by their form in any language: bash on a process that a signal ended, whose id
    # comes first, and on a command that it could not run.
    TextRule(
        _SCRIPT_KEYS,
        (re.compile(_SCRIPT_LINE + r"\d{1,8} [^\W\d]\S*\s.*\S"),),
        _K.KILLED,
        Weight.SIGNAL,
    ),
    TextRule(
        _SCRIPT_KEYS,
        (re.compile(_SCRIPT_LINE + r"(?!\d{1,8} )\S"),),
        _K.ENVIRONMENT,
        Weight.SYMPTOM,
    ),
)
_LINES = RuleTable(LINE_RULES)

_UNKNOWN = TextRule((), (), _K.PYTHON_ERROR)

TRACEBACK = re.compile(r"Traceback \(most recent call last\):")
EXCEPTION = re.compile(r"^(?:[^\W\d]\w*\.|<locals>\.)*[^\W\d]\w*(?=: |:$|$)")
NAMED_EXCEPTION = re.compile(
    r"^(?:[A-Za-z_]\w*\.|<locals>\.)*(?:\w+(?:Error|Exception|Interrupt)|InvalidConfiguration"
    r"|OutOfResources)\b(?=:|$|\()"
)
_NAMED_KEYS = ("error", "exception", "interrupt", "invalidconfiguration", "outofresources")
IGNORED = re.compile(r"^Exception ignored (in|on)\b")
# C++ prints this of an uncaught exception.
_OF_CXX = re.compile(r"^\s*what\(\):\s")
CAUSED = re.compile(r"^The above exception was the direct cause of the following exception")
SUPERSEDED = re.compile(r"^During handling of the above exception")
# A log record: whoever wrote it has caught the exception that follows.
LOGGED = re.compile(
    r"^[^\w]{0,3}(?:[\d:., TZ+-]{8,40}\W{0,4})?(?:\S{1,40} ){0,4}\W?(?:ERROR|WARN(?:ING)?)\b"
)
# submitit's message about a job that it stopped does not say why.
_SAYS_NOTHING = re.compile(r"UncompletedJobError")
_OF_NUMBERS = re.compile(r"(?i)\b(nan|inf|infinite|non-?finite|not finite|diverged)\b")

ERROR_KEYS = frozenset(
    {
        *(key for one in (*exception_rules.EXCEPTION_RULES, *LINE_RULES) for key in one.keys),
        *_NAMED_KEYS,
        *("traceback", "during", "direct cause", "what()"),
    }
)


def read_error(line: str, keys: Collection[str], *, ends_traceback: bool) -> TextRule | None:
    """Return the rule that matches a line of a log, None for a line that reports no error.

    `keys` are the ERROR_KEYS that the line holds in lower case.
    """
    named = any(key in keys for key in _NAMED_KEYS) and NAMED_EXCEPTION.match(line)
    if ends_traceback or named:
        if _SAYS_NOTHING.search(line):
            return None
        return exception_rules.EXCEPTIONS.first_match(line, keys) or _UNKNOWN
    found = _LINES.first_match(line, keys)
    if found is None and _OF_CXX.match(line):
        return exception_rules.EXCEPTIONS.first_match(line, keys)
    return None if found is None or found.kind is _K.UNDETERMINED else found


def read_message(line: str, keys: Collection[str]) -> TextRule | None:
    """Return the rule for a further line of an exception's message, if it names a cause."""
    found = exception_rules.EXCEPTIONS.first_match(line, keys)
    return found if found is not None and found.weight is Weight.CAUSE else None


def is_numeric_error(line: str) -> bool:
    """Whether an error is about numbers that are not finite."""
    return bool(_OF_NUMBERS.search(line))
