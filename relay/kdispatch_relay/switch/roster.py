"""The sessions of each agent: one, and while it moves also those that it moves from."""

from __future__ import annotations

from kdispatch_relay.switch.agents import AgentSession

__all__ = ["Roster"]


class Roster:
    """Plain bookkeeping over the sessions that have greeted."""

    def __init__(self) -> None:
        self.newest: dict[str, AgentSession] = {}  # by process
        self.sessions: set[AgentSession] = set()
        self._greeted = 0

    def enter(self, session: AgentSession, *, moves: bool) -> list[AgentSession]:
        """A process has greeted in this session; returns the sessions that this one replaces.

        If the process moves, the session before this one stays, and only that one.
        """
        self._greeted += 1
        session.rank = self._greeted
        before = self.newest.get(session.process)
        if before is not None and moves and not before.doomed:
            session.older = before
            before = before.older
        self.newest[session.process] = session
        self.sessions.add(session)
        return list(before.all_of_agent) if before is not None else []

    def leave(self, session: AgentSession) -> AgentSession | None:
        """A session is over; returns the older session if that becomes its process's newest again."""
        self.sessions.discard(session)
        older, session.older = session.older, None
        newest = self.newest.get(session.process)
        if newest is session and older is not None:
            self.newest[session.process] = older
            return older
        if newest is session:
            del self.newest[session.process]
        elif newest is not None:
            for newer in newest.all_of_agent:
                if newer.older is session:
                    newer.older = older
        return None
