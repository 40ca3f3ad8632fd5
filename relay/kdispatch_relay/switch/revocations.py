"""Taking back what was granted: what runs is asked for again, and ends where the answer is no. Sans-I/O.

Whatever changes who may do what (a token is revoked or expires, a service is deleted or changed, an account is
suspended), the switch only learns where: a service, or all of an account. :func:`doubt` lets nothing from before count,
:func:`claims` says on what everything there rests, and :func:`revoke` ends what rests on the claims that do not hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from kdispatch_protocol.messages import reset_frame
from kdispatch_relay.switch.attachments import Half
from kdispatch_relay.switch.registry import Host, is_within
from kdispatch_relay.switch.routes import Route, RouteState
from kdispatch_relay.switch.switch import Switch

__all__ = ["Claim", "claims", "doubt", "handles", "revoke", "withdraw_host"]

_HOST_GONE = "The host may not offer the service any more."
_CLIENT_GONE = "The client may not use the service any more."

#: Claims that do not hold, each with the code and the text of the look-up that said so.
Refused = Mapping["Claim", tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Claim:
    """What an offer, an end of a stream, or a half rests on: the right of a token, or of nobody's, to a service."""

    service: str
    role: str  # "host" or "client"
    token: bytes | None  # its digest


def doubt(switch: Switch, scope: str) -> None:
    """Something of ``handle/name``, or of all of a handle, may be no more: what was looked up before does not count."""
    switch.revocations += 1
    switch.registry.doubt(scope)


def claims(switch: Switch, scope: str) -> set[Claim]:
    """On what everything within ``scope`` rests."""
    found = {_of_host(host) for host in _hosts(switch, scope)}
    for route in _routes(switch, scope):
        found.add(_of_client(route))
        if route.host is not None:
            found.add(_of_routes_host(route))
    return found | {_of_half(half) for half in _halves(switch, scope)}


def handles(switch: Switch) -> set[str]:
    """The accounts of which something runs."""
    hosts = (host.service for session in switch.sessions for host in session.offers.values() if host is not None)
    routes = (leg.route.message.service for session in switch.sessions for leg in session.legs.values())
    halves = (half.entry.service for session in switch.sessions for half in session.halves.values())
    return {service.partition("/")[0] for service in chain(hosts, routes, halves)}


def revoke(switch: Switch, scope: str, refused: Refused, now: float) -> None:
    """End what rests on one of these. Offers first: nothing is to be tried with a host that goes."""
    for host in list(_hosts(switch, scope)):
        if why := refused.get(_of_host(host)):
            _end_offers(switch, host, "revoked", why[1])
    for route in list(_routes(switch, scope)):
        if why := refused.get(_of_client(route)):
            _end_route(switch, route, *why)
        elif route.host is not None and (why := refused.get(_of_routes_host(route))):
            _end_leg_of_host(switch, route, why[1], now)
    for half in list(_halves(switch, scope)):
        if why := refused.get(_of_half(half)):
            switch.attachments.revoked(half, why[1])
    for service in {claim.service for claim in refused}:
        switch.registry.drop(service)


def withdraw_host(switch: Switch, host: Host) -> None:
    """Take a host off the list for good: it gets no new streams, and running ones go on."""
    switch.registry.withdraw(host.id)
    _end_offers(switch, host, "withdrawn", "This host was withdrawn.")


# --- what there is, and on what it rests ---------------------------------------------------------


def _hosts(switch: Switch, scope: str) -> dict[Host, None]:
    return {
        host: None
        for session in switch.sessions
        for host in session.offers.values()
        if host is not None and is_within(host.service, scope)
    }


def _routes(switch: Switch, scope: str) -> dict[Route, None]:
    return {
        leg.route: None
        for session in switch.sessions
        for leg in session.legs.values()
        if is_within(leg.route.message.service, scope)
    }


def _halves(switch: Switch, scope: str) -> Iterator[Half]:
    for session in switch.sessions:
        yield from (half for half in session.halves.values() if is_within(half.entry.service, scope))


def _of_host(host: Host) -> Claim:
    return Claim(host.service, "host", host.rests)


def _of_client(route: Route) -> Claim:
    return Claim(route.message.service, "client", route.rests)


def _of_routes_host(route: Route) -> Claim:
    return Claim(route.message.service, "host", route.rests_host)


def _of_half(half: Half) -> Claim:
    return Claim(half.entry.service, half.entry.role, half.rests)


# --- ending it ---------------------------------------------------------------------------------


def _end_offers(switch: Switch, host: Host, code: str, text: str) -> None:
    switch.registry.remove(host)
    # An offer that was replaced, by a second one of the same service or in a newer session, is still a number.
    for session in switch.by_process[host.session.process].all_of_agent:
        numbers = [number for number, other in session.offers.items() if other is not None and other.id == host.id]
        for number in numbers:
            del session.offers[number]
            session.outbox.send(reset_frame(number, code, text))
        switch.touch(session)


def _end_route(switch: Switch, route: Route, code: str, text: str) -> None:
    """The client may not have it any more."""
    if route.host is not None:
        route.host.session.outbox.send(reset_frame(route.host.number, "revoked", _CLIENT_GONE))
        switch.touch(route.host.session)
    client = route.client
    switch.touch(client.session)
    if route.state is RouteState.OPEN:
        client.session.outbox.send(reset_frame(client.number, "revoked", text))
        switch.opens.close(route, "revoked")
    else:
        switch.opens.refuse(route, code, text)


def _end_leg_of_host(switch: Switch, route: Route, text: str, now: float) -> None:
    """The host may not have it any more; its client has done nothing, and may connect again."""
    host, client = route.host, route.client
    assert host is not None
    host.session.outbox.send(reset_frame(host.number, "revoked", text))
    switch.touch(host.session)
    if route.state is RouteState.OPEN:
        client.session.outbox.send(reset_frame(client.number, "withdrawn", _HOST_GONE))
        switch.touch(client.session)
        switch.opens.close(route, "withdrawn")
    else:
        switch.opens.host_failed(route, "host_refused", _HOST_GONE, now)
