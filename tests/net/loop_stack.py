"""Relay, host agents and client agents on one event loop, where a test can examine their tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from kdispatch.client import Client, LocalListener
from kdispatch.host import Host, LocalPort, Serve
from kdispatch.local.front import one_service
from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch.rest.client import RestClient
from kdispatch_protocol.endpoint.aio.driver import EndpointDriver
from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from kdispatch_relay.gate.gate import Gate
from kdispatch_relay.server import RunningRelay, running_relay
from kdispatch_relay.settings import RelaySettings
from kdispatch_relay.switch.switch import Switch

__all__ = ["Stack", "running_stack"]


class Stack:
    """A running relay with one service, and agents on the same loop."""

    def __init__(self, relay: RunningRelay, limits: Limits, ending: AsyncExitStack) -> None:
        self.url = relay.url
        self.limits = limits
        self.service = ""
        self.token = ""
        self.drivers: list[EndpointDriver] = []
        self.resets: list[str] = []  # codes of all stream resets that clients got
        self._gate = relay.gate
        self._ending = ending

    async def sign_up(self) -> None:
        async with RestClient(Dialer(RelayUrl.parse(self.url))) as rest:
            rest.token = self.token = (await rest.sign_up("ann")).token
            self.service = (await rest.create_service("web")).service

    @property
    def switch(self) -> Switch:
        assert isinstance(self._gate, Gate)
        return self._gate.switch

    async def host(self, serve: Serve | int, *, url: str = "") -> Host:
        """A host that serves with ``serve``, or from a local port; ``url`` is another address of the relay."""
        served = LocalPort("127.0.0.1", serve, self.limits) if isinstance(serve, int) else serve
        host = Host(Dialer(RelayUrl.parse(url or self.url)), self.service, self.token, served, limits=self.limits)
        if isinstance(served, LocalPort):
            served.host = host
        await host.start(5)
        self.drivers.append(host.driver)
        self._ending.push_async_callback(host.stop)
        return host

    async def client(self, *, url: str = "") -> tuple[Client, int]:
        """A client, with a local port whose connections it carries to the service."""
        client = Client(
            Dialer(RelayUrl.parse(url or self.url)), failed=lambda code, _: self.resets.append(code), limits=self.limits
        )
        listener = LocalListener(client, one_service(self.service))
        await listener.listen("127.0.0.1", 0)
        await client.uplink.start(5)
        listener.serve()
        self.drivers.append(client.driver)
        self._ending.push_async_callback(client.stop)
        self._ending.callback(listener.close)
        return client, listener.port

    def check_budgets(self, streams: int) -> dict[str, int]:
        """Fail if ``streams`` streams hold more in total than allowed; returns the largest totals, in bytes.

        Queued bytes are counted for each agent, over its sessions.
        """
        floors = streams * self.limits.window_floor
        tables = [driver.endpoint.table for driver in self.drivers]
        queued = Counter[str]()
        for session in self.switch.sessions:
            queued[session.process] += session.queued
        assert all(table.budget.within(streams) for table in tables)
        most = {
            "kept for replay": max(table.replay_held for table in tables),
            "queued": max(queued.values(), default=0),
        }
        # One read of a program is added before it is paused.
        assert most["kept for replay"] <= self.limits.replay + floors + self.limits.data
        assert most["queued"] <= self.limits.credit + floors
        return most

    def held(self) -> dict[str, int]:
        """Counts of everything that streams use: all are zero again once the streams are gone."""
        tables = [driver.endpoint.table for driver in self.drivers]
        sessions = list(self.switch.sessions)
        return {
            "streams": sum(len(table.by_uuid) for table in tables),
            "numbers": sum(len(s.by_number) + len(s.moving) for table in tables for s in table.sessions),
            "transports": sum(len(driver.programs.transports) for driver in self.drivers),
            "promised credit": sum(table.budget.promised for table in tables),
            "bytes for replay": sum(table.replay_held for table in tables),
            "unanswered opens of agents": sum(s.unanswered for table in tables for s in table.sessions),
            "legs": sum(len(session.legs) for session in sessions),
            "opened": sum(session.streams_opened for session in sessions),
            "unanswered opens": sum(session.unanswered for session in sessions),
            "queued": sum(session.queued for session in sessions) + self.switch.budget.queued,
            "streams of hosts": sum(host.streams for host in self.switch.registry.hosts_of(self.service)),
        }


@asynccontextmanager
async def running_stack(folder: Path, limits: Limits = DEFAULT_LIMITS) -> AsyncIterator[Stack]:
    """A relay with the service ``ann/web``; agents that the block created end before it."""

    make = partial(Gate, limits=limits)
    settings = RelaySettings(listen="127.0.0.1:0", database=str(folder / "loop.db"))
    async with running_relay(settings, make) as relay, AsyncExitStack() as ending:
        stack = Stack(relay, limits, ending)
        await stack.sign_up()
        yield stack
