"""OFFER: from a process's offer to a host in the list."""

from __future__ import annotations

from collections.abc import Callable

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.tokens import token_digest
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.messages import Offer, Offered, reset_frame
from kdispatch_relay.switch.agents import AgentSession
from kdispatch_relay.switch.intents import AskOffer, IntentQueue
from kdispatch_relay.switch.registry import ListedHost, LiveOffer, Registry, Terms
from kdispatch_relay.switch.sessions import SwitchSession

__all__ = ["Offers"]

_WITHDRAWN = ("withdrawn", "This host was withdrawn.")


class Offers:
    """The offers of all sessions.

    ``touched`` collects the sessions that have something to send. ``appeared`` is called with a service's new host.
    """

    def __init__(
        self,
        registry: Registry,
        limits: Limits,
        touched: set[SwitchSession],
        appeared: Callable[[ListedHost, float], None],
        intents: IntentQueue,
    ) -> None:
        self._intents = intents
        self._registry = registry
        self._limits = limits
        self._touched = touched
        self._appeared = appeared

    def begin(self, session: AgentSession, number: int, offer: Offer, now: float) -> None:
        """Handle an agent's OFFER."""
        if max(len(session.offers), session.offers_asked) >= self._limits.offers:
            refusal = ("busy", "This session has reached its limit of offers.")
        elif not session.failures.peek(now):
            refusal = ("rate_limited", "Too many offers of this session, or of its address, failed.")
        elif self._registry.is_withdrawn(offer.host):
            refusal = _WITHDRAWN
        else:
            session.offers[number] = None
            session.ask_offer(1)
            self._intents.put(AskOffer(session, number, offer))
            return
        session.outbox.send(reset_frame(number, *refusal))

    def withdraw(self, session: AgentSession, number: int) -> bool:
        """Handle an agent's WITHDRAW; returns whether there was such an offer."""
        there = number in session.offers
        live = session.offers.pop(number, None)
        if live is not None:
            self._registry.remove(live)
        return there

    def session_lost(self, session: AgentSession, now: float) -> None:
        """Drop the offers of a lost session. A process that was moving is reached in its other session again."""
        lost = [offer for offer in session.offers.values() if offer is not None]
        session.offers.clear()
        for offer in lost:
            self._registry.remove(offer)
        for host in {offer.host: None for offer in lost}:
            if host.offers:
                self._appeared(host, now)
            else:
                self._registry.lost(host.service, now)

    def allowed(self, asked: AskOffer, terms: Terms, now: float) -> bool:
        """Make the offer live, and let opens that waited for a host go on. Returns whether the host is newly listed."""
        session, offer = asked.session, asked.offer
        session.ask_offer(-1)
        if session.ended or asked.number not in session.offers:
            return False
        if self._registry.is_withdrawn(offer.host):  # withdrawn while the store was asked
            self._refuse(asked, *_WITHDRAWN, now=now)
            return False
        is_new = self._registry.host(offer.host) is None
        if is_new and self._registry.account(offer.service).hosts >= terms.hosts:
            self._refuse(asked, "quota_exceeded", "The service's owner has reached the limit of live hosts.", now=now)
            return False
        host = self._registry.known(offer.host, offer.service, session.process)
        live = LiveOffer(host, session, asked.number, offer.labels, offer.digest)
        self._registry.add(live, None if offer.token is None else token_digest(offer.token), now)
        self._registry.learn(offer.service, terms)
        session.offers[asked.number] = live
        payload = Offered(host=offer.host).encode()
        session.outbox.send(frames.frame(frames.OFFERED, asked.number, payload=payload))
        self._touched.add(session)
        self._appeared(host, now)
        return is_new

    def refused(self, asked: AskOffer, code: str, text: str, *, now: float) -> None:
        """The agent may not host the service: reset the offer.

        That counts as a failure, so that names and tokens cannot be guessed.
        """
        asked.session.ask_offer(-1)
        self._refuse(asked, code, text, now=now)

    def _refuse(self, asked: AskOffer, code: str, text: str, *, now: float) -> None:
        asked.session.failures.take(now)
        asked.session.effort.look_up_failed()
        if not asked.session.ended and asked.session.offers.pop(asked.number, None) is None:
            asked.session.outbox.send(reset_frame(asked.number, code, text))
            self._touched.add(asked.session)
