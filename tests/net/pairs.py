"""Many streams in one process, each with its own agents: python -m tests.net.pairs RELAY SERVICE TOKEN COUNT

COUNT clients each have a stream to one of as many hosts, and send a byte on it four times a second. Each line of output
is an event, with its time on the clock that all processes share: "ready" once all streams have echoed, "echo" with the
stream's number when a byte came back after a pause, "reset" when a stream ended.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Final, cast

from kdispatch.host import Host
from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch.uplink import Uplink
from kdispatch_protocol.endpoint.aio.driver import EndpointDriver
from kdispatch_protocol.endpoint.streams import Stream

__all__: list[str] = []

_EVERY: Final = 0.25  # seconds between two bytes of a stream
_PAUSE: Final = 1.0  # seconds without an echo that count as a pause
_AT_ONCE: Final = 20  # starts at once, so that the relay's answers do not wait for each other
_START_WAIT: Final = 30.0


def _happened(what: str, number: int = 0) -> None:
    print(what, number, f"{time.monotonic():.4f}", flush=True)


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class _Asks(asyncio.Protocol):
    def __init__(self, number: int) -> None:
        self._number = number
        self._last = 0.0
        self.echoed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, _data: bytes) -> None:
        now = time.monotonic()
        if now - self._last > _PAUSE and self.echoed.is_set():
            _happened("echo", self._number)
        self._last = now
        self.echoed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        _happened("reset", self._number)

    def ask(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(b"x")


def _serve(driver: EndpointDriver, stream: Stream) -> None:
    driver.accept(stream, _Echo())


async def _main(url: str, service: str, token: str, count: str) -> None:
    relay, gate = RelayUrl.parse(url), asyncio.Semaphore(_AT_ONCE)
    hosts = [Host(Dialer(relay), service, token, _serve) for _ in range(int(count))]
    clients = [Uplink(Dialer(relay), lambda _: None) for _ in range(int(count))]

    async def start(agent: Host | Uplink) -> None:
        async with gate:
            await agent.start(_START_WAIT)

    agents: list[Host | Uplink] = [*hosts, *clients]
    await asyncio.gather(*(start(agent) for agent in agents))
    asking = [_Asks(number) for number in range(len(clients))]
    for client, one in zip(clients, asking, strict=True):
        client.driver.open(service, one, token)
    while True:
        for one in asking:
            one.ask()
        await asyncio.sleep(_EVERY)
        if all(one.echoed.is_set() for one in asking):
            break
    _happened("ready")
    while True:
        for one in asking:
            one.ask()
        await asyncio.sleep(_EVERY)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
