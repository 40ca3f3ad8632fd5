"""Checks of the tunnel: the upgrade, single small frames, and what a box on the path does to them."""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import replace
from typing import Final

from kdispatch.doctor.findings import Finding, failed, fails, ok, skipped, warns
from kdispatch.doctor.session import QUIET, ProbeSession
from kdispatch.doctor.way import Way
from kdispatch.network.no_upgrade import explain
from kdispatch.network.spoiled import frames_spoiled
from kdispatch.setup_error import HintedError
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.wire.messages import Welcome

__all__ = ["Tunnel"]

_UPGRADE: Final = 15.0  # seconds for connect, TLS and upgrade
_ALONE: Final = 3.0  # seconds for the answer to a small frame; a relay cuts a session without HELLO after 10
_PINGS: Final = 5
_PUSH: Final = 256  # PINGs in a message, 4 KiB
_PUSHED_MOST: Final = 1024 * 1024
_PUSH_EVERY: Final = 0.010
#: Seconds by which a small frame may take longer than a connection did, before doctor reports buffering.
_LATE: Final = 0.150
_KIB: Final = 1024


class Tunnel:
    """A tunnel by one URL, from the upgrade on."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self.session: ProbeSession | None = None
        self.welcome: Welcome | None = None

    async def open(self, *capabilities: str) -> ProbeSession:
        """Connect, upgrade, send HELLO; raises ``KdispatchError``."""
        try:
            async with asyncio.timeout(_UPGRADE):
                session = ProbeSession(await self._way.dialer.upgrade())
        except TimeoutError as error:
            raise KdispatchError(
                "relay_unreachable", f"{self._way.relay.authority} does not answer an upgrade within {_UPGRADE:g} s."
            ) from error
        session.greet(*capabilities)
        return session

    async def open_quiet(self) -> ProbeSession:
        """Open another session, which may be silent for minutes; raises ``KdispatchError``."""
        session = await self.open(QUIET)
        ends: set[asyncio.Future[Welcome] | asyncio.Future[str]] = {session.welcome, session.over}
        await asyncio.wait(ends, timeout=_ALONE, return_when=asyncio.FIRST_COMPLETED)
        if not session.welcome.done():
            session.close()
            raise KdispatchError("relay_unreachable", "The relay does not answer HELLO.")
        return session

    @property
    def owner(self) -> str:
        """The start of a hint: whom to ask, and for what."""
        return self._way.owner

    def close(self) -> None:
        """Close the session."""
        if self.session is not None:
            self.session.close()

    async def check_upgrade(self) -> list[Finding]:
        """Check whether the relay accepts the upgrade, or else what refuses it."""
        try:
            self.session = await self.open()
        except KdispatchError as error:
            return [await self._no_upgrade(error)]
        return [ok("upgrade", "the WebSocket handshake passes")]

    async def _no_upgrade(self, error: KdispatchError) -> Finding:
        way = self._way
        error = await explain(way.relay, way.proxy, way.connect, error)
        finding = failed("upgrade", error)
        # If TLS is intercepted, that box may be the cause. A box's own answer, or the relay's refusal, needs no such
        # guess.
        return replace(finding, text=finding.text + way.intercepted_by) if isinstance(error, HintedError) else finding

    async def check_buffering(self) -> list[Finding]:
        """Check whether a small message arrives alone: HELLO's answer, then a PING's."""
        session = self.session
        assert session is not None
        await self._waits(session, _ALONE)
        if session.over.done() and not session.welcome.done():
            if session.unreadable:
                return [failed("buffering", frames_spoiled(self._way.relay, self._way.proxy))]
            text = f"The session ended before the relay's first message: {session.over.result()}."
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

    async def _held_back(self, session: ProbeSession, what: str) -> Finding:
        """Send more until the message arrives, to distinguish a box that buffers from one that drops."""
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
            text = f"Nothing passes after the upgrade: {what} never comes, whatever is sent."
            return fails("buffering", text + way.intercepted_by, f"{way.owner}.", code="relay_unreachable")
        text = (
            f"Small messages are held back: {what} came only after {sent // _KIB} KiB had been sent, together with "
            f"{got // _KIB} KiB. Something on the way buffers bytes before it passes them on."
        )
        return fails("buffering", text + way.intercepted_by, f"{way.owner} unbuffered.", code="relay_unreachable")

    async def check_round_trip(self) -> list[Finding]:
        """Measure the round trip of a small frame, and compare it with the time of a connection."""
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
            found = f"{text}, but a connection takes {connected * 1000:.1f} ms: something may buffer bytes for a while."
            return [warns("round trip", found, f"{self._way.owner} unbuffered.")]
        return [ok("round trip", text)]

    async def check_relay(self) -> list[Finding]:
        """Report what the relay says about itself."""
        if self.welcome is None:
            return [skipped("relay", "not looked at: it has not sent anything")]
        name = self.welcome.program or "a relay that does not tell its version"
        return [ok("relay", f"{name}, protocol {self.welcome.version}, id {self.welcome.relay}")]

    async def _waits(self, session: ProbeSession, seconds: float) -> None:
        ends: set[asyncio.Future[Welcome] | asyncio.Future[str]] = {session.welcome, session.over}
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
