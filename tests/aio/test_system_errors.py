"""Errors have the same words on every system."""

from __future__ import annotations

import errno
import os
from typing import Final

import pytest

from kdispatch_protocol.process.system_errors import errno_of, reasons_of, words_of

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


class _OfProactor(ConnectionRefusedError):
    """What asyncio's Proactor loop raises for a refused connection: only ``winerror`` says so."""

    winerror = 1225


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (_OfProactor(errno.EINVAL, "The remote computer refused the network connection"), errno.ECONNREFUSED),
        (
            OSError(errno.EINVAL, "Multiple exceptions: [WinError 1225] No, [WinError 1225] No"),
            errno.ECONNREFUSED,
        ),
        (OSError(errno.EINVAL, "Invalid argument"), errno.EINVAL),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), errno.ECONNRESET),
        (TimeoutError(), 0),
    ],
)
def test_numbers_of_windows(error: OSError, number: int) -> None:
    """An error of Windows' Proactor loop has the number of what happened, and others keep theirs."""
    assert errno_of(error) == number


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('h', 1)"), "connection refused"),
        (
            OSError(
                f"Multiple exceptions: [Errno {errno.ENETUNREACH}] Connect call failed ('::1', 1, 0, 0), "
                f"[Errno {errno.ECONNREFUSED}] b, [Errno {errno.ECONNREFUSED}] c"
            ),
            "network is unreachable, connection refused",
        ),
        (OSError("Multiple exceptions: [WinError 1225] It refused it, [WinError 121] b"), "connection refused, "),
        (OSError("The proxy is gone."), "The proxy is gone"),
        (OSError(), "OSError"),
    ],
)
def test_reasons(error: OSError, said: str) -> None:
    """Several failures in one error are each named once, in the system's words; other errors keep their own."""
    assert reasons_of(error).startswith(said)
