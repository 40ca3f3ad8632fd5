"""A connection to the relay through a proxy: HTTP CONNECT (RFC 9110, 9.3.6) or SOCKS5 (RFC 1928).

The proxy resolves the relay's name. No error raised here contains the proxy's user name or password.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from aiohappyeyeballs import start_connection

from kdispatch.addresses import EYEBALLS
from kdispatch.network.answers import passing
from kdispatch.network.challenges import Challenge, authorization, challenges, chosen
from kdispatch.network.names import Names
from kdispatch.network.proxy import Proxy
from kdispatch.setup_error import SetupError
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.process.system_errors import reasons_of
from kdispatch_protocol.wire.messages import printable

__all__ = ["connect_through"]

#: Seconds for all of the proxy's work; less than the 10 s of a request, so that the error names the proxy.
_SECONDS: Final = 8.0
#: Requests per connection: one without a password, one with it, and two after stale nonces.
_REQUESTS: Final = 4
_HEAD_MAX: Final = 32 * 1024
#: Bytes of a 407's page that are read to keep the connection; a longer page costs a new connection.
_PAGE_MAX: Final = 64 * 1024
_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([^\r\n]*))?\r?\n")
_REASON: Final = 80  # characters that are shown
#: Statuses of a CONNECT by which a proxy reports that itself, or the name, is away. For a name that it can't resolve
#: privoxy sends 404, tinyproxy 500, others 502 to 504. Temporary ones (408, 425, 429) count as well.
_AWAY: Final = frozenset({404, 410, 500, 502, 503, 504})
#: Statuses of a server that makes no connections at all: it is not a proxy, or not for this.
_NO_CONNECT: Final = frozenset({400, 405, 501, 505})
#: A proxy that sends HTTP's own 401 (tinyproxy, after a wrong password) means the same.
_WHO: Final = frozenset({401, 407})
#: SOCKS5 replies (RFC 1928, 6) that are the proxy's own refusal. After the others it could not reach the relay.
_SOCKS_REFUSALS: Final = frozenset({2, 7, 8})


async def connect_through(proxy: Proxy, host: str, port: int, names: Names | None = None) -> socket.socket:
    """A connected, non-blocking socket whose next byte comes from the relay; the caller closes it.

    ``names`` resolves the proxy's own name.

    Raises ``KdispatchError``: ``proxy_unreachable``, ``proxy_auth``, ``proxy_refused``, or ``relay_unreachable`` if
    the proxy reports that it can't reach the relay.
    """
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    way = _Way(proxy, target, names or Names())
    try:
        async with asyncio.timeout(_SECONDS):
            return await (_by_socks(way, host, port) if proxy.scheme == "socks5" else _by_http(way))
    except TimeoutError as error:
        raise way.unreachable(f"has not answered within {_SECONDS:g} s when asked for {target}") from error
    except (ConnectionError, EOFError) as error:
        raise way.closed() from error


@dataclass(frozen=True, slots=True)
class _Way:
    """A proxy and its target, with the sentences for its failures."""

    proxy: Proxy
    target: str
    names: Names

    @property
    def _name(self) -> str:
        return f"The proxy {self.proxy} ({self.proxy.source})"

    def unreachable(self, what: str) -> KdispatchError:
        return KdispatchError("proxy_unreachable", f"{self._name} {what}.")

    def broken(self, error: OSError) -> KdispatchError:
        if isinstance(error, socket.gaierror):
            return self.unreachable(f"can't be reached: its name cannot be resolved ({error.strerror})")
        return self.unreachable(f"can't be reached: {reasons_of(error)}")

    def closed(self) -> KdispatchError:
        return self.unreachable(f"closed the connection without an answer when asked for {self.target}")

    def refused(self, answer: str, *, away: bool) -> KdispatchError:
        """``away``: the proxy was willing, or may be soon."""
        if away:
            return KdispatchError("relay_unreachable", f"{self._name} can't reach {self.target}: {answer}.")
        return KdispatchError("proxy_refused", f"{self._name} does not let {self.target} pass: {answer}.")

    def no_connect(self, answer: str) -> KdispatchError:
        return KdispatchError("proxy_refused", f"{self._name} makes no connection to {self.target}: {answer}.")

    def log_in(self, answer: str) -> KdispatchError:
        text = f"{self._name} leads to a page when asked for {self.target}: {answer}."
        return KdispatchError("captive_portal", text)

    def asks_who(self) -> KdispatchError:
        what = "wants a name and a password" if self.proxy.user is None else "does not accept the name and password"
        return KdispatchError("proxy_auth", f"{self._name} {what}.")

    def asks_too_much(self, offered: Sequence[Challenge]) -> KdispatchError:
        schemes = (
            " or ".join(dict.fromkeys(printable(o.scheme, 20).title() for o in offered[:5])) or "what it does not say"
        )
        hint = "Run a helper that speaks it (Px, CNTLM) on this machine, and give its address with --proxy."
        return SetupError("proxy_auth", f"{self._name} wants {schemes}; kdispatch speaks Basic and Digest.", hint=hint)


async def _reached(way: _Way) -> socket.socket:
    """A connection to the proxy itself."""
    host, port = way.proxy.host, way.proxy.port
    try:
        addresses = await way.names.addresses(host, port, _SECONDS)
        return await start_connection(addresses, happy_eyeballs_delay=EYEBALLS)
    except OSError as error:
        raise way.broken(error) from error


# --- HTTP CONNECT ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answer:
    """A proxy's answer; ``goes_on`` says that the connection can take another request."""

    status: int
    reason: str
    offered: Sequence[Challenge]
    goes_on: bool


