"""Messages of drivers and of the system about a database, in words."""

from __future__ import annotations

import errno
import sqlite3

import pytest

from kdispatch_relay.store.failures import words

_TWO = "Multiple exceptions: [Errno 111] Connect call failed ('::1', 1, 0, 0), [Errno 111] Connect call failed ('h', 1)"


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/x.db"), "/x.db: permission denied"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('h', 1)"), "connection refused"),
        (OSError(_TWO), "connection refused"),
        (OSError(), "OSError"),
        (sqlite3.OperationalError("database is locked"), "database is locked"),
        (RuntimeError("The server ends."), "The server ends"),
    ],
)
def test_words(reason: Exception, said: str) -> None:
    """Numbers and brackets of the system are left out, each reason appears once, and the full stop is our own."""
    assert words(reason) == said
