"""The cost of one change of rights on a full relay: python -m bench.changes [SESSIONS STREAMS]

The switch is full of other services' sessions and streams, and one service has a host and a few streams. After a change
of that service the relay checks all its sessions and streams again, with a store that answers at once.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

from bench.processes import PYTHON
from bench.table import Line
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Hello, Offer, Open, Opened
from kdispatch_relay.auth import Authority, Grant, ServiceRecord
from kdispatch_relay.gate.access import AccessControl
from kdispatch_relay.store.database import Database
from kdispatch_relay.store.repository import Repository
from kdispatch_relay.switch.claims import Terms
from kdispatch_relay.switch.intents import AskOffer
from kdispatch_relay.switch.sessions import SwitchSession
from kdispatch_relay.switch.switch import Switch

__all__ = ["TITLES", "Crowd", "lines", "measured"]

TITLES: Final = {"changes": "what a change of one service costs the relay"}
SESSIONS: Final = 20_000
STREAMS: Final = 5  # per client
_CLIENTS_OF_HOST: Final = 49  # so one session in fifty is a host's
_TIMES: Final = 50
#: Titles of the rows, by kind of change.
_ROWS: Final = {
    "stays": f"change of a service with {STREAMS} streams, which go on",
    "ends": f"deletion of a service with {STREAMS} streams",
    "absent": "change of what is not here",
}


class Crowd:
    """A switch with sessions whose frames the benchmark chooses."""

    def __init__(self) -> None:
        self.switch = Switch("", lambda _n: 0, 0.0)
        self._sessions = 0

    def fill(self, sessions: int, streams: int) -> None:
        """Create ``sessions`` sessions: hosts, each with its own handle and service, and their clients."""
        handle = 0
        while sessions > 1:
            clients = min(_CLIENTS_OF_HOST, sessions - 1)
            self.service(f"h{handle}/web", clients, streams)
            sessions -= 1 + clients
            handle += 1

    def service(self, service: str, clients: int, streams: int, *, tokens: bool = False) -> None:
        """Create a service's host, and clients with open streams; ``tokens`` gives each stream its own token."""
        host = self._greeted()
        offer = Offer(service=service, host=host_id(host.process, service), digest="00" * 32, token=service)
        self._say(host, frames.frame(frames.OFFER, 1, payload=offer.encode()))
        for intent in self.switch.intents.take_all():
            if isinstance(intent, AskOffer):  # the others are reports
                self.switch.offers.allowed(intent, Terms(public=True), 0.0)
        for number in range(clients):
            client = self._greeted()
            for stream in range(streams):
                uuid = f"{self._sessions:016x}{stream:016x}"
                message = Open(service=service, uuid=uuid, limit=1000, token=uuid if tokens else None)
                self._say(client, frames.frame(frames.OPEN, 2 * stream + 1, payload=message.encode()))
                answer = Opened(limit=20_000, attempt=1).encode()
                self._say(host, frames.frame(frames.OPENED, 2 * (number * streams + stream) + 2, payload=answer))

    def _greeted(self) -> SwitchSession:
        self._sessions += 1
        session = self.switch.connect("192.0.2.1", 0.0)
        hello = Hello(versions=[1], secret=f"{self._sessions:064x}")
        self._say(session, frames.frame(frames.HELLO, payload=hello.encode()))
        return session

    def _say(self, session: SwitchSession, message: bytes) -> None:
        self.switch.receive_frames(session, frames.decode(message), 0.0)
        for touched in self.switch.take_touched():
            touched.outbox.collect(1 << 20, 0.0)


class _Store(Authority):
    """Answers at once: everything is allowed, until ``deleted`` is set."""

    deleted = False

    async def may_host(self, service: str, token: str | bytes | None) -> Grant:
        return await self.may_open(service, token)

    async def may_open(self, service: str, token: str | bytes | None) -> Grant:  # noqa: ARG002 - as its base has it
        if self.deleted:
            raise KdispatchError("unknown_service")
        return Grant(ServiceRecord(service, "public"))


async def measured(sessions: int, streams: int, times: int = _TIMES) -> dict[str, float]:
    """Return the median seconds of each kind of change."""
    crowd = Crowd()
    crowd.fill(sessions, streams)
    store = _Store(Repository(Database("relay.db")))  # the store never opens the database
    access = AccessControl(store, crowd.switch, lambda: None, lambda _session: None)

    async def change(scope: str) -> float:
        began = time.perf_counter()
        access.recheck(scope)
        await access.rechecked()
        return time.perf_counter() - began

    took: dict[str, list[float]] = {kind: [] for kind in _ROWS}
    for number in range(times):
        service = f"own{number}/web"
        crowd.service(service, 1, streams)
        store.deleted = False
        took["stays"].append(await change(service))
        took["absent"].append(await change("nobody/web"))
        assert crowd.switch.registry.hosts_of(service), "it was to go on"
        store.deleted = True
        took["ends"].append(await change(service))
        assert crowd.switch.registry.get(service) is None, "it was to end"
    return {kind: statistics.median(each) for kind, each in took.items()}


def lines(*, rounds: int) -> Iterator[Line]:
    """Milliseconds of each kind of change; each round has its own process."""
    found = [
        json.loads(subprocess.run([PYTHON, "-m", "bench.changes"], check=True, capture_output=True, text=True).stdout)
        for _ in range(rounds)
    ]
    for kind, title in _ROWS.items():
        shown = f"{title}, beside {SESSIONS:,} sessions"
        yield Line("changes", shown, "ms", kdispatch=[one[kind] * 1e3 for one in found])


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]] or [SESSIONS, STREAMS]
    print(json.dumps(asyncio.run(measured(*given))))
