"""What the REST API and the app need of the switch: all they know of it.

The switch's gate fits :class:`TunnelGate`; tests give a small fake in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from aiohttp import web

from kdispatch_relay.switch.views import ClientView, HostView, Left, LiveHost, RelayState

__all__ = ["LiveHosts", "TunnelGate"]


class LiveHosts(Protocol):
    """Who is live at this moment, and what ends that; work in memory that never waits."""

    def hosts_of(self, service: str, *, after: str = "", limit: int | None = None) -> Sequence[HostView]:
        """The live hosts of ``handle/name`` by their ids, those behind ``after``; empty where there is none."""
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
        """Who has streams of ``handle/name`` open, by their places, those behind ``after``."""
        ...

    def recheck(self, scope: str) -> None:
        """Ask the store again for all that runs within ``scope``, ``handle/name`` or a handle, and end what may not."""
        ...

    def recheck_all(self) -> None:
        """Likewise for all that runs here."""
        ...

    def expire(self, now: float) -> None:
        """Likewise for what rests on a token that has expired by ``now``, in unix seconds."""
        ...

    def withdraw(self, host_id: str) -> None:
        """Take a live host off the list for good; its streams go on."""
        ...

    def state(self) -> RelayState:
        """What is going on here, in figures."""
        ...


class TunnelGate(LiveHosts, Protocol):
    """The switch's door. The app starts it before it listens and closes it before connections end."""

    async def start(self, relay_id: str) -> None:
        """Get ready to take sessions; the database is open by now, and the relay's id comes from there."""
        ...

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one ``GET /api/v1/tunnel`` for as long as its session lives."""
        ...

    async def drain(self, seconds: float, tell: Callable[[Left], None], arriving: asyncio.Future[None]) -> Left:
        """Ask every agent to go elsewhere and wait until all have, or ``seconds`` are over; returns who has not.

        Until ``arriving`` is done more may come. ``tell`` hears who is left, where anybody is, and then once a second
        where it has changed.
        """
        ...

    async def close(self) -> None:
        """End every session, so that each running :meth:`handle` returns. Harmless without a start."""
        ...
