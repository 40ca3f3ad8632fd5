"""The begin of a session: the wait for the relay's WELCOME, which tells whether it is the right relay."""

from __future__ import annotations

import asyncio

from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch_protocol.endpoint.aio.uplink_session import UplinkSession
from kdispatch_protocol.errors import KdispatchError

__all__ = ["Meeting"]


class Meeting:
    """Waits for the WELCOME of ``session`` with ``relay``; ``foreign`` is the error if it is another relay's."""

    def __init__(self, dialer: Dialer, session: UplinkSession, relay: RelayUrl) -> None:
        self.foreign: KdispatchError | None = None
        self._dialer = dialer
        self._session = session
        self._relay = relay
        self._welcomed: asyncio.Future[None] = session.lost.get_loop().create_future()

    @property
    def welcomed(self) -> bool:
        """Whether the relay has answered."""
        return self._welcomed.done()

    def welcome(self, relay_id: str) -> bool:
        """Handle the WELCOME of the relay with this id, before the next read; returns whether it is the right relay.

        A session with another relay ends here. Its answers to our offers and attaches would end both for good.
        """
        if not self.welcomed:
            try:
                self._dialer.met(self._relay, relay_id)
            except KdispatchError as error:
                self.foreign = error
                self._session.abort()
            self._welcomed.set_result(None)
        return self.foreign is None

    async def over(self, seconds: float) -> bool:
        """Wait for the WELCOME or the session's end, and end the session if neither comes; returns whether one did."""
        either: set[asyncio.Future[None] | asyncio.Future[tuple[str, str]]] = {self._welcomed, self._session.lost}
        try:
            done, _ = await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._session.abort()
            raise
        if not done:
            self._session.abort()
        return bool(done)
