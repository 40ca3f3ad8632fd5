"""Sockets that listen on a local address exclusively, and readable reasons for errors of local sockets."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any, Final

from kdispatch.addresses import place, written
from kdispatch.local.pipe import reset_when_closed
from kdispatch.machine.operating_system import HERE
from kdispatch.setup_error import SetupError
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.process.system_errors import errnos_of, words_of
from kdispatch_protocol.session.aio.sockets import cannot_listen, watch_peer

__all__ = ["is_unknown", "listening", "reason"]

#: Connections that the kernel holds until they are accepted.
_BACKLOG: Final = 1024
#: Tries to find one free port on all addresses of a name.
_TRIES: Final = 16
#: A family or an address that this machine lacks; other addresses of the same name may still work.
_NOT_HERE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_REASONS: Final = {
    errno.ECONNREFUSED: "the connection was refused",
    errno.ETIMEDOUT: "the connection timed out",
    errno.EHOSTUNREACH: "the host is unreachable",
    errno.ECONNRESET: "the connection was reset",
}
#: A family, and a socket address of that family.
_Where = tuple[int, Any]


def reason(error: OSError) -> str:
    """The reason for a failure in words. If several addresses failed, each different reason once."""
    if isinstance(error, socket.gaierror):
        return "the name is unknown" if is_unknown(error) else f"the name can't be looked up ({error.strerror})"
    numbers = errnos_of(error)
    if not numbers:
        return "the connection timed out" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
    said = [_REASONS.get(number) or words_of(number) for number in numbers]
    return ", ".join(dict.fromkeys(said))


def is_unknown(error: socket.gaierror) -> bool:
    """Whether the name has no address, as opposed to a failed look-up."""
    return error.errno in {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


async def listening(address: str, port: int) -> list[socket.socket]:
    """Sockets that listen exclusively on every address that ``address`` means, on one port.

    Raises the error of ``cannot_listen``, which names the address. Port 0 chooses a port that is free on all addresses.
    """
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(
            address or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )  # fmt: skip
    except OSError as error:
        text = f"{place(address, port)} can't be listened on: {reason(error)}."
        raise SetupError(
            "bad_request", text, hint="Check --address: it is a name or an address, without a port."
        ) from error
    where: list[_Where] = list(dict.fromkeys((info[0], info[4]) for info in infos))
    for last in range(_TRIES - 1, -1, -1):
        try:
            return _listen_at_all(where)
        except KdispatchError as error:
            if port or len(where) == 1 or not last or error.code != "port_in_use":
                raise
    raise AssertionError("the last try returns or raises")


def _listen_at_all(where: list[_Where]) -> list[socket.socket]:
    made: list[socket.socket] = []
    missing: list[OSError] = []
    for family, (host, port, *more) in where:
        number = made[0].getsockname()[1] if made and not port else port
        try:
            made.append(_listen(family, (host, number, *more)))
        except OSError as error:
            missing.append(error)
            if error.errno in _NOT_HERE and (made or len(missing) < len(where)):
                continue
            for sock in made:
                sock.close()
            raise cannot_listen(place(written((host, number, *more)), number), error) from error
    return made


def _listen(family: int, where: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        HERE.own_port(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Accepted connections inherit these options, without a call for each.
        reset_when_closed(sock)
        watch_peer(sock)
        sock.bind(where)
        # At once: while a port is only bound, another program could listen on it and get our connections.
        sock.listen(_BACKLOG)
        sock.setblocking(False)  # noqa: FBT003 - its only argument
    except BaseException:
        sock.close()
        raise
    return sock
