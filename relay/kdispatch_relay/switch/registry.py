"""Live hosts: those that are listed, and the offers that form the hosts here. They exist in memory only."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from kdispatch_protocol.limits import Limits
from kdispatch_relay.switch.claims import Claim, Claims, Ground, Terms

if TYPE_CHECKING:
    from kdispatch_relay.switch.agents import AgentSession
    from kdispatch_relay.switch.sessions import SwitchSession

__all__ = ["ListedHost", "LiveOffer", "OfferedHost", "Registry", "Terms"]

# Ids of withdrawn hosts that are remembered: 1.5 MB at most. The oldest go first. A process that lost its RESET comes
# back within seconds, long before so many others were withdrawn.
_WITHDRAWN = 10_000
# Old entries of `_lost` that are checked for each one added: more than one, so the table shrinks.
_SWEPT = 2


class ListedHost(Protocol):
    """One process that serves one service, wherever it is: opens go to it over ``session``.

    It may carry streams after it has left the list.
    """

    since: float  # when it was listed, in seconds of the caller's clock
    streams: int  # that it carries

    @property
    def id(self) -> str:
        """Its host id."""
        ...

    @property
    def service(self) -> str:
        """The service that it serves."""
        ...

    @property
    def process(self) -> str:
        """The id of its process, which takes part in the key of each stream."""
        ...

    @property
    def listed(self) -> bool:
        """Whether opens may go to it."""
        ...

    @property
    def session(self) -> SwitchSession:
        """The session over which it is reached: its agent's, or one with a relay that leads to it."""
        ...

    @property
    def stalled(self) -> bool:
        """Whether an OPEN that was sent there timed out, and nothing has arrived from there since."""
        ...

    @property
    def ground(self) -> Ground:
        """The ground that it rests on, and with it each leg of its streams."""
        ...

    @property
    def rests(self) -> bytes | None:
        """The digest of the token that it rests on."""
        ...

    @property
    def labels(self) -> dict[str, str]:
        """The labels that its operator gave it."""
        ...


@dataclass(slots=True, eq=False)
class LiveOffer:
    """An offer that the store has allowed: one number of one session."""

    host: OfferedHost
    session: AgentSession
    number: int
    labels: dict[str, str]
    digest: str  # of the host's own hst_ token, SHA-256 in hex
    ground: Ground | None = None  # set when it is added

    @property
    def rank(self) -> tuple[int, int]:
        """Orders the offers of a process: by session, the newer one last, and within a session by number."""
        return self.session.rank, self.number


@dataclass(slots=True, eq=False)
class OfferedHost:
    """A :class:`ListedHost` whose agent has its sessions here: it is formed by its live offers.

    It is listed as long as it has an offer. Opens go to its newest offer.
    """

    id: str
    service: str
    process: str
    since: float = 0.0
    streams: int = 0
    offers: list[LiveOffer] = field(default_factory=list)  # the newest last

    @property
    def listed(self) -> bool:
        """Whether it has an offer."""
        return bool(self.offers)

    @property
    def session(self) -> AgentSession:
        """The session of its newest offer, where it is reached."""
        return self.offers[-1].session

    @property
    def stalled(self) -> bool:
        """Whether that session let an OPEN time out and has not been heard since."""
        return self.offers[-1].session.stalled

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
        self._hosts: dict[str, OfferedHost] = {}  # by id: those that have an offer, and those that carry a stream
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
        if not host.offers:
            self.list_host(host, offer.ground, now)
        host.add(offer)

    def remove(self, offer: LiveOffer) -> None:
        """Remove a live offer. Without offers a host leaves the list."""
        host, ground = offer.host, offer.ground
        assert ground is not None
        host.remove(offer)
        if not host.offers:
            self.unlist_host(host, ground)
        self.free(offer)

    def list_host(self, host: ListedHost, ground: Ground, now: float) -> None:
        """List a host, on the ground where it rests: opens may go to it. Call ``Opens.host_appeared`` afterwards."""
        host.since = now
        ground.entry.hosts.append(host)
        ground.entry.account.hosts += 1
        self._listed += 1

    def unlist_host(self, host: ListedHost, ground: Ground) -> None:
        """Remove a host whose ``listed`` is false now. Its streams go on. Free what rests on ``ground`` afterwards."""
        ground.entry.hosts.remove(host)
        ground.entry.account.hosts -= 1
        self._listed -= 1
        if not host.streams:
            self._let_go(host)

    def host(self, host_id: str) -> OfferedHost | None:
        """The live host of this id whose agent has its session here."""
        host = self._hosts.get(host_id)
        return host if host is not None and host.offers else None

    def known(self, host_id: str, service: str, process: str) -> OfferedHost:
        """The host of this id, which is about to offer or to carry ``service`` here; made if it is new."""
        host = self._hosts.get(host_id)
        if host is None:
            host = self._hosts[host_id] = OfferedHost(host_id, service, process)
        return host

    def carried(self, host: ListedHost) -> None:
        """A host carries one stream less."""
        host.streams -= 1
        if not host.streams and not host.listed:
            self._let_go(host)

    def _let_go(self, host: ListedHost) -> None:
        # A host elsewhere is in no table here. The same process may have a host of this id here while it moves.
        if self._hosts.get(host.id) is host:
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
            if not host.stalled:
                return host
        candidates = [
            host for host in entry.hosts if host.id not in tried and not host.stalled and pin in {None, host.id}
        ]
        return candidates[self._choose(len(candidates))] if candidates else None

    def hosts_of(self, service: str) -> list[ListedHost]:
        """The live hosts of a service."""
        entry = self.get(service)
        return list(entry.hosts) if entry else []
