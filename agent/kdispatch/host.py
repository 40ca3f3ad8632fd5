"""A host: offers a service, and serves each stream that the relay opens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import socket
from collections.abc import Callable
from typing import Final

from kdispatch.addresses import place
from kdispatch.local import port as local_port
from kdispatch.local.dial import LocalDial, Target, checked_address
from kdispatch.local.pipe import Pipe, account, reset_when_closed
from kdispatch.local.sockets import is_unknown, reason
from kdispatch.machine.slots import ProcessIdentity
from kdispatch.network.dialer import Dialer
from kdispatch.running_log import SILENT, RunningLog
from kdispatch.setup_error import SetupError
from kdispatch.uplink import Uplink
from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.aio.driver import EndpointDriver
from kdispatch_protocol.endpoint.events import Event
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from kdispatch_protocol.names import split_service
from kdispatch_protocol.process.descriptors import is_ours
from kdispatch_protocol.session.aio.sockets import watch_peer
from kdispatch_protocol.tokens import format_token, token_digest
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Offer

__all__ = ["Host", "LocalPort"]

#: Failed dials in a row after which the port is checked, and the host withdrawn if it is closed.
_FAILURES: Final = 3

#: Codes that refuse an offer for a temporary reason.
_PASSING: Final = frozenset({"storage_unavailable", "busy", "rate_limited", "internal_error"})

_OFFER_AGAIN: Final = (1.0, 10.0)  # random wait before the next offer, in seconds

#: Serves a requested stream: accepts or refuses it at the driver, at once or later.
Serve = Callable[[EndpointDriver, Stream], None]


class Host:
    """One process's offer of one service."""

    def __init__(
        self,
        dialer: Dialer,
        service: str,
        token: str,
        serve: Serve,
        *,
        log: RunningLog = SILENT,
        limits: Limits = DEFAULT_LIMITS,
        identity: ProcessIdentity | None = None,
    ) -> None:
        split_service(service)
        self.service = service
        self.uplink = Uplink(dialer, self._event, log=log, limits=limits, identity=identity)
        self.driver = self.uplink.driver
        self.log = log
        self.id = host_id(self.uplink.process, service)
        self.withdraw_token = format_token("hst", secrets.token_bytes(32))
        self.offered = asyncio.Event()
        self._wanted = False  # this process wants to offer the service
        self._was_offered = False  # the relay has listed it before
        self._serve = serve
        self._offer = Offer(service=service, host=self.id, digest=token_digest(self.withdraw_token).hex(), token=token)
        self._refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._dials: dict[Stream, asyncio.Task[None]] = {}

    @property
    def listed(self) -> bool:
        """Whether the relay sends clients here, as far as this process knows."""
        return self.offered.is_set() and self.uplink.condition.connected_at is not None

    async def start(self, wait: float) -> None:
        """Connect, offer, and return when the relay lists this host. Raises ``KdispatchError``."""
        await self.uplink.start(wait)
        try:
            self.offer()
            offered = asyncio.ensure_future(self.offered.wait())
            failed = asyncio.ensure_future(self.failed())
            try:
                await asyncio.wait({offered, failed}, return_when=asyncio.FIRST_COMPLETED)
                if failed.done():
                    await failed
            finally:
                offered.cancel()
                failed.cancel()
                await asyncio.gather(offered, failed, return_exceptions=True)
        except BaseException:
            await self.stop()
            raise

    def offer(self) -> None:
        """Accept new streams. Does nothing once the relay has refused this host permanently."""
        if self._refused.done():
            return
        self._wanted = True
        self.uplink.endpoint.offer(self._offer)
        self.driver.wake()

    def withdraw(self) -> None:
        """Accept no new streams; running ones continue."""
        self._wanted = False
        self.offered.clear()
        self.uplink.endpoint.withdraw(self.service)
        self.driver.wake()

    async def failed(self) -> None:
        """Wait until the service can't be offered any more; raises the reason."""
        lost = asyncio.ensure_future(self.uplink.failed())
        try:
            await asyncio.wait({lost, self._refused}, return_when=asyncio.FIRST_COMPLETED)
            await (self._refused if self._refused.done() else lost)
        finally:
            lost.cancel()

    async def ended(self, drain: float) -> None:
        """Like :meth:`failed`, but after the owner's withdrawal, running streams first get ``drain`` seconds."""
        try:
            await self.failed()
        except KdispatchError as error:
            if error.code == "withdrawn":
                self.log.warning(
                    f"{error.text} No new connections; running ones may go on for {drain:g} s.", code=error.code
                )
                await self.drain(drain)
            raise

    async def drain(self, seconds: float) -> None:
        """Withdraw, and wait at most ``seconds`` for running streams to end."""
        self.withdraw()
        await self.driver.drain(seconds)

    async def stop(self) -> None:
        """End the session and every stream."""
        for task in self._dials.values():
            task.cancel()
        await asyncio.gather(*self._dials.values(), return_exceptions=True)
        if self._refused.done():
            self._refused.exception()  # mark as retrieved
        await self.uplink.stop()

    def run(self, stream: Stream, work: asyncio.Task[None]) -> None:
        """Let ``work`` accept or refuse a requested stream; it is cancelled when the client gives up."""
        self._dials[stream] = work
        work.add_done_callback(lambda _: self._dials.pop(stream, None))

    def _event(self, event: Event) -> None:
        match event:
            case events.StreamRequested(stream):
                self._serve(self.driver, stream)
            case events.StreamWasReset(stream, _, _):
                task = self._dials.get(stream)
                if task is not None:
                    task.cancel()
            case events.OfferListed():
                self._was_offered = True
                self.offered.set()
            case events.OfferRefused(_, code, text):
                self._offer_refused(code, text)
            case _:
                pass

    def _offer_refused(self, code: str, text: str) -> None:
        if self._was_offered and code in _PASSING:
            # The relay has a temporary problem; a host that worked must not end because of it.
            self.offered.clear()
            self.driver.loop.call_later(random.uniform(*_OFFER_AGAIN), self._offer_again)  # noqa: S311 - jitter, no secret
        elif not self._refused.done():
            self._refused.set_exception(KdispatchError.from_wire(code, text))

    def _offer_again(self) -> None:
        if self._wanted:
            self.offer()


