"""Checks that the SQLite file that a relay has open is still the one at its path, and has room.

The kernel lets a relay go on writing to a file that was moved or deleted, or to its write-ahead log. What is committed
there is lost at the next start. So each commit checks first. The functions block: call them in a thread.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

__all__ = ["FileMovedError", "OpenFiles", "identity"]

#: The database, its write-ahead log, and that log's index, which other processes share.
_SUFFIXES: Final = ("", "-wal", "-shm")
#: Bytes that the disk must have free: more than any one commit writes.
_ROOM: Final = 256 * 1024

_Identity = tuple[int, int]


class FileMovedError(OSError):
    """The files at the path are not those that are open, or are missing."""


class OpenFiles:
    """The files of one connection, by device and inode. Create it while the connection is in a transaction."""

    def __init__(self, database: Path, found: _Identity) -> None:
        """``found`` is the database's identity when it was opened. Raises :class:`FileMovedError`."""
        self._paths = tuple(Path(f"{database}{suffix}") for suffix in _SUFFIXES)
        self._found = (found, *map(identity, self._paths[1:]))
        self.check()

    def check(self) -> None:
        """Raise :class:`FileMovedError` unless all files are still at their paths."""
        for path, found in zip(self._paths, self._found, strict=True):
            if identity(path) != found:
                raise FileMovedError(_moved(path, "another file is there"))

    def check_usable(self) -> None:
        """Like :meth:`check`; also raises ``OSError`` if no other connection could be opened, or the disk is full."""
        self.check()
        database = self._paths[0]
        if not os.access(database, os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(database))
        if hasattr(os, "statvfs"):
            disk = os.statvfs(database)
            free = disk.f_bfree if os.geteuid() == 0 else disk.f_bavail
            if free * disk.f_frsize < _ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(database))


def identity(path: Path) -> _Identity:
    """Device and inode; raises :class:`FileMovedError` if there is no such file."""
    try:
        found = path.stat()
    except OSError as error:
        raise FileMovedError(_moved(path, error.strerror or str(error))) from error
    return found.st_dev, found.st_ino


def _moved(path: Path, why: str) -> str:
    return f"{path} is not the file that the relay has open ({why}): put that one back, or restart the relay"
