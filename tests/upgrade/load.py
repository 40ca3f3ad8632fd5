"""Load that shows the cost of a change of relays or sessions: streams that echo all the time, and new connections."""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from tests.net.tcp import Tcp

__all__ = ["Echoes", "Visits", "rank"]

_TEXT: Final = bytes(range(64))
_PATIENCE: Final = 60.0  # seconds for an echo: a stream that takes longer counts as lost


def rank(values: list[float], percent: float) -> float:
    """The percentile: ``percent`` of the values are not above it."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class Echoes:
    """Long-lived streams. Each sends the next 64 B ``pause`` seconds after the last 64 B came back."""

    def __init__(self, port: int, pause: float) -> None:
        self._port = port
        self._pause = pause
        self._trips: list[list[tuple[float, float]]] = []  # for each stream: the end of each echo, and its seconds
        self.lost: list[str] = []

    @asynccontextmanager
    async def running(self, streams: int, *, first: bytes = b"") -> AsyncIterator[None]:
        """Run ``streams`` streams until the block ends. Each sends ``first`` first, which the service does not echo."""
        over = asyncio.Event()
        tasks = [asyncio.create_task(self._stream(first, over)) for _ in range(streams)]
        try:
            while len(self._trips) < streams:
                await asyncio.sleep(0.01)
                assert not self.lost, self.lost
            yield
            over.set()
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _stream(self, first: bytes, over: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        trips: list[tuple[float, float]] = []
        try:
            async with await Tcp.connect(self._port) as tcp:
                await tcp.send(first)
                while not over.is_set():
                    began = loop.time()
                    async with asyncio.timeout(_PATIENCE):
                        await tcp.send(_TEXT)
                        assert await tcp.receive_exactly(len(_TEXT)) == _TEXT
                    ended = loop.time()
                    if not trips:
                        self._trips.append(trips)
                    trips.append((ended, ended - began))
                    await asyncio.sleep(self._pause)
        except (OSError, AssertionError, TimeoutError) as error:
            self.lost.append(f"after {len(trips)} echoes: {error!r}")

    def longest(self, begin: float, end: float) -> list[float]:
        """For each stream, the seconds of the longest echo among those that ended in this span."""
        found = []
        for trips in self._trips:
            first = bisect.bisect_left(trips, (begin, 0.0))
            took = [seconds for ended, seconds in trips[first:] if ended <= end]
            found.append(max(took, default=end - begin))
        return found

    def all(self, begin: float, end: float) -> list[float]:
        """The seconds of each echo that ended in this span."""
        return [seconds for trips in self._trips for ended, seconds in trips if begin <= ended <= end]


class Visits:
    """New connections at a constant rate: each sends 64 B, receives them, and closes."""

    def __init__(self, port: int, rate: float) -> None:
        self._port = port
        self._rate = rate
        self.took: list[float] = []
        self.failed: list[str] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start connections until the block ends, then wait for those in progress."""
        under_way: set[asyncio.Task[None]] = set()
        coming = asyncio.create_task(self._come(under_way))
        try:
            yield
            coming.cancel()
            await asyncio.gather(*under_way)
        finally:
            for task in (coming, *under_way):
                task.cancel()
            await asyncio.gather(coming, *under_way, return_exceptions=True)

    async def _come(self, under_way: set[asyncio.Task[None]]) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time()
        while True:
            task = asyncio.create_task(self._visit())
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            at += 1 / self._rate
            await asyncio.sleep(max(0.0, at - loop.time()))

    async def _visit(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(_PATIENCE), await Tcp.connect(self._port) as tcp:
                await tcp.send(_TEXT)
                assert await tcp.receive_exactly(len(_TEXT)) == _TEXT
                tcp.finish()
                assert await tcp.receive_all() == b""
            self.took.append(loop.time() - began)
        except (OSError, AssertionError, TimeoutError) as error:
            self.failed.append(f"{loop.time() - began:.2f} s after it began: {error!r}")
