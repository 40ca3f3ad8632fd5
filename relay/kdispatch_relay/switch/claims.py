"""On what everything at the switch rests: by claim, by service, and by handle. Sans-I/O.

An offer, an end of a stream, and a half each rest on one :class:`Claim`. A :class:`Ground` has all that rests on one
claim, a :class:`ServiceHosts` has the grounds of a service, and an :class:`Account` has the services of a handle. Each
exists only as long as something rests in it. So a change finds what it touches by two look-ups, however large the relay
is, and names that strangers make up leave nothing behind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from kdispatch_relay.switch.attachments import Half
    from kdispatch_relay.switch.registry import Host, LiveOffer
    from kdispatch_relay.switch.routes import Leg, Route

__all__ = ["Account", "Claim", "Claims", "Doubts", "Ground", "ServiceHosts", "Terms", "Watched", "handle_of"]


class Claim(NamedTuple):
    """The right of a token, or of nobody's, to a service."""

    service: str
    role: str  # "host" or "client"
    token: bytes | None  # its digest


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for a service: whether everybody may connect, whether clients may choose a host.

    ``hosts`` and ``streams``: how many its owner may have at once, of all services together. ``public_streams``: how
    many of the streams its public services may have together. ``source_part``: which part of those that other sources
    leave one source may have.
    """

    public: bool
    pins: bool = False
    hosts: int = 1 << 30
    streams: int = 1 << 30
    public_streams: int = 1 << 30
    source_part: float = 1.0


class Full(NamedTuple):
    """A refusal, and what it is counted as for the relay's operator; an account's own quota is its admin's affair."""

    code: str
    text: str
    kind: str = ""


@dataclass(slots=True, eq=False)
class Account:
    """One handle: its services, and what they have together at this moment."""

    services: dict[str, ServiceHosts] = field(default_factory=dict)
    hosts: int = 0
    streams: int = 0
    public: int = 0  # streams that count as those of public services
    of_source: dict[str, int] = field(default_factory=dict)  # the same, by source

    def refusal(self, terms: Terms, source: str) -> Full | None:
        """Why there is no place for one more stream of ``source``, where there is none.

        Strangers may use what is public, so they leave a part to the services that are not, and to each other: one
        source may have a part of what the others leave, so that the next one finds some, too. Its first stream may take
        the last place. An empty source is not known. At other services clients show tokens, which the owner can revoke.
        """
        if self.streams >= terms.streams:
            return Full("quota_exceeded", "The service's owner has as many open streams as it may.")
        if not terms.public:
            return None
        left = terms.public_streams - self.public
        if left <= 0:
            text = "The owner's public services have as many open streams together as they may."
            return Full("quota_exceeded", text, "public_streams")
        mine = self.of_source.get(source, 0)
        if source and mine and mine + 1 > terms.source_part * (left + mine):
            text = "Your address has as many open streams at this owner's public services as one address may."
            return Full("busy", text, "source_streams")
        return None

    def add(self, source: str, *, public: bool) -> None:
        """One more stream."""
        self.streams += 1
        if public:
            self.public += 1
            self.of_source[source] = self.of_source.get(source, 0) + 1

    def remove(self, source: str, *, public: bool) -> None:
        """One less."""
        self.streams -= 1
        if public:
            self.public -= 1
            left = self.of_source.pop(source) - 1
            if left:
                self.of_source[source] = left


@dataclass(slots=True, eq=False)
class ServiceHosts:
    """One service: its live hosts, the opens that wait for one, and the grounds of both and of its streams."""

    account: Account
    terms: Terms | None = None  # known once somebody was authorised for it
    hosts: list[Host] = field(default_factory=list)
    waiting: dict[Route, None] = field(default_factory=dict)
    grounds: dict[Claim, Ground] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Ground:
    """All that rests on one claim."""

    claim: Claim
    entry: ServiceHosts
    things: dict[LiveOffer | Leg | Half, None] = field(default_factory=dict)

    def also(self, thing: LiveOffer | Leg | Half) -> Ground:
        """One more thing rests here, beside another one that does."""
        self.things[thing] = None
        return self


