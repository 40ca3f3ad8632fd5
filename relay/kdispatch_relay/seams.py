"""What the REST API and the app need of the switch: all they know of it.

The switch's gate fits :class:`TunnelGate`; tests give a small fake in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

__all__ = ["ClientView", "HostView", "Left", "LiveHost", "LiveHosts", "LongestQueue", "RelayState", "TunnelGate"]


@dataclass(frozen=True, slots=True)
class HostView:
    """A live host as people may see it. ``since`` is in unix seconds, ``streams`` counts the open ones.

    ``source`` and ``token``, the id of the token that it rests on, are for the service's owner.
    """

    host: str
    since: float
    labels: dict[str, str]
    streams: int
    source: str = ""
    token: str | None = None


@dataclass(frozen=True, slots=True)
class ClientView:
    """An agent that has streams of a service open, by its process id, as the service's owner may see it.

    ``since`` is when the first of the open ones began, in unix seconds; ``token`` the id of the token they rest on.
    """

    agent: str
    source: str
    since: float
    streams: int
    token: str | None

    @property
    def place(self) -> tuple[str, str, str]:
        """By what clients are ordered."""
        return self.agent, self.source, self.token or ""


@dataclass(frozen=True, slots=True)
class LiveHost:
    """What decides who may withdraw a live host: its service, and the SHA-256 in hex of its own token."""

    service: str
    digest: str


@dataclass(frozen=True, slots=True)
class LongestQueue:
    """The agent, by its process id, for which most waits, and how many bytes."""

    agent: str
    queued: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayState:
    """One relay at one moment. ``marks`` and ``cuts`` count from its start."""

    relay: str  # its id, as agents are told
    since: float  # unix seconds
    draining: bool
    sessions: int
    hosts: int  # offers that are listed
    streams: Mapping[str, int]  # by how far they came
    waiting: int  # ends of streams that wait for the other end
    queued: int  # bytes of data
    longest: LongestQueue | None
    marks: int  # DATA frames that were marked
    cuts: Mapping[str, int]  # sessions that the relay ended, by code


@dataclass(frozen=True, slots=True)
class Left:
    """Who has not left a relay that drains. An agent that is host and client counts as a host."""

    hosts: int
    clients: int
    streams: int


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
