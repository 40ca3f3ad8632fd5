"""A client: opens streams to a service, for a local port or for a program."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Callable
from typing import Any, Final

from kdispatch.addresses import written
from kdispatch.local.accept import Acceptor
from kdispatch.local.dial import checked_address
from kdispatch.local.front import Front
from kdispatch.local.pipe import Pipe, account
from kdispatch.local.sockets import listening
from kdispatch.machine.slots import ProcessIdentity
from kdispatch.network.dialer import Dialer
from kdispatch.rest.service_query import ServiceQuery
from kdispatch.running_log import SILENT, RunningLog
from kdispatch.setup_error import SetupError
from kdispatch.uplink import Uplink
from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.aio.transport import StreamTransport
from kdispatch_protocol.endpoint.events import Event
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.errors import KdispatchError, StreamReset
from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from kdispatch_protocol.names import split_service

__all__ = ["Client", "LocalListener"]

#: Codes of a stream's end that concern the service: the agent's right to it was revoked, or was never valid.
_TAKEN_BACK: Final = frozenset({"revoked", "token_refused"})
#: Codes after which a port for that service can't work any more. No host sends them for a service.
_FINAL: Final = _TAKEN_BACK | {"unknown_service", "not_permitted"}
#: Failures of a session, or of a start, that may pass soon.
_PASSING: Final = frozenset({"relay_unreachable", "storage_unavailable", "busy", "rate_limited"})
#: Number of services with revoked rights that are remembered; a program may take service names from others.
_MOST_REFUSED: Final = 1024

#: Connections that wait for a first host; further ones are reset. As many as a session carries.
_MOST_WAITING: Final = 1024
_BACKLOG: Final = 1024


class Client:
    """A process that opens streams. ``failed`` is called with the code and the text of each stream that was reset."""

    def __init__(
        self,
        dialer: Dialer,
        *,
        token: str | None = None,
        log: RunningLog = SILENT,
        failed: Callable[[str, str], None] = lambda *_: None,
        limits: Limits = DEFAULT_LIMITS,
        identity: ProcessIdentity | None = None,
    ) -> None:
        self.token = token
        self.uplink = Uplink(dialer, self._event, log=log, limits=limits, identity=identity)
        self.driver = self.uplink.driver
        self.log = log
        self._failed = failed
        self._opening: dict[Stream, asyncio.Future[None]] = {}
        self._refused: dict[str, tuple[str, str]] = {}  # by service: code and text of the revocation
        self._final: asyncio.Future[KdispatchError] = asyncio.get_running_loop().create_future()

    async def wait_for_host(self, service: str, wait: float, pin: str | None = None) -> str | None:
        """Wait until the service has a live host, or one whose id starts with ``pin``; returns its id or ``None``.

        Raises ``unknown_service`` at once, and after ``wait`` seconds ``no_live_host`` or the error that prevented
        asking.
        """
        split_service(service)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        told = False
        async with ServiceQuery(self.uplink.dialer, self.token) as relay:
            while True:
                try:
                    return await _live_host(relay, service, pin)
                except KdispatchError as failure:
                    if failure.code not in {"no_live_host", *_PASSING}:
                        raise
                    error = failure
                left = deadline - loop.time()
                if left <= 0:
                    raise error
                if not told:
                    told = True
                    self.log.info(f"{error.text} Waiting for {wait:g} s.", code=error.code)
                await asyncio.sleep(min(0.5, left))

    def create_connection(
        self, service: str, protocol: asyncio.BaseProtocol, host: str | None = None
    ) -> StreamTransport:
        """Open a stream, to the host with this id if ``host`` is given. The protocol gets its events.

        The caller may write at once. Raises ``StreamReset`` if the relay has revoked the rights on the service.
        """
        if service in self._refused:
            raise StreamReset.from_wire(*self._refused[service])
        return self.driver.open(service, protocol, self.token, pin=host or "")

    async def ended(self) -> None:
        """Wait until this agent can't reach its one service any more; raises the reason."""
        lost = asyncio.ensure_future(self.uplink.failed())
        try:
            either: set[asyncio.Future[Any]] = {lost, self._final}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._final.done():
                raise self._final.result()
            await lost
        finally:
            lost.cancel()

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
                if code in _FINAL:
                    self._no_more(stream.service, code, text)
            case _:
                pass

    def _no_more(self, service: str, code: str, text: str) -> None:
        if not self._final.done():
            self._final.set_result(KdispatchError(code, text))
        if code in _TAKEN_BACK and service not in self._refused and len(self._refused) < _MOST_REFUSED:
            # The code that ended one stream holds for the whole service: end all its streams, without another try.
            self._refused[service] = (code, text)
            self.driver.give_up(service, code, text)


