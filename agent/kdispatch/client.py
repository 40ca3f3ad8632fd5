"""A client: opens streams to a service, for a local port or for a program."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from typing import Final

from kdispatch.network.dialer import Dialer
from kdispatch.running_log import SILENT, RunningLog
from kdispatch.service_query import ServiceQuery
from kdispatch.slots import Identity
from kdispatch.uplink import Uplink
from kdispatch_protocol import events
from kdispatch_protocol.aio.pipe import Pipe, account, reset_when_closed
from kdispatch_protocol.aio.transport import StreamTransport
from kdispatch_protocol.errors import KdispatchError, StreamReset
from kdispatch_protocol.events import Event
from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from kdispatch_protocol.names import split_service
from kdispatch_protocol.streams import Stream

__all__ = ["Client", "LocalListener"]

_BACKLOG: Final = 1024
_IN_USE: Final = frozenset({errno.EADDRINUSE, errno.EACCES})


class Client:
    """A process that opens streams. ``failed`` hears the code and the text of each one that was reset."""

    def __init__(
        self,
        dialer: Dialer,
        *,
        token: str | None = None,
        log: RunningLog = SILENT,
        failed: Callable[[str, str], None] = lambda *_: None,
        limits: Limits = DEFAULT_LIMITS,
        identity: Identity | None = None,
    ) -> None:
        self.token = token
        self.uplink = Uplink(dialer, self._event, log=log, limits=limits, identity=identity)
        self.driver = self.uplink.driver
        self.log = log
        self._failed = failed
        self._opening: dict[Stream, asyncio.Future[None]] = {}

    async def wait_for_host(self, service: str, wait: float) -> None:
        """Return when the service has a live host.

        Raises ``unknown_service`` at once, and after ``wait`` seconds ``no_live_host`` or what kept us from asking.
        """
        split_service(service)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        told = False
        async with ServiceQuery(self.uplink.dialer) as relay:
            while True:
                try:
                    if (await relay.service(service, self.token)).live_hosts:
                        return
                    error = KdispatchError("no_live_host", f"No host offers {service} at the moment.")
                except KdispatchError as failure:
                    if failure.code not in {"relay_unreachable", "storage_unavailable", "busy", "rate_limited"}:
                        raise
                    error = failure
                left = deadline - loop.time()
                if left <= 0:
                    raise error
                if not told:
                    told = True
                    self.log.info(f"{error.text} Waiting for {wait:g} s.", code=error.code)
                await asyncio.sleep(min(0.5, left))

    def create_connection(self, service: str, protocol: asyncio.BaseProtocol) -> StreamTransport:
        """Begin a stream; the protocol hears of its fate. It may be written at once."""
        return self.driver.open(service, protocol, self.token)

    async def opened(self, transport: StreamTransport) -> None:
        """Wait until a host's service took the connection; raises ``StreamReset`` otherwise."""
        stream = transport.stream
        future = self._opening[stream] = asyncio.get_running_loop().create_future()
        try:
            await future
        finally:
            self._opening.pop(stream, None)

    async def stop(self) -> None:
        """End the session and every stream."""
        await self.uplink.stop()

    def _event(self, event: Event) -> None:
        match event:
            case events.StreamOpened(stream):
                future = self._opening.get(stream)
                if future is not None and not future.done():
                    future.set_result(None)
            case events.StreamWasReset(stream, code, text):
                future = self._opening.get(stream)
                if future is not None and not future.done():
                    future.set_exception(StreamReset.from_wire(code, text, "cancelled"))
                self._failed(code, text)
            case _:
                pass


class LocalListener:
    """A local port, each of whose connections becomes a stream."""

    def __init__(self, client: Client, service: str) -> None:
        self._client = client
        self._service = service
        self._server: asyncio.Server | None = None
        self.address = ""
        self.port = 0

    async def bind(self, address: str, port: int) -> None:
        """Take the port, without listening yet; raises ``port_in_use`` or ``bad_request``."""
        loop, driver = asyncio.get_running_loop(), self._client.driver
        try:
            self._server = await loop.create_server(
                lambda: Pipe(driver, on_local=self._accepted, on_end=self._ended, resets=True).local,
                address,
                port,
                backlog=_BACKLOG,
                start_serving=False,
            )
        except OSError as error:
            code = "port_in_use" if error.errno in _IN_USE else "bad_request"
            raise KdispatchError(code, f"{address}:{port} can't be listened on: {error.strerror or error}.") from error
        for sock in self._server.sockets:
            reset_when_closed(sock)
        self.address, self.port = self._server.sockets[0].getsockname()[:2]

    async def listen(self) -> None:
        """Accept connections from now on."""
        assert self._server is not None, "bind() comes first"
        await self._server.start_serving()

    def close(self) -> None:
        """Accept no more."""
        if self._server is not None:
            self._server.close()

    def _accepted(self, pipe: Pipe) -> None:
        self._client.create_connection(self._service, pipe.remote)

    def _ended(self, pipe: Pipe, code: str) -> None:
        log = self._client.log
        if pipe.stream is not None and log.isEnabledFor(logging.DEBUG):
            host = pipe.stream.stream.host
            log.debug("A connection ended.", service=self._service, host=host, **account(pipe), code=code)
