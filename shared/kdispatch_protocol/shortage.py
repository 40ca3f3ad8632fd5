"""Recognize failures for lack of memory, threads or descriptors, and describe each in one sentence."""

from __future__ import annotations

import errno
import os
from typing import Final

__all__ = ["SHORTAGE_HINT", "shortage"]

SHORTAGE_HINT: Final = (
    "Raise the limits of this process (ulimit -v, -u and -n; MemoryMax=, TasksMax= and LimitNOFILE= in a unit), "
    "or end other programs."
)
_ERRNOS: Final = frozenset({errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS})
#: What the dynamic linker says when there is no memory for a C module.
_NO_MEMORY: Final = ("failed to map segment", "cannot allocate memory", "cannot map zero-fill")


def shortage(error: BaseException) -> str | None:
    """A sentence about the missing resource, or ``None`` if the failure has another cause."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(shortage, error.exceptions)), None)
    text = str(error).lower()
    if isinstance(error, MemoryError) or (isinstance(error, ImportError) and any(part in text for part in _NO_MEMORY)):
        return "The system refuses this process more memory."
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        return "The system refuses this process more threads."
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return f"The system refused what this process needs: {os.strerror(error.errno)}."
    return None
