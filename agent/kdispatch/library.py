"""Services as asyncio streams: ``open_connection`` and ``start_server`` without a local port.

    reader, writer = await kdispatch.open_connection("ann/web")

One session with the relay carries all connections of an event loop.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Self, cast

from kdispatch.client import Client
from kdispatch.credentials import Credentials
from kdispatch.host import Host
from kdispatch.network.dialer import Dialer
from kdispatch.settings import load_settings
from kdispatch_protocol.endpoint.aio.driver import EndpointDriver
from kdispatch_protocol.endpoint.aio.transport import StreamTransport
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.errors import KdispatchError

__all__ = ["Connector", "Server", "open_connection", "start_server"]

ClientConnected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]

#: The reader's buffer limit in bytes, as for asyncio's own streams.
_LIMIT: Final = 64 * 1024
#: A host id, as ``kdispatch service hosts`` lists it.
_HOST_ID: Final = re.compile(r"[0-9a-f]{32}")
#: Seconds to keep trying for an unreachable relay.
_WAIT: Final = 10.0


class Connector:
    """Opens connections to services over one session with a relay. Use it as an async context manager.

    ``relay`` is a URL; by default the current setting is used (``KDISPATCH_RELAY``,
    or what ``kdispatch sign-up`` remembered). ``token`` is needed for services
    that aren't public.
    """

    def __init__(self, relay: str | None = None, *, token: str | None = None) -> None:
        self._client = Client(_dialer(relay), token=token)
        self._starting: asyncio.Future[None] | None = None
        self._closed = False

    async def open_connection(
        self, service: str, *, limit: int = _LIMIT, host: str | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to ``handle/name``; returns a standard asyncio stream pair.

        Raises ``kdispatch.StreamReset`` (a ``ConnectionResetError``) if the service can't be
        reached, and ``kdispatch.KdispatchError`` if the relay can't; ``code`` is the reason. ``limit`` is in bytes.
        ``host`` is the id of the only host to use, for services that allow this. After the relay has answered
        ``revoked`` or ``token_refused`` for a service, later calls raise that at once.
        """
        if host is not None and _HOST_ID.fullmatch(host) is None:
            raise KdispatchError("bad_request", f"{host[:80]!r} is no host's id.")
        await self.start()
        reader = _Reader(limit=limit)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport = self._client.create_connection(service, protocol, host)
        try:
            await self._client.opened(transport)
        except asyncio.CancelledError:
            transport.abort()
            raise
        return reader, _Writer(transport, protocol, reader, asyncio.get_running_loop())

    async def start(self, wait: float = _WAIT) -> None:
        """Get the session. It is safe to call this again, or from several tasks at once."""
        if self.over:
            raise KdispatchError("relay_unreachable", "This connector is closed.")
        if self._starting is None or (self._starting.done() and self._starting.exception() is not None):
            self._starting = asyncio.ensure_future(self._client.uplink.start(wait))
        await asyncio.shield(self._starting)

    async def aclose(self) -> None:
        """End the session and every connection. The connector can't be started again."""
        self._closed = True
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait({self._starting})
        await self._client.stop()

    @property
    def over(self) -> bool:
        """Whether no session is possible any more: the relay's refusal was final, or this was closed."""
        return self._closed or self._client.uplink.over

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class _Reader(asyncio.StreamReader):
    """asyncio's reader, which first returns all bytes before a failure, so that a peer's last bytes are read."""

    _failure: Exception | None = None
    _whole = False  # the peer's end arrived before any failure

    def feed_eof(self) -> None:
        """The peer's end arrived, or none will come."""
        self._whole = self._whole or self._failure is None
        super().feed_eof()

    def set_exception(self, exc: Exception) -> None:
        """The connection failed: reads raise that after the bytes before it."""
        if self._failure is None:
            self._failure = exc
            self.feed_eof()

    def exception(self) -> Exception | None:
        """The failure for a writer."""
        return self._failure or super().exception()

    async def read(self, n: int = -1) -> bytes:
        """As asyncio's."""
        data = await super().read(n)
        if not data and n:
            self._raise_failure()
        return data

    async def readuntil(self, separator: Any = b"\n") -> bytes:
        """As asyncio's."""
        try:
            return await super().readuntil(separator)
        except asyncio.IncompleteReadError as error:
            if not error.partial:  # otherwise it has bytes, and the next call raises the failure
                self._raise_failure()
            raise

    async def readexactly(self, n: int) -> bytes:
        """As asyncio's."""
        try:
            return await super().readexactly(n)
        except asyncio.IncompleteReadError as error:
            if not error.partial:
                self._raise_failure()
            raise

    def _raise_failure(self) -> None:
        if self._failure is not None and not self._whole:
            raise self._failure


