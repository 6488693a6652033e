"""Runs a command for which the kernel makes no hard link, as on file systems that have none.

python tests/no_hard_links.py COMMAND...
"""

import ctypes
import errno
import os
import platform
import struct
import sys

# link and linkat, by machine; the newer ones have the second only.
CALLS = {"x86_64": (86, 265), "aarch64": (37,)}

_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def forbid_links(error: int = errno.EPERM) -> None:
    """Let each attempt of this process to make a hard link fail from now on."""
    calls = CALLS[platform.machine()]
    jumps = [(_JUMP_IF_EQUAL, len(calls) - index, 0, call) for index, call in enumerate(calls)]
    lines = [(_LOAD, 0, 0, 0), *jumps, (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | error)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(lines), ctypes.addressof(code))
    )
    kernel = ctypes.CDLL(None, use_errno=True)
    kernel.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if kernel.prctl(_SECCOMP, _FILTER, ctypes.byref(program)):
        raise OSError(ctypes.get_errno(), "no filter of system calls here")


if __name__ == "__main__":
    forbid_links()
    os.execv(sys.argv[1], sys.argv[1:])