class LocalPort:
    """Serves streams from a TCP port near this machine, and checks whether the port is open."""

    def __init__(self, address: str, port: int, limits: Limits = DEFAULT_LIMITS) -> None:
        self.address = checked_address(address)
        self.port = port
        self.host: Host | None = None
        self._target = Target(address, port)
        self._limits = limits
        self._failures = 0
        self._look_now = asyncio.Event()
        self._short = False  # this machine could not connect, and the log says so

    def __call__(self, driver: EndpointDriver, stream: Stream) -> None:
        """Dial the port for a requested stream."""
        assert self.host is not None
        if stream.ended:
            return
        try:
            dial = self._target.begin()
        except OSError as error:
            self._refused(driver, stream, error)
        else:
            if dial.there:
                self._serve(driver, stream, dial)
            else:
                work = driver.loop.create_task(self._wait(driver, stream, dial))
                work.add_done_callback(lambda done: dial.close() if done.cancelled() else None)
                self.host.run(stream, work)

    async def _wait(self, driver: EndpointDriver, stream: Stream, dial: LocalDial) -> None:
        try:
            async with asyncio.timeout(self._limits.dial):
                await dial.finish()
        except TimeoutError:
            dial.close()
            self._refuse(driver, stream, "host_timeout", "The service took no connection in time.")
        except OSError as error:
            dial.close()
            self._refused(driver, stream, error)
        else:
            self._serve(driver, stream, dial)

    def _refused(self, driver: EndpointDriver, stream: Stream, error: OSError) -> None:
        if is_ours(error):
            # The service was not asked: it stays offered, and the relay may try another host.
            self._tell_short(error)
            driver.refuse(stream, "busy", f"The host's machine can't connect to the service: {reason(error)}.")
            return
        self._refuse(driver, stream, "host_refused", f"The service can't be reached: {reason(error)}.")

    def _refuse(self, driver: EndpointDriver, stream: Stream, code: str, text: str) -> None:
        self._failed()
        if self.host is not None:
            self.host.uplink.condition.failed(code, text)
        driver.refuse(stream, code, text)

    def _serve(self, driver: EndpointDriver, stream: Stream, dial: LocalDial) -> None:
        """The service took the connection. The client is told before the transport exists."""
        host, sock = self.host, dial.sock
        assert host is not None
        assert sock is not None
        self._failures = 0
        if self._short:
            self._short = False
            host.log.info(f"Connections to {self.address}:{self.port} can be made again.")
        reset_when_closed(sock)
        watch_peer(sock)
        if stream.ended:
            dial.close()
            return
        pipe = Pipe(driver, on_end=self._ended, resets=True)
        driver.accept(stream, pipe.remote)
        pipe.take(sock)

    def _ended(self, pipe: Pipe, code: str) -> None:
        host = self.host
        if pipe.stream is not None and host is not None and host.log.isEnabledFor(logging.DEBUG):
            service = pipe.stream.stream.service
            host.log.debug("A connection ended.", service=service, host=host.id, **account(pipe), code=code)

    def _tell_short(self, error: OSError) -> None:
        if self.host is not None and not self._short:
            self._short = True
            text = (
                f"This machine can't connect to {self.address}:{self.port}: {reason(error)}. The service stays offered."
            )
            self.host.log.warning(text, code="busy")

    def _failed(self) -> None:
        self._failures += 1
        if self._failures >= _FAILURES:
            self._look_now.set()

    async def check(self, wait: float = 0.0, log: RunningLog = SILENT) -> None:
        """Return when the port is open; raises ``local_port_closed`` if it is not within ``wait`` seconds.

        Raises ``bad_request`` at once for an unknown host name. For ``localhost`` the open address is kept.
        """
        loop = asyncio.get_running_loop()
        deadline, told = loop.time() + wait, False
        while (error := await self._closed()) is not None:
            left = deadline - loop.time()
            if left <= 0 or error.code != "local_port_closed":
                raise error
            if not told:
                told = True
                log.info(f"{error.text} Waiting for {wait:g} s.", code=error.code)
            await asyncio.sleep(min(local_port.look_again(wait - left), left))

    async def _closed(self) -> KdispatchError | None:
        """The error that prevents an offer now; ``None`` if the port is open."""
        unasked: OSError | None = None
        for address in local_port.LOCALHOST if self.address == "localhost" else (self.address,):
            try:
                if await local_port.is_open(address, self.port, self._limits.dial):
                    self.address = address
                    return None
            except OSError as error:
                unasked = error
        where = place(self.address, self.port)
        if isinstance(unasked, socket.gaierror) and is_unknown(unasked):
            return SetupError("bad_request", f"{where} can't be offered: {reason(unasked)}.", hint="Check --address.")
        if unasked is not None and self.address != "localhost":
            text = f"It is unknown whether anything listens on {where}: {reason(unasked)}."
            hint = "Check --address, and the limits of this machine and process (ulimit -n)."
            return SetupError("local_port_closed", text, hint=hint)
        return KdispatchError("local_port_closed", f"Nothing listens on {where}.")

    async def watch(self, *, exit_when_closed: bool = False, drain: float = 0.0) -> None:
        """For ever: withdraw the host while the port is closed, and offer it again when the port is open.

        With ``exit_when_closed`` running streams get ``drain`` seconds, then this raises ``local_port_closed``.
        """
        assert self.host is not None
        host, where = self.host, place(self.address, self.port)
        loop = asyncio.get_running_loop()
        closed_at: float | None = None
        while True:
            await self._until_next_look(None if closed_at is None else loop.time() - closed_at)
            try:
                is_open = await local_port.is_open(self._target.address, self.port, self._limits.dial)
            except OSError as error:
                self._tell_short(error)
                continue
            if is_open and closed_at is not None:
                closed_at, self._failures = None, 0
                host.offer()
                host.log.info(f"{where} is open again: the service is offered.")
            elif not is_open and closed_at is None:
                closed_at = loop.time()
                host.withdraw()
                closed = f"Nothing listens on {where}"
                if exit_when_closed:
                    if host.driver.streams:
                        host.log.warning(f"{closed}: running connections may go on for {drain:g} s.")
                    await host.drain(drain)
                    raise KdispatchError("local_port_closed", f"{closed} any more.")
                host.log.warning(f"{closed}: the service is withdrawn until it is back.")

    async def _until_next_look(self, away: float | None) -> None:
        """Wait for the next check of the port, or until failed dials request one; ``away``: seconds since it closed."""
        if away is not None:
            pause = local_port.look_again(away)
        elif await local_port.look(self._target.address, self.port) is None:
            pause = local_port.PROBE_EVERY
        else:
            pause = local_port.LOOK_EVERY
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._look_now.wait()
        self._look_now.clear()
