"""Rules that classify an exception by the line that Python prints for it.

One table serves the worker that caught the exception and the log that prints it.  The rules know
Python, its C++ and Rust libraries and the accelerators, and no particular program.  Every pattern
takes linear time at most on any input.
"""

from elmanctl.ledger.records import VerdictKind
from elmanctl.verdicts.errnos import MESSAGES, NUMBERS, numbered
from elmanctl.verdicts.node_disk import NODE_DISK, NODE_DISK_KEYS
from elmanctl.verdicts.text_rule import RuleTable, TextRule, Weight, rule

_K = VerdictKind

# Prefix of a class name, also where another exception quotes it.
_NAMED = r"(?:^|: )(?:\w+\.|<locals>\.)*"

# In order of precedence: the first match decides.
_RULES: dict[str, TextRule] = {}

# elmanctl's own exceptions for a bad configuration.
_RULES["refused"] = rule(
    "invalidconfiguration elmanctl",
    rf"{_NAMED}InvalidConfiguration\b|\belmanctl\.errors\.NotFound\b",
    _K.INVALID,
)
# Shared memory is a file system of the node, which fills up or runs out of descriptors.
_RULES["shared_memory"] = rule(
    "shm shared torch_ ancdata psm_ semaphore",
    r"unable to (?:open shared memory object|allocate shared memory)"
    r"|unable to (?:write to|resize|mmap|stat|truncate) (?:\S+ ){0,6}<(?:/?torch_|/?psm_)\S+"
    r".*(?:No space left|Too many open)"
    r"|/dev/shm\b|\b(?:shm_open|torch_shm_manager)\b"
    r"|No space left on device: '/?(?:psm_|torch_|mp-|sem\.|pym-)"
    r"|out of shared memory|insufficient shared memory|received 0 items of ancdata"
    r"|while creating shared memory segment",
    _K.ENVIRONMENT,
)
# A count that the kernel limits has run out, not a disk.
_RULES["kernel_limit"] = rule(
    "namespace inotify cgroup",
    r"(?i:\b(?:namespace|inotify|cgroup)\b.{0,200}(?:No space left on device|limit reached))",
    _K.ENVIRONMENT,
)
_RULES["node_disk"] = rule(NODE_DISK_KEYS, NODE_DISK, _K.ENVIRONMENT)
# A library does not load because a table of the loader is full, not the memory.
_RULES["loader"] = rule("tls", r"static TLS block", _K.ENVIRONMENT)
_RULES["disk_full"] = rule(
    "space quota errno error code: enospc edquot storagefull pytorchstreamwriter inline_container "
    "disk written",
    rf"{MESSAGES[_K.DISK_FULL]}|{numbered(NUMBERS[_K.DISK_FULL])}"
    r"|\bENOSPC\b|\bEDQUOT\b|\bStorageFull\b|FilesystemQuotaExceeded|database or disk is full"
    # torch.save and numpy do not give the reason.
    r"|PytorchStreamWriter failed writing|inline_container\.cc:\d+\] \. unexpected pos"
    r"|^OSError: \d+ requested and \d+ written",
    _K.DISK_FULL,
)
_RULES["oom"] = rule(
    "memory bad_alloc alloc_failed allocation_failed allocfailed resource_exhausted oom malloc "
    "allocate errno error code: out_of_resources triton insufficient cachingallocator "
    "resource",
    # `to avoid running out of memory, ...` is only advice.
    r"(?i:(?<!running )(?<!avoid )(?<!avoiding )(?<!prevent )\bout[ _-]of[ _-]"
    r"(?:(?:gpu|cuda|device|host|video|system|cpu|physical|virtual)[ _-])?memory)"
    r"|(?:_OUT_OF_|OutOf)(?:\w{1,12}_)?(?:MEMORY|Memory)|_OUT_OF_RESOURCES\b"
    r"|\b(?:cuda|hip|musa)ErrorMemoryAllocation|\brocblas_status_memory_error"
    r"|ALLOC(?:ATION)?_FAILED|StatusAllocFailed|\bOOM when allocating"
    r"|RESOURCE_EXHAUSTED: (?:Attempting|Failed to allocate|XLA|TPU)"
    r"|Tried to allocate [\d.]+ [KMGT]?i?B\b|DefaultCPUAllocator: (?:can't|not enough)"
    r"|(?i:(?:fail(?:ed|ure)? to|can ?not|can't|could not|couldn't|unable to) m?alloc(?:ate)? "
    r"(?!shared\b)(?:\S{1,40} ){0,4}(?:memory|bytes|buffer|[KMGT]i?B)\b)"
    r"|(?i:\bmemory not available\b)|Triton Error \[ZE\]: 0x7000000[23]\b"
    r"|(?i:\b(?:not enough|insufficient) (?:(?:gpu|device|host|system|free|video) )?memory\b)"
    r"|\bbad_alloc\b|(?:^|[\s.:])\w{0,20}MemoryError\b(?=:|$)"
    # A library's handle that does not fit; the allocator that asks NVML who holds the memory.
    r"|: insufficient resources when calling|\bresource allocation failed"
    r"|\bNVML_SUCCESS == r\b.{0,80}CachingAllocator"
    r"|\bmalloc of size \d+ failed|\bmemory allocation of \d+ bytes failed"
    rf"|{MESSAGES[_K.OOM]}|{numbered(NUMBERS[_K.OOM])}",
    _K.OOM,
)
_RULES["no_device"] = rule(
    "gpu driver device cuda hip rocm xpu npu cuda-capable initializ nvml kfd kernel toolchain "
    "compute mps smi accelerator available function gpu-architecture architecture tensile",
    r"No (?:CUDA|HIP|XPU|NPU|MUSA) (?:GPUs|devices) are available|Found no NVIDIA driver"
    r"|no (?:CUDA|ROCm)-capable device is detected|no GPUs found|no NPU found"
    r"|No device of requested type|_ERROR_(?:NO_DEVICE|DEVICE_NOT_FOUND|DEVICE_NOT_AVAILABLE)"
    r"|_ERROR_(?:SYSTEM_NOT_READY|SYSTEM_DRIVER_MISMATCH|NOT_INITIALIZED|UNINITIALIZED)\b"
    r"|_ERROR_(?:INVALID_DEVICE|DEVICE_UNAVAILABLE|DEVICE_NOT_LICENSED|NO_BINARY_FOR_GPU"
    r"|INVALID_IMAGE|UNSUPPORTED_PTX_VERSION|STUB_LIBRARY|OPERATING_SYSTEM)\b"
    r"|(?:cuda|hip)Error(?:NoDevice|InvalidDevice|DevicesUnavailable|DeviceUnavailable"
    r"|InsufficientDriver|InitializationError|NotInitialized|SystemNotReady"
    r"|SystemDriverMismatch|CompatNotSupported|NoKernelImageForDevice|NoBinaryForGpu"
    r"|InvalidKernelImage|UnsupportedPtxVersion|StubLibrary|InvalidDeviceFunction"
    r"|OperatingSystem|Mps\w+)\b"
    r"|NVIDIA driver on your system is too old|driver version is insufficient"
    r"|Torch not compiled with|torch (?:was )?not compiled with (?:CUDA|XPU|HIP|ROCm)"
    r"|not linked with support for \w+ devices"
    r"|not supported in the installed CUDA driver|CallRequiresNewerDriver"
    r"|(?i:\b(?:CUDA|GPU|HIP|XPU|NPU|ROCm)(?: device)?s? (?:is|are|was|were)? ?not available\b)"
    r"|(?i:\bno (?:CUDA |HIP |XPU )?(?:GPUs?|accelerators?|devices?)"
    r" (?:is |are |was |were )?(?:found|available|detected)\b)"
    r"|only supports? (?:Ampere|Hopper|Ada|Turing|Volta)\b"
    r"|(?i:compute capability (?:of )?(?:at least|>=|\d))"
    r"|already in use by a different thread|device already in use"
    r"|NVIDIA-SMI has failed|NVML_SUCCESS == |NVMLError_(?!GpuIsLost)\w+"
    r"|(?<!re-)[Ii]nitiali[sz]e (?:the )?(?:NVML|CUDA|HIP|ROCm|XPU|NPU|GPU)\b|NVML Shared Library"
    r"|invalid device ordinal|[Ii]nvalid device id\b|invalid device function"
    r"|devices? ?(?:\(s\) )?(?:is|are|is/are) (?:busy|unavailable|not available)"
    r"|no kernel image is available|device kernel image is invalid"
    r"|[Uu]nable to find code object for all current devices"
    r"|Cannot read \S*TensileLibrary"
    r"|system not yet initialized|system has unsupported display driver|driver is a stub library"
    r"|forward compatibility was attempted|(?:CUDA|HIP) unknown error"
    r"|Unexpected error from (?:cuda|hip)GetDeviceCount"
    r"|(?i:\b(?:CUDA|HIP|XPU|NPU|NVML|GPU|cuInit|hipInit)\b.{0,60}"
    r"\b(?:driver initialization failed|initialization error|not initiali[sz]ed"
    r"|initiali[sz]ation failed|failed to initiali[sz]e))"
    r"|(?i:\b(?:initialization error|driver not initiali[sz]ed)\b)"
    r"|OS call failed or operation not supported on this OS"
    r"|MPS (?:client failed to connect|server is not ready)|\bMPS control daemon"
    r"|unsupported toolchain|PTX JIT compiler library not found"
    r"|invalid value for --gpu-architecture|is not defined for option 'gpu-name'"
    r"|[Uu]nable to open /dev/kfd|0 active drivers|GPUTooOldForTriton|too old to be supported by"
    r"|cannot access accelerator device when none is available"
    r"|You requested gpu|No supported gpu backend|Your setup doesn't support"
    r"|deserialize object on (?:a )?(?:CUDA|XPU|HPU|NPU) device\b"
    r"|\bacl(?:Init|rtSetDevice)\b|\bfailed lazily at initialization\b"
    r"|(?i:(?:can't|cannot|could not|failed to|unable to) \w+ (?:\S+ ){0,3}"
    r"device (?:count|handle)\b)",
    _K.ENVIRONMENT,
)
_RULES["no_tool"] = rule(
    "compiler ptxas ldconfig gcc cc libcuda triton ninja cuda_home nvcc clang smi conda version "
    "shared symbol segment short dlopen libdevice cudnn load open elf af_unix numpy baseline "
    "locale getpwuid home temporary username cppcompile command extension",
    r"(?:(?:[Ff]ailed|[Uu]nable) to find(?: an?)?|No working) C(?:\+\+|XX|)? ?compiler"
    r"|InvalidCxxCompiler"
    r"|[Cc](?:annot|ould not|an't) find (?:a working )?(?:`|')?(?:ptxas|nvcc|gcc|g\+\+|ninja|cicc)"
    r"|(?i:cannot find a working triton installation)|TritonMissing|libcuda\.so(?:\.1)? cannot"
    r"|[Nn]inja is required to load|CUDA_HOME environment variable is not set|CUDA_HOME does not"
    r"|Command .{0,3}['\"](?:/?[\w.+-]+/)*(?:gcc|g\+\+|cc|c\+\+|clang|clang\+\+|ldconfig|nvcc"
    r"|nvidia-smi|ninja|x86_64-\S+-cc)(?:-[\d.]+)?['\"]"
    r"|cannot open shared object file|cannot stat shared object|wrong ELF class"
    r"|invalid ELF header|file too short|version `\w+_[\d.]+' not found|undefined symbol:"
    r"|failed to map segment from shared object|cuDNN version incompatibility|Error in dlopen"
    r"|[Ff]ailed to open lib|\blibdevice\b.*not found|[Cc]annot find libdevice"
    r"|[Cc]ould not load library lib"
    r"|NumPy was built with baseline optimizations|unsupported locale setting"
    r"|\bCppCompileError\b|Error building extension|\bninja: (?:error|build stopped)"
    r"|installed version of \S+ \S+ is (?:less|greater) than"
    r"|detected CUDA version .{1,20}mismatches"
    r"|^\w*Conda\w*Error\b"
    r"|getpwuid\(\): uid not found|No username set in the environment"
    r"|AF_UNIX path too long|[Cc]ould not determine home directory|No usable temporary directory",
    _K.ENVIRONMENT,
)
_RULES["no_threads"] = rule(
    "thread process_create pthread_create fork would",
    r"can't start new thread|pthread_create failed|[Tt]hread creation failed"
    r"|(?i:(?:failed to|unable to|could not|can't|cannot) (?:spawn|create|start) (?:\w+ ){0,2}"
    r"thread)"
    r"|ThreadPoolBuildError|\bWouldBlock\b|\bfork(?:\(\))? failed",
    _K.ENVIRONMENT,
)
_RULES["failed_call"] = rule(
    "errno error code: input/output unavailable busy many read-only locks symbolic network "
    "timed refused host handle remote endpoint cleaning address severed hardware device "
    "required unable disk readonly locked lock",
    rf"{MESSAGES[_K.ENVIRONMENT]}|{numbered(NUMBERS[_K.ENVIRONMENT])}"
    r"|\bUnknown error 5[12]\d\b|^(?:TimeoutError|socket\.timeout): .*timed out"
    r"|\bfile lock .{0,300}could not be acquired"
    r"|sqlite3\.OperationalError: (?:disk I/O error|unable to open|database is locked"
    r"|attempt to write a readonly)",
    _K.ENVIRONMENT,
)
_RULES["no_network"] = rule(
    "environment eaddrinuse couldn't retries distnetwork rendezvous client server repo identifier "
    "resolution service ssl certificate proxy offline localentrynotfound timeout "
    "credentials connect reach connection api_key commerror disconnected payload",
    r"environment variable \w+ expected, but not set|EADDRINUSE"
    r"|[Cc]ouldn't connect to '?https?://|Max retries exceeded with url|DistNetworkError"
    r"|Rendezvous\w+Error|\b(?:40[134]|429) Client Error|\b50\d Server Error"
    r"|access a gated repo|Repository Not Found|is not a valid model identifier"
    r"|[Tt]emporary failure in name resolution|Name or service not known"
    r"|[Uu]nable to locate credentials|DefaultCredentialsError|EndpointConnectionError"
    r"|[Cc]annot connect to host|[Cc]ould(?: not|n't) (?:connect to|reach)\b|Connection aborted"
    r"|api_key not configured|wandb\.\S*CommError"
    r"|CERTIFICATE_VERIFY_FAILED|certificate verify failed|\bSSLError\b|\[SSL: "
    rf"|{_NAMED}(?:LocalEntryNotFoundError|OfflineModeIsEnabled|ConnectTimeout(?:Error)?"
    r"|ReadTimeout(?:Error)?|ProxyError|(?:FSTimeout|ServerTimeout|ServerDisconnected"
    r"|ClientPayload|ClientConnector)Error)\b",
    _K.ENVIRONMENT,
)
# Caches that many jobs write at once, on a shared file system.
_RULES["cache"] = rule(
    ".triton .cache torchinductor torch_extensions triton __pycache__ .nv",
    rf"{_NAMED}(?:OSError|\w*FileExistsError|NotADirectoryError|IsADirectoryError"
    r"|FileNotFoundError|BlockingIOError)\b.*"
    r"(?:/\.(?:triton|cache|nv)/|torchinductor|torch_extensions|triton_?cache|__pycache__)",
    _K.ENVIRONMENT,
)
_RULES["nccl_of_torch"] = rule(
    "nccl", r"\bnccl(Unhandled|System)\w*", _K.CUDA_ERROR, Weight.SYMPTOM
)
_RULES["interrupt"] = INTERRUPT = rule(
    "keyboardinterrupt signal exitcode",
    r"^(Detected )?KeyboardInterrupt\b|got signal: 2\b|exitcode\s*:\s*-2\b"
    r"|died with <Signals\.SIGINT\b",
    _K.CANCELLED,
    Weight.SIGNAL,
)
_RULES["cpu_limit"] = CPU_LIMIT = rule(
    "signal exitcode return sigxcpu limit",
    r"got signal: 24\b|terminated with signal SIGXCPU|exitcode\s*:\s*-24\b|return code = -24\b"
    r"|is killed by signal: CPU time limit|\b[Rr]eceived SIGXCPU\b|\bSIGXCPU received\b"
    r"|died with <Signals\.SIGXCPU\b",
    _K.TIMEOUT,
    Weight.SCHEDULER,
)
# A launcher that stops the other ranks sends them SIGTERM; a process sends itself SIGABRT.
_RULES["child_ended"] = CHILD_ENDED = rule(
    "signal exitcode return sigterm",
    r"terminated with signal SIG(TERM|ABRT)|exitcode\s*:\s*-(6|15)\b|return code = -(6|15)\b"
    r"|\b[Rr]eceived (SIGTERM|signal 15\b)|\bSIGTERM received\b|is killed by signal: Aborted"
    r"|died with <Signals\.SIG(TERM|ABRT)\b",
    _K.KILLED,
    Weight.SYMPTOM,
)
_RULES["child_signal"] = CHILD_SIGNAL = rule(
    "signal exitcode return sigkill sigsegv",
    r"died with <Signals\.SIG|terminated by signal \w+|\{SIG[A-Z]+\(-\d"
    r"|got signal: \d+|terminated with signal SIG|is killed by signal: \w+|exitcode\s*:\s*-\d+"
    r"|return code = -\d+",
    _K.KILLED,
    Weight.SIGNAL,
)
_RULES["no_jobs"] = rule("submitted", r"could not find submitted jobs", _K.LOST)
_RULES["invalid"] = rule(
    "outofresources config validation size shape support divisible related used",
    r"\bOutOfResources\b|\bConfig(Attribute|Key|Composition)\w+:"
    r"|\bValidationError: \d+ validation error|DeepSpeedConfigError"
    r"|shape '\[[^\]]*\]' is invalid for input of size"
    r"|The size of tensor a \(\d+\) must match the size of tensor b"
    r"|shapes cannot be multiplied \(\d|Sizes of tensors must match"
    r"|[Ee]xpected size for first two dim"
    r"|only supports? \w+, (but )?got \w+|must be divisible by|is not divisible by"
    r"|[Cc]heck batch related parameters|arguments are not used by the"
    r"|(?i:error: (invalid|unknown|unsupported|unrecogni[sz]ed) "
    r"(level|model|config|arch|dtype|optimi[sz]er|activation|layer|backend|head|dim|hidden)\w*)",
    _K.INVALID,
)
_RULES["invalid_choice"] = rule(
    "available choose supported must",
    r"(?i:error: .{0,200}?\b(invalid|unknown|unsupported|must be one of)\b)",
    _K.INVALID,
    then=r"(?i:\b(available|choose from|supported|must be one of|one of)\b)",
)
_RULES["missing"] = rule(
    "notfound import notready permissionerror module",
    rf"{_NAMED}(?:(?:Module|Packages?|Command|Dataset|DataFiles|Repository|Revision|Entry)"
    r"NotFoundError|\w*ImportError|EnvironmentNotReady|PermissionError)\b"
    r"|\bNo module named '"
    # One that names no file is a bug in the code.
    rf"|{_NAMED}FileNotFoundError\b(?!:? ?(?:\[Errno 2\] )?(?:No such file(?: or directory)?)?$)",
    _K.ENVIRONMENT,
)
_RULES["nccl"] = rule(
    "nccl rccl hccl watchdog distbackend cuda",
    r"Watchdog caught collective operation timeout|\b[NRH]CCL (\w+ )?error\b"
    r"|\b[NRH]CCL communicator was aborted|\bncclUnhandled|\bnccl\w+Error\b"
    r"|ProcessGroup[NH]CCL.{0,200}(timed out|[Hh]eartbeat monitor|watchdog thread terminated)"
    r"|\bDistBackendError\b|Cuda failure ",
    _K.CUDA_ERROR,
    Weight.SYMPTOM,
)
_RULES["cuda"] = rule(
    "cuda hip cudnn cublas cusolver cusparse cufft curand nvrtc accelerator device-side illegal "
    "triton xpu npu hpu musa sycl level_zero ur_result pi_error ze_result rocblas hipblas miopen "
    "acl gpu",
    r"(?i:\b(?:CUDA|HIP|XPU|NPU|HPU|MUSA|SYCL)( driver| kernel| runtime| function)? error\b"
    r"|\b(?:cuDNN|MIOpen|rocBLAS|hipBLAS|cuBLAS)( Frontend)? error"
    r"|\b(?:CUDNN|CUBLAS|CUSOLVER|CUSPARSE|CUFFT|CURAND|HIPBLAS|HIPBLASLT|MIOPEN|NVRTC)"
    r"_(?:STATUS|ERROR)_|\bTriton Error \[\w+\])"
    r"|\bAcceleratorError\b|device-side assert triggered|an illegal memory access was encountered"
    r"|\bCUDA_ERROR_[A-Z]+|\b(cuda|hip)Error[A-Z]\w+|\brocblas_status_|\bmiopenStatus[A-Z]"
    r"|\b(?:UR_RESULT|PI|ZE_RESULT)_ERROR_|level_zero backend failed|Native API failed"
    r"|\bACL (?:stream |error)|NVMLError_GpuIsLost|\bGPU is lost\b",
    _K.CUDA_ERROR,
)
# The peer is gone: a server, or a rank whose own message says more.
_RULES["peer_gone"] = rule(
    "connection connectfullmesh diststore socket recv",
    r"Connection (?:reset|closed) by peer|ConnectionResetError|Remote end closed connection"
    r"|Connection was likely closed|connectFullMesh failed"
    r"|Socket Timeout|DistStoreError|failed to recv, got 0 bytes",
    _K.ENVIRONMENT,
    Weight.SYMPTOM,
)
_RULES["wrapper"] = rule(
    "childfailed calledprocess processraised processexited raytask brokenprocess "
    "terminatedworker "
    "failedjob pipe dataloader",
    r"ChildFailedError|CalledProcessError|ProcessRaisedException|ProcessExitedException"
    r"|RayTaskError|BrokenProcessPool|TerminatedWorkerError|FailedJobError"
    r"|Broken pipe"
    r"|DataLoader worker .{0,40}exited unexpectedly",
    _K.PYTHON_ERROR,
    Weight.SYMPTOM,
)

EXCEPTION_RULES = tuple(_RULES.values())
EXCEPTIONS = RuleTable(EXCEPTION_RULES)
