"""Compares a relay's tables with a full count over its sessions, after every step of the random worlds."""

from __future__ import annotations

from collections import Counter

from kdispatch_relay.switch.attachments import Half
from kdispatch_relay.switch.claims import Claim, ServiceHosts
from kdispatch_relay.switch.registry import ListedHost, LiveOffer, OfferedHost
from kdispatch_relay.switch.routes import Leg, RouteState
from kdispatch_relay.switch.switch import Switch

__all__ = ["check_books", "check_nothing_left"]


def check_books(switch: Switch) -> None:
    """The registry holds exactly the live offers, the indexes are complete, and the counts are right."""
    _check_offers(switch)
    _check_grounds(switch)
    _check_counts(switch)


def check_nothing_left(switch: Switch) -> None:
    """Without sessions, all tables are empty."""
    registry = switch.registry
    assert not switch.sessions and not len(registry)
    assert not registry._hosts and not registry._services and not registry._accounts, "something is left"


def _check_offers(switch: Switch) -> None:
    """Each live offer belongs to a listed host, each listed host has an offer, and is reached by its newest."""
    registry = switch.registry
    offered: dict[ListedHost, list[LiveOffer]] = {}
    for session in switch.sessions:
        for number, offer in session.offers.items():
            if offer is not None:
                assert offer.session is session and offer.number == number, "an offer is not where it says"
                assert registry.host(offer.host.id) is offer.host, "a live offer is not listed"
                offered.setdefault(offer.host, []).append(offer)
    listed = [host for entry in registry._services.values() for host in entry.hosts]
    assert len(listed) == len(registry) == len(offered) and set(listed) == set(offered), "a host without an offer"
    for host in listed:
        assert isinstance(host, OfferedHost)
        assert sorted(offered[host], key=lambda offer: offer.rank) == host.offers, "offers of a host are not its own"


def _check_grounds(switch: Switch) -> None:
    """The indexes by claim, service and handle have exactly what a count over all sessions finds."""
    registry = switch.registry
    found: dict[Claim, set[object]] = {}
    waiting: dict[str, set[object]] = {}
    for session in switch.sessions:
        offers = (one for one in session.offers.values() if one is not None)
        things: list[LiveOffer | Leg | Half] = [*session.legs.values(), *session.halves.values(), *offers]
        for thing in things:
            assert thing.ground is not None and registry.holds(thing), "something rests on nothing"
            found.setdefault(thing.ground.claim, set()).add(thing)
        for leg in session.legs.values():
            if leg.route.state is RouteState.WAITING:
                waiting.setdefault(leg.route.message.service, set()).add(leg.route)
    indexed = {
        claim: set(ground.things) for entry in registry._services.values() for claim, ground in entry.grounds.items()
    }
    assert indexed == found, "the index has something else than there is"
    for service, entry in registry._services.items():
        assert entry.grounds and entry.account is registry.account(service)
        assert set(entry.waiting) == waiting.get(service, set()), "opens wait that do not, or the reverse"
    handles: dict[str, dict[str, ServiceHosts]] = {}
    for service, entry in registry._services.items():
        handles.setdefault(service.partition("/")[0], {})[service] = entry
    assert {handle: account.services for handle, account in registry._accounts.items()} == handles


def _check_counts(switch: Switch) -> None:
    registry = switch.registry
    routes = {leg.route for session in switch.sessions for leg in session.legs.values()}
    streams = Counter(route.host_entry for route in routes if route.host_entry is not None)
    assert all(host.streams == streams[host] for host in registry._hosts.values()), "a host's streams are miscounted"
    assert all(registry._hosts.get(host.id) is host for host in streams), "a stream counts at no host"
    assert all(host.offers or host.streams for host in registry._hosts.values()), "a host that is no more is kept"
    counted = [route for route in routes if route.account is not None]
    for account in registry._accounts.values():
        its = [(route.opener.group, route.public) for route in counted if route.account is account]
        assert account.streams == len(its), "an account's streams are miscounted"
        assert account.public == sum(public for _, public in its), "streams of public services are miscounted"
        sources = Counter(source for source, public in its if public)
        assert account.of_source == sources, "streams of a source are miscounted"
        assert account.hosts == sum(len(entry.hosts) for entry in account.services.values())
