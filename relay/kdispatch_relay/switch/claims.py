"""Which offers, streams and halves rest on which right: by claim, by service, and by handle. Sans-I/O.

An offer, an end of a stream, and a half each rest on one :class:`Claim`. A :class:`Ground` holds everything that rests
on one claim, a :class:`ServiceHosts` holds the grounds of a service, and an :class:`Account` holds the services of a
handle. Each exists only as long as something rests in it. So a change finds what it affects by two look-ups, at any
size of the relay, and names that strangers invent leave nothing behind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from kdispatch_relay.switch.registry import ListedHost
    from kdispatch_relay.switch.routes import Route

__all__ = ["Account", "Claim", "Claims", "Doubts", "Ground", "Resting", "ServiceHosts", "Terms", "Watched", "handle_of"]


class Claim(NamedTuple):
    """The right to use a service, by a token or without one."""

    service: str
    role: str  # "host" or "client"
    token: bytes | None  # its SHA-256 digest; ``None`` without a token


@dataclass(frozen=True, slots=True)
class Terms:
    """The rules of a service: whether everyone may connect, and whether clients may choose a host.

    ``hosts`` and ``streams`` limit what its owner may have at once, over all services. ``public_streams`` limits the
    streams of all the owner's public services together. ``source_part`` is the part of those, as far as other sources
    leave them free, that one source may use.
    """

    public: bool
    pins: bool = False
    hosts: int = 1 << 30
    streams: int = 1 << 30
    public_streams: int = 1 << 30
    source_part: float = 1.0


class Full(NamedTuple):
    """A refusal, and the counter of the relay's operator that it goes to.

    ``kind`` is empty for an account's own quota: that concerns its admin only.
    """

    code: str
    text: str
    kind: str = ""


@dataclass(slots=True, eq=False)
class Account:
    """One handle: its services, and what they have together now."""

    services: dict[str, ServiceHosts] = field(default_factory=dict)
    hosts: int = 0
    streams: int = 0
    public: int = 0  # streams counted as those of public services
    of_source: dict[str, int] = field(default_factory=dict)  # the same, by source

    def refusal(self, terms: Terms, source: str) -> Full | None:
        """Why ``source`` may not open one more stream; ``None`` if it may.

        Strangers may use public services, so their streams leave room for the services that are not public, and for
        each other. One source may have only a part of what the others leave, so the next source finds some left. The
        first stream of a source may take the last place. An empty ``source`` means that the source is not known. At
        other services clients show tokens, and the owner can revoke those.
        """
        if self.streams >= terms.streams:
            return Full("quota_exceeded", "The service's owner has reached the limit of open streams.")
        if not terms.public:
            return None
        left = terms.public_streams - self.public
        if left <= 0:
            text = "The owner's public services have reached their common limit of open streams."
            return Full("quota_exceeded", text, "public_streams")
        mine = self.of_source.get(source, 0)
        if source and mine and mine + 1 > terms.source_part * (left + mine):
            text = "Your address has reached its limit of open streams at this owner's public services."
            return Full("busy", text, "source_streams")
        return None

    def add(self, source: str, *, public: bool) -> None:
        """Count one more stream."""
        self.streams += 1
        if public:
            self.public += 1
            self.of_source[source] = self.of_source.get(source, 0) + 1

    def remove(self, source: str, *, public: bool) -> None:
        """Count one stream less."""
        self.streams -= 1
        if public:
            self.public -= 1
            left = self.of_source.pop(source) - 1
            if left:
                self.of_source[source] = left


@dataclass(slots=True, eq=False)
class ServiceHosts:
    """One service: its live hosts, the opens that wait for a host, and the grounds of offers, streams and halves."""

    account: Account
    terms: Terms | None = None  # known once a client or a host was authorised for it
    hosts: list[ListedHost] = field(default_factory=list)
    waiting: dict[Route, None] = field(default_factory=dict)
    grounds: dict[Claim, Ground] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Ground:
    """Everything that rests on one claim."""

    claim: Claim
    entry: ServiceHosts
    things: dict[Resting, None] = field(default_factory=dict)

    def also(self, thing: Resting) -> Ground:
        """Add one more thing to a ground that is in use."""
        self.things[thing] = None
        return self


class Resting(Protocol):
    """What rests on a claim: an offer, a leg or a half."""

    @property
    def ground(self) -> Ground | None:
        """What :meth:`Claims.rest` returned for it; ``None`` before."""
        ...


def handle_of(scope: str) -> str:
    """The handle of ``handle/name``; of a handle, the handle itself."""
    return scope.partition("/")[0]


class Claims:
    """Plain bookkeeping: what rests on which claim."""

    def __init__(self) -> None:
        self._services: dict[str, ServiceHosts] = {}
        self._accounts: dict[str, Account] = {}

    def rest(self, thing: Resting, claim: Claim) -> Ground:
        """Let ``thing`` rest on ``claim``. The caller stores the ground in ``thing``."""
        entry = self._services.get(claim.service)
        if entry is None:
            account = self._accounts.setdefault(handle_of(claim.service), Account())
            entry = self._services[claim.service] = account.services[claim.service] = ServiceHosts(account)
        ground = entry.grounds.get(claim)
        if ground is None:
            ground = entry.grounds[claim] = Ground(claim, entry)
        return ground.also(thing)

    def free(self, thing: Resting) -> None:
        """Remove ``thing``, which has ended. A second call changes nothing."""
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
        """The entry of a service, if something rests on it."""
        return self._services.get(service)

    def learn(self, service: str, terms: Terms) -> None:
        """Note the service's rules, as the store gave them. They are kept as long as something rests on the service."""
        entry = self._services.get(service)
        if entry is not None:
            entry.terms = terms

    def account(self, service: str) -> Account:
        """What the owner of ``handle/name`` has now."""
        return self._accounts.get(handle_of(service)) or Account()

    @property
    def handles(self) -> list[str]:
        """The handles that have something at this relay."""
        return list(self._accounts)

    def within(self, scope: str) -> Collection[ServiceHosts]:
        """The entries of ``handle/name``, or of all services of a handle."""
        if "/" in scope:
            entry = self._services.get(scope)
            return () if entry is None else (entry,)
        account = self._accounts.get(scope)
        return () if account is None else account.services.values()

    def holds(self, thing: Resting) -> bool:
        """Whether ``thing`` still rests on its claim."""
        return thing.ground is not None and thing in thing.ground.things

    def things(self, claim: Claim) -> list[Resting]:
        """What rests on ``claim``."""
        entry = self._services.get(claim.service)
        ground = None if entry is None else entry.grounds.get(claim)
        return [] if ground is None else list(ground.things)


@dataclass(slots=True)
class Watched:
    """A handle with a look-up under way; each doubt raises ``version``."""

    version: int = 0
    by: int = 0  # look-ups under way


class Doubts:
    """A version for each handle that has a look-up under way, and for no other."""

    def __init__(self) -> None:
        self._of: dict[str, Watched] = {}

    def __len__(self) -> int:
        return len(self._of)

    @contextmanager
    def watching(self, service: str) -> Iterator[Watched]:
        """Watch ``handle/name`` while it is looked up. If the version rises meanwhile, the answer does not count."""
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
        """A right to ``handle/name``, or to any service of a handle, may have ended."""
        watched = self._of.get(handle_of(scope))
        if watched is not None:
            watched.version += 1
