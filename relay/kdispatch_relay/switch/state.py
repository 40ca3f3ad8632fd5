"""The switch in figures, for its operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kdispatch_relay.seams import LongestQueue, RelayState
from kdispatch_relay.switch.routes import RouteState
from kdispatch_relay.switch.sessions import Session
from kdispatch_relay.switch.switch import Switch

__all__ = ["state_of"]


def state_of(
    switch: Switch, connected: Iterable[Session], *, since: float, draining: bool, cuts: Mapping[str, int]
) -> RelayState:
    """Count it; nothing of it is kept, but what only grows."""
    sessions = [session for session in connected if not session.ended]
    streams = dict.fromkeys((state.value for state in RouteState), 0)
    for session in sessions:
        for leg in session.legs.values():
            if leg.route.client is leg:  # each has one client
                streams[leg.route.state.value] += 1
    longest = max(sessions, key=lambda session: session.queued, default=None)
    return RelayState(
        relay=switch.relay_id,
        since=since,
        draining=draining,
        sessions=len(sessions),
        hosts=len(switch.registry),
        streams=streams,
        waiting=len(switch.attachments),
        queued=sum(session.queued for session in sessions),
        longest=LongestQueue(longest.process, longest.queued) if longest is not None and longest.queued else None,
        marks=switch.budget.marks,
        cuts=dict(sorted(cuts.items())),
    )
