"""Error numbers of Linux and their messages, by the kind of failure they indicate; pure.

Python prints a number as `[Errno 28]`, Rust as `(os error 28)` or `Os { code: 28,`, HDF5 as
`errno = 28`; C++ prints the message alone, and in other languages the message is another one.
"""

from collections.abc import Iterable

from elmanctl.ledger.records import VerdictKind

_K = VerdictKind

# The messages of these also mean something else, or little: EFBIG, ENOSYS (locks, on some file
# systems), EBADE, ENODATA, ENONET, EREMOTE, ECOMM, EPROTO, EBADMSG (a checksum), EBADFD, ELIBACC,
# ELIBBAD, EOPNOTSUPP, ENETRESET, ECONNABORTED, EOWNERDEAD.
_BY_NUMBER_ALONE = (27, 38, 52, 61, 64, 66, 70, 71, 74, 77, 79, 80, 95, 102, 103, 130)

_ERRNOS: dict[VerdictKind, dict[int, str]] = {
    _K.OOM: {12: "Cannot allocate memory"},  # ENOMEM
    _K.DISK_FULL: {
        28: "No space left on device",  # ENOSPC
        122: "Disk quota exceeded",  # EDQUOT
    },
    # Faults of the node, its file systems and its network.
    _K.ENVIRONMENT: {
        5: "Input/output error",  # EIO
        6: "No such device or address",  # ENXIO
        8: "Exec format error",  # ENOEXEC
        11: "Resource temporarily unavailable",  # EAGAIN: no more processes, a lock
        16: "Device or resource busy",  # EBUSY
        19: "No such device",  # ENODEV
        23: "Too many open files in system",  # ENFILE
        24: "Too many open files",  # EMFILE
        26: "Text file busy",  # ETXTBSY
        30: "Read-only file system",  # EROFS
        35: "Resource deadlock avoided",  # EDEADLK: a lock of a file system
        37: "No locks available",  # ENOLCK
        40: "Too many levels of symbolic links",  # ELOOP: an automount that failed
        67: "Link has been severed",  # ENOLINK
        98: "[Aa]ddress already in use",  # EADDRINUSE
        99: "Cannot assign requested address",  # EADDRNOTAVAIL
        100: "Network is down",  # ENETDOWN
        101: "Network is unreachable",  # ENETUNREACH
        105: "No buffer space available",  # ENOBUFS
        107: "Transport endpoint is not connected",  # ENOTCONN
        108: "Cannot send after transport endpoint shutdown",  # ESHUTDOWN
        110: "Connection timed out",  # ETIMEDOUT
        111: "Connection refused",  # ECONNREFUSED
        112: "Host is down",  # EHOSTDOWN
        113: "No route to host",  # EHOSTUNREACH
        116: "Stale (?:NFS )?file handle",  # ESTALE
        117: "Structure needs cleaning",  # EUCLEAN
        121: "Remote I/O error",  # EREMOTEIO
        123: "No medium found",  # ENOMEDIUM
        126: "Required key not available",  # ENOKEY
        127: "Key has expired",  # EKEYEXPIRED
        128: "Key has been revoked",  # EKEYREVOKED
        133: "Memory page has hardware error",  # EHWPOISON
        **dict.fromkeys(_BY_NUMBER_ALONE, ""),
    },
}


def numbered(numbers: Iterable[int]) -> str:
    """Return a pattern for error numbers, as several languages print them."""
    one = "|".join(str(number) for number in sorted(numbers))
    return (
        rf"\[Errno (?:{one})\]|\(os error (?:{one})\)|\bOs \{{ code: (?:{one}),"
        rf"|\berrno ?[=:] ?(?:{one})\b"
    )


NUMBERS = {kind: tuple(errnos) for kind, errnos in _ERRNOS.items()}
MESSAGES = {kind: "|".join(filter(None, errnos.values())) for kind, errnos in _ERRNOS.items()}