async def _by_http(way: _Way) -> socket.socket:
    sock: socket.socket | None = None
    credentials = b""
    try:
        for _ in range(_REQUESTS):
            again = sock is not None
            sock = sock or await _reached(way)
            try:
                answer = await _asked(sock, way, credentials)
            except (ConnectionError, EOFError):
                if not again:
                    raise
                answer = None  # closed after the 407, whatever the proxy had announced
            if answer is not None:
                if 200 <= answer.status < 300:
                    connected, sock = sock, None
                    return connected
                credentials = _credentials(way, answer, was_asked_before=bool(credentials))
            if answer is None or not answer.goes_on:
                sock.close()
                sock = None
        raise way.asks_who()
    finally:
        if sock is not None:
            sock.close()


def _credentials(way: _Way, answer: _Answer, *, was_asked_before: bool) -> bytes:
    """The credentials of the next request; raises if the answer is a refusal."""
    if answer.status not in _WHO:
        raise _refusal(way, answer)
    challenge = chosen(answer.offered)
    if answer.status == 401 and (challenge is None or was_asked_before):
        raise way.asks_who()
    if challenge is None:
        raise way.asks_too_much(answer.offered)
    if way.proxy.user is None or (was_asked_before and not challenge.stale):
        raise way.asks_who()
    return authorization(challenge, "CONNECT", way.target, way.proxy.user, way.proxy.password or "")


def _refusal(way: _Way, answer: _Answer) -> KdispatchError:
    words = f"it answers {answer.status} {answer.reason}".rstrip()
    if answer.status == 511:
        return way.log_in(words)
    if answer.status in _NO_CONNECT:
        return way.no_connect(words)
    return way.refused(words, away=answer.status in _AWAY or passing(answer.status))


async def _asked(sock: socket.socket, way: _Way, credentials: bytes) -> _Answer:
    """Send one request and read its answer; raises ``EOFError`` if there is none."""
    loop = asyncio.get_running_loop()
    target = way.target.encode()
    head = b"CONNECT " + target + b" HTTP/1.1\r\nHost: " + target + b"\r\nUser-Agent: kdispatch\r\n"
    head += b"Proxy-Connection: keep-alive\r\n"
    if credentials:
        head += b"Proxy-Authorization: " + credentials + b"\r\n"
    await loop.sock_sendall(sock, head + b"\r\n")
    received = bytearray()
    while not (end := re.search(rb"\r?\n\r?\n", received)):
        _must_be_http(way, received)
        data = await loop.sock_recv(sock, 4096)
        if not data:
            raise EOFError
        received += data
    _must_be_http(way, received)
    return await _rest(sock, way, bytes(received[: end.end()]), len(received) - end.end())


def _must_be_http(way: _Way, received: bytes | bytearray) -> None:
    if not b"HTTP/1.".startswith(received[:7]) or len(received) > _HEAD_MAX:
        raise way.unreachable("is no HTTP proxy: what it answers is no HTTP")


