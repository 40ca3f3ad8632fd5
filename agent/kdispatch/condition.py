"""The state of an agent's connection to its relay, for status reports."""

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

#: Codes that are no failure: one of the two programs ended the connection.
_NO_FAILURE: Final = frozenset({"cancelled"})


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong, and when on the loop's clock."""

    code: str
    text: str
    at: float


class Condition:
    """Updated by the uplink. Times are on the loop's clock, ``round_trip`` is in seconds."""

    def __init__(self, driver: EndpointDriver) -> None:
        self._driver = driver
        self._began = False  # there has been a session
        self._measured: asyncio.Future[None] | None = None  # while a round-trip measurement runs
        self._asked_at = 0.0
        self._pings = 0
        self.connected_at: float | None = None  # start of the newest session
        self.round_trip: float | None = None  # the latest measurement
        self.next_try: float | None = None  # when the next try for a session starts
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
        """Seconds since the unanswered PING to the relay; ``None`` if there is none."""
        return None if self._measured is None else time.monotonic() - self._asked_at

    # --- what happens --------------------------------------------------------------------------

    def connected(self) -> None:
        """There is a session, the first or another: measure its round trip."""
        self._began = True
        self.connected_at = self._driver.loop.time()
        self._measurement_over()  # one in an earlier session
        self._measure()

    def lost(self) -> None:
        """There is no session any more."""
        self.connected_at = self.round_trip = None
        self._measurement_over()

    def failed(self, code: str, text: str) -> None:
        """Record the failure of a session, of a try for one, or of a stream."""
        self.last_error = Failure(code, text, self._driver.loop.time())

    def stream_was_reset(self, code: str, text: str) -> None:
        """Record that a stream did not finish."""
        if code not in _NO_FAILURE:
            self.failed(code, text)

    @contextlib.contextmanager
    def waiting(self, seconds: float) -> Iterator[float]:
        """Mark that the next try follows after ``seconds``, which the block waits."""
        self.next_try = self._driver.loop.time() + seconds
        try:
            yield seconds
        finally:
            self.next_try = None

    def tries_at(self, moment: float | None) -> None:
        """Mark the time of the next try; ``None`` while a try is running."""
        self.next_try = moment

    # --- the round trip --------------------------------------------------------------------------

    async def measure(self, wait: float) -> None:
        """Measure the round trip to the relay, and wait at most ``wait`` seconds for the answer."""
        self._measure()
        if self._measured is not None:
            await asyncio.wait({self._measured}, timeout=wait)

    def answered(self, value: int) -> None:
        """Handle the relay's answer to the PING with this value."""
        if value == self._pings and self._measured is not None:
            self.round_trip = time.monotonic() - self._asked_at
            self._measurement_over()

    def _measure(self) -> None:
        if self.connected_at is not None and self._measured is None:
            self._measured = self._driver.loop.create_future()
            self._pings += 1
            self._asked_at = time.monotonic()  # uvloop's time stands still within a turn, and counts milliseconds
            self._driver.ping(self._pings)

    def _measurement_over(self) -> None:
        if self._measured is not None:
            self._measured.set_result(None)
            self._measured = None
