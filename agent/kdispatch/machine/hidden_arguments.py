"""Secrets that were typed as arguments, taken out of what other users' process lists show."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

__all__ = ["hide_argument", "hide_password"]

_PROCESS: Final = Path("/proc/self")
#: Which field of proc_pid_stat(5) has the address of the first argument, counted behind the command's name.
_ARG_START: Final = 48 - 3


def hide_password(url: str) -> bool:
    """Overwrite the name and the password that stand in a URL, as :func:`hide_argument` does."""
    return hide_argument(url.rpartition("@")[0].rpartition("://")[2])


def hide_argument(secret: str) -> bool:
    """Overwrite ``secret`` in this process's arguments; whether nothing of it is shown any more.

    Only Linux shows arguments in a form that a process can change by itself.
    """
    hidden = os.fsencode(secret)
    if not hidden:
        return True
    with contextlib.suppress(OSError, ValueError, IndexError):
        arguments = (_PROCESS / "cmdline").read_bytes()
        fields = (_PROCESS / "stat").read_text().rpartition(")")[2].split()
        start = int(fields[_ARG_START])
        with (_PROCESS / "mem").open("r+b", buffering=0) as memory:
            at_byte = arguments.find(hidden)
            while at_byte >= 0:
                memory.seek(start + at_byte)
                memory.write(b"x" * len(hidden))
                at_byte = arguments.find(hidden, at_byte + 1)
        return hidden not in (_PROCESS / "cmdline").read_bytes()
    return False
