"""Listening sockets: created here, or handed over by systemd."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import MutableMapping, Sequence
from typing import Any, Final

from kdispatch_protocol.errors import KdispatchError

__all__ = ["SHARING", "bound", "close", "handed_over", "reachable", "way_to", "written"]

#: Whether several relays of one user can listen on one port, and the kernel can be told which one gets connections.
SHARING: Final = sys.platform == "linux"

_FIRST: Final = 3  # the first descriptor that is handed over (sd_listen_fds(3))
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def bound(addresses: Sequence[tuple[int, Any]], *, beside: bool) -> list[socket.socket]:
    """Sockets bound to the addresses (family, address), not listening yet; raises ``OSError``.

    With ``beside``, another relay may listen there; otherwise an address in use is refused. Port 0 becomes the same
    free port for all. A family that this machine lacks is left out if there is another one.
    """
    made: list[socket.socket] = []
    last = len(addresses) - 1
    try:
        for index, (family, (host, port, *more)) in enumerate(addresses):
            try:
                made.append(_bound(family, (host, port or _port(made), *more), beside=beside))
            except OSError as error:
                missing = error.errno in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
                if not missing or (index == last and not made):
                    raise
    except BaseException:
        close(made)
        raise
    return made


def _bound(family: int, address: tuple[Any, ...], *, beside: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # on Windows this option would let other programs bind the same port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if beside:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        if SHARING:  # only after bind(), which has refused a port in use; now the next relay can listen beside this one
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.settimeout(0.0)
    except BaseException:
        sock.close()
        raise
    return sock


def _port(made: list[socket.socket]) -> int:
    return int(made[0].getsockname()[1]) if made else 0


def close(made: list[socket.socket]) -> None:
    """Close them all."""
    for sock in made:
        sock.close()


def written(address: tuple[Any, ...]) -> str:
    """``HOST:PORT``, an IPv6 host in brackets."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def way_to(sock: socket.socket) -> tuple[Any, ...]:
    """The address by which this machine reaches a listening socket of its own."""
    return reachable(sock.getsockname())


def reachable(address: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same address, with loopback instead of the wildcard address."""
    host, *more = address
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), *more  # noqa: S104 - no socket listens on it


def handed_over(environment: MutableMapping[str, str]) -> list[socket.socket]:
    """The sockets that systemd, or a program that works like it, has opened for this process; empty without any.

    Removes the variables from the environment, because they are not meant for child processes. Raises ``bad_request``
    for anything but a listening TCP socket.
    """
    pid, count, names, _ = (environment.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return []  # meant for the process that started this one
    named = names.split(":")
    made: list[socket.socket] = []
    try:
        for index in range(int(count)):
            name = named[index] if index < len(named) and named[index] else f"number {index + 1}"
            made.append(_socket(_FIRST + index, name))
    except BaseException:
        close(made)
        raise
    return made


def _socket(descriptor: int, name: str) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - it takes no keywords
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        reason = "is not open" if error.errno == errno.EBADF else "is not a socket"
        raise KdispatchError("bad_request", f"What was handed over as {name} {reason}.") from error
    tcp = sock.family in {socket.AF_INET, socket.AF_INET6} and sock.type == socket.SOCK_STREAM
    if not tcp or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        text = f"The socket that was handed over as {name} is not a listening TCP socket (in a unit: ListenStream="
        raise KdispatchError("bad_request", f"{text}HOST:PORT, and Accept=no).")
    sock.settimeout(0.0)
    return sock
