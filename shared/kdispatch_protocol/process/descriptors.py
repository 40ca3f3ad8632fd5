"""How many files and sockets a process may have open, and which errors say that it, or its machine, is at a limit."""

from __future__ import annotations

import contextlib
import errno
import importlib
import socket
from typing import Any, Final

__all__ = ["OURS", "SHORT", "is_ours", "is_reserved", "limit", "raise_limit"]

_resource: Any = None
with contextlib.suppress(ImportError):  # Windows has none, and no such limit
    _resource = importlib.import_module("resource")

#: The system has no room for one more socket: of this process, of all, or for its memory.
SHORT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
#: What connecting fails with that says nothing of the other end: no local port is free, no network is there, a rule of
#: this machine forbids it.
OURS: Final = SHORT | {errno.EADDRNOTAVAIL, errno.ENETDOWN, errno.ENETUNREACH, errno.EPERM, errno.EACCES, errno.EAGAIN}
#: Descriptors that no connection of a program gets: a session and its successor, look-ups of names, files that are
#: read now and then, and a command that asks for the status, need 12 at a time.
_RESERVE: Final = 16


def limit() -> int | None:
    """How many this process may have open; ``None`` where the system has no bound."""
    if _resource is None:
        return None
    soft, _ = _resource.getrlimit(_resource.RLIMIT_NOFILE)
    return None if soft == _resource.RLIM_INFINITY else int(soft)


def raise_limit() -> int | None:
    """Allow as many as the system lets this process have: the default is 1,024. Returns :func:`limit`."""
    if _resource is not None:
        _, hard = _resource.getrlimit(_resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):  # macOS has a bound of its own below an unlimited one
            _resource.setrlimit(_resource.RLIMIT_NOFILE, (hard, hard))
    return limit()


def is_reserved(descriptor: int) -> bool:
    """Whether this new descriptor is one of the last. The system gives the lowest that is free."""
    most = limit()
    return most is not None and descriptor >= most - min(_RESERVE, most // 4)


def is_ours(error: OSError) -> bool:
    """Whether a failure to connect is this machine's own, and so says nothing of who was to answer."""
    return isinstance(error, socket.gaierror) or error.errno in OURS
