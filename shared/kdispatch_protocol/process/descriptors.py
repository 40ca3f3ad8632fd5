"""Limits on open files and sockets, and the errors that mean that this process or its machine has reached a limit."""

from __future__ import annotations

import contextlib
import errno
import importlib
import socket
from typing import Any, Final

from kdispatch_protocol.process.system_errors import errno_of

__all__ = ["OURS", "SHORT", "is_ours", "is_reserved", "limit", "raise_limit"]

_resource: Any = None
with contextlib.suppress(ImportError):  # Windows has neither the module nor such a limit
    _resource = importlib.import_module("resource")

#: The system has no resources for another socket: this process's limit, the system's, or memory.
SHORT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
#: Connect errors that say nothing about the other end: no free local port, no network, or a rule of this machine
#: forbids it.
OURS: Final = SHORT | {errno.EADDRNOTAVAIL, errno.ENETDOWN, errno.ENETUNREACH, errno.EPERM, errno.EACCES, errno.EAGAIN}
#: Descriptors kept back from programs' connections: a session and its successor, name look-ups, files that are read
#: occasionally, and a command that asks for the status need 12 at a time.
_RESERVE: Final = 16


def limit() -> int | None:
    """The limit of open descriptors; ``None`` if the system has none."""
    if _resource is None:
        return None
    soft, _ = _resource.getrlimit(_resource.RLIMIT_NOFILE)
    return None if soft == _resource.RLIM_INFINITY else int(soft)


def raise_limit() -> int | None:
    """Raise the soft limit, 1,024 by default, to the hard limit. Returns :func:`limit`."""
    if _resource is not None:
        _, hard = _resource.getrlimit(_resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):  # macOS has its own bound below an unlimited one
            _resource.setrlimit(_resource.RLIMIT_NOFILE, (hard, hard))
    return limit()


def is_reserved(descriptor: int) -> bool:
    """Whether this new descriptor is in the reserve. The system always assigns the lowest free number."""
    most = limit()
    return most is not None and descriptor >= most - min(_RESERVE, most // 4)


def is_ours(error: OSError) -> bool:
    """Whether a connect error comes from this machine, and so says nothing about the other end."""
    return isinstance(error, socket.gaierror) or errno_of(error) in OURS
