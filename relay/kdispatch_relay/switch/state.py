"""The switch in figures, for its operator."""

from __future__ import annotations

from collections.abc import Iterable

from kdispatch_protocol.tokens import token_id
from kdispatch_relay.switch.routes import Leg, RouteState
from kdispatch_relay.switch.sessions import SwitchSession
from kdispatch_relay.switch.switch import Switch
from kdispatch_relay.switch.views import ClientView, LongestQueue, RelayState

__all__ = ["clients_of", "state_of"]


def state_of(switch: Switch, connected: Iterable[SwitchSession], *, since: float, draining: bool) -> RelayState:
    """Count the current state. Only ``marks`` and ``cuts`` accumulate."""
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
        cuts=dict(sorted(switch.counters.cuts.items())),
    )


def clients_of(
    switch: Switch, service: str, started: float, after: tuple[str, str, str], limit: int | None
) -> list[ClientView]:
    """The clients with open streams of a service: ``limit`` of those whose place is behind ``after``.

    ``started`` turns the switch's times into unix seconds.

    While the service is public, access does not depend on the clients' tokens, so no token is shown.
    """
    entry = switch.registry.get(service)
    public = entry is not None and entry.terms is not None and entry.terms.public
    views: dict[tuple[str, str, bytes | None], list[float]] = {}
    for claim in entry.grounds if entry is not None else ():
        for thing in switch.registry.things(claim):
            if isinstance(thing, Leg) and thing is thing.route.client and thing.route.state is RouteState.OPEN:
                session = thing.session
                key = (session.process, session.source, None if public else claim.token)
                views.setdefault(key, []).append(thing.route.began)
    clients = [
        ClientView(
            agent=process,
            source=source,
            since=min(times) + started,
            streams=len(times),
            token=None if rests is None else token_id(rests),
        )
        for (process, source, rests), times in views.items()
        if process >= after[0]
    ]
    return sorted((client for client in clients if client.place > after), key=lambda client: client.place)[:limit]
