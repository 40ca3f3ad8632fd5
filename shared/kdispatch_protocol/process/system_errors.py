"""The system's words for its error numbers, the same on every system."""

from __future__ import annotations

import errno
import os
import re
from typing import Final

__all__ = ["errno_of", "errnos_of", "reasons_of", "words_of"]

#: Windows' own numbers for what happened to a connection, which asyncio's Proactor loop reports there. Python has an
#: errno for none of them, and says EINVAL.
_WINDOWS: Final = {
    64: errno.ECONNRESET,  # ERROR_NETNAME_DELETED
    121: errno.ETIMEDOUT,  # ERROR_SEM_TIMEOUT
    1225: errno.ECONNREFUSED,
    1231: errno.ENETUNREACH,
    1232: errno.EHOSTUNREACH,
    1234: errno.ECONNREFUSED,  # ERROR_PORT_UNREACHABLE
    1236: errno.ECONNABORTED,
}
#: A number in the text of an error that an event loop or happy eyeballs has made of several.
_NUMBER: Final = re.compile(r"\[(Errno|WinError) (-?\d+)\]")

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


def errno_of(error: OSError) -> int:
    """The error's ``errno``, also where Python has only Windows' own number; 0 if it has none."""
    number = getattr(error, "winerror", None)
    if number is None and error.errno == errno.EINVAL:
        return next((listed for listed in _in_text(error) if listed != errno.EINVAL), errno.EINVAL)
    return _WINDOWS.get(number or 0) or error.errno or 0


def errnos_of(error: OSError) -> list[int]:
    """The error's ``errno``, or that of each error that its text lists; none if there is none."""
    number = errno_of(error)
    return [number] if number else _in_text(error)


def reasons_of(error: OSError) -> str:
    """What the system says of a failure, in lower case; of several failures, each different reason once."""
    said = ", ".join(dict.fromkeys(words_of(number).lower() for number in errnos_of(error)))
    return said or (error.strerror or str(error) or type(error).__name__).rstrip(".")


def _in_text(error: OSError) -> list[int]:
    found = ((system, int(number)) for system, number in _NUMBER.findall(str(error)))
    numbers = (number if system == "Errno" else _WINDOWS.get(number) for system, number in found)
    return [number for number in numbers if number]
