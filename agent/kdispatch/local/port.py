"""Checks whether something listens on the offered local port, without disturbing it where possible."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import struct
from pathlib import Path
from typing import Final

from kdispatch_protocol.process.descriptors import is_ours

__all__ = ["LOCALHOST", "LOOK_EVERY", "PROBE_EVERY", "is_open", "look", "look_again", "looks_open"]

#: Seconds between checks that cost the service nothing, and between checks that connect to it.
LOOK_EVERY: Final = 2.0
PROBE_EVERY: Final = 8.0

#: First interval in seconds after a service has disappeared: the longest delay until its restart is seen.
_LOOK_SOON: Final = 0.2
#: Later intervals, as a part of the time for which it has been away: every 2 s after 20 s.
_LOOK_LATER: Final = 0.1
#: The addresses that the name "localhost" means here, in the order in which they are tried.
LOCALHOST: Final = ("127.0.0.1", "::1")

_LISTEN: Final = "0A"  # TCP_LISTEN in /proc/net/tcp
_TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


def look_again(away: float) -> float:
    """Seconds until the next check of a service that has been away for ``away`` seconds."""
    return min(max(_LOOK_SOON, away * _LOOK_LATER), LOOK_EVERY)


async def look(address: str, port: int) -> bool | None:
    """Run :func:`looks_open` in a thread, because reading the table takes long with many thousand connections."""
    return await asyncio.to_thread(looks_open, address, port)


def looks_open(address: str, port: int) -> bool | None:
    """Whether the kernel's table has a local listener; ``None`` if it can't tell.

    Checks by connecting would show up in the service's log (sshd's above all).
    """
    if not _is_loopback(address):
        return None
    listeners = {f"{place}:{port:04X}" for place in _places(address)}
    tables = [table for table in _TABLES if table.exists()]  # none without Linux, one without IPv6
    try:
        found = any(_lists(table, listeners) for table in tables)
    except OSError:
        return None
    return found if tables else None


def _lists(table: Path, listeners: set[str]) -> bool:
    with table.open() as lines:
        for line in lines:
            fields = line.split(maxsplit=4)
            if len(fields) > 3 and fields[3] == _LISTEN and fields[1] in listeners:
                return True
    return False


async def is_open(address: str, port: int, timeout: float) -> bool:
    """Whether the port accepts connections: from the kernel's table, otherwise by connecting once.

    Raises ``OSError`` if this machine could not connect: that says nothing about the port.
    """
    if await look(address, port):
        return True
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(address, port)
    except OSError as error:  # TimeoutError is one
        if is_ours(error):
            raise
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def _places(address: str) -> set[str]:
    """Addresses, as the kernel writes them, to which a listener for ``address`` may be bound: itself, or all."""
    places = {"0" * 8, "0" * 32}
    for name in LOCALHOST if address == "localhost" else (address,):
        packed = ipaddress.ip_address(name).packed
        words = struct.unpack(f"={len(packed) // 4}I", packed)  # each word is in the machine's byte order
        written = "".join(f"{word:08X}" for word in words)
        places |= {written, f"0000000000000000FFFF0000{written}"} if len(words) == 1 else {written}
    return places


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
