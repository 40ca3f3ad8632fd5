"""Explains what is wrong with a database, and what its operator can do."""

from __future__ import annotations

import errno
import socket
import sqlite3
from typing import Final, NamedTuple

from kdispatch_protocol.errors import CODES, KdispatchError
from kdispatch_protocol.process.system_errors import reasons_of
from kdispatch_protocol.shortage import SHORTAGE_HINT, shortage
from kdispatch_relay.store.place import FileMovedError

__all__ = ["StorageError", "explain", "words"]

_BACKUP: Final = "Restore a backup, and keep the damaged file: see 'The database' in docs/operations.md."
_ROOM: Final = "Make room on its disk."
_OWNER: Final = (
    "Check --database, owner and mode of the file and its folder, and whether its disk is mounted read-only."
)


class StorageError(KdispatchError):
    """``storage_unavailable``, with its own ``hint``."""

    def __init__(self, text: str, hint: str, *, known: bool = True) -> None:
        super().__init__("storage_unavailable", text)
        self.hint = hint
        self.known = known  # whether the cause is known


class _Cause(NamedTuple):
    text: str
    hint: str


_MOVED: Final = _Cause(
    "The relay's database file is not in its place: a change would be lost.",
    "Put the file back where it was, or restart the relay with the one that is there.",
)
#: By the primary result code of SQLite (https://sqlite.org/rescode.html).
_SQLITE: Final = {
    sqlite3.SQLITE_CORRUPT: _Cause("The relay's database is damaged.", _BACKUP),
    sqlite3.SQLITE_NOTADB: _Cause("The relay's database file is not a database, or is damaged.", _BACKUP),
    sqlite3.SQLITE_FULL: _Cause("The relay's database has no room on its disk.", _ROOM),
    sqlite3.SQLITE_READONLY: _Cause("The relay's database can't be written.", _OWNER),
    sqlite3.SQLITE_CANTOPEN: _Cause("The relay's database can't be opened.", _OWNER),
    sqlite3.SQLITE_PERM: _Cause("The relay's database can't be opened.", _OWNER),
}
_SYSTEM: Final = {
    errno.ENOSPC: _SQLITE[sqlite3.SQLITE_FULL],
    errno.EDQUOT: _SQLITE[sqlite3.SQLITE_FULL],
    errno.EROFS: _SQLITE[sqlite3.SQLITE_READONLY],
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENOENT), _SQLITE[sqlite3.SQLITE_CANTOPEN]
    ),
}
_UNKNOWN: Final = _Cause(CODES["storage_unavailable"].meaning, CODES["storage_unavailable"].hint)


def explain(reason: BaseException) -> StorageError:
    """The error for what a driver or the system reported. Its text names no path, because strangers see it."""
    cause = _UNKNOWN
    if (text := shortage(reason)) is not None:
        cause = _Cause(text, SHORTAGE_HINT)
    elif isinstance(reason, FileMovedError):
        cause = _MOVED
    elif isinstance(reason, sqlite3.Error):
        cause = _SQLITE.get(getattr(reason, "sqlite_errorcode", 0) & 0xFF, _UNKNOWN)
    elif isinstance(reason, OSError):
        cause = _SYSTEM.get(reason.errno or 0, _UNKNOWN)
    return StorageError(*cause, known=cause is not _UNKNOWN)


def words(reason: BaseException) -> str:
    """What a driver or the system reported, for the operator: without numbers, and without the full stop."""
    text = str(reason).strip()
    if isinstance(reason, socket.gaierror):
        text = f"the server's name can't be looked up ({reason.strerror})"
    elif isinstance(reason, OSError):
        said = reasons_of(reason)
        text = f"{reason.filename}: {said}" if reason.filename is not None else said
    return text.rstrip(".") or type(reason).__name__
