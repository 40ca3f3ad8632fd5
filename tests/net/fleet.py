"""Many agents in one process: python -m tests.net.fleet RELAY SERVICE TOKEN COUNT

Half of them are hosts, half are clients. Each line of output is an event of one agent, with its time on the clock that
all processes share: "try" when it calls the relay, "ready" when it has a session and a host is listed again.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Final
from unittest.mock import patch

from kdispatch.host import Host
from kdispatch.network.dialer import Dialer, Upgraded
from kdispatch.relay_url import RelayUrl
from kdispatch.uplink import Uplink
from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.aio.driver import EndpointDriver
from kdispatch_protocol.endpoint.events import Event
from kdispatch_protocol.endpoint.streams import Stream

__all__: list[str] = []

_AT_ONCE: Final = 20  # starts at once, so that the relay's answers do not wait for each other
_START_WAIT: Final = 30.0


def _happened(what: str) -> None:
    print(what, f"{time.monotonic():.4f}", flush=True)


_upgrade = Dialer.upgrade


async def _noted_upgrade(dialer: Dialer) -> Upgraded:
    _happened("try")
    return await _upgrade(dialer)


def _serve(driver: EndpointDriver, stream: Stream) -> None:
    driver.refuse(stream, "host_refused", "Nobody is to connect here.")


class _Host(Host):
    """Reports when it is listed."""

    def _event(self, event: Event) -> None:
        super()._event(event)
        if isinstance(event, events.OfferListed):
            _happened("ready")


def _client(event: Event) -> None:
    if isinstance(event, events.SessionReady):
        _happened("ready")


async def _main(url: str, service: str, token: str, count: str) -> None:
    relay = RelayUrl.parse(url)
    gate = asyncio.Semaphore(_AT_ONCE)

    async def start(agent: Host | Uplink) -> None:
        async with gate:
            await agent.start(_START_WAIT)

    hosts = [_Host(Dialer(relay), service, token, _serve) for _ in range(int(count) // 2)]
    clients = [Uplink(Dialer(relay), _client) for _ in range(int(count) - len(hosts))]
    agents: list[Host | Uplink] = [*hosts, *clients]
    await asyncio.gather(*(start(agent) for agent in agents))
    # Until the first of them fails, which none should, or the test ends this process.
    await asyncio.gather(*(agent.failed() for agent in agents))


if __name__ == "__main__":
    with patch.object(Dialer, "upgrade", _noted_upgrade):
        asyncio.run(_main(*sys.argv[1:]))
