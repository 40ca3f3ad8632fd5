"""Checks of the tunnel itself: the upgrade, small frames alone, and what a box between does to them."""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import replace
from typing import Final

from kdispatch.doctor.findings import Finding, failed, fails, ok, skipped, warns
from kdispatch.doctor.session import QUIET, Session
from kdispatch.doctor.way import Way
from kdispatch.network.no_upgrade import explain
from kdispatch.network.spoiled import frames_spoiled
from kdispatch.setup_error import HintedError
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.wire.messages import Welcome

__all__ = ["Tunnel"]

_UPGRADE: Final = 15.0  # seconds for connect, TLS and upgrade
_ALONE: Final = 3.0  # seconds for the answer to a small frame; a relay cuts who has not said HELLO after 10
_PINGS: Final = 5
_PUSH: Final = 256  # PINGs in a message, 4 KiB
_PUSHED_MOST: Final = 1024 * 1024
_PUSH_EVERY: Final = 0.010
#: Seconds by which a small frame may take longer than a connection did, before somebody is said to gather bytes.
_LATE: Final = 0.150
_KIB: Final = 1024


class Tunnel:
    """A tunnel by one URL, from the upgrade on."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self.session: Session | None = None
        self.welcome: Welcome | None = None

    async def open(self, *capabilities: str) -> Session:
        """Connect, upgrade, say HELLO; raises ``KdispatchError``."""
        try:
            async with asyncio.timeout(_UPGRADE):
                session = Session(await self._way.dialer.upgrade())
        except TimeoutError as error:
            raise KdispatchError(
                "relay_unreachable", f"{self._way.relay.authority} does not answer an upgrade within {_UPGRADE:g} s."
            ) from error
        session.greet(*capabilities)
        return session

    async def open_quiet(self) -> Session:
        """Another session beside the first, which may be silent for minutes; raises ``KdispatchError``."""
        session = await self.open(QUIET)
        ends: set[asyncio.Future[Welcome] | asyncio.Future[str]] = {session.welcome, session.over}
        await asyncio.wait(ends, timeout=_ALONE, return_when=asyncio.FIRST_COMPLETED)
        if not session.welcome.done():
            session.close()
            raise KdispatchError("relay_unreachable", "The relay does not answer HELLO.")
        return session

    @property
    def owner(self) -> str:
        """Whom to ask, and to let what pass."""
        return self._way.owner

    def close(self) -> None:
        """Let the session go."""
        if self.session is not None:
            self.session.close()

    async def check_upgrade(self) -> list[Finding]:
        """Whether the relay takes the upgrade, and else who says no."""
        try:
            self.session = await self.open()
        except KdispatchError as error:
            return [await self._no_upgrade(error)]
        return [ok("upgrade", "the WebSocket handshake passes")]

    async def _no_upgrade(self, error: KdispatchError) -> Finding:
        way = self._way
        error = await explain(way.relay, way.proxy, way.connect, error)
        finding = failed("upgrade", error)
        # Who opens TLS may be who does it; a box that answers by itself, or the relay's own no, needs no guess.
        return replace(finding, text=finding.text + way.intercepted_by) if isinstance(error, HintedError) else finding

    async def check_buffering(self) -> list[Finding]:
        """Whether a small message arrives alone: HELLO's answer, then a PING's."""
        session = self.session
        assert session is not None
        await self._waits(session, _ALONE)
        if session.over.done() and not session.welcome.done():
            if session.unreadable:
                return [failed("buffering", frames_spoiled(self._way.relay, self._way.proxy))]
            text = f"The session ended before the relay's first word: {session.over.result()}."
            return [fails("buffering", text, f"{self._way.owner}.", code="relay_unreachable")]
        held_to = "the relay's first answer"
        if session.welcome.done():
            self.welcome = session.welcome.result()
            if await session.ping(_ALONE) is not None:
                return [ok("buffering", "a message of 16 bytes is passed on at once")]
            if session.over.done():
                text = f"The session ended: {session.over.result()}."
                return [fails("buffering", text, f"{self._way.owner}.", code="relay_unreachable")]
            held_to = "the answer to a PING"
        return [await self._held_back(session, held_to)]

    async def _held_back(self, session: Session, what: str) -> Finding:
        """Push until it comes, to tell a box that gathers bytes from one that eats them."""
        before = session.received
        sent = 0
        while sent < _PUSHED_MOST and session.received == before and not session.over.done():
            sent += await session.flood(_PUSH)
            await asyncio.sleep(_PUSH_EVERY)
        await asyncio.sleep(5 * _PUSH_EVERY)
        got = session.received - before
        if session.welcome.done():
            self.welcome = session.welcome.result()
        way = self._way
        if not got:
            text = f"Nothing passes behind the upgrade: {what} never comes, whatever is sent."
            return fails("buffering", text + way.intercepted_by, f"{way.owner}.", code="relay_unreachable")
        text = (
            f"Small messages are held back: {what} came only after {sent // _KIB} KiB had been sent, together with "
            f"{got // _KIB} KiB. Something on the way gathers bytes before it passes them on."
        )
        return fails("buffering", text + way.intercepted_by, f"{way.owner} unbuffered.", code="relay_unreachable")

    async def check_round_trip(self) -> list[Finding]:
        """How long a small frame takes there and back, beside how long a connection took."""
        session = self.session
        assert session is not None
        times = []
        for _ in range(_PINGS):
            seconds = await session.ping(_ALONE)
            if seconds is None:
                why = session.over.result() if session.over.done() else f"no answer within {_ALONE:g} s"
                text = f"The relay no longer answers PINGs: {why}."
                return [fails("round trip", text, "Try again; then ask the network's owner.", code="relay_unreachable")]
            times.append(seconds)
        middle = statistics.median(times)
        text = f"{middle * 1000:.1f} ms (median of {_PINGS} PINGs)"
        connected = self._way.connect_seconds
        if connected is not None and middle > connected + _LATE:
            found = f"{text}, but a connection takes {connected * 1000:.1f} ms: something may gather bytes for a while."
            return [warns("round trip", found, f"{self._way.owner} unbuffered.")]
        return [ok("round trip", text)]

    async def check_relay(self) -> list[Finding]:
        """What the relay says of itself."""
        if self.welcome is None:
            return [skipped("relay", "not looked at: it has not said a word")]
        name = self.welcome.program or "a relay that does not tell its version"
        return [ok("relay", f"{name}, protocol {self.welcome.version}, id {self.welcome.relay}")]

    async def _waits(self, session: Session, seconds: float) -> None:
        ends: set[asyncio.Future[Welcome] | asyncio.Future[str]] = {session.welcome, session.over}
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
