"""Many idle host agents in one process: python -m bench.idle_agents RELAY SERVICE TOKEN

Each line of its input is the wanted number of agents; it answers when the relay lists all of them.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

from kdispatch.host import Host
from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch_protocol.endpoint.aio.driver import EndpointDriver
from kdispatch_protocol.endpoint.streams import Stream

__all__: list[str] = []

_START_WAIT: Final = 30.0


def _serve(driver: EndpointDriver, stream: Stream) -> None:
    driver.refuse(stream, "host_refused", "Nobody is to connect here.")


async def _main(url: str, service: str, token: str) -> None:
    relay = RelayUrl.parse(url)
    hosts: list[Host] = []
    while line := await asyncio.to_thread(sys.stdin.readline):
        while len(hosts) < int(line):
            hosts.append(Host(Dialer(relay), service, token, _serve))
            await hosts[-1].start(_START_WAIT)
        print(f"{len(hosts)} are listed", flush=True)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
