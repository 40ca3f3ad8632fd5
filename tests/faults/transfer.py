"""Seeded pseudo-random bytes in both directions of many TCP connections, compared byte by byte as they arrive.

The service and its users are in one process. The comparison proves as much as a digest, also gives the first
different byte, and costs a tenth.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from tests.net.harness import KIB
from tests.net.tcp import Tcp, service

__all__ = ["Exchange", "Flow", "NotOpenedError", "TransferError", "Transfers", "transfers"]

_CHUNK: Final = 64 * KIB
#: Bytes after which the data repeats: a prime, so that a loss or repetition of a round number of bytes is detected.
_PERIOD: Final = 4_194_319
_BUFFER: Final = 256 * KIB  # of a kernel socket; small, so that "sent" and "received" are close to the tunnel's state
_NUMBER: Final = 4  # bytes of a user's first message: the exchange's number
_ENDLESS: Final = 1 << 50  # size of an exchange that never ends by itself
_LOOK: Final = 0.25  # seconds between checks for a stall


class TransferError(Exception):
    """Bytes differ, are missing or came twice, a stream was reset, or no byte arrived for too long."""


class NotOpenedError(TransferError):
    """A connection was reset before a byte came through."""


class Data:
    """Endless bytes from one seed; every flow begins at its own position."""

    def __init__(self, seed: int) -> None:
        block = random.Random(seed).randbytes(_PERIOD)
        self._bytes = block + block[:_CHUNK]
        self._view = memoryview(self._bytes)

    def piece(self, begin: int, size: int) -> memoryview:
        """Return ``size`` bytes from ``begin`` on, at most ``_CHUNK``."""
        begin %= _PERIOD
        return self._view[begin : begin + size]

    def first_difference(self, begin: int, chunk: memoryview) -> int | None:
        """How many bytes of ``chunk`` match those from ``begin`` on; ``None`` if all match."""
        begin %= _PERIOD
        expected, got = self._bytes[begin : begin + len(chunk)], bytes(chunk)
        if expected == got:
            return None
        return next(at for at, (one, other) in enumerate(zip(expected, got, strict=True)) if one != other)


@dataclass
class Flow:
    """One direction of one exchange. Rates are bytes per second, 0 is unlimited."""

    name: str
    begin: int
    size: int
    rate: float = 0.0
    read_rate: float = 0.0
    sent: int = 0
    received: int = 0
    done: bool = False
    last: float = 0.0  # time of the last arrival
    longest: float = 0.0  # longest pause in seconds, without the reader's own waits
    longest_at: float = 0.0  # when that pause ended

    async def send(self, tcp: Tcp, data: Data) -> None:
        """Send all bytes, then end this direction."""
        began = asyncio.get_running_loop().time()
        with self.told():
            while self.sent < self.size:
                # Even a slow rate has about 20 pieces a second.
                most = min(_CHUNK, max(KIB, int(self.rate / 20))) if self.rate else _CHUNK
                piece = data.piece(self.begin + self.sent, min(most, self.size - self.sent))
                await tcp.send(piece)
                self.sent += len(piece)
                await _pace(began, self.sent, self.rate)
            tcp.finish()

    async def receive(self, tcp: Tcp, data: Data, transfers: Transfers) -> None:
        """Compare the arriving bytes until the end of this direction."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        with self.told():
            async for chunk in tcp.chunks():
                self._arrived(loop.time())
                self.take(chunk, data)
                transfers.arrived(len(chunk))
                if self.read_rate:
                    await _pace(began, self.received, self.read_rate)
                    self.last = loop.time()
        self._arrived(loop.time())
        if self.received < self.size:
            raise TransferError(f"{self} ended cleanly after {self.received} of {self.size} bytes")
        self.done = True

    def take(self, chunk: memoryview, data: Data) -> None:
        """Compare a chunk and count it."""
        differs = data.first_difference(self.begin + self.received, chunk)
        if differs is not None:
            raise TransferError(f"{self} differs from byte {self.received + differs} on")
        self.received += len(chunk)
        if self.received > self.size:
            raise TransferError(f"{self} has more than its {self.size} bytes")

    def _arrived(self, now: float) -> None:
        if now - self.last > self.longest:
            self.longest, self.longest_at = now - self.last, now
        self.last = now

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Name the flow in the error of a broken connection."""
        try:
            yield
        except ConnectionError as error:
            told = f"{self} broke ({type(error).__name__}), {self.sent} sent, {self.received} received of {self.size}"
            raise TransferError(told) from error

    def __str__(self) -> str:
        return self.name


@dataclass
class Exchange:
    """One connection of a user: both directions at once."""

    number: int
    up: Flow
    down: Flow
    taken: bool = False  # the service has accepted it
    served: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def flows(self) -> tuple[Flow, Flow]:
        return self.up, self.down

    @property
    def begun(self) -> bool:
        """Whether a byte has come through."""
        return any(flow.received for flow in self.flows)


class Transfers:
    """The service at ``port`` and its users. ``patience``: seconds without a byte that count as a stall."""

    def __init__(self, seed: int, patience: float) -> None:
        self.port = 0
        self.moved = 0  # bytes that arrived, over both directions and all exchanges
        self.finished = 0  # complete exchanges
        self.longest = 0.0  # longest pause of any exchange, in seconds
        self.longest_at = 0.0  # when it ended, on the loop's clock
        self.running: dict[int, Exchange] = {}
        self._data = Data(seed)
        self._patience = patience
        self._numbers = itertools.count(1)
        self._marks: list[tuple[int, asyncio.Future[None]]] = []
        self._begins = random.Random(seed + 1)

    def arrived(self, count: int) -> None:
        self.moved += count
        if self._marks and self.moved >= self._marks[0][0]:
            _, mark = self._marks.pop(0)
            if not mark.done():
                mark.set_result(None)

    async def reached(self, total: int) -> None:
        """Return as soon as ``total`` bytes have arrived over all exchanges."""
        if self.moved < total:
            mark: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._marks.append((total, mark))
            self._marks.sort(key=lambda entry: entry[0])
            await mark

    async def exchange(
        self, port: int, size: int, down: int | None = None, *, rate: float = 0.0, read_rate: float = 0.0
    ) -> Exchange:
        """Send ``size`` bytes to the service and get ``down`` (default ``size``) bytes back; raises ``TransferError``.

        ``port`` leads to the service, and ``read_rate`` limits the user's reads.
        """
        exchange = self._begin(size, size if down is None else down, rate, read_rate)
        try:
            await self._watched(asyncio.create_task(self._use(port, exchange)), exchange)
        except TransferError as error:
            raise _named(error, exchange) from error
        finally:
            self._end(exchange)
        self.finished += 1
        for flow in exchange.flows:
            if flow.longest > self.longest:
                self.longest, self.longest_at = flow.longest, flow.longest_at
        return exchange

    async def _watched(self, use: asyncio.Task[None], exchange: Exchange) -> None:
        """Raise the error of ``use``, or an error if an unfinished flow stalls."""
        loop = asyncio.get_running_loop()
        try:
            while not (await asyncio.wait({use}, timeout=_LOOK))[0]:
                for flow in exchange.flows:
                    if not flow.done and loop.time() - flow.last > self._patience:
                        told = f"{flow.sent} sent, {flow.received} received"
                        raise TransferError(f"{flow} stands still for {self._patience:g} s, {told}")
            await use
        finally:
            use.cancel()
            await asyncio.gather(use, return_exceptions=True)

    async def abandon(self, port: int, after: int) -> None:
        """Reset a connection after ``after`` bytes came back; raises if the service does not see a reset."""
        exchange = self._begin(_ENDLESS, _ENDLESS, 0.0, 0.0)
        down = exchange.down
        try:
            with down.told():
                async with await Tcp.connect(port) as tcp:
                    await tcp.send(exchange.number.to_bytes(_NUMBER, "big"))
                    async for chunk in tcp.chunks(after):
                        down.take(chunk, self._data)
                    tcp.reset()
            if exchange.taken:
                await self._heard(exchange)
        except TransferError as error:
            raise _named(error, exchange) from error
        finally:
            self._end(exchange)

    async def _heard(self, exchange: Exchange) -> None:
        served, _ = await asyncio.wait({exchange.served}, timeout=self._patience)
        if not served:
            raise TransferError(f"{exchange.up} was abandoned, and {self._patience:g} s later the service has it still")
        error = exchange.served.exception()
        if error is None or not isinstance(error.__cause__, ConnectionError):
            raise TransferError(f"{exchange.up} was abandoned, and the service saw no reset but: {error}")

    def _begin(self, up: int, down: int, rate: float, read_rate: float) -> Exchange:
        number = next(self._numbers)
        begins = self._begins.randrange(_PERIOD), self._begins.randrange(_PERIOD)
        exchange = Exchange(
            number,
            Flow(f"stream {number} up", begins[0], up, rate),
            Flow(f"stream {number} down", begins[1], down, rate, read_rate),
        )
        for flow in exchange.flows:
            flow.last = asyncio.get_running_loop().time()
        self.running[number] = exchange
        return exchange

    def _end(self, exchange: Exchange) -> None:
        del self.running[exchange.number]
        if exchange.served.done():
            exchange.served.exception()  # mark the error as retrieved
        exchange.served.cancel()

    async def _use(self, port: int, exchange: Exchange) -> None:
        with exchange.up.told():
            tcp = await Tcp.connect(port)
        async with tcp:
            _tune(tcp)

            async def send() -> None:
                with exchange.up.told():
                    await tcp.send(exchange.number.to_bytes(_NUMBER, "big"))
                await exchange.up.send(tcp, self._data)

            await _together(send(), exchange.down.receive(tcp, self._data, self), _done(exchange.served))

    async def serve(self, tcp: Tcp) -> None:
        """Play the service for one connection."""
        _tune(tcp)
        first = b"".join([bytes(chunk) async for chunk in tcp.chunks(_NUMBER)])
        exchange = self.running.get(int.from_bytes(first, "big"))
        if exchange is None:  # the user is gone, or has failed and reported that
            tcp.reset()
            return
        exchange.taken = True
        try:
            await _together(exchange.up.receive(tcp, self._data, self), exchange.down.send(tcp, self._data))
        except TransferError as error:
            tcp.reset()
            if not exchange.served.done():
                exchange.served.set_exception(error)
        else:
            if not exchange.served.done():
                exchange.served.set_result(None)


def _named(error: TransferError, exchange: Exchange) -> TransferError:
    """Return the error, or a NotOpenedError if the connection was not opened."""
    refused = isinstance(error.__cause__, ConnectionError) and not exchange.begun
    return NotOpenedError(str(error)) if refused else error


def _tune(tcp: Tcp) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        tcp.sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)


async def _pace(began: float, done: int, rate: float) -> None:
    """Sleep until ``done`` bytes since ``began`` are within the rate."""
    if rate and (ahead := began + done / rate - asyncio.get_running_loop().time()) > 0:
        await asyncio.sleep(ahead)


async def _done(future: asyncio.Future[None]) -> None:
    await asyncio.wait({future})  # unlike an await of the future, cancelling this does not cancel the future
    future.result()


async def _together(*parts: Coroutine[Any, Any, None]) -> None:
    """Run all parts; the first failure cancels the others and is raised unchanged.

    Of two at once the reset is raised: the kernel reports it once, and the next call sees a clean end.
    """
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    errors = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
    for error in sorted(errors, key=lambda error: not isinstance(error.__cause__, ConnectionResetError)):
        raise error


@asynccontextmanager
async def transfers(seed: int, patience: float) -> AsyncIterator[Transfers]:
    """Run a comparing service for the duration of the block."""
    made = Transfers(seed, patience)
    async with service(made.serve) as running:
        made.port = running.port
        yield made
