"""Whether what is written to the database would be kept."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.store.repository import Repository

__all__ = ["Readiness"]

_KEPT: Final = 1.0  # seconds an answer is given again: anybody may ask, and a probe takes the write lock
#: Seconds for which a commit proves that the next one is kept. A probe commits no more often: one page each time,
#: 180 MB a day where a balancer asks all day, most of which the next checkpoint takes together.
_PROVED: Final = 2.0
_PATIENCE: Final = 2.0  # seconds; balancers give a check up after a few


class Readiness:
    """Asks the database, once at a time, on behalf of everybody who wants to know."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._probe: asyncio.Task[KdispatchError | None] | None = None
        self._asked = 0.0

    async def check(self) -> None:
        """Return, or raise ``storage_unavailable``."""
        now = time.monotonic()
        probe = self._probe
        if probe is None or (probe.done() and now - self._asked > _KEPT):
            probe = self._probe = asyncio.create_task(self._ask(), name="readiness")
            self._asked = now
        # A probe goes on when its asker leaves: breaking off would cost the database a connection.
        await asyncio.wait({probe}, timeout=_PATIENCE)
        if not probe.done():
            raise KdispatchError("storage_unavailable")
        if failure := probe.result():
            raise KdispatchError(failure.code, failure.text)

    async def close(self) -> None:
        """Let a running probe end, before the database is closed."""
        if self._probe is not None:
            await asyncio.wait({self._probe})

    async def _ask(self) -> KdispatchError | None:
        try:
            await self._repository.database.probe(_PROVED)
        except KdispatchError as error:
            return error
        return None
