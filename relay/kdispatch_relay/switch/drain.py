"""Drains a relay that is to end: it asks agents to move, hosts first, then ends sessions that have no more use.

It takes nothing from an agent: until the drain ends, a session keeps all its streams and can open more. So an agent can
have its next session before it leaves this one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.messages import Goaway
from kdispatch_relay.switch.agents import AgentSession
from kdispatch_relay.switch.sessions import SwitchSession
from kdispatch_relay.switch.switch import Switch
from kdispatch_relay.switch.views import Left

__all__ = ["Drain"]

_STEP: Final = 0.050  # seconds between two checks of which sessions to tell or to end
# Hosts are told within a second, or within a tenth of a short drain, so that clients that move find them.
_HOSTS: Final = 1.0
_HOSTS_PART: Final = 0.1
# Clients are told in the first half of the drain. The second half is for those that need longer.
_CLIENTS_PART: Final = 0.5
# A host needs this long after it was told, or a fifth of a short drain, to have its next session. Then an unused
# session of it may be ended.
_NEXT_SESSION: Final = 2.0
_NEXT_SESSION_PART: Final = 0.2


@dataclass(slots=True)
class _Round:
    """Turns spread evenly from ``next`` to ``by``; later ones are due at once."""

    next: float
    by: float

    def due(self, waiting: int, now: float) -> int:
        """How many of ``waiting`` are due now."""
        count = 0
        while count < waiting and self.next <= now:
            self.next += max(0.0, self.by - self.next) / (waiting - count)
            count += 1
        return count


class Drain:
    """Starts when it is created, and runs on the switch's timers for ``seconds``.

    ``connected`` iterates over the sessions connected at any time, in the order in which they came. Those of agents
    are drained.
    """

    def __init__(self, switch: Switch, connected: Iterable[SwitchSession], seconds: float, now: float) -> None:
        self._switch = switch
        self._connected = connected
        self.ends: Final = now + seconds
        self._move = min(_HOSTS, _HOSTS_PART * seconds)
        self._stay = min(_NEXT_SESSION, _NEXT_SESSION_PART * seconds)
        self._hosts = _Round(now, now + self._move)
        self._clients = _Round(now + self._move, now + _CLIENTS_PART * seconds)
        self._told_hosts: dict[AgentSession, float] = {}  # with the time at which each was told
        self._told_clients: set[AgentSession] = set()
        if seconds > 0:
            self._step(now)

    def left(self) -> Left:
        """What has not left yet. A session without HELLO counts as a client's."""
        sessions = self._here()
        hosts = sum(self._is_host(session) for session in sessions)
        streams = sum(leg.route.client is leg for session in sessions for leg in session.legs.values())
        return Left(hosts, len(sessions) - hosts, streams)

    def _here(self) -> list[AgentSession]:
        return [session for session in self._connected if isinstance(session, AgentSession) and not session.ended]

    def _is_host(self, session: AgentSession) -> bool:
        return session in self._told_hosts or (session not in self._told_clients and bool(session.offers))

    def _step(self, now: float) -> None:
        sessions = self._here()
        untold = [s for s in sessions if s.process and s not in self._told_hosts and s not in self._told_clients]
        hosts = [session for session in untold if session.offers]
        clients = [session for session in untold if not session.offers]
        for session in hosts[: self._hosts.due(len(hosts), now)]:
            self._told_hosts[session] = now
            self._tell(session, now)
        for session in clients[: self._clients.due(len(clients), now)]:
            self._told_clients.add(session)
            self._tell(session, now)
        if all(session in self._told_hosts and not session.legs for session in sessions):
            self._end_hosts(now)
        if now < self.ends:  # also without sessions: an agent may be on its way
            self._switch.timers.add(now + _STEP, self._step)

    def _tell(self, session: AgentSession, now: float) -> None:
        goaway = Goaway(
            code="drain",
            text="The relay is going away.",
            move_ms=int(1000 * self._move),
            try_ms=max(0, int(1000 * (self.ends - now))),
        )
        session.outbox.send(frames.frame(frames.GOAWAY, payload=goaway.encode()))
        self._switch.touch(session)

    def _end_hosts(self, now: float) -> None:
        """No session is left that could open a stream here, so nothing more comes for the hosts: end their sessions."""
        for session in self._here():
            if now >= self._told_hosts[session] + self._stay:
                self._switch.cut(session, "drain", "No session is left that could open streams.")
