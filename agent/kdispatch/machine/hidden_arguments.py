"""Removes secrets typed as arguments from what other users see in process lists."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

__all__ = ["hide_argument", "hide_password"]

_PROCESS: Final = Path("/proc/self")
#: Field of proc_pid_stat(5) with the address of the first argument, counted after the command's name.
_ARG_START: Final = 48 - 3


def hide_password(url: str) -> bool:
    """Overwrite the name and the password in a URL, like :func:`hide_argument`."""
    return hide_argument(url.rpartition("@")[0].rpartition("://")[2])


def hide_argument(secret: str) -> bool:
    """Overwrite ``secret`` in this process's arguments; returns whether no part of it is visible any more.

    Only Linux shows arguments in memory that the process itself can change.
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
