"""Who is live: the offers of each process, and the hosts that they make, in memory and nowhere else."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdispatch_protocol.limits import Limits
from kdispatch_relay.switch.claims import Claim, Claims, Ground, Terms

if TYPE_CHECKING:
    from kdispatch_relay.switch.sessions import Session

__all__ = ["Host", "LiveOffer", "Registry", "Terms"]

# Ids of withdrawn hosts that are remembered: 1.5 MB at most. The oldest go first; a process that lost its RESET
# comes back within seconds, long before so many others were withdrawn.
_WITHDRAWN = 10_000
# Services of which a host was lost, looked at for each one that is added: more than it adds.
_SWEPT = 2


@dataclass(slots=True, eq=False)
class LiveOffer:
    """An offer that the store has allowed: one number of one session."""

    host: Host
    session: Session
    number: int
    labels: dict[str, str]
    digest: str  # of the host's own hst_ token, SHA-256 in hex
    ground: Ground | None = None  # set when it is added

    @property
    def rank(self) -> tuple[int, int]:
        """Of two offers of a process the one in the newer session comes first, and there the later one."""
        return self.session.rank, self.number


@dataclass(slots=True, eq=False)
class Host:
    """One process that serves one service: its live offers, and what it carries.

    It is listed as long as it has an offer, and known as long as it carries a stream. Opens go to the newest offer.
    """

    id: str
    service: str
    since: float = 0.0  # when it was listed; the caller's clock, seconds
    streams: int = 0
    offers: list[LiveOffer] = field(default_factory=list)  # the newest last

    @property
    def session(self) -> Session:
        """Where it is reached."""
        return self.offers[-1].session

    @property
    def labels(self) -> dict[str, str]:
        """What its operator calls it."""
        return self.offers[-1].labels

    @property
    def digest(self) -> str:
        """Of its own token, SHA-256 in hex."""
        return self.offers[-1].digest

    @property
    def ground(self) -> Ground:
        """With all that rests on the token that its newest offer showed."""
        ground = self.offers[-1].ground
        assert ground is not None
        return ground

    @property
    def rests(self) -> bytes | None:
        """The digest of that token."""
        return self.ground.claim.token

    def add(self, offer: LiveOffer) -> None:
        """One more offer."""
        bisect.insort(self.offers, offer, key=lambda one: one.rank)

    def remove(self, offer: LiveOffer) -> None:
        """One less."""
        self.offers.remove(offer)


class Registry(Claims):
    """Plain bookkeeping; ``choose(n)`` gives a uniform number below ``n``."""

    def __init__(self, choose: Callable[[int], int], limits: Limits, now: float) -> None:
        super().__init__()
        self._choose = choose
        self._limits = limits
        self._started = now
        self._hosts: dict[str, Host] = {}  # by id: those that are listed, and those that carry something
        self._listed = 0
        self._withdrawn: dict[str, None] = {}  # host ids, the oldest first
        self._lost: dict[str, float] = {}  # services, and until when opens wait for a host; the oldest first

    def __len__(self) -> int:
        """How many hosts are listed, over all services."""
        return self._listed

    def add(self, offer: LiveOffer, rests: bytes | None, now: float) -> None:
        """An offer is live, on the token with the digest ``rests``. With its first one a host is listed."""
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
        """A live offer is no more. With its last one a host leaves the list."""
        host, ground = offer.host, offer.ground
        assert ground is not None
        host.remove(offer)
        if not host.offers:
            ground.entry.hosts.remove(host)
            ground.entry.account.hosts -= 1
            self._listed -= 1
            self._let_go(host)
        self.free(offer)

    def host(self, host_id: str) -> Host | None:
        """The live host of this id."""
        host = self._hosts.get(host_id)
        return host if host is not None and host.offers else None

    def known(self, host_id: str, service: str) -> Host:
        """The host of this id, which is about to offer or to carry ``service``."""
        host = self._hosts.get(host_id)
        if host is None:
            host = self._hosts[host_id] = Host(host_id, service)
        return host

    def carried(self, host: Host) -> None:
        """A host carries one stream less."""
        host.streams -= 1
        self._let_go(host)

    def _let_go(self, host: Host) -> None:
        if not host.offers and not host.streams:
            del self._hosts[host.id]

    def withdraw(self, host_id: str) -> None:
        """Refuse this host from now on: a RESET can be lost with its session, and the agent would offer again."""
        self._withdrawn[host_id] = None
        if len(self._withdrawn) > _WITHDRAWN:
            del self._withdrawn[next(iter(self._withdrawn))]

    def is_withdrawn(self, host_id: str) -> bool:
        """Whether the host was withdrawn, and not so many others since."""
        return host_id in self._withdrawn

    def lost(self, service: str, now: float) -> None:
        """A host's session broke without a WITHDRAW: it may well come back."""
        for _ in range(_SWEPT):
            oldest = next(iter(self._lost), None)
            if oldest is not None and self._lost[oldest] < now:
                del self._lost[oldest]
        self._lost.pop(service, None)
        self._lost[service] = now + self._limits.open_wait_lost

    def wait_until(self, service: str) -> float:
        """Until when an OPEN that finds no host should wait."""
        return max(self._lost.get(service, 0.0), self._started + self._limits.open_wait_start)

    def pick(self, service: str, tried: Collection[str], pin: str | None) -> Host | None:
        """A uniformly random live host that was not tried yet and does answer; ``pin`` allows only one."""
        entry = self.get(service)
        if entry is None or not entry.hosts:
            return None
        if pin is None and not tried:
            count = len(entry.hosts)
            host = entry.hosts[self._choose(count) if count > 1 else 0]  # a choice of one is none: randomness costs
            if not host.session.stalled:
                return host
        candidates = [
            host for host in entry.hosts if host.id not in tried and not host.session.stalled and pin in {None, host.id}
        ]
        return candidates[self._choose(len(candidates))] if candidates else None

    def hosts_of(self, service: str) -> list[Host]:
        """The live hosts of a service."""
        entry = self.get(service)
        return list(entry.hosts) if entry else []
