"""What the switch shows of itself: plain values, for the REST API and for operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["ClientView", "HostView", "Left", "LiveHost", "LongestQueue", "RelayState"]


@dataclass(frozen=True, slots=True)
class HostView:
    """A live host as users may see it. ``since`` is in unix seconds, ``streams`` counts the open ones.

    ``source``, and ``token``, the id of the token that it rests on, are for the service's owner.
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
        """The sort key of clients."""
        return self.agent, self.source, self.token or ""


@dataclass(frozen=True, slots=True)
class LiveHost:
    """What decides who may withdraw a live host: its service, and the SHA-256 in hex of its own token."""

    service: str
    digest: str


@dataclass(frozen=True, slots=True)
class LongestQueue:
    """The agent, by its process id, for which most data waits, and how many bytes."""

    agent: str
    queued: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayState:
    """One relay at one moment. ``marks`` and ``cuts`` count from its start."""

    relay: str  # its id, as agents are told
    since: float  # unix seconds
    draining: bool
    sessions: int
    hosts: int  # listed hosts
    streams: Mapping[str, int]  # by the state of the route
    waiting: int  # halves that wait for the other end
    queued: int  # bytes of data
    longest: LongestQueue | None
    marks: int  # DATA frames that were marked
    cuts: Mapping[str, int]  # sessions that the relay ended, by code


@dataclass(frozen=True, slots=True)
class Left:
    """What has not left a draining relay. An agent that is both host and client counts as a host."""

    hosts: int
    clients: int
    streams: int
