"""Live hosts: the offers of each process, and the hosts that they form. They exist in memory only."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdispatch_protocol.limits import Limits
from kdispatch_relay.switch.claims import Claim, Claims, Ground, Terms

if TYPE_CHECKING:
    from kdispatch_relay.switch.sessions import SwitchSession

__all__ = ["ListedHost", "LiveOffer", "Registry", "Terms"]

# Ids of withdrawn hosts that are remembered: 1.5 MB at most. The oldest go first. A process that lost its RESET comes
# back within seconds, long before so many others were withdrawn.
_WITHDRAWN = 10_000
# Old entries of `_lost` that are checked for each one added: more than one, so the table shrinks.
_SWEPT = 2


@dataclass(slots=True, eq=False)
class LiveOffer:
    """An offer that the store has allowed: one number of one session."""

    host: ListedHost
    session: SwitchSession
    number: int
    labels: dict[str, str]
    digest: str  # of the host's own hst_ token, SHA-256 in hex
    ground: Ground | None = None  # set when it is added

    @property
    def rank(self) -> tuple[int, int]:
        """Orders the offers of a process: by session, the newer one last, and within a session by number."""
        return self.session.rank, self.number


@dataclass(slots=True, eq=False)
class ListedHost:
    """One process that serves one service: its live offers, and its streams.

    It is listed as long as it has an offer, and known as long as it carries a stream. Opens go to its newest offer.
    """

    id: str
    service: str
    since: float = 0.0  # when it was listed, in seconds of the caller's clock
    streams: int = 0
    offers: list[LiveOffer] = field(default_factory=list)  # the newest last

    @property
    def session(self) -> SwitchSession:
        """The session of its newest offer, where it is reached."""
        return self.offers[-1].session

    @property
    def labels(self) -> dict[str, str]:
        """The labels that its operator gave it."""
        return self.offers[-1].labels

    @property
    def digest(self) -> str:
        """The SHA-256 of its own token, in hex."""
        return self.offers[-1].digest

    @property
    def ground(self) -> Ground:
        """The ground of the token that its newest offer showed."""
        ground = self.offers[-1].ground
        assert ground is not None
        return ground

    @property
    def rests(self) -> bytes | None:
        """The digest of that token."""
        return self.ground.claim.token

    def add(self, offer: LiveOffer) -> None:
        """Add an offer."""
        bisect.insort(self.offers, offer, key=lambda one: one.rank)

    def remove(self, offer: LiveOffer) -> None:
        """Remove an offer."""
        self.offers.remove(offer)


class Registry(Claims):
    """Plain bookkeeping; ``choose(n)`` gives a uniform number below ``n``."""

    def __init__(self, choose: Callable[[int], int], limits: Limits, now: float) -> None:
        super().__init__()
        self._choose = choose
        self._limits = limits
        self._started = now
        self._hosts: dict[str, ListedHost] = {}  # by id: those that are listed, and those that carry a stream
        self._listed = 0
        self._withdrawn: dict[str, None] = {}  # host ids, the oldest first
        self._lost: dict[str, float] = {}  # services, and until when opens wait for a host; the oldest first

    def __len__(self) -> int:
        """How many hosts are listed, over all services."""
        return self._listed

    def add(self, offer: LiveOffer, rests: bytes | None, now: float) -> None:
        """Make an offer live, on the token with the digest ``rests``. Its first offer lists a host."""
        host = offer.host
        offer.ground = self.rest(offer, Claim(host.service, "host", rests))
        entry = offer.ground.entry
        if not host.offers:
            host.since = now
            entry.hosts.append(host)
            entry.account.hosts += 1
            self._listed += 1
        host.add(offer)

    def remove(self, offer: LiveOffer) -> None:
        """Remove a live offer. Without offers a host leaves the list."""
        host, ground = offer.host, offer.ground
        assert ground is not None
        host.remove(offer)
        if not host.offers:
            ground.entry.hosts.remove(host)
            ground.entry.account.hosts -= 1
            self._listed -= 1
            self._let_go(host)
        self.free(offer)

    def host(self, host_id: str) -> ListedHost | None:
        """The live host of this id."""
        host = self._hosts.get(host_id)
        return host if host is not None and host.offers else None

    def known(self, host_id: str, service: str) -> ListedHost:
        """The host of this id, which is about to offer or to carry ``service``; made if it is new."""
        host = self._hosts.get(host_id)
        if host is None:
            host = self._hosts[host_id] = ListedHost(host_id, service)
        return host

    def carried(self, host: ListedHost) -> None:
        """A host carries one stream less."""
        host.streams -= 1
        self._let_go(host)

    def _let_go(self, host: ListedHost) -> None:
        if not host.offers and not host.streams:
            del self._hosts[host.id]

    def withdraw(self, host_id: str) -> None:
        """Refuse this host from now on. Its RESET can be lost with its session, and the agent would offer again."""
        self._withdrawn[host_id] = None
        if len(self._withdrawn) > _WITHDRAWN:
            del self._withdrawn[next(iter(self._withdrawn))]

    def is_withdrawn(self, host_id: str) -> bool:
        """Whether the host was withdrawn, and is still remembered."""
        return host_id in self._withdrawn

    def lost(self, service: str, now: float) -> None:
        """A host's session broke without a WITHDRAW: opens wait for a while, because it may come back."""
        for _ in range(_SWEPT):
            oldest = next(iter(self._lost), None)
            if oldest is not None and self._lost[oldest] < now:
                del self._lost[oldest]
        self._lost.pop(service, None)
        self._lost[service] = now + self._limits.open_wait_lost

    def wait_until(self, service: str) -> float:
        """Until when an OPEN that finds no host should wait."""
        return max(self._lost.get(service, 0.0), self._started + self._limits.open_wait_start)

    def pick(self, service: str, tried: Collection[str], pin: str | None) -> ListedHost | None:
        """A uniformly random live host that was not tried yet and is not stalled. ``pin`` allows only that host."""
        entry = self.get(service)
        if entry is None or not entry.hosts:
            return None
        if pin is None and not tried:
            count = len(entry.hosts)
            host = entry.hosts[self._choose(count) if count > 1 else 0]  # a single host takes no random number
            if not host.session.stalled:
                return host
        candidates = [
            host for host in entry.hosts if host.id not in tried and not host.session.stalled and pin in {None, host.id}
        ]
        return candidates[self._choose(len(candidates))] if candidates else None

    def hosts_of(self, service: str) -> list[ListedHost]:
        """The live hosts of a service."""
        entry = self.get(service)
        return list(entry.hosts) if entry else []
