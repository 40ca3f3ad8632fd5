"""How an agent's way to its relay is: what a status tells of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from kdispatch.network.path_limits import PathLimits
from kdispatch_protocol.endpoint.aio.driver import EndpointDriver

__all__ = ["Condition", "Failure"]

#: Ends of streams that are no failure: one of the two programs just went away.
_NO_FAILURE: Final = frozenset({"cancelled"})


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong, and when by the loop's clock."""

    code: str
    text: str
    at: float


class Condition:
    """Written by the uplink as things happen. Moments are the loop's, ``round_trip`` is seconds."""

    def __init__(self, driver: EndpointDriver) -> None:
        self._driver = driver
        self._began = False  # there has been a session
        self._measured: asyncio.Future[None] | None = None  # while the round trip is asked for
        self._asked_at = 0.0
        self._pings = 0
        self.connected_at: float | None = None  # since when the newest session lasts
        self.round_trip: float | None = None  # the newest one
        self.next_try: float | None = None  # when a session is tried for again
        self.last_error: Failure | None = None  # of a session or a stream
        self.path: PathLimits | None = None  # the newest session's

    @property
    def state(self) -> str:
        """``connecting`` for the first time, ``connected``, ``moving`` to another session, or ``reconnecting``."""
        if self.connected_at is not None:
            return "moving" if len(self._driver.sessions) > 1 else "connected"
        return "reconnecting" if self._began else "connecting"

    @property
    def unanswered(self) -> float | None:
        """How many seconds ago the relay was asked what it has not answered yet."""
        return None if self._measured is None else time.monotonic() - self._asked_at

    # --- what happens --------------------------------------------------------------------------

    def connected(self) -> None:
        """There is a session, the first or another: its leg is measured."""
        self._began = True
        self.connected_at = self._driver.loop.time()
        self._measurement_over()  # in a session before this one
        self._measure()

    def lost(self) -> None:
        """There is none any more."""
        self.connected_at = self.round_trip = None
        self._measurement_over()

    def failed(self, code: str, text: str) -> None:
        """A session was lost, or a try to get one, or a stream, came to nothing."""
        self.last_error = Failure(code, text, self._driver.loop.time())

    def stream_was_reset(self, code: str, text: str) -> None:
        """A stream did not finish."""
        if code not in _NO_FAILURE:
            self.failed(code, text)

    @contextlib.contextmanager
    def waiting(self, seconds: float) -> Iterator[float]:
        """The next try comes after so many seconds, which the block waits."""
        self.next_try = self._driver.loop.time() + seconds
        try:
            yield seconds
        finally:
            self.next_try = None

    def tries_at(self, moment: float | None) -> None:
        """The next try comes at this moment; ``None`` while one is under way."""
        self.next_try = moment

    # --- the round trip --------------------------------------------------------------------------

    async def measure(self, wait: float) -> None:
        """Ask the relay for the round trip, unless that is under way, and wait for its answer so long at most."""
        self._measure()
        if self._measured is not None:
            await asyncio.wait({self._measured}, timeout=wait)

    def answered(self, value: int) -> None:
        """The relay said this value."""
        if value == self._pings and self._measured is not None:
            self.round_trip = time.monotonic() - self._asked_at
            self._measurement_over()

    def _measure(self) -> None:
        if self.connected_at is not None and self._measured is None:
            self._measured = self._driver.loop.create_future()
            self._pings += 1
            self._asked_at = time.monotonic()  # uvloop's own time stands still within a turn, and counts milliseconds
            self._driver.ping(self._pings)

    def _measurement_over(self) -> None:
        if self._measured is not None:
            self._measured.set_result(None)
            self._measured = None
