"""Worlds in which rights are revoked: processes offer repeatedly and by several tokens, and what rests on those ends.

The store is simulated. It reads at one moment and answers at a later one, as a real look-up does. What is checked again
after a change is answered at a later step.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.session import Session as AgentSession
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.tokens import token_digest
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Offer
from kdispatch_relay.switch.claims import Watched
from kdispatch_relay.switch.intents import AskAttach, AskOffer, AskOpen, Question
from kdispatch_relay.switch.registry import LiveOffer, Terms
from kdispatch_relay.switch.revocations import Claim, claims, doubt, revoke, withdraw_host
from kdispatch_relay.switch.switch import Switch
from tests.core import storms
from tests.core.agents import offered
from tests.core.ledger import check_nothing_left
from tests.core.storms import STORM, Action
from tests.core.verdict import quiesce
from tests.core.world import SERVICE, SMALL, Agent, World

__all__ = ["Grants", "run"]

_TOKENS = ("a", "b", "c", "d", "e")
_WHY = ("revoked", "The token was revoked.")
_WITHDRAWN = "withdrawn"
#: So few streams that clients are refused for the account's, the public services', and their own.
_TERMS = Terms(public=True, streams=8, public_streams=6, source_part=0.5)


@dataclass
class _Reading:
    """A look-up under way, with the store's answer; ``ends`` ends the watch for changes meanwhile."""

    relay: Switch
    question: Question
    watched: Watched
    ends: Callable[[], None]
    version: int = 0
    yes: bool = False


