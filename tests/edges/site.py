"""A relay behind a server, and pairs of agents that reach it through that server by HTTPS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.edges.servers import Edge
from tests.net.harness import Network, Process, Relay, eventually

__all__ = ["Site", "site"]

_LOST: Final = "Lost the session with the relay"
_BACK: Final = "The session with the relay is back"
_PATIENCE: Final = 40.0  # seconds; after many losses agents wait for up to 15 between tries


@dataclass
class Site:
    """``ports`` are the clients' local ports, in the order of the services; ``network`` makes more such agents."""

    edge: Edge
    relay: Relay
    network: Network
    ports: list[int]

    @property
    def agents(self) -> list[Process]:
        return self.network.processes

    @property
    def lost(self) -> int:
        """How often an agent lost its session."""
        return sum(agent.err.count(_LOST) for agent in self.agents)

    async def all_back(self) -> None:
        """Return when every lost session is back."""
        await eventually(lambda: self.lost - sum(agent.err.count(_BACK) for agent in self.agents), 0, _PATIENCE)

    async def all_lost(self, before: int) -> None:
        """Return when each agent has lost a session since there were ``before`` losses."""
        await eventually(lambda: self.lost >= before + len(self.agents), expected=True, wait=_PATIENCE)

    def logs(self) -> str:
        """The last output of each process."""
        processes = [self.relay.running, *self.agents]
        told = {process.name: process.text for process in processes} | self.edge.logs
        return "\n".join(f"--- {name}\n{text[-3000:]}" for name, text in told.items())


@asynccontextmanager
async def site(edge: Edge, relay: Relay, folder: Path, services: Sequence[int]) -> AsyncIterator[Site]:
    """Run the server, and a host and a client agent for each service; the block's end stops the agents."""
    folder.mkdir()  # noqa: ASYNC240 - once a test
    network = Network(folder, relay.url, relay.token)
    try:
        names = [await network.service() for _ in services]
        await edge.start()
        network.environment |= {"KDISPATCH_RELAY": edge.url, **edge.trust}
        await asyncio.gather(*(network.host(name, port) for name, port in zip(names, services, strict=True)))
        clients = await asyncio.gather(*(network.connect(name) for name in names))
        yield Site(edge, relay, network, [port for _, port in clients])
    finally:
        network.stop()
