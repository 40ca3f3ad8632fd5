"""Readiness: whether the database would keep what is written now."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.store.repository import Repository

__all__ = ["Readiness"]

_KEPT: Final = 1.0  # seconds for which an answer is reused: anyone may ask, and a probe takes the write lock
#: Seconds for which a commit counts as proof that the next one is kept. Probes commit no more often: one page each, 180
#: MB a day if a load balancer asks all day, and the next checkpoint merges most of them.
_PROVED: Final = 2.0
_PATIENCE: Final = 2.0  # seconds; load balancers give up a check after a few


class Readiness:
    """Probes the database, one probe at a time for all callers."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._probe: asyncio.Task[KdispatchError | None] | None = None
        self._asked = 0.0

    async def check(self) -> None:
        """Return if the database is ready; otherwise raise ``storage_unavailable``."""
        now = time.monotonic()
        probe = self._probe
        if probe is None or (probe.done() and now - self._asked > _KEPT):
            probe = self._probe = asyncio.create_task(self._ask(), name="readiness")
            self._asked = now
        # A probe goes on when its caller leaves: cancelling it would cost a database connection.
        await asyncio.wait({probe}, timeout=_PATIENCE)
        if not probe.done():
            raise KdispatchError("storage_unavailable")
        if failure := probe.result():
            raise KdispatchError(failure.code, failure.text)

    async def close(self) -> None:
        """Wait for a running probe. Call it before the database is closed."""
        if self._probe is not None:
            await asyncio.wait({self._probe})

    async def _ask(self) -> KdispatchError | None:
        try:
            await self._repository.database.probe(_PROVED)
        except KdispatchError as error:
            return error
        return None
