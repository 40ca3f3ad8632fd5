"""Failures that say that this process, or its machine, has no more of something: each in one sentence."""

from __future__ import annotations

import errno
import os
from typing import Final

__all__ = ["SHORTAGE_HINT", "shortage"]

SHORTAGE_HINT: Final = (
    "Raise what this process may have (ulimit -v, -u and -n; MemoryMax=, TasksMax= and LimitNOFILE= in a unit), "
    "or end other programs."
)
_ERRNOS: Final = frozenset({errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS})
#: The dynamic linker's words, where there is no memory for a module in C.
_NO_MEMORY: Final = ("failed to map segment", "cannot allocate memory", "cannot map zero-fill")


def shortage(error: BaseException) -> str | None:
    """What there is no more of, if that is why it failed."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(shortage, error.exceptions)), None)
    text = str(error).lower()
    if isinstance(error, MemoryError) or (isinstance(error, ImportError) and any(part in text for part in _NO_MEMORY)):
        return "The system gives this process no more memory."
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        return "The system lets this process start no more threads."
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return f"The system refused what this process needs: {os.strerror(error.errno)}."
    return None
