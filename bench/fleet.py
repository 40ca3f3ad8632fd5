"""Many sessions in few processes: python -m bench.fleet hosts RELAY COUNT PORT, or clients RELAY COUNT.

With forty agent processes on two cores, a benchmark would measure the kernel's context switches. Here one process has
all hosts, and another one all clients; each has its own session, made from the parts of the command line.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from typing import Final

from kdispatch.cli.output import choose_loop
from kdispatch.client import Client, LocalListener
from kdispatch.host import Host, LocalPort
from kdispatch.local.front import one_service
from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl

__all__: list[str] = []

_WAIT: Final = 20.0


def _services(count: int) -> list[str]:
    """The services that bench.account has created."""
    return [f"ann/web{number}" for number in range(count)]


async def _hosts(relay: RelayUrl, token: str, count: int, port: int) -> None:
    async with AsyncExitStack() as ending:
        for service in _services(count):
            local = LocalPort("127.0.0.1", port)
            host = local.host = Host(Dialer(relay), service, token, local)
            await host.start(_WAIT)
            ending.push_async_callback(host.stop)
        print("ready", flush=True)
        await asyncio.Event().wait()


async def _clients(relay: RelayUrl, count: int) -> None:
    async with AsyncExitStack() as ending:
        ports = []
        for service in _services(count):
            client = Client(Dialer(relay))
            listener = LocalListener(client, one_service(service))
            await listener.listen("127.0.0.1", 0)
            await client.uplink.start(_WAIT)
            ending.push_async_callback(client.stop)
            listener.serve()
            ports.append(str(listener.port))
        print("ports", *ports, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """Run until killed."""
    role, url, count, *port = sys.argv[1:]
    relay = RelayUrl.parse(url)
    with asyncio.Runner(loop_factory=choose_loop()) as runner:
        if role == "hosts":
            runner.run(_hosts(relay, os.environ["KDISPATCH_TOKEN"], int(count), int(port[0])))
        else:
            runner.run(_clients(relay, int(count)))


if __name__ == "__main__":
    main()