def handle_of(scope: str) -> str:
    """The handle of ``handle/name``, or the handle itself."""
    return scope.partition("/")[0]


class Claims:
    """Plain bookkeeping: what rests on what."""

    def __init__(self) -> None:
        self._services: dict[str, ServiceHosts] = {}
        self._accounts: dict[str, Account] = {}

    def rest(self, thing: LiveOffer | Leg | Half, claim: Claim) -> Ground:
        """``thing`` rests on ``claim`` from now on; the caller keeps the ground in it."""
        entry = self._services.get(claim.service)
        if entry is None:
            account = self._accounts.setdefault(handle_of(claim.service), Account())
            entry = self._services[claim.service] = account.services[claim.service] = ServiceHosts(account)
        ground = entry.grounds.get(claim)
        if ground is None:
            ground = entry.grounds[claim] = Ground(claim, entry)
        return ground.also(thing)

    def free(self, thing: LiveOffer | Leg | Half) -> None:
        """``thing`` is no more. Calling it again changes nothing."""
        ground = thing.ground
        if ground is None or thing not in ground.things:
            return
        del ground.things[thing]
        if ground.things:
            return
        entry, claim = ground.entry, ground.claim
        del entry.grounds[claim]
        if not entry.grounds:
            assert not entry.hosts
            assert not entry.waiting
            del self._services[claim.service], entry.account.services[claim.service]
            if not entry.account.services:
                del self._accounts[handle_of(claim.service)]

    def get(self, service: str) -> ServiceHosts | None:
        """The entry of a service on which something rests."""
        return self._services.get(service)

    def learn(self, service: str, terms: Terms) -> None:
        """The store has said what holds for a service; that is kept as long as anything rests on it."""
        entry = self._services.get(service)
        if entry is not None:
            entry.terms = terms

    def account(self, service: str) -> Account:
        """What the owner of ``handle/name`` has."""
        return self._accounts.get(handle_of(service)) or Account()

    @property
    def handles(self) -> list[str]:
        """The accounts of which something is here."""
        return list(self._accounts)

    def within(self, scope: str) -> Collection[ServiceHosts]:
        """The entries of ``handle/name``, or of all services of a handle."""
        if "/" in scope:
            entry = self._services.get(scope)
            return () if entry is None else (entry,)
        account = self._accounts.get(scope)
        return () if account is None else account.services.values()

    def holds(self, thing: LiveOffer | Leg | Half) -> bool:
        """Whether ``thing`` is still there."""
        return thing.ground is not None and thing in thing.ground.things

    def things(self, claim: Claim) -> list[LiveOffer | Leg | Half]:
        """What rests on ``claim``."""
        entry = self._services.get(claim.service)
        ground = None if entry is None else entry.grounds.get(claim)
        return [] if ground is None else list(ground.things)


@dataclass(slots=True)
class Watched:
    """A handle of which something is looked up; ``version`` rises with each doubt."""

    version: int = 0
    by: int = 0  # look-ups under way


class Doubts:
    """A version for each handle of which something is looked up, and for no other."""

    def __init__(self) -> None:
        self._of: dict[str, Watched] = {}

    def __len__(self) -> int:
        return len(self._of)

    @contextmanager
    def watching(self, service: str) -> Iterator[Watched]:
        """For the time of a look-up of ``handle/name``: an answer of an older version does not count."""
        handle = handle_of(service)
        watched = self._of.setdefault(handle, Watched())
        watched.by += 1
        try:
            yield watched
        finally:
            watched.by -= 1
            if not watched.by:
                del self._of[handle]

    def add(self, scope: str) -> None:
        """Something of ``handle/name``, or of all of a handle, may be no more."""
        watched = self._of.get(handle_of(scope))
        if watched is not None:
            watched.version += 1
