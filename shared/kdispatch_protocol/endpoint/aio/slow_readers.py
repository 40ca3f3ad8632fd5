"""Bounds in time and memory for programs that have not yet read what arrived before a reset."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from kdispatch_protocol.limits import Limits

if TYPE_CHECKING:
    from kdispatch_protocol.endpoint.aio.transport import StreamTransport

__all__ = ["SlowReaders"]

#: Checks within the time that each transport has.
_LOOKS: Final = 4


class SlowReaders:
    """Transports whose streams, and with them their credit, are gone: no budget counts their bytes any more.

    Each has ``Limits.last_words`` to take its next byte. All together hold ``Limits.credit`` at most: beyond it the
    oldest ones are given up.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: dict[
            StreamTransport, tuple[int, float]
        ] = {}  # bytes held at the last check, and since when; the latest to take bytes is last
        self._total = 0  # sum of the held bytes at the last checks
        self._handle: asyncio.TimerHandle | None = None

    def add(self, transport: StreamTransport, loop: asyncio.AbstractEventLoop) -> None:
        """Watch ``transport`` from now on, until it holds nothing."""
        self._note(transport, transport.held, loop.time())
        while self._total > self._limits.credit:
            oldest = next(iter(self._waiting))
            self._note(oldest, 0, 0.0)
            oldest.give_up()
        self._look_later(loop)

    def clear(self) -> None:
        """Give up all of them: the agent ends."""
        if self._handle is not None:
            self._handle.cancel()
        for transport in list(self._waiting):
            self._note(transport, 0, 0.0)
            transport.give_up()

    def _note(self, transport: StreamTransport, held: int, since: float) -> None:
        before, _ = self._waiting.pop(transport, (0, 0.0))
        self._total += held - before
        if held:
            self._waiting[transport] = (held, since)

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._handle is None and self._waiting:
            self._handle = loop.call_later(self._limits.last_words / _LOOKS, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._handle = None
        now = loop.time()
        for transport, (before, since) in list(self._waiting.items()):
            held = transport.held
            if held and held == before and now - since >= self._limits.last_words:
                transport.give_up()
                held = 0
            if held != before:
                self._note(transport, held, now)
        self._look_later(loop)
