"""Exceptions of every kind, as torch, Python and the libraries of a training raise them."""

import errno
from collections.abc import Callable

from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration, NotFound


def named(module: str, name: str, *bases: type) -> Callable[..., Exception]:
    """Return an exception class of a library that is not installed here."""
    return type(name, bases or (RuntimeError,), {"__module__": module, "__qualname__": name})


AcceleratorError = named("torch", "AcceleratorError")
OutOfMemoryError = named("torch", "OutOfMemoryError")
InductorError = named("torch._inductor.exc", "InductorError")
BackendCompilerFailed = named("torch._dynamo.exc", "BackendCompilerFailed")
DistBackendError = named("torch.distributed", "DistBackendError")
ADVICE = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call.\n"
    "For debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)
TORCH_SHM = "unable to open shared memory object </torch_7_8> in read-write mode: "


def call(number: int, words: str, file: str | None = "/scratch/bo/corpus.bin") -> OSError:
    """Return what a failed call raises, in Linux's words."""
    return OSError(number, words, file) if file else OSError(number, words)


OF_THE_NODE = [
    call(errno.EIO, "Input/output error"),
    call(errno.ENXIO, "No such device or address", "/dev/nvidia0"),
    call(errno.ENOEXEC, "Exec format error", "/opt/env/bin/ptxas-blackwell"),
    BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    call(errno.EBUSY, "Device or resource busy", "/users/bo/.triton/cache/K/tmp.pid_1"),
    call(errno.ENODEV, "No such device"),
    call(errno.ENFILE, "Too many open files in system"),
    call(errno.EMFILE, "Too many open files"),
    call(errno.ETXTBSY, "Text file busy", "/users/bo/.cache/torch_extensions/x/x.so"),
    call(errno.EROFS, "Read-only file system"),
    call(errno.ENOLCK, "No locks available"),
    call(errno.ENOSYS, "Function not implemented"),
    call(errno.ELOOP, "Too many levels of symbolic links"),
    call(errno.EADDRINUSE, "Address already in use", None),
    call(errno.ENETUNREACH, "Network is unreachable", None),
    call(errno.ENOTCONN, "Transport endpoint is not connected"),
    call(errno.ESHUTDOWN, "Cannot send after transport endpoint shutdown"),
    TimeoutError(errno.ETIMEDOUT, "Connection timed out", "/nfs/bo/corpus.bin"),
    ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    call(errno.EHOSTDOWN, "Host is down"),
    call(errno.EHOSTUNREACH, "No route to host"),
    call(errno.ESTALE, "Stale file handle", "/users/bo/.triton/cache/K/kernel.cubin"),
    call(errno.EUCLEAN, "Structure needs cleaning"),
    call(errno.EREMOTEIO, "Remote I/O error"),
    call(126, "Required key not available"),
    # In words of another language, and in words of a library.
    call(errno.ESTALE, "Veraltete Dateizugriffsnummer (file handle)"),
    call(errno.EIO, "unable to read the archive", None),
    OSError("Stale file handle (os error 116)"),
    named("safetensors_rust", "SafetensorError")(
        'Error while reading: Os { code: 5, kind: Uncategorized, message: "Input/output error" }'
    ),
    OSError(
        "Unable to synchronously open file (unable to lock file, errno = 11, error message = "
        "'Resource temporarily unavailable')"
    ),
    RuntimeError("filesystem error: cannot create directories: Read-only file system [/opt/x]"),
    named("sqlite3", "OperationalError")("disk I/O error"),
    # Files that only nodes that are well have; what an unwell one lacks.
    FileNotFoundError(
        errno.ENOENT, "No such file or directory", "/users/bo/.triton/cache/K/k.json"
    ),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "/sbin/ldconfig"),
    FileNotFoundError(errno.ENOENT, "No such file or directory", "/scratch/bo/corpus.bin"),
    FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/users/bo']"),
    FileExistsError(errno.EEXIST, "File exists", "/users/bo/.cache/torch_extensions/py311"),
    NotADirectoryError(errno.ENOTDIR, "Not a directory", "/tmp/torchinductor_bo/fx"),
    call(errno.ENOTEMPTY, "Directory not empty", "/users/bo/.triton/cache/K"),
    PermissionError(errno.EACCES, "Permission denied", "/users/bo/.triton"),
    PermissionError(errno.EPERM, "Operation not permitted"),
    KeyError("getpwuid(): uid not found: 4711"),
    OSError("No username set in the environment"),
    RuntimeError("Could not determine home directory."),
    # Of libraries and compilers.
    ModuleNotFoundError("No module named 'schedulefree'"),
    ImportError("libcudart.so.13: cannot open shared object file: No such file or directory"),
    ImportError("/users/bo/.triton/cache/K/x.so: cannot stat shared object: Stale file handle"),
    OSError("/opt/env/lib/libx.so: undefined symbol: _ZN3c10"),
    OSError("/lib64/libm.so.6: version `GLIBC_2.34' not found (required by /opt/x.so)"),
    OSError("/opt/env/lib/libx.so: file too short"),
    RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
    named("torch._inductor.exc", "InvalidCxxCompiler")("No working C++ compiler found in cxx"),
    InductorError("RuntimeError: Failed to find C compiler. Please set the CC variable."),
    InductorError("PermissionError: [Errno 13] Permission denied: '/tmp/torchinductor_bo/aot'"),
    BackendCompilerFailed(
        "backend='inductor' raised:\nRuntimeError: Cannot find a working triton "
        "installation. It is not installed or too old."
    ),
    BackendCompilerFailed("backend='inductor' raised:\nOSError: [Errno 116] Stale file handle"),
    RuntimeError("Cannot find ptxas"),
    AssertionError("libcuda.so cannot found!\nPossible files are located at []."),
    RuntimeError("0 active drivers ([]). There should only be one."),
    named("subprocess", "CalledProcessError")(
        "Command '['/usr/bin/gcc', '/tmp/a/main.c', '-lcuda']' returned non-zero exit status 1."
    ),
    RuntimeError("Ninja is required to load C++ extensions"),
    OSError("CUDA_HOME environment variable is not set. Please set it to your CUDA root."),
    RuntimeError("NumPy was built with baseline optimizations: \n(X86_V2) but this machine lacks"),
    named("torch._inductor.exc", "CppCompileError")("C++ compile error\n\nCommand:\ng++ x.cpp"),
    InductorError("CalledProcessError: Command '['/usr/bin/g++', 'x.cpp']' returned exit status 1"),
    RuntimeError("Error building extension 'fused': [1/2] nvcc -c x.cu"),
    named("conda", "CommandNotFoundError", Exception)(
        "Your shell has not been configured for conda"
    ),
    named("importlib.metadata", "PackageNotFoundError", ModuleNotFoundError)("triton"),
    named("datasets.exceptions", "DatasetNotFoundError", FileNotFoundError)("no such data set"),
    RuntimeError("The current installed version of g++ (4.8) is less than the minimum"),
    RuntimeError("The detected CUDA version (11.8) mismatches the one that compiled PyTorch"),
    # What says so stands further down in what they say.
    RuntimeError("Failed to import models.x because of this error:\nNo module named 'fla'"),
    named("triton.runtime.errors", "PTXASError", Exception)(
        "PTXAS error\n`ptxas` stderr:\nfatal: 'sm_1' is not defined for option 'gpu-name'"
    ),
    # Of threads, processes and shared memory.
    RuntimeError("can't start new thread"),
    RuntimeError("pthread_create failed: Resource temporarily unavailable"),
    RuntimeError('failed to spawn thread: Os { code: 11, kind: WouldBlock, message: "" }'),
    RuntimeError(f"{TORCH_SHM}No space left on device (28)"),
    RuntimeError(f"{TORCH_SHM}Too many open files (24)"),
    RuntimeError("unable to write to file </torch_7_8>: No space left on device (28)"),
    RuntimeError("unable to allocate shared memory(shm) for file </torch_7>: Success (0)"),
    RuntimeError("received 0 items of ancdata"),
    call(errno.ENOSPC, "No space left on device", "/psm_5a6b"),
    # Of a disk that only this node has, and of what is no disk.
    call(errno.ENOSPC, "No space left on device", "/tmp/tmpk2/main.c"),
    call(errno.ENOSPC, "No space left on device", "/var/tmp/x"),
    call(errno.EDQUOT, "Disk quota exceeded", "/lscratch/71/cache"),
    call(errno.ENOSPC, "No space left on device", "/localscratch/bo.71.0/x"),
    OSError(errno.ENOSPC, "inotify watch limit reached"),
    call(errno.ENOSPC, "No space left on device", "/dev/shm/nccl-Xy"),
    RuntimeError(
        "DataLoader worker (pid 77) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory. Please try to raise your shared memory "
        "limit."
    ),
    DistBackendError(
        "NCCL error in: x.cpp:1, unhandled system error\nncclSystemError: System call failed.\n"
        "Last error:\nError while creating shared memory segment /dev/shm/nccl-Ab (size 9637888)"
    ),
    # Of the accelerator and its driver.
    AcceleratorError(f"CUDA error: CUDA-capable device(s) is/are busy or unavailable{ADVICE}"),
    RuntimeError("cuda runtime error (46) : all CUDA-capable devices are busy or unavailable"),
    RuntimeError(f"CUDA error: no CUDA-capable device is detected{ADVICE}"),
    RuntimeError("HIP error: no ROCm-capable device is detected"),
    RuntimeError("No HIP GPUs are available"),
    RuntimeError("No XPU devices are available."),
    RuntimeError("No device of requested type available. -1 (PI_ERROR_DEVICE_NOT_FOUND)"),
    AcceleratorError(f"CUDA error: invalid device ordinal{ADVICE}"),
    RuntimeError("HIP error: invalid device ordinal"),
    AcceleratorError(f"CUDA error: initialization error{ADVICE}"),
    AcceleratorError(f"CUDA error: system not yet initialized{ADVICE}"),
    RuntimeError("CUDA error: system has unsupported display driver / cuda driver combination"),
    RuntimeError("CUDA unknown error - this may be due to an incorrectly set up environment"),
    RuntimeError("CUDA driver initialization failed, you might not have a CUDA gpu."),
    RuntimeError("Unexpected error from cudaGetDeviceCount(). Error 802: system not yet ready"),
    RuntimeError("CUDA driver version is insufficient for CUDA runtime version"),
    RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."),
    RuntimeError("Found no NVIDIA driver on your system."),
    AssertionError("Torch not compiled with CUDA enabled"),
    AcceleratorError(f"CUDA error: no kernel image is available for execution{ADVICE}"),
    RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
    RuntimeError("Triton Error [HIP]:  Code: 209, Messsage: no kernel image is available for x"),
    RuntimeError("HIP error: invalid device function"),
    RuntimeError("CUDA error: the provided PTX was compiled with an unsupported toolchain."),
    RuntimeError("nvrtc: error: invalid value for --gpu-architecture (-arch)"),
    RuntimeError("CUDA error: MPS client failed to connect to the MPS control daemon"),
    RuntimeError("Can't initialize NVML"),
    named("pynvml", "NVMLError_DriverNotLoaded")("Driver Not Loaded"),
    named("cupy_backends.cuda.api.runtime", "CUDARuntimeError")(
        "cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable"
    ),
    named("numba.cuda.cudadrv.error", "CudaSupportError")(
        "Error at driver init: Call to cuInit results in CUDA_ERROR_NO_DEVICE (100)"
    ),
    RuntimeError("CUDA error: API call is not supported in the installed CUDA driver"),
    RuntimeError("CUDA is not available"),
    RuntimeError("Attempting to deserialize object on CUDA device 3 but there is only one"),
    RuntimeError("Initialize:x.cpp:1 NPU function error: aclInit, error code is 507008"),
    RuntimeError("Can't get ascend_hal device count"),
    RuntimeError("Failed to initialize the HIP runtime"),
    RuntimeError("aclrtSetDevice failed, error code 507033"),
    named("torch.cuda", "DeferredCudaCallError", Exception)(
        "CUDA call failed lazily at initialization with error: device < num_gpus"
    ),
    RuntimeError("Unable to find a C compiler"),
    RuntimeError("PyTorch is not linked with support for cuda devices"),
    AssertionError("no GPU found, which this program needs"),
    RuntimeError("FlashAttention only supports Ampere GPUs or newer."),
    RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at x.cpp:1"),
    RuntimeError("cuDNN version incompatibility: compiled against (9, 1, 0), found (8, 9, 2)"),
    OSError("libgomp.so.1: cannot allocate memory in static TLS block"),
    RuntimeError("nvrtc: error: failed to open libnvrtc-builtins.so.13.0."),
    # Of the network.
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    named("http.client", "RemoteDisconnected", ConnectionResetError)(
        "Remote end closed connection without response"
    ),
    named("ssl", "SSLError", OSError)("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred"),
    RuntimeError("Gloo connectFullMesh failed with [x.cc:1] no error"),
    named("torch.distributed", "DistStoreError")("Timed out after 61 seconds waiting for clients."),
    named("fsspec.exceptions", "FSTimeoutError", TimeoutError)(),
    TimeoutError("timed out"),
    call(521, "Unknown error 521"),
    call(errno.EDEADLK, "Resource deadlock avoided", "/scratch/bo/x.lock"),
    named("filelock._error", "Timeout", TimeoutError)(
        "The file lock '/users/bo/.cache/x.lock' could not be acquired."
    ),
    named("zipimport", "ZipImportError", ImportError)("bad local file header"),
    named("botocore.exceptions", "NoCredentialsError")("Unable to locate credentials"),
    named("aiohttp.client_exceptions", "ClientConnectorError", OSError)(
        "Cannot connect to host data.example:443 ssl:default [Temporary failure in name resolution]"
    ),
    named("urllib.error", "URLError", OSError)(
        "<urlopen error [Errno -3] Temporary failure in name resolution>"
    ),
    OSError("We couldn't connect to 'https://huggingface.co' to load the files"),
    named("requests.exceptions", "ConnectTimeout", OSError)("timed out"),
    EnvironmentNotReady("the corpus `corpus.bin` is missing"),
]

