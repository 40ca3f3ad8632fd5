"""Taking back what was granted: a service that its owner deleted, a host that was withdrawn. Sans-I/O.

Both act at once and leave nothing behind. What a look-up that was under way then
answers is the gate's affair: it looks again after a service was revoked.
"""

from __future__ import annotations

from kdispatch_protocol.messages import reset_frame
from kdispatch_relay.switch.registry import Host
from kdispatch_relay.switch.routes import Route, RouteState
from kdispatch_relay.switch.switch import Switch

__all__ = ["revoke_service", "withdraw_host"]

_DELETED = "The service was deleted by its owner."


def revoke_service(switch: Switch, service: str) -> None:
    """End the service's offers and streams, refuse its opens, and forget it."""
    switch.revocations += 1
    for host in switch.registry.hosts_of(service):
        _end_offers(switch, host, "revoked", _DELETED)
    routes = {
        leg.route: None
        for session in switch.sessions
        for leg in session.legs.values()
        if leg.route.message.service == service
    }
    for route in routes:
        _end_route(switch, route)
    switch.attachments.revoke(service)
    switch.registry.drop(service)


def withdraw_host(switch: Switch, host: Host) -> None:
    """Take a host off the list for good: it gets no new streams, and running ones go on."""
    switch.registry.withdraw(host.id)
    _end_offers(switch, host, "withdrawn", "This host was withdrawn.")


def _end_offers(switch: Switch, host: Host, code: str, text: str) -> None:
    switch.registry.remove(host)
    # An offer that was replaced, by a second one of the same service or in a newer session, is still a number.
    for session in switch.by_process[host.session.process].all_of_agent:
        numbers = [number for number, other in session.offers.items() if other is not None and other.id == host.id]
        for number in numbers:
            del session.offers[number]
            session.outbox.send(reset_frame(number, code, text))
        switch.touch(session)


def _end_route(switch: Switch, route: Route) -> None:
    if route.host is not None:
        route.host.session.outbox.send(reset_frame(route.host.number, "revoked", _DELETED))
        switch.touch(route.host.session)
    if route.state is RouteState.OPEN:
        client = route.client
        client.session.outbox.send(reset_frame(client.number, "revoked", _DELETED))
        switch.touch(client.session)
        switch.opens.close(route, "revoked")
    else:
        switch.opens.refuse(route, "unknown_service")
