"""What the REST API and the app need of the switch, and all they know of it.

The switch's gate implements :class:`TunnelGate`; tests use a small fake instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from aiohttp import web

from kdispatch_relay.switch.views import ClientView, HostView, Left, LiveHost, RelayState

__all__ = ["LiveHosts", "TunnelGate"]


class LiveHosts(Protocol):
    """Live hosts and clients, and what ends them. All work is in memory, and none of it waits."""

    def hosts_of(self, service: str, *, after: str = "", limit: int | None = None) -> Sequence[HostView]:
        """The live hosts of ``handle/name``, sorted by id: ``limit`` of those after ``after``; empty without any."""
        ...

    def count_hosts(self, service: str) -> int:
        """How many live hosts ``handle/name`` has."""
        ...

    def host(self, host_id: str) -> LiveHost | None:
        """The live host of this id."""
        ...

    def clients_of(
        self, service: str, *, after: tuple[str, str, str] = ("", "", ""), limit: int | None = None
    ) -> Sequence[ClientView]:
        """The clients with open streams of ``handle/name``, sorted by place: ``limit`` of those after ``after``."""
        ...

    def recheck(self, scope: str) -> None:
        """Check everything within ``scope``, ``handle/name`` or a handle, with the store; end what is not allowed."""
        ...

    def recheck_all(self) -> None:
        """Check everything that runs here in the same way."""
        ...

    def expire(self, now: float) -> None:
        """Check in the same way what rests on a token that has expired by ``now``, in unix seconds."""
        ...

    def withdraw(self, host_id: str) -> None:
        """Take a live host off the list for good; its streams go on."""
        ...

    def state(self) -> RelayState:
        """The relay's current state in figures."""
        ...


class TunnelGate(LiveHosts, Protocol):
    """The entrance to the switch. The app starts it before it listens, and closes it before connections end."""

    async def start(self, relay_id: str) -> None:
        """Get ready for sessions. The database is open by now, and the relay's id comes from there."""
        ...

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one ``GET /api/v1/tunnel`` for as long as its session lives."""
        ...

    async def drain(self, seconds: float, tell: Callable[[Left], None], arriving: asyncio.Future[None]) -> Left:
        """Ask every agent to move, and wait up to ``seconds`` until all have; returns what has not left.

        More agents may come until ``arriving`` is done. ``tell`` gets what is left, if there is anything; afterwards
        once a second, if it has changed.
        """
        ...

    async def close(self) -> None:
        """End every session, so that each running :meth:`handle` returns. Allowed without a start."""
        ...
