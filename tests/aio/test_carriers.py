"""Sessions run over any carrier: one without a WebSocket takes the place of today's, and nothing else changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from kdispatch_protocol.session.aio.carrier import Cancellable, CarrierOwner
from kdispatch_protocol.wire.frames import DATA as _DATA
from kdispatch_protocol.wire.frames import HEADER, Buffer, header
from tests.aio.twin import Twin, settle, twin, until

KIB = 1024


class _Messages:
    """Hands whole messages to the other one of its pair in the loop's next turn. It is never full."""

    def __init__(self, owner: CarrierOwner, pair: list[_Messages], **_: Any) -> None:
        self._owner = owner
        self._pair = pair
        pair.append(self)
        self._loop = asyncio.get_running_loop()
        self._waiting: list[bytes] = []
        self._rest: Cancellable | None = None
        self.started = self._ended = False
        self.given = 0
        self.full = False
        self.heard: float | None = None
        self.arrived: float | None = None
        self.sent: float | None = None
        self.found = 0
        self.read_fast: Callable[[int, int, int, Buffer], bool] = lambda *_: False

    @property
    def _other(self) -> _Messages:
        return self._pair[1 - self._pair.index(self)]

    @property
    def unsent(self) -> int:
        return 0

    @property
    def open(self) -> bool:
        return self.started and not self._ended

    def start(self) -> None:
        self.started = True
        if len(self._pair) == 2:
            for end in self._pair:
                end.deliver()

    def send(self, parts: list[Buffer]) -> int:
        self.sent = self._loop.time()
        message = b"".join(parts)
        self.given += len(message)
        if len(self._pair) == 2:
            self._other.take(message)
        else:
            self._waiting.append(message)  # the other end is not made yet
        return len(message)

    def send_fast(self, flags: int, number: int, value: int, payload: Buffer) -> bool:
        if not self.open:
            return False
        self.send([header(_DATA, flags, number, value, len(payload)), payload])
        return True

    def close(self, code: int, reason: str) -> None:
        self._loop.call_soon(self.abort)

    def abort(self) -> None:
        for end in self._pair:
            if not end._ended:
                end._ended = True
                self._loop.call_soon(end._owner.handle_lost, None, None)

    def hold_unsent(self, size: int) -> None:
        pass

    def limit_messages(self, size: int) -> None:
        pass

    def rest(self, seconds: float) -> None:
        pass

    def take(self, message: bytes) -> None:
        self._waiting.append(message)
        self._loop.call_soon(self.deliver)

    def deliver(self) -> None:
        if not self.started or self._ended:
            return
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            self.heard = self.arrived = self._loop.time()
            word, number, value = HEADER.unpack_from(message)
            size = word & 0xFFFFFF
            alone = word >> 27 == _DATA and size == len(message) - 16
            if alone and self.read_fast(word >> 24 & 7, number, value, message[16:]):
                continue
            self._owner.receive_message(message)


def _connect(pair: Twin) -> None:
    """Two agents' sessions with the relay, over carriers of their own kind."""
    for driver in (pair.host, pair.client):
        ends: list[_Messages] = []
        pair.gate.join(partial(_Messages, pair=ends), "memory")
        driver.connect(partial(_Messages, pair=ends))


async def test_another_carrier() -> None:
    """A stream is opened, carries bytes both ways and ends, over carriers that know no WebSocket."""
    async with twin(connect=_connect) as pair:
        program, served = await pair.stream()
        program.transport.write(b"q" * 300 * KIB)
        await until(lambda: len(served.received) == 300 * KIB)
        served.transport.write(b"a" * 200 * KIB)
        await until(lambda: len(program.received) == 200 * KIB)
        program.transport.write_eof()
        served.transport.write_eof()
        await until(lambda: not pair.host.streams and not pair.client.streams)
        await settle()
        assert pair.gate.state().sessions == 2