OF_MEMORY = [
    MemoryError(),
    MemoryError("Unable to allocate 8.00 GiB for an array with shape (1,) and data type float64"),
    named("numpy._core._exceptions", "_ArrayMemoryError", MemoryError)("Unable to allocate 8 GiB"),
    named("pyarrow.lib", "ArrowMemoryError", MemoryError)("malloc of size 64 failed"),
    call(errno.ENOMEM, "Cannot allocate memory", None),
    call(errno.ENOMEM, "Nicht genügend Hauptspeicher verfügbar", None),
    RuntimeError("std::bad_alloc"),
    RuntimeError("unable to mmap 8 bytes from file </x/y>: Cannot allocate memory (12)"),
    RuntimeError("[enforce fail at x.cpp:1] . DefaultCPUAllocator: can't allocate memory: you"),
    RuntimeError("not enough memory: you tried to allocate 80000 bytes."),
    OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity"),
    OutOfMemoryError("HIP out of memory. Tried to allocate 2.00 GiB."),
    OutOfMemoryError("XPU out of memory. Tried to allocate 2.00 GiB."),
    OutOfMemoryError("Allocation on device 0 would exceed allowed memory."),
    RuntimeError("NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 61.00 GiB capacity)"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)."),
    AcceleratorError(f"CUDA error: out of memory{ADVICE}"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("cuBLAS error: the resource allocation failed"),
    RuntimeError("Failed to malloc device memory, size 1024, ret 207001"),
    RuntimeError("CUDA error: insufficient resources when calling `cusparseCreate(handle)`"),
    # Memory is what the allocator was about to complain of.
    RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "c10/cuda/CUDACachingAllocator.cpp"'),
    RuntimeError("CUDA runtime error: out of memory"),
    RuntimeError("cuda runtime error (2) : out of memory at x.cu:66"),
    RuntimeError("HIP error: out of memory"),
    RuntimeError("hipErrorOutOfMemory: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("Triton Error [HIP]:  Code: 2, Messsage: out of memory"),
    RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
    RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    RuntimeError("Native API failed. Native API returns: -5 (PI_ERROR_OUT_OF_RESOURCES) -5"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`"),
    RuntimeError("rocblas_status_memory_error"),
    RuntimeError("MIOpen Error: handlehip.cpp:1: Memory not available to allocate buffer: 80"),
    RuntimeError("Triton Error [ZE]: 0x70000003"),
    named("cupy.cuda.memory", "OutOfMemoryError")("Out of memory allocating 8,000 bytes"),
    named("jaxlib.xla_extension", "XlaRuntimeError")(
        "RESOURCE_EXHAUSTED: Attempting to reserve 6.1G at the bottom of memory."
    ),
    InductorError("OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB."),
    BackendCompilerFailed("backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory."),
    DistBackendError(
        "NCCL error in: x.cpp:1, unhandled cuda error\nncclUnhandledCudaError: Call failed.\n"
        "Last error:\nCuda failure 2 'out of memory'"
    ),
]

OF_MEMORY += [
    RuntimeError(
        "Initialize:NPUCachingAllocator.cpp:1 NPU function error: aclrtSetDevice, error code is "
        "507033\n[ERROR] PTA call acl api failed\n"
        "[PID: 9] Memory_Allocation_Failure(EL0004): Failed to allocate memory."
    ),
]

OF_THE_DISK = [
    call(errno.ENOSPC, "No space left on device", "/scratch/bo/runs/x/metrics.jsonl"),
    call(errno.EDQUOT, "Disk quota exceeded", "/users/bo/runs/x/metrics.jsonl"),
    call(errno.ENOSPC, "Auf dem Gerät ist kein Speicherplatz mehr verfügbar", None),
    RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
    OSError("1000000 requested and 524288 written"),
    named("safetensors_rust", "SafetensorError")(
        "Error while serializing: IoError(Os { code: 28, kind: StorageFull })"
    ),
    OSError("Can't write data (file write failed: errno = 28, error message = 'no room')"),
    OSError("No space left on device (os error 28)"),
    named("sqlite3", "OperationalError")("database or disk is full"),
]

OF_THE_ACCELERATOR = [
    AcceleratorError(f"CUDA error: an illegal memory access was encountered{ADVICE}"),
    AcceleratorError(f"CUDA error: device-side assert triggered{ADVICE}"),
    AcceleratorError(f"CUDA error: unspecified launch failure{ADVICE}"),
    AcceleratorError(f"CUDA error: uncorrectable ECC error encountered{ADVICE}"),
    RuntimeError("HIP error: an illegal memory access was encountered"),
    RuntimeError("Triton Error [CUDA]: misaligned address"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    RuntimeError("CUDA error: HIPBLAS_STATUS_INTERNAL_ERROR when calling `hipblasGemmEx`"),
    RuntimeError("NPU function error: aclrtSynchronizeDevice, error code is 507015"),
    RuntimeError("level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)"),
    DistBackendError("NCCL error in: x.cpp:1, remote process exited or there was a network error"),
    named("pynvml", "NVMLError_GpuIsLost")("GPU is lost"),
]

OF_THE_CONFIGURATION = [
    InvalidConfiguration("n_state=20 is not supported"),
    NotFound("no model level `e99`"),
    named("triton.runtime.errors", "OutOfResources", Exception)(
        "out of resource: shared memory, Required: 300000, Hardware limit: 232448."
    ),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (32x24 and 16x1)"),
    RuntimeError("shape '[16, 75, 25]' is invalid for input of size 15892480"),
]

OF_THE_CODE = [
    ValueError("wrong"),
    ValueError("the batch must be smaller to avoid running out of memory"),
    KeyError("space"),
    RuntimeError("expected scalar type Float but found BFloat16"),
    IndexError("index 3 is out of bounds for dimension 0 with size 3"),
    AttributeError("module 'torch.cuda' has no attribute 'gpu'"),
    TypeError("forward() got an unexpected keyword argument 'device'"),
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    FileExistsError(errno.EEXIST, "File exists", "/scratch/bo/runs/x"),
    IsADirectoryError(errno.EISDIR, "Is a directory", "/scratch/bo/runs/x"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    EOFError("Ran out of input"),
    RecursionError("maximum recursion depth exceeded"),
    AssertionError(),
    RuntimeError("Cannot re-initialize CUDA in forked subprocess"),
    OSError(errno.EBADF, "Bad file descriptor"),
    RuntimeError("PytorchStreamReader failed reading zip archive: failed finding the directory"),
    InductorError("LoweringException: AssertionError: "),
    named("torch._dynamo.exc", "Unsupported")("call_function builtin in skip_files"),
]