class Grants(World):
    """A world in which hosts' tokens are revoked and hosts are withdrawn."""

    def __init__(self, rng: random.Random, *, clients: int = 1, hosts: int = 2, limits: Limits = SMALL) -> None:
        self.revoked: set[str] = set()
        self.rechecks: deque[tuple[Switch, list[Claim]]] = deque()
        self.readings: deque[_Reading] = deque()
        self.more: dict[AgentSession, list[int]] = {}  # numbers of offers beside the endpoint's own
        self.happened = Counter[str]()
        super().__init__(rng, clients=clients, hosts=hosts, limits=limits)

    # --- what can happen -------------------------------------------------------------------

    def offer_again(self, agent: Agent) -> None:
        """Offer the same service once more, in any session of the process, by any token."""
        ready = [one.of_agent for one in agent.connections if one.agent_side and one.of_agent.ready]
        if agent.serves and ready:
            session = self.rng.choice(ready)
            number = session.take_number()
            session.outbox.send(frames.frame(frames.OFFER, number, payload=self._offer(agent).encode()))
            self.more.setdefault(session, []).append(number)
            self.happened["again"] += 1

    def withdraw_one(self, agent: Agent) -> None:
        """A process withdraws one of its additional offers."""
        for connection in agent.connections:
            numbers = self.more.get(connection.of_agent)
            if numbers and connection.agent_side:
                number = numbers.pop(self.rng.randrange(len(numbers)))
                connection.of_agent.outbox.send(frames.frame(frames.WITHDRAW, number))
                self.happened["withdrawn"] += 1

    def come_back(self, agent: Agent) -> None:
        """A process whose offer was ended offers again."""
        if agent.serves and not agent.endpoint.offering:
            agent.endpoint.offer(self._offer(agent))

    def revoke(self) -> None:
        """Revoke a token, often one that is being looked up. Relays learn of it at once, and check what runs."""
        asked = [reading.question.token for reading in self.readings if not _is_clients(reading.question)]
        token = self.rng.choice(asked or _TOKENS) or _TOKENS[0]
        self.revoked.add(token)
        for relay in self.relays:
            doubt(relay, SERVICE)
            self.rechecks.append((relay, sorted(claims(relay, SERVICE), key=repr)))
        self.happened["revoked"] += 1

    def restore(self) -> None:
        """Let the store allow everything again, as after a suspension."""
        self.revoked.clear()

    def take_off(self) -> None:
        """An owner withdraws a host by its listed id."""
        for relay in self.relays:
            hosts = offered(relay)
            if hosts:
                withdraw_host(relay, self.rng.choice(hosts))
                self.happened["taken off"] += 1
        for agent in self.agents:
            self.settle(agent)

    def recheck(self) -> None:
        """Answer a check that follows a change: what is not allowed ends."""
        if self.rechecks:
            relay, asked = self.rechecks.popleft()
            if relay in self.relays:
                refused = {claim: _WHY for claim in asked if self._is_revoked(claim.token)}
                revoke(relay, refused, self.now)
            for agent in self.agents:
                self.settle(agent)

    # --- the store ------------------------------------------------------------------------------

    def answer_question(self) -> None:
        """The store reads what it is asked, or answers what it has read: late, and again after a change."""
        if self.questions and (not self.readings or self.rng.random() < 0.5):
            relay, question = self.questions.popleft()
            watching = ExitStack()
            watched = watching.enter_context(relay.doubts.watching(question.service))
            self._read(_Reading(relay, question, watched, watching.close))
        elif self.readings:
            reading = self.readings.popleft()
            if reading.version != reading.watched.version:
                self.happened["read again"] += 1
                self._read(reading)
            else:
                reading.ends()
                self._tell(reading)

    def _read(self, reading: _Reading) -> None:
        token = reading.question.token
        refused = self._is_revoked(None if token is None else token_digest(token))
        reading.yes = not refused or _is_clients(reading.question)
        reading.version = reading.watched.version
        self.readings.append(reading)

    def _tell(self, reading: _Reading) -> None:
        relay, question = reading.relay, reading.question
        if isinstance(question, AskOffer):
            if reading.yes:
                relay.offers.allowed(question, _TERMS, self.now)
            else:
                relay.offers.refused(question, *_WHY, now=self.now)
        elif isinstance(question, AskAttach):
            if reading.yes:
                relay.attachments.allowed(question, self.now)
            else:
                relay.attachments.refused(question, *_WHY, self.now)
        else:
            relay.opens.allowed(question.route, _TERMS, self.now)

    def _is_revoked(self, token: bytes | None) -> bool:
        return token is not None and token in {token_digest(one) for one in self.revoked}

    def _offer(self, agent: Agent) -> Offer:
        process = agent.endpoint.process
        token = self.rng.choice(_TOKENS)
        return Offer(service=SERVICE, host=host_id(process, SERVICE), digest="00" * 32, token=token)

    # --- what must hold ---------------------------------------------------------------------

    def _event(self, agent: Agent, event: events.Event) -> None:
        if isinstance(event, events.OfferRefused):
            assert event.code in {_WHY[0], _WITHDRAWN}, event
        else:
            super()._event(agent, event)

    def check_books(self) -> None:
        """After every step, each relay's tables are right, and nothing is live on a revoked right."""
        super().check_books()
        for relay in self.relays:
            if all(other is not relay for other, _ in self.rechecks):
                for host in offered(relay):
                    assert not any(self._is_revoked(_rests(offer)) for offer in host.offers), "a revoked offer is live"


def _rests(offer: LiveOffer) -> bytes | None:
    assert offer.ground is not None
    return offer.ground.claim.token


def _is_clients(question: Question) -> bool:
    """Whether access depends only on the service being public, not on a token."""
    return isinstance(question, AskOpen) or (isinstance(question, AskAttach) and question.role == "client")


def run(seed: int, *, steps: int = 140, clients: int = 1, hosts: int = 2) -> Grants:
    """Play one world, and check its tables after every step. Then restore all rights; nothing may be left over."""
    rng = random.Random(seed)
    world = Grants(rng, clients=clients, hosts=hosts)

    def also(agent: Agent) -> list[Action]:
        return [
            (2, lambda: world.offer_again(agent)),
            (1, lambda: world.withdraw_one(agent)),
            (1, lambda: world.come_back(agent)),
            (0.5, world.revoke),
            (0.2, world.restore),
            (0.1, world.take_off),
            (4 if world.rechecks else 0, world.recheck),
        ]

    storms.play(rng, world, steps, STORM, also=also)
    world.restore()
    while world.rechecks:
        world.recheck()
    quiesce(world)
    world.check_books()
    for agent in world.agents:
        while agent.connection is not None:
            world.cut(agent)
    for relay in world.relays:
        check_nothing_left(relay)
    return world
