"""One session of an agent's endpoint on an event loop. It owns the session's link."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

from kdispatch_protocol.session.aio.carrier import MakeCarrier
from kdispatch_protocol.session.aio.link import Link
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Buffer, Frame

if TYPE_CHECKING:
    from kdispatch_protocol.endpoint.aio.driver import EndpointDriver

__all__ = ["UplinkSession"]


class UplinkSession:
    """Carries one session of ``driver``'s endpoint over an upgraded connection.

    ``lost`` resolves to code and text when the session ends. ``left`` is set when the agent has moved to a newer
    session and no stream is left here.
    """

    __slots__ = ("_driver", "left", "link", "link_read_fast", "lost", "session")

    def __init__(self, driver: EndpointDriver, make: MakeCarrier, ping: float | None) -> None:
        limits = driver.endpoint.limits
        self._driver = driver
        self.lost: asyncio.Future[tuple[str, str]] = driver.loop.create_future()
        self.left = asyncio.Event()
        self.session = driver.endpoint.connect()
        # Fast path of `link_read`, for a read that is one DATA.
        self.link_read_fast = functools.partial(driver.receive_frames_fast, self.session)
        self.link = Link(self, limits, make, server=False, ping=ping)
        self.session.send_fast = self.link.carrier.send_fast

    def start(self) -> None:
        """Begin to read and to send."""
        self.link.carrier.start()
        self.link.wake()

    def close(self, code: str = "", text: str = "") -> None:
        """End the session in order."""
        self.link.close(code, text)

    def abort(self) -> None:
        """End the session at once; another one may follow."""
        self.link.abort("cancelled", "The session was given up.")

    # --- the link's owner ---------------------------------------------------------------------

    def link_read(self, received: list[Frame], now: float) -> None:
        """Handle the frames of one read, and send what they cause."""
        self._driver.receive_frames(self.session, received, now)

    def link_violated(self, code: str, text: str) -> None:
        """The relay broke the protocol: close the session."""
        self.close(code, text)

    def link_idle(self, count: int, now: float) -> None:
        """Ignored: useless frames from a relay cost only its own session."""

    def link_pieces(self, count: int, received: list[Frame], now: float) -> None:
        """Ignored for the same reason."""

    def link_unsent(self, size: int) -> None:
        """Ignored: an agent needs no account of unsent bytes, as it pauses its programs."""

    def link_collect(self, most: int, now: float) -> list[Buffer]:
        """Return the next batch."""
        parts = self._driver.endpoint.take_batch(self.session, most, now)
        if self._driver.endpoint.table.events:
            # Not here: a program's reaction, such as ending the session, must not overtake this batch.
            self._driver.loop.call_soon(self._driver.programs.deliver)
        return parts

    def link_ask(self) -> None:
        """Send a PING to the relay."""
        self.session.outbox.send(frames.frame(frames.PING))

    def link_lost(self, code: str, text: str) -> None:
        """Handle the end of the session."""
        self.session.send_fast = None
        self._driver.handle_session_lost(self.session, text)
        if not self.lost.done():
            self.lost.set_result((code, text))
