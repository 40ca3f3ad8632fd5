"""Connects to a relay by its addresses: the same way for the REST API and for the tunnel."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self, TypeVar, cast

from aiohappyeyeballs import start_connection

from kdispatch.addresses import EYEBALLS
from kdispatch.network.answers import connection_error, unreachable
from kdispatch.network.names import Names
from kdispatch.network.proxy import Proxy, find_proxy
from kdispatch.network.through import connect_through
from kdispatch.network.trust import Trust, certificate_error
from kdispatch.network.upgrade import Handshake, Refusal
from kdispatch.relay_url import RelayUrl
from kdispatch.settings import Settings
from kdispatch.setup_error import SetupError
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.session.aio.carrier import MakeCarrier
from kdispatch_protocol.session.aio.handover import connection_over
from kdispatch_protocol.session.aio.sockets import tune_session_socket
from kdispatch_protocol.session.aio.websocket_carrier import WebSocketCarrier

__all__ = ["Dialer", "Upgraded"]

#: Seconds for each step of a connection: name look-up, TCP, TLS.
_STEP: Final = 8.0
#: Seconds before the relay's next URL is tried in parallel: several round trips of a slow network.
_APART: Final = 1.5

#: Trust in the authorities of the system.
_SYSTEM: Final = Trust()

_P = TypeVar("_P", bound=asyncio.BaseProtocol)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Upgraded:
    """A connection after its WebSocket handshake, and its URL; ``early`` are the bytes that followed the handshake."""

    relay: RelayUrl
    transport: asyncio.Transport
    early: bytes

    def carrier(self, buffer: memoryview, max_message: int) -> MakeCarrier:
        """The connection as a session's carrier. ``buffer`` is shared by all carriers of the loop."""
        return partial(
            WebSocketCarrier,
            server=False,
            transport=self.transport,
            early=self.early,
            buffer=buffer,
            max_message=max_message,
        )


