"""Relay, host agent and client agent as processes; each agent is behind a proxy that breaks on command."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal

from tests.faults.proxy import FaultProxy, fault_proxy
from tests.faults.transfer import Transfers
from tests.net.harness import Network, Process, Relay

__all__ = ["Leg", "Rig", "Who", "rig"]

Leg = Literal["host", "client"]
Who = Literal["relay", "host", "client"]

_LOST: Final = "Lost the session with the relay"
_BACK: Final = "The session with the relay is back"
_END: Final = 60.0  # seconds for a relay to end; a stopped one ends only after SIGCONT
_RESET: Final = re.compile(r"(A|\d+) connections? to .* reset: .*\[([a-z_]+)\]$", re.MULTILINE)


class Rig:
    """What a fault can break: ``legs`` are the agents' proxies to the relay; ``port`` leads to ``through``."""

    def __init__(self, through: Transfers, relay: Relay, legs: dict[Leg, FaultProxy]) -> None:
        self.through = through
        self.relay = relay
        self.legs = legs
        self.agents: dict[Leg, Process] = {}
        self.port = 0
        self.restarts: list[float] = []  # seconds of each start of the relay
        self.refused: list[tuple[float, str]] = []  # time and text of connections reset before they were open
        self.earlier = ""  # output of relays that have ended
        self._restarting = asyncio.Lock()

    def process(self, who: Who) -> Process:
        return self.relay.running if who == "relay" else self.agents[who]

    async def restart_relay(self, number: signal.Signals, down: float) -> None:
        """End the relay by a signal, and start it ``down`` seconds later on the same port and database."""
        async with self._restarting:
            loop = asyncio.get_running_loop()
            self.relay.running.send_signal(number)
            await self.relay.running.ended(wait=_END)
            self.earlier += self.relay.running.text
            await asyncio.sleep(down)
            began = loop.time()
            await self.relay.start()
            self.restarts.append(loop.time() - began)

    @property
    def tunnels(self) -> int:
        """How many WebSockets agents have started."""
        return sum(leg.tunnels for leg in self.legs.values())

    @property
    def strikes(self) -> int:
        """How many cuts have reached their byte."""
        return sum(leg.strikes for leg in self.legs.values())

    @property
    def lost(self) -> int:
        """How often an agent lost its session."""
        return sum(agent.err.count(_LOST) for agent in self.agents.values())

    @property
    def back(self) -> int:
        """How often an agent got its session back."""
        return sum(agent.err.count(_BACK) for agent in self.agents.values())

    @property
    def codes(self) -> collections.Counter[str]:
        """How many connections were reset with which code, by the client agent's log."""
        told: collections.Counter[str] = collections.Counter()
        if "client" in self.agents:
            for count, code in _RESET.findall(self.agents["client"].err):
                told[code] += 1 if count == "A" else int(count)
        return told

    def logs(self, most: int = 6000) -> str:
        """The last output of each process."""
        texts = {"relay": self.earlier + self.relay.running.text}
        texts |= {name: agent.text for name, agent in self.agents.items()}
        return "\n".join(f"--- {name}\n{text[-most:]}" for name, text in texts.items())


@asynccontextmanager
async def rig(folder: Path, through: Transfers, *options: str) -> AsyncIterator[Rig]:
    """Run relay, proxies and agents for the duration of the block; ``options`` are the client agent's."""
    async with contextlib.AsyncExitStack() as ending:
        relay = Relay(folder)
        ending.callback(lambda: relay.stop(signal.SIGKILL))
        await relay.start()
        proxies = [await ending.enter_async_context(fault_proxy(relay.address.port)) for _ in range(2)]
        made = Rig(through, relay, {"host": proxies[0], "client": proxies[1]})
        networks = {leg: _network(folder / leg, relay, proxy.url) for leg, proxy in made.legs.items()}
        for network in networks.values():
            ending.callback(network.stop)
        service = await networks["host"].service()
        made.agents["host"] = await networks["host"].host(service, through.port)
        made.agents["client"], made.port = await networks["client"].connect(service, *options)
        yield made


def _network(folder: Path, relay: Relay, url: str) -> Network:
    folder.mkdir()
    return Network(folder, url, relay.token)
