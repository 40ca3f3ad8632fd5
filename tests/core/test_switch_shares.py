"""The relay's switch: strangers cannot use up an account's limits, neither for its owner nor for each other."""

from __future__ import annotations

import pytest

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Hello, Offer, Open, Reset
from kdispatch_relay.limiter import Shares
from kdispatch_relay.switch.claims import Account, Terms
from tests.core.agents import Peer, Relay
from tests.core.ledger import check_books

STREAMS = 16
SHARES = Shares(public=75, source=50)


def terms(*, public: bool, streams: int = STREAMS, shares: Shares = SHARES) -> Terms:
    return Terms(
        public=public, streams=streams, public_streams=shares.public_of(streams), source_part=shares.source_part
    )


class Site:
    """A relay with one account, which has a public and a private service, each with a host."""

    def __init__(self, streams: int = STREAMS, shares: Shares = SHARES) -> None:
        self.relay = Relay()
        self.terms = {
            "ann/open": terms(public=True, streams=streams, shares=shares),
            "ann/own": terms(public=False, streams=streams, shares=shares),
        }
        self.agents = 0
        for service in self.terms:
            host = self.agent("host")
            offer = Offer(service=service, host=host_id(host.process, service), digest="00" * 32, token="t")
            host.say(frame(frames.OFFER, 1, payload=offer.encode()))
            self.answer(service)

    def agent(self, group: str) -> Peer:
        self.agents += 1
        peer = Peer(self.relay, self.agents)
        peer.session.group = group
        peer.say(frame(frames.HELLO, payload=Hello(versions=[1], secret=peer.secret.hex()).encode()))
        peer.hear()
        return peer

    def answer(self, service: str) -> None:
        self.relay.terms = self.terms[service]
        self.relay.answer()

    def open(self, client: Peer, service: str) -> tuple[str, str] | None:
        """Open one more stream of the client; returns the reason if it is refused."""
        number = client.session.highest_number + 2 - (client.session.highest_number + 1) % 2
        message = Open(service=service, uuid=f"{client.session.rank:016x}{number:016x}", limit=1000, token="c")
        client.say(frame(frames.OPEN, number, payload=message.encode()))
        self.answer(service)
        check_books(self.relay.switch)
        for name, heard, _, payload in client.hear():
            if name == "RESET" and heard == number:
                reset = Reset.parse(payload)
                return reset.code, reset.text
        return None

    def fill(self, group: str, service: str, sessions: int = 4) -> int:
        """How many streams a source gets, over several sessions, until each is refused."""
        clients = [self.agent(group) for _ in range(sessions)]
        return sum(self.open(clients[number % sessions], service) is None for number in range(4 * STREAMS))


@pytest.mark.parametrize("owner", ["ann", "eve"])
def test_one_source_leaves_the_private_service_to_its_owner(owner: str) -> None:
    """However many sessions a source has at a public service, the owner has the rest, also from the same address."""
    site = Site()
    site.fill("eve", "ann/open")
    assert site.fill(owner, "ann/own") == 10


def test_many_sources_leave_the_reserve() -> None:
    """However many sources fill the public services, the reserve stays for the others."""
    site = Site()
    assert sum(site.fill(f"eve{number}", "ann/open", sessions=1) for number in range(20)) == 12
    assert site.fill("ann", "ann/own") == 4


def test_one_source_has_half_of_what_the_others_leave() -> None:
    """Of 12 public streams the first source gets 6, the next one 3, and each later one finds one."""
    site = Site()
    assert [site.fill(group, "ann/open") for group in ("eve", "bob", "tim", "joe", "sue")] == [6, 3, 1, 1, 1]
    refused = site.open(site.agent("eve"), "ann/open")
    assert refused == ("quota_exceeded", "The owner's public services have reached their common limit of open streams.")
    assert site.fill("ann", "ann/own") > 1


def test_the_refused_client_is_told_which_limit_it_was() -> None:
    """The code and the sentence name the limit: the source's share, the public services', or the account's."""
    site = Site()
    site.fill("eve", "ann/open")
    code, text = site.open(site.agent("eve"), "ann/open") or ("", "")
    assert code == "busy" and "Your address" in text and "public services" in text
    site = Site(shares=Shares())
    assert site.fill("eve", "ann/open") == STREAMS
    assert site.open(site.agent("ann"), "ann/own") == (
        "quota_exceeded", "The service's owner has reached the limit of open streams."
    )  # fmt: skip


def test_a_source_that_is_not_known_has_no_share() -> None:
    """Behind a server that names no addresses all would be one source, so only the reserve applies there."""
    site = Site()
    assert site.fill("", "ann/open") == 12
    assert site.open(site.agent(""), "ann/own") is None


def test_what_ends_makes_a_place() -> None:
    """A stream that ends, and a session that is lost, give back what they took."""
    site = Site()
    eve = site.agent("eve")
    assert sum(site.open(eve, "ann/open") is None for _ in range(10)) == 6
    eve.lose()
    check_books(site.relay.switch)
    assert site.fill("bob", "ann/open") == 6


@pytest.mark.parametrize(("streams", "public"), [(0, 0), (1, 1), (2, 1), (3, 2), (4, 3), (10, 7), (20_000, 15_000)])
def test_the_reserve_is_never_nothing(streams: int, public: int) -> None:
    """With a quota of two or more, one stream stays for private services; with one, the first comer has it."""
    assert SHARES.public_of(streams) == public
    assert Shares().public_of(streams) == streams


def test_shares_that_are_off_refuse_nobody() -> None:
    """0 means no limit: one source may have everything."""
    account, all_ = Account(), terms(public=True, shares=Shares())
    for _ in range(STREAMS):
        assert account.refusal(all_, "eve") is None
        account.add("eve", public=True)
    assert account.refusal(all_, "eve") is not None
