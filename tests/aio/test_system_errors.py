"""Errors have the same words on every system."""

from __future__ import annotations

import errno
import os
from typing import Final

import pytest

from kdispatch_protocol.process.system_errors import words_of

#: Winsock's number of an error, from winsock2.h, and this system's.
_SAME: Final = {
    10047: errno.EAFNOSUPPORT,
    10048: errno.EADDRINUSE,
    10049: errno.EADDRNOTAVAIL,
    10050: errno.ENETDOWN,
    10051: errno.ENETUNREACH,
    10053: errno.ECONNABORTED,
    10054: errno.ECONNRESET,
    10055: errno.ENOBUFS,
    10056: errno.EISCONN,
    10057: errno.ENOTCONN,
    10060: errno.ETIMEDOUT,
    10061: errno.ECONNREFUSED,
    10064: errno.EHOSTDOWN,
    10065: errno.EHOSTUNREACH,
}


@pytest.mark.parametrize(("winsocks", "ours"), _SAME.items())
def test_the_words_of_linux(winsocks: int, ours: int) -> None:
    """An error of Windows' sockets reads as on Linux, where the C library has the words."""
    assert words_of(winsocks) == words_of(ours) == os.strerror(ours)