class LocalListener:
    """A local port. Each connection to it becomes a stream. Connections before :meth:`serve` wait for a host.

    ``front`` says which service a connection is for.
    """

    def __init__(self, client: Client, front: Front) -> None:
        self.host: str | None = None  # the id of the only host to ask
        self._client = client
        self._front = front
        self._acceptors: list[Acceptor] = []
        #: Until `serve`: each connection, its service, and how long it may wait: as long as an open.
        self._waiting: dict[Pipe, tuple[str, asyncio.TimerHandle]] | None = {}
        self.address = ""
        self.port = 0
        self.addresses: list[str] = []  # all listening addresses; the first is `address`

    async def listen(self, address: str, port: int) -> None:
        """Listen on every address that ``address`` means, exclusively; raises the error of ``cannot_listen``.

        Connections are accepted from now on, and carried from :meth:`serve` on.
        """
        sockets = await listening(checked_address(address), port)
        self.addresses = [written(sock.getsockname()) for sock in sockets]
        self.address, self.port = self.addresses[0], sockets[0].getsockname()[1]
        self._acceptors = [Acceptor(sock, self._take, self._client.log) for sock in sockets]

    def serve(self) -> None:
        """There is a host: carry the pending connections, and all new ones."""
        waiting, self._waiting = self._waiting or {}, None
        for pipe, (service, handle) in waiting.items():
            handle.cancel()
            self._accepted(service, pipe)
            pipe.resume_socket()

    def close(self) -> None:
        """Accept no more connections."""
        for acceptor in self._acceptors:
            acceptor.close()

    def _take(self, sock: socket.socket) -> None:
        self._front(sock, self._handed_over)

    def _handed_over(self, sock: socket.socket, service: str, early: bytes) -> None:
        driver, ended = self._client.driver, functools.partial(self._ended, service)
        if self._waiting is not None:
            accepted = functools.partial(self._accepted, service)
            Pipe(driver, on_local=accepted, on_end=ended, resets=True).take(sock, early)
            return
        pipe = Pipe(driver, on_end=ended, resets=True)
        try:  # the OPEN goes out first: the relay works on it while this agent makes the connection's transport
            driver.at_once(functools.partial(self._client.create_connection, service), pipe.remote, self.host)
        except StreamReset:
            sock.close()  # the agent is about to end
        else:
            pipe.take(sock, early)

    def _accepted(self, service: str, pipe: Pipe) -> None:
        if self._waiting is not None:
            self._wait(service, pipe)
            return
        try:
            self._client.create_connection(service, pipe.remote, self.host)
        except StreamReset:
            pipe.abort()  # the agent is about to end

    def _wait(self, service: str, pipe: Pipe) -> None:
        assert self._waiting is not None
        if len(self._waiting) >= _MOST_WAITING:
            pipe.abort()
            return
        pipe.pause_socket()
        driver = self._client.driver
        self._waiting[pipe] = service, driver.loop.call_later(driver.endpoint.limits.open_wait, pipe.abort)

    def _ended(self, service: str, pipe: Pipe, code: str) -> None:
        if self._waiting and (waiting := self._waiting.pop(pipe, None)):
            waiting[1].cancel()
        log = self._client.log
        if pipe.stream is not None and log.isEnabledFor(logging.DEBUG):
            host = pipe.stream.stream.host
            log.debug("A connection ended.", service=service, host=host, **account(pipe), code=code)


async def _live_host(relay: ServiceQuery, service: str, pin: str | None) -> str | None:
    """The id of the live host that ``pin`` means; ``None`` without a pin. Raises if there is no such host."""
    seen = await relay.service(service)
    if pin is None:
        if seen.live_hosts:
            return None
        raise KdispatchError("no_live_host", f"No host offers {service} at the moment.")
    if not seen.pins:
        hint = f"Omit --host, or ask its owner to allow it: kdispatch service update {service} --pins"
        raise SetupError("not_permitted", f"{service} does not let clients choose a host.", hint=hint)
    found = [host.host for host in await relay.hosts(service) if host.host.startswith(pin)]
    if len(found) > 1:
        raise SetupError("bad_request", f"{len(found)} hosts of {service} begin with {pin}.", hint="Write more digits.")
    if not found:
        raise KdispatchError("no_live_host", f"No host {pin} offers {service} at the moment.")
    return found[0]
