"""What the REST API and the app need of the switch: all they know of it.

The switch's gate fits :class:`TunnelGate`; tests give a small fake in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

__all__ = ["HostView", "LiveHosts", "TunnelGate"]


@dataclass(frozen=True, slots=True)
class HostView:
    """A live host as people may see it. ``since`` is in unix seconds, ``streams`` counts the open ones."""

    host: str
    since: float
    labels: dict[str, str]
    streams: int


class LiveHosts(Protocol):
    """Who is live at this moment; a look into memory that never waits."""

    def hosts_of(self, service: str) -> Sequence[HostView]:
        """The live hosts of ``handle/name``; empty where there is none, or no such service."""
        ...


class TunnelGate(LiveHosts, Protocol):
    """The switch's door. The app starts it before it listens and closes it before connections end."""

    async def start(self) -> None:
        """Get ready to take sessions; the database is open by now."""
        ...

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one ``GET /api/v1/tunnel`` for as long as its session lives."""
        ...

    async def close(self) -> None:
        """End every session, so that each running :meth:`handle` returns. Harmless without a start."""
        ...