async def _rest(sock: socket.socket, way: _Way, head: bytes, more: int) -> _Answer:
    """Parse the answer with this head; ``more`` bytes after it have arrived."""
    line = _STATUS.match(head)
    if line is None:
        raise way.unreachable("is no HTTP proxy: what it answers is no HTTP")
    status, reason = int(line[2]), printable((line[3] or b"").decode("latin-1").strip(), _REASON)
    if 200 <= status < 300:
        if more:  # a client speaks first, so this can't be from the relay
            raise way.refused(f"it answers {status} with a page of its own in the relay's place", away=False)
        return _Answer(status, reason, (), goes_on=True)
    fields = [field.partition(":") for field in head[line.end() :].decode("latin-1").splitlines()]
    headers = [(name.strip().lower(), value.strip()) for name, _, value in fields]
    asking = "www-authenticate" if status == 401 else "proxy-authenticate"
    offered = challenges([value for name, value in headers if name == asking])
    goes_on = False
    if status in _WHO and line[1] == b"1" and not _closes(headers):
        lengths = {value for name, value in headers if name == "content-length"}
        length = next(iter(lengths), "")
        if len(lengths) == 1 and length.isascii() and length.isdigit() and len(length) < 6 and int(length) <= _PAGE_MAX:
            goes_on = await _skipped(sock, int(length) - more)
    return _Answer(status, reason, offered, goes_on)


def _closes(headers: Sequence[tuple[str, str]]) -> bool:
    said = [value.lower() for name, value in headers if name in {"connection", "proxy-connection"}]
    return any("close" in value for value in said) or any(name == "transfer-encoding" for name, _ in headers)


async def _skipped(sock: socket.socket, count: int) -> bool:
    """Read ``count`` bytes; returns whether they arrived."""
    while count > 0:
        data = await asyncio.get_running_loop().sock_recv(sock, min(count, 4096))
        if not data:
            return False
        count -= len(data)
    return count == 0


# --- SOCKS5 ---------------------------------------------------------------------------------------


class _Reaching:
    """Connects to the proxy like all code here; python-socks itself tries one address after the other."""

    def __init__(self, way: _Way) -> None:
        self._way = way

    async def connect(self, dest_host: str, dest_port: int, timeout: float | None = None) -> socket.socket:  # noqa: ARG002
        return await _reached(self._way)


class _Listening:
    """The loop for python-socks; it records what the proxy sends."""

    def __init__(self) -> None:
        self.heard = b""
        self._loop = asyncio.get_running_loop()

    async def sock_recv(self, sock: socket.socket, size: int) -> bytes:
        data = await self._loop.sock_recv(sock, size)
        self.heard += data
        return data

    async def sock_sendall(self, sock: socket.socket, data: bytes) -> None:
        await self._loop.sock_sendall(sock, data)


async def _by_socks(way: _Way, host: str, port: int) -> socket.socket:
    from python_socks import ProxyError, ProxyType  # noqa: PLC0415 - takes 40 ms, and few networks need it
    from python_socks.async_.asyncio import Proxy as Socks  # noqa: PLC0415 - as above

    proxy = way.proxy
    forward: Any = _Reaching(way)
    loop = _Listening()
    socks = Socks(
        ProxyType.SOCKS5,
        proxy.host,
        proxy.port,
        proxy.user,
        proxy.password,
        rdns=True,
        forward=forward,
        loop=cast("asyncio.AbstractEventLoop", loop),
    )
    try:
        return await socks.connect(host, port, timeout=_SECONDS * 2)  # the caller's time-out is shorter
    except ProxyError as error:
        raise _socks_error(way, error.error_code, str(error), loop.heard) from error
    except ConnectionError as error:
        raise _socks_closed(way, loop.heard) from error
    except ValueError as error:  # python-socks raises ValueError for a reply that it can't read
        raise way.unreachable("is no SOCKS5 proxy: what it answers can't be read") from error


def _socks_error(way: _Way, code: int | None, words: str, heard: bytes) -> KdispatchError:
    """By the reply's code; without a reply only the text of python-socks tells what happened."""
    if code is not None:
        return way.refused(f"it answers {words[:1].lower()}{words[1:]}", away=code not in _SOCKS_REFUSALS)
    if "authentication failure" in words or "No acceptable" in words:
        return way.asks_who()
    if "closed" in words:
        return _socks_closed(way, heard)
    return way.unreachable(f"is no SOCKS5 proxy: {words}")


def _socks_closed(way: _Way, heard: bytes) -> KdispatchError:
    """The error for a proxy that closed the connection after ``heard``, which begins with its choice of method."""
    if len(heard) < 2 or heard[0] != 5:
        return way.closed()
    wants_password = heard[1] == 2
    if wants_password and len(heard) == 2:
        return way.asks_who()
    # "ssh -D" sends no reply for a target that does not accept its connection.
    return way.refused("it closes the connection without a reply", away=True)
