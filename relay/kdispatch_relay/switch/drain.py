"""A relay that is to end: its agents are asked to go elsewhere, hosts first, and what has no more use is ended.

Nothing is taken from an agent: its session goes on as long as the drain does, with all that it carries and opens. So
an agent can have its next session before it leaves this one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.messages import Goaway
from kdispatch_relay.switch.sessions import Session
from kdispatch_relay.switch.switch import Switch
from kdispatch_relay.switch.views import Left

__all__ = ["Drain"]

_STEP: Final = 0.050  # seconds between looks at who is to be told, and who may go
# Hosts hear it within a second, or within a tenth of a short drain: clients that have moved find them then.
_HOSTS: Final = 1.0
_HOSTS_PART: Final = 0.1
# Clients hear it in the first half: the second is for those that need it.
_CLIENTS_PART: Final = 0.5
# A host whose session is of no use any more may have its next one by now: so long after it was told, or a fifth.
_NEXT_SESSION: Final = 2.0
_NEXT_SESSION_PART: Final = 0.2


@dataclass(slots=True)
class _Round:
    """Turns that are spread evenly from ``next`` to ``by``; whoever comes later has his at once."""

    next: float
    by: float

    def due(self, waiting: int, now: float) -> int:
        """How many of ``waiting`` have their turn now."""
        count = 0
        while count < waiting and self.next <= now:
            self.next += max(0.0, self.by - self.next) / (waiting - count)
            count += 1
        return count


class Drain:
    """Begins when it is made, and goes on by the switch's timers for so many ``seconds``.

    ``connected`` are all sessions at any time, in the order in which they came.
    """

    def __init__(self, switch: Switch, connected: Iterable[Session], seconds: float, now: float) -> None:
        self._switch = switch
        self._connected = connected
        self.ends: Final = now + seconds
        self._move = min(_HOSTS, _HOSTS_PART * seconds)
        self._stay = min(_NEXT_SESSION, _NEXT_SESSION_PART * seconds)
        self._hosts = _Round(now, now + self._move)
        self._clients = _Round(now + self._move, now + _CLIENTS_PART * seconds)
        self._told_hosts: dict[Session, float] = {}  # and when
        self._told_clients: set[Session] = set()
        if seconds > 0:
            self._step(now)

    def left(self) -> Left:
        """Who is still here; a session without HELLO counts as a client's."""
        sessions = self._here()
        hosts = sum(self._is_host(session) for session in sessions)
        streams = sum(leg.route.client is leg for session in sessions for leg in session.legs.values())
        return Left(hosts, len(sessions) - hosts, streams)

    def _here(self) -> list[Session]:
        return [session for session in self._connected if not session.ended]

    def _is_host(self, session: Session) -> bool:
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
        if now < self.ends:  # be nobody here: somebody may be on the way
            self._switch.timers.add(now + _STEP, self._step)

    def _tell(self, session: Session, now: float) -> None:
        goaway = Goaway(
            code="drain",
            text="The relay is going away.",
            move_ms=int(1000 * self._move),
            try_ms=max(0, int(1000 * (self.ends - now))),
        )
        session.outbox.send(frames.frame(frames.GOAWAY, payload=goaway.encode()))
        self._switch.touch(session)

    def _end_hosts(self, now: float) -> None:
        """Nobody is left who could open a stream here, so nothing will come for the hosts any more."""
        for session in self._here():
            if now >= self._told_hosts[session] + self._stay:
                self._switch.cut(session, "drain", "Nothing is left to do here.")