class _Writer(asyncio.StreamWriter):
    """asyncio's writer, whose ``drain`` raises the failure also if the connection is lost while it waits."""

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        protocol: asyncio.BaseProtocol,
        reader: _Reader,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(transport, protocol, reader, loop)
        self._hears = reader

    async def drain(self) -> None:
        """As asyncio's."""
        try:
            await super().drain()
        except ConnectionResetError as error:
            failure = self._hears.exception()
            if failure is None or failure is error:
                raise
            raise failure from None


_connectors: dict[asyncio.AbstractEventLoop, dict[tuple[str, str | None], Connector]] = {}


async def open_connection(
    service: str,
    *,
    relay: str | None = None,
    token: str | None = None,
    limit: int = _LIMIT,
    host: str | None = None,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to ``handle/name``, as ``asyncio.open_connection`` does to a port; see :class:`Connector`.

    Connections of one event loop to one relay share a session, which ends with the loop.
    """
    for loop in [loop for loop in _connectors if loop.is_closed()]:
        del _connectors[loop]
    connectors = _connectors.setdefault(asyncio.get_running_loop(), {})
    key = (str(load_settings(relay=relay).relay_urls), token)
    if key not in connectors or connectors[key].over:
        connectors[key] = Connector(relay, token=token)
    return await connectors[key].open_connection(service, limit=limit, host=host)


class Server:
    """A service hosted by this process. Created by :func:`start_server`."""

    def __init__(self, dialer: Dialer, service: str, token: str, connected: ClientConnected, limit: int) -> None:
        self._connected = connected
        self._limit = limit
        self._host = Host(dialer, service, token, self._serve)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def host(self) -> str:
        """This host's id."""
        return self._host.id

    async def start(self, wait: float = _WAIT) -> None:
        """Offer the service; raises ``KdispatchError``."""
        await self._host.start(wait)

    async def serve_forever(self) -> None:
        """Wait until the service can't be offered any more; raises the reason."""
        await self._host.failed()

    async def aclose(self, drain: float = 0.0) -> None:
        """Withdraw, give running connections ``drain`` seconds, then end them."""
        await self._host.drain(drain)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._host.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _serve(self, driver: EndpointDriver, stream: Stream) -> None:
        reader = _Reader(limit=self._limit)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport = driver.accept(stream, protocol)
        writer = _Writer(transport, protocol, reader, driver.loop)
        handled = self._connected(reader, writer)
        if inspect.isawaitable(handled):
            task = asyncio.ensure_future(_finish(handled, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _finish(handled: Awaitable[None], writer: asyncio.StreamWriter) -> None:
    """Run a handler, then close what it left open; its failure resets its connection."""
    try:
        await handled
    except BaseException as error:
        transport = cast("StreamTransport", writer.transport)
        if isinstance(error, asyncio.CancelledError):
            transport.abort()
        else:
            transport.reset_behind("cancelled", "")  # bytes that it wrote before still arrive
        if isinstance(error, ConnectionError):
            return  # caused by the client, as with any server
        if not isinstance(error, asyncio.CancelledError):
            loop = asyncio.get_running_loop()
            loop.call_exception_handler({"message": "a kdispatch connection's handler failed", "exception": error})
            return
        raise
    writer.close()


async def start_server(
    client_connected_cb: ClientConnected,
    service: str,
    *,
    relay: str | None = None,
    token: str | None = None,
    limit: int = _LIMIT,
) -> Server:
    """Host ``handle/name`` in this process, as ``asyncio.start_server`` hosts a port.

    ``token`` is the service's or its owner's; by default the stored one is used.
    Raises ``KdispatchError``. Use the result as an async context manager, or call its ``aclose``.
    """
    dialer = _dialer(relay)
    given = token or Credentials().token_for_host(dialer.relay, service, warn=lambda _: None)
    server = Server(dialer, service, given, client_connected_cb, limit)
    await server.start()
    return server


def _dialer(relay: str | None) -> Dialer:
    return Dialer.of(load_settings(relay=relay))
