"""An agent's session at the switch: the agent's identity, and what belongs to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from kdispatch_protocol.limits import Limits
from kdispatch_relay.switch.asks import Asks
from kdispatch_relay.switch.budget import Bucket, Chances, Held, Joined, ProcessBudget
from kdispatch_relay.switch.effort import EffortSource
from kdispatch_relay.switch.sessions import SwitchSession

if TYPE_CHECKING:
    from kdispatch_relay.switch.attachments import Half
    from kdispatch_relay.switch.registry import ListedHost, LiveOffer
    from kdispatch_relay.switch.routes import Leg

__all__ = ["AgentSession", "Shared"]

# What a session makes the relay keep, in bytes, measured: a half with its entry and its places in three tables; an
# offer beside its labels. Each may be the only one of a service, so it includes the 1.5 KiB of the service's entry,
# ground and account.
_HALF = 2816
_OFFER = 2560
_LABEL = 120
# While an offer is looked up, it counts with all the labels and the token that its frame has room for.
_ASKED_OFFER = 8 * 1024
# Names of services whose streams an agent has opened. When there are more, all are forgotten, and the audit notes each
# of them again.
_CONNECTS = 1024


class Shared(Chances, EffortSource, Protocol):
    """The buckets that all sessions of a source share: the rate of failures, and the rate of requests."""


class AgentSession(SwitchSession):
    """State only; the switch acts on it. ``process`` is empty until HELLO."""

    __slots__ = (
        "asked",
        "asking",
        "asks",
        "connects",
        "failures",
        "halves",
        "look_ups",
        "offers",
        "offers_asked",
        "older",
        "predecessors",
        "process",
        "quiet",
        "rank",
        "resets",
        "streams",
        "streams_opened",
        "unanswered",
    )

    def __init__(
        self,
        limits: Limits,
        budget: ProcessBudget,
        source: str,
        now: float,
        shared: Shared | None = None,
        *,
        group: str = "",
    ) -> None:
        super().__init__(limits, budget, source, now, shared, group=group)
        self.process = ""
        self.connects: set[str] | None = None  # services whose streams its agent has opened
        self.quiet = False  # it carries nothing, and may be silent for longer
        self.older: AgentSession | None = None  # the session of the same agent that it is moving from
        self.rank = 0  # of two sessions of a process, the one that greeted later has the higher rank
        self.predecessors: tuple[str, ...] = ()  # process ids that this process has proved to replace
        self.asking: dict[str, Leg] = {}  # its legs of streams that no host has opened yet, by uuid
        self.streams: dict[tuple[str, str], Leg] = {}  # its legs of running streams, by uuid and role
        #: Streams that this agent attached, and whose other end is not here yet.
        self.halves: dict[int, Half] = Held(self.hold, lambda _: _HALF)
        self.offers_asked = 0  # offers that are looked up, also those withdrawn meanwhile
        #: ``None`` while the offer is looked up.
        self.offers: dict[int, LiveOffer | None] = Held(self.hold, _weigh_offer)
        self.unanswered = 0
        self.streams_opened = 0  # live legs of streams that this agent opened
        own = Bucket(limits.failed_opens_rate, limits.failed_opens_burst, now)
        self.failures: Chances = own if shared is None else Joined(own, shared)
        self.resets = Bucket(limits.early_resets_rate, limits.early_resets_burst, now)
        self.asks = Bucket(limits.asks_rate, limits.asks_burst, now)
        self.asked = Asks(limits.attach_batch)  # asks this agent about other agents' halves
        self.look_ups = 0  # pending look-ups for its halves

    def __repr__(self) -> str:
        return f"<Session {self.process[:8] or 'new'} of {self.source}>"

    @property
    def all_of_agent(self) -> Iterator[AgentSession]:
        """This session, and those that its agent is moving from."""
        session: AgentSession | None = self
        while session is not None:
            yield session
            session = session.older

    @property
    def hosts(self) -> Iterable[ListedHost]:
        """The hosts that this agent is: one for each service that it offers."""
        return {offer.host: None for offer in self.offers.values() if offer is not None}

    @property
    def sends_last(self) -> bool:
        """Whether this agent has no offer: clients wait for hosts."""
        return not self.offers

    def is_first_of(self, service: str) -> bool:
        """Whether its agent has opened no stream of the service before. Notes the service."""
        if self.connects is None:
            self.connects = set()
        if service in self.connects:
            return False
        if len(self.connects) >= _CONNECTS:
            self.connects.clear()
        self.connects.add(service)
        return True

    def stream_opened(self, leg: Leg) -> None:
        """The stream of one of its legs was opened, or goes on here: it is found by uuid and role from now on."""
        route = leg.route
        uuid = route.message.uuid
        if route.client is not leg:
            self.streams[uuid, "host"] = leg
            return
        if self.asking.get(uuid) is leg:
            del self.asking[uuid]
        self.streams[uuid, "client"] = leg

    def remove_leg(self, leg: Leg) -> None:
        """Remove a leg: later frames with its number are ignored."""
        self.effort.leg_ended()  # this line and the next as in SwitchSession, with one call less for each leg
        self.legs.pop(leg.number, None)
        route = leg.route
        uuid = route.message.uuid
        if route.client is not leg:
            stream = uuid, "host"
        else:
            stream = uuid, "client"
            if self.asking.get(uuid) is leg:
                del self.asking[uuid]
        if self.streams.get(stream) is leg:
            del self.streams[stream]

    def half(self, number: int) -> Half | None:
        """The half that its agent attached under this number."""
        return self.halves.get(number)

    def may_answer_gone(self, number: int, now: float) -> bool:
        """Whether to answer DATA by GONE: not while its agent attaches a stream under this number."""
        return number not in self.halves and super().may_answer_gone(number, now)

    def ask_offer(self, count: int) -> None:
        """Note that ``count`` more offers are looked up, or fewer if it is negative."""
        self.offers_asked += count
        self.hold(count * _ASKED_OFFER)


def _weigh_offer(offer: LiveOffer | None) -> int:
    if offer is None:
        return 0  # counted by ask_offer() while it is looked up
    return _OFFER + sum(_LABEL + len(key) + len(value) for key, value in offer.labels.items())