class Dialer:
    """Connects to one relay, which may have several URLs: they are tried in their order.

    ``proxy`` and ``no_proxy`` are the settings of these names; by default the environment and the system define
    the proxy, if any. ``trust`` says what the relay's certificate must be.
    """

    def __init__(self, *relays: RelayUrl, proxy: str = "", no_proxy: bool = False, trust: Trust = _SYSTEM) -> None:
        self._relays = relays
        self._proxy = proxy
        self._no_proxy = no_proxy
        self._trust = trust
        self._ids: dict[RelayUrl, str] = {}  # relay ids by the URL that led there
        self._names = Names()
        self._tls: ssl.SSLContext | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The dialer for the settings; raises an error if they are invalid."""
        trust = Trust.of(settings)
        if trust.pins and not all(relay.secure for relay in settings.relay_urls):
            text = "A pin needs an https:// address, but the relay has an http:// one."
            raise SetupError("bad_request", text, hint="Omit --pin, or use https://.")
        dialer = cls(*settings.relay_urls, proxy=settings.proxy, no_proxy=settings.no_proxy, trust=trust)
        for relay in settings.relay_urls:
            dialer.proxy(relay)
        return dialer

    @property
    def relay(self) -> RelayUrl:
        """The first URL, which names the relay and finds its tokens."""
        return self._relays[0]

    def proxy(self, relay: RelayUrl) -> Proxy | None:
        """The proxy for this URL, or ``None``. Looked up each time, because a laptop's settings change with its place.

        Raises ``SetupError`` for an unusable address.
        """
        return find_proxy(relay, proxy=self._proxy, no_proxy=self._no_proxy)

    @property
    def has_choice(self) -> bool:
        """Whether there is more than one URL."""
        return len(self._relays) > 1

    async def open(self, make: Callable[[RelayUrl], _P]) -> tuple[RelayUrl, asyncio.Transport, _P]:
        """Connect by TCP, and by TLS if the URL says so. ``make`` creates the protocol for a URL.

        The caller bounds the time. Raises ``KdispatchError`` with a code of the network.
        """
        return await self._first(partial(self.open_at, make=make), lambda opened: opened[1].abort())

    async def open_at(self, relay: RelayUrl, make: Callable[[RelayUrl], _P]) -> tuple[RelayUrl, asyncio.Transport, _P]:
        """Like :meth:`open`, but by this URL only."""
        proxy = self.proxy(relay)
        try:
            sock = await self._way_to(proxy, relay)
            transport, protocol = await self._speaking(relay, sock, make)
        except ssl.SSLCertVerificationError as error:
            self._tls = None  # the user may fix a file that was already read
            connect = partial(self._way_to, proxy, relay)
            refused = await certificate_error(relay.authority, self._trust, self._server_name(relay), error, connect)
            raise _by_way_of(proxy, refused) from error
        except OSError as error:
            if isinstance(error, ssl.SSLError):
                self._tls = None  # as above
            raise _by_way_of(proxy, connection_error(relay, error)) from error
        except _Cut as error:
            raise _by_way_of(proxy, error) from error.__cause__
        return relay, transport, protocol

    async def _way_to(self, proxy: Proxy | None, relay: RelayUrl) -> socket.socket:
        """A connected socket whose next byte comes from the relay."""
        if proxy is None:
            return await _connected(relay, self._names)
        return await connect_through(proxy, relay.host, relay.port, self._names)

    async def _speaking(
        self, relay: RelayUrl, sock: socket.socket, make: Callable[[RelayUrl], _P]
    ) -> tuple[asyncio.Transport, _P]:
        """Attach a protocol to a connected socket, over TLS if the URL says so."""
        if not relay.secure:
            return await connection_over(lambda: make(relay), sock)
        try:
            context = await self._context()
        except BaseException:
            sock.close()
            raise
        pinned = bool(self._trust.pins)
        try:
            transport, protocol = await connection_over(
                asyncio.Protocol if pinned else lambda: make(relay),
                sock,
                ssl=context,
                server_hostname=self._server_name(relay),
                ssl_handshake_timeout=_STEP,
            )
        except ConnectionAbortedError as error:  # the event loop's error for a handshake that took too long
            raise _Cut(relay, f"no answer to the TLS handshake within {_STEP:g} s") from error
        except ConnectionError as error:
            raise _Cut(relay, "the connection is cut off in the TLS handshake") from error
        if not pinned:
            return transport, cast("_P", protocol)
        try:
            self._trust.check(transport.get_extra_info("ssl_object"), relay.authority)
        except BaseException:
            transport.abort()
            raise
        # Only now, so that nothing is sent to a server with another key.
        speaker = make(relay)
        transport.set_protocol(speaker)
        speaker.connection_made(transport)
        return transport, speaker

    def _server_name(self, relay: RelayUrl) -> str:
        return self._trust.server_name or relay.host

    async def upgrade(self) -> Upgraded:
        """Connect and do the WebSocket handshake. The caller bounds the time.

        Raises ``KdispatchError`` with a code of the network, or :class:`kdispatch.network.upgrade.Refusal`.
        """
        return await self._first(self._upgrade_at, lambda upgraded: upgraded.transport.abort())

    async def explained(self, error: KdispatchError) -> KdispatchError:
        """The error of a failed upgrade, improved by a plain request if there is only one URL."""
        # Imported here, because only a failed start needs it, and because it imports this module.
        from kdispatch.network.no_upgrade import explain_start  # noqa: PLC0415

        relay = self.relay

        async def connect(make: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
            return (await self.open_at(relay, lambda _: make()))[1]

        return error if self.has_choice else await explain_start(relay, self.proxy(relay), connect, error)

    async def _upgrade_at(self, relay: RelayUrl) -> Upgraded:
        _, transport, handshake = await self.open_at(relay, Handshake)
        tune_session_socket(transport.get_extra_info("socket"))
        try:
            early = await handshake.done
        except BaseException as error:
            transport.abort()
            if isinstance(error, KdispatchError) and error.code == "tls_client_cert":
                self._tls = None  # the user may renew it in its file
            raise
        return Upgraded(relay, transport, early)

    def met(self, relay: RelayUrl, relay_id: str) -> None:
        """Record that a session by this URL has started; raises ``other_relay`` if other URLs lead to another relay.

        The URL is then no longer used, because one relay does not know the streams of another.
        """
        others = {url: self._ids[url] for url in self._relays if url != relay and url in self._ids}
        if relay_id in others.values() or not others:
            self._ids[relay] = relay_id
            return
        self._relays = tuple(url for url in self._relays if url != relay)
        text = f"{relay} leads to another relay than {next(iter(others))} and is left out."
        raise KdispatchError("other_relay", text)

    async def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            # Once, not for each connection, and in a thread: it reads all of the machine's certificates.
            self._tls = await asyncio.to_thread(self._trust.context)
        return self._tls

    async def _first(self, attempt: Callable[[RelayUrl], Coroutine[Any, Any, _T]], let_go: Callable[[_T], None]) -> _T:
        if len(self._relays) == 1:
            return await attempt(self._relays[0])
        return await _first_of([partial(attempt, relay) for relay in self._relays], let_go)


class _Cut(KdispatchError):  # noqa: N818 - its text goes into another error, together with the proxy
    """The connection ends where TLS would begin."""

    def __init__(self, relay: RelayUrl, why: str) -> None:
        super().__init__("relay_unreachable", f"{relay.authority} can't be reached: TCP works, but {why}.")


async def _connected(relay: RelayUrl, names: Names) -> socket.socket:
    try:
        addresses = await names.addresses(relay.host, relay.port, _STEP)
    except TimeoutError as error:
        raise unreachable(relay, f"no answer to the look-up of its name within {_STEP:g} s") from error
    try:
        async with asyncio.timeout(_STEP):
            # Not create_connection's own happy eyeballs: uvloop has none.
            return await start_connection(addresses, happy_eyeballs_delay=EYEBALLS)
    except TimeoutError as error:
        if error.errno is not None:
            raise  # the system's error
        tried = ", ".join(dict.fromkeys(str(address[0]) for *_, address in addresses))
        raise unreachable(relay, f"no answer from {tried} within {_STEP:g} s") from error


def _by_way_of(proxy: Proxy | None, error: KdispatchError) -> KdispatchError:
    """Name the proxy in the error, as it may be the cause."""
    return error if proxy is None else KdispatchError(error.code, f"{error.text} On the way: {proxy} ({proxy.source}).")


async def _first_of(attempts: Sequence[Callable[[], Coroutine[Any, Any, _T]]], let_go: Callable[[_T], None]) -> _T:
    """The result of the first successful attempt. Each starts when one has failed, or when none has ended for a while.

    Results of the other attempts go to ``let_go``.
    """
    waiting = list(attempts)
    running: list[asyncio.Task[_T]] = []
    try:
        while True:
            ended = [task for task in running if task.done()]
            for task in ended:
                if task.exception() is None:
                    running.remove(task)
                    return task.result()
            if waiting and len(ended) == len(running):
                running.append(asyncio.ensure_future(waiting.pop(0)()))
            elif len(ended) == len(running):
                raise _worst([task.exception() for task in ended])
            unfinished = [task for task in running if not task.done()]
            done, _ = await asyncio.wait(
                unfinished, timeout=_APART if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                running.append(asyncio.ensure_future(waiting.pop(0)()))
    finally:
        for task in running:
            task.cancel()
        for outcome in await asyncio.gather(*running, return_exceptions=True):
            if not isinstance(outcome, BaseException):
                let_go(outcome)


def _worst(errors: Sequence[BaseException | None]) -> BaseException:
    """The error to raise for all URLs: a defect, a local one, or a relay's refusal; otherwise one with all texts."""
    found = [error for error in errors if error is not None]
    for error in found:
        if not isinstance(error, KdispatchError) or isinstance(error, SetupError):
            return error
    if refusals := [error for error in found if isinstance(error, Refusal)]:
        # A temporary refusal lets an agent continue; a final one would end it although another URL is only away.
        passing = [error for error in refusals if not error.final]
        if passing or len(refusals) == len(found):
            return (passing or refusals)[0]
    told = [error for error in found if isinstance(error, KdispatchError)]
    return KdispatchError(told[0].code, " ".join(error.text for error in told))
