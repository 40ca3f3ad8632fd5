"""Who is live: the hosts of each service, in memory and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdispatch_protocol.limits import Limits

if TYPE_CHECKING:
    from kdispatch_relay.switch.routes import Route
    from kdispatch_relay.switch.sessions import Session

__all__ = ["Host", "Registry", "ServiceHosts", "Terms", "Usage", "is_within"]

# Ids of withdrawn hosts that are remembered: 1.5 MB at most. The oldest go first; a process that lost its RESET
# comes back within seconds, long before so many others were withdrawn.
_WITHDRAWN = 10_000


@dataclass(slots=True, eq=False)
class Host:
    """One process that offers one service."""

    id: str
    service: str
    session: Session
    since: float  # the caller's clock, seconds
    labels: dict[str, str]
    digest: str  # of its own hst_ token, SHA-256 in hex
    rests: bytes | None  # the digest of the token that its offer showed
    streams: int = 0


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for a service: whether everybody may connect, whether clients may choose a host.

    ``hosts`` and ``streams``: how many its owner may have at once, of all services together.
    """

    public: bool
    pins: bool = False
    hosts: int = 1 << 30
    streams: int = 1 << 30


@dataclass(slots=True)
class Usage:
    """What one owner has at this moment."""

    hosts: int = 0
    streams: int = 0


@dataclass(slots=True)
class ServiceHosts:
    """The live hosts of one service, and the opens that wait for one."""

    terms: Terms | None = None  # known once somebody was authorised for it
    hosts: dict[str, Host] = field(default_factory=dict)  # by host id
    order: list[Host] = field(default_factory=list)  # the same, for a choice by index
    wait_until: float = 0.0  # opens wait until then for a host to come back
    waiting: dict[Route, None] = field(default_factory=dict)


def is_within(service: str, scope: str) -> bool:
    """Whether ``scope`` is this service, or the handle that it belongs to."""
    return service == scope or service.startswith(f"{scope}/")


class Registry:
    """Plain bookkeeping; ``choose(n)`` gives a uniform number below ``n``."""

    def __init__(self, choose: Callable[[int], int], limits: Limits, now: float) -> None:
        self._choose = choose
        self._limits = limits
        self._started = now
        self._services: dict[str, ServiceHosts] = {}
        self._hosts: dict[str, Host] = {}  # by id
        self._withdrawn: dict[str, None] = {}  # host ids, the oldest first
        self._usages: dict[str, Usage] = {}  # by handle

    def __len__(self) -> int:
        """How many hosts are listed, over all services."""
        return len(self._hosts)

    def get(self, service: str) -> ServiceHosts | None:
        """The entry of a service that has, or lately had, hosts or waiting opens."""
        return self._services.get(service)

    def entry(self, service: str) -> ServiceHosts:
        """The entry of a service, made if need be. Only for one that exists: names come from strangers."""
        return self._services.setdefault(service, ServiceHosts())

    def add(self, host: Host) -> None:
        """List a host; an older one of the same id, of the same process, is replaced."""
        entry = self.entry(host.service)
        older = entry.hosts.get(host.id)
        if older is not None:
            self.remove(older)
        entry.hosts[host.id] = host
        entry.order.append(host)
        self._hosts[host.id] = host
        self.usage(host.service).hosts += 1

    def remove(self, host: Host) -> None:
        """Take a host off the list, if it is still the one that is listed."""
        entry = self._services.get(host.service)
        if entry is not None and entry.hosts.get(host.id) is host:
            del entry.hosts[host.id]
            entry.order.remove(host)
            del self._hosts[host.id]
            self.usage(host.service).hosts -= 1
            self.leave(host.service)

    def host(self, host_id: str) -> Host | None:
        """The live host of this id."""
        return self._hosts.get(host_id)

    def withdraw(self, host_id: str) -> None:
        """Refuse this host from now on: a RESET can be lost with its session, and the agent would offer again."""
        self._withdrawn[host_id] = None
        if len(self._withdrawn) > _WITHDRAWN:
            del self._withdrawn[next(iter(self._withdrawn))]

    def is_withdrawn(self, host_id: str) -> bool:
        """Whether the host was withdrawn, and not so many others since."""
        return host_id in self._withdrawn

    def lost(self, host: Host, now: float) -> None:
        """A host's session broke without a WITHDRAW: it may well come back."""
        if self._hosts.get(host.id) is host:
            self.remove(host)
            self.entry(host.service).wait_until = now + self._limits.open_wait_lost

    def wait_until(self, service: str) -> float:
        """Until when an OPEN that finds no host should wait."""
        return max(self.entry(service).wait_until, self._started + self._limits.open_wait_start)

    def pick(self, service: str, tried: Collection[str], pin: str | None) -> Host | None:
        """A uniformly random live host that was not tried yet and does answer; ``pin`` allows only one."""
        entry = self._services.get(service)
        if entry is None or not entry.order:
            return None
        if pin is None and not tried:
            count = len(entry.order)
            host = entry.order[self._choose(count) if count > 1 else 0]  # a choice of one is none: randomness costs
            if not host.session.stalled:
                return host
        candidates = [
            host for host in entry.order if host.id not in tried and not host.session.stalled and pin in {None, host.id}
        ]
        return candidates[self._choose(len(candidates))] if candidates else None

    def forget(self, service: str, now: float) -> None:
        """Drop a service's entry once it says nothing any more."""
        entry = self._services.get(service)
        if entry is not None and not entry.hosts and not entry.waiting and entry.wait_until < now:
            del self._services[service]

    def drop(self, service: str) -> None:
        """Forget a service that may be no more, unless it still has hosts or waiting opens."""
        entry = self._services.get(service)
        if entry is not None and not entry.hosts and not entry.waiting:
            del self._services[service]

    def usage(self, service: str) -> Usage:
        """What the owner of ``handle/name`` has; only for a service that exists: names come from strangers."""
        return self._usages.setdefault(service.partition("/")[0], Usage())

    def leave(self, service: str) -> None:
        """Forget what the owner of ``handle/name`` has, where it is nothing."""
        handle = service.partition("/")[0]
        usage = self._usages.get(handle)
        if usage is not None and not usage.hosts and not usage.streams:
            del self._usages[handle]

    def doubt(self, scope: str) -> None:
        """Whatever is known of the terms of ``handle/name``, or of all services of a handle, may be wrong now."""
        for service, entry in self._services.items():
            if is_within(service, scope):
                entry.terms = None

    def hosts_of(self, service: str) -> list[Host]:
        """The live hosts of a service."""
        entry = self._services.get(service)
        return list(entry.order) if entry else []
