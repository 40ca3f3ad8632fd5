"""The system's words for its error numbers, the same on every system."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["words_of"]

#: Winsock's numbers, for which Windows' C library says "Unknown error". No other system has such numbers.
_WINSOCK: Final = {
    10047: "Address family not supported by protocol",
    10048: "Address already in use",
    10049: "Cannot assign requested address",
    10050: "Network is down",
    10051: "Network is unreachable",
    10053: "Software caused connection abort",
    10054: "Connection reset by peer",
    10055: "No buffer space available",
    10056: "Transport endpoint is already connected",
    10057: "Transport endpoint is not connected",
    10060: "Connection timed out",
    10061: "Connection refused",
    10064: "Host is down",
    10065: "No route to host",
}


def words_of(number: int) -> str:
    """What an ``errno`` means."""
    return _WINSOCK.get(number) or os.strerror(number)
