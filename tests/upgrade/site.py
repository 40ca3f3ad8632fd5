"""A relay that can be replaced, and pairs of agents on it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.net.harness import Network, Process, Relay

__all__ = ["Site", "site"]


@dataclass
class Site:
    """``ports`` are the client agents' local ports, in the order of the services."""

    relay: Relay
    ports: list[int]
    agents: list[Process]

    def logs(self) -> str:
        """The last 3,000 characters that each process printed."""
        processes = [*self.relay.older, self.relay.running, *self.agents]
        return "\n".join(f"--- {process.name}\n{process.text[-3000:]}" for process in processes)


@asynccontextmanager
async def site(
    folder: Path, services: Sequence[int], options: Sequence[str] = (), agents: Sequence[Sequence[str]] = ()
) -> AsyncIterator[Site]:
    """A relay with ``options``. Each service has a host and a client agent, with its options from ``agents``."""
    async with contextlib.AsyncExitStack() as ending:
        relay = Relay(folder)
        ending.callback(lambda: relay.stop(signal.SIGKILL))
        await relay.start(*options)
        network = Network(folder, relay.url, relay.token)
        ending.callback(network.stop)
        names = [await network.service() for _ in services]
        theirs = agents or [()] * len(names)
        await asyncio.gather(
            *(network.host(name, port, *more) for name, port, more in zip(names, services, theirs, strict=True))
        )
        clients = await asyncio.gather(*(network.connect(*pair) for pair in _with(names, theirs)))
        yield Site(relay, [port for _, port in clients], network.processes)


def _with(names: Sequence[str], options: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    return [(name, *more) for name, more in zip(names, options, strict=True)]
