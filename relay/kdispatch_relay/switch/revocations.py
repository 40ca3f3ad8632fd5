"""Revocation: the relay checks running streams, halves and offers again, and ends those no longer allowed. Sans-I/O.

Many changes affect access: a token is revoked or expires, a service is deleted or changed, an account is suspended. The
switch learns only the scope: a service, or all services of an account. :func:`doubt` invalidates earlier look-ups,
:func:`claims` lists the claims that things within the scope rest on, and :func:`revoke` ends what rests on claims that
no longer hold.
"""

from __future__ import annotations

from collections.abc import Mapping

from kdispatch_protocol.wire.messages import reset_frame
from kdispatch_relay.switch.attachments import Half
from kdispatch_relay.switch.claims import Claim
from kdispatch_relay.switch.registry import LiveOffer, OfferedHost
from kdispatch_relay.switch.routes import Leg, Route, RouteState
from kdispatch_relay.switch.switch import Switch

__all__ = ["Claim", "claims", "doubt", "revoke", "withdraw_host"]

_HOST_GONE = "The host may not offer the service any more."
_CLIENT_GONE = "The client may not use the service any more."

#: Claims that do not hold, each with the code and the text of the look-up that said so.
Refused = Mapping[Claim, tuple[str, str]]


def doubt(switch: Switch, scope: str) -> None:
    """A right to ``handle/name``, or to services of a handle, may have ended: earlier look-ups no longer count."""
    switch.doubts.add(scope)
    for entry in switch.registry.within(scope):
        entry.terms = None


def claims(switch: Switch, scope: str) -> set[Claim]:
    """The claims that things within ``scope`` rest on."""
    return {claim for entry in switch.registry.within(scope) for claim in entry.grounds}


def revoke(switch: Switch, refused: Refused, now: float) -> None:
    """End what rests on these claims. Offers end first, so that no open is tried at a host that goes."""
    doomed = [(thing, why) for claim, why in refused.items() for thing in switch.registry.things(claim)]
    for thing, (_, text) in doomed:
        if isinstance(thing, LiveOffer):
            _end_offer(switch, thing, "revoked", text)
    legs = [(thing, why) for thing, why in doomed if isinstance(thing, Leg)]
    for leg, (code, text) in legs:
        if leg is leg.route.client:
            _end_route(switch, leg.route, code, text)
    for leg, (_, text) in legs:
        if leg is leg.route.host and switch.registry.holds(leg):
            _end_leg_of_host(switch, leg.route, text, now)
    for thing, (_, text) in doomed:
        if isinstance(thing, Half):
            switch.attachments.revoked(thing, text)


def withdraw_host(switch: Switch, host: OfferedHost) -> None:
    """Take a host off the list for good. It gets no new streams, and running ones go on."""
    switch.registry.withdraw(host.id)
    for offer in list(host.offers):
        _end_offer(switch, offer, "withdrawn", "This host was withdrawn.")


# --- ending it ---------------------------------------------------------------------------------


def _end_offer(switch: Switch, offer: LiveOffer, code: str, text: str) -> None:
    switch.registry.remove(offer)
    session = offer.session
    del session.offers[offer.number]
    session.outbox.send(reset_frame(offer.number, code, text))
    switch.touch(session)


def _end_route(switch: Switch, route: Route, code: str, text: str) -> None:
    """End a stream because its client may not use the service any more."""
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
    """End a stream because its host may not offer the service any more. Its client may connect again."""
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
