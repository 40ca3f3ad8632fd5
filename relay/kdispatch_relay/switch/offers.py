"""OFFER: from a process's wish to be listed to the list."""

from __future__ import annotations

from collections.abc import Callable

from kdispatch_protocol import frames
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.messages import Offer, Offered, reset_frame
from kdispatch_protocol.tokens import token_digest
from kdispatch_relay.switch.intents import AskOffer
from kdispatch_relay.switch.registry import Host, Registry, Terms
from kdispatch_relay.switch.sessions import Session

__all__ = ["Offers"]

_WITHDRAWN = ("withdrawn", "This host was withdrawn.")


class Offers:
    """``touched`` are the sessions to which something is to be sent; ``appeared`` hears of a service's new host."""

    def __init__(
        self, registry: Registry, limits: Limits, touched: set[Session], appeared: Callable[[str, float], None]
    ) -> None:
        self.questions: list[AskOffer] = []
        self._registry = registry
        self._limits = limits
        self._touched = touched
        self._appeared = appeared

    def begin(self, session: Session, number: int, offer: Offer, now: float) -> None:
        """An agent's OFFER."""
        if len(session.offers) >= self._limits.offers:
            refusal = ("busy", "This session offers as many services as it may.")
        elif not session.failures.peek(now):
            refusal = ("rate_limited", "Too many offers of this session, or of its address, failed.")
        elif self._registry.is_withdrawn(offer.host):
            refusal = _WITHDRAWN
        else:
            session.offers[number] = None
            self.questions.append(AskOffer(session, number, offer))
            return
        session.outbox.send(reset_frame(number, *refusal))

    def withdraw(self, session: Session, number: int) -> bool:
        """An agent's WITHDRAW; returns whether there was such an offer."""
        there = number in session.offers
        host = session.offers.pop(number, None)
        if host is not None and host.session is session:
            self._registry.remove(host)
        return there

    def allowed(self, asked: AskOffer, terms: Terms, now: float) -> Host | None:
        """List the host; opens that waited for one go on. Returns it if it was not listed before."""
        session, offer = asked.session, asked.offer
        if session.ended or asked.number not in session.offers:
            return None
        if self._registry.is_withdrawn(offer.host):  # while the store was asked
            self.refused(asked, *_WITHDRAWN, now=now)
            return None
        host = self._registry.host(offer.host)
        if host is None and self._registry.usage(offer.service).hosts >= terms.hosts:
            self._registry.leave(offer.service)
            self.refused(asked, "quota_exceeded", "The service's owner has as many live hosts as it may.", now=now)
            return None
        rests = None if offer.token is None else token_digest(offer.token)
        listed = None
        if host is not None and host.session is not session and host.session in set(session.all_of_agent):
            # The same host, which has moved.
            host.session, host.labels, host.digest, host.rests = session, offer.labels, offer.digest, rests
        else:
            host = listed = self._listed(session, offer, rests, now)
        session.offers[asked.number] = host
        self._registry.entry(offer.service).terms = terms
        payload = Offered(host=offer.host).encode()
        session.outbox.send(frames.frame(frames.OFFERED, asked.number, payload=payload))
        self._touched.add(session)
        self._appeared(offer.service, now)
        return listed

    def _listed(self, session: Session, offer: Offer, rests: bytes | None, now: float) -> Host:
        host = Host(
            id=offer.host,
            service=offer.service,
            session=session,
            since=now,
            labels=offer.labels,
            digest=offer.digest,
            rests=rests,
        )
        for leg in session.legs.values():
            if leg.is_hosts(offer.service):  # its process attached this stream before it offered
                leg.route.host_entry = host
                host.streams += 1
        self._registry.add(host)
        return host

    def refused(self, asked: AskOffer, code: str, text: str, *, now: float) -> None:
        """The agent may not host it. That counts: names and tokens are not to be guessed."""
        asked.session.failures.take(now)
        asked.session.effort.look_up_failed()
        if not asked.session.ended and asked.session.offers.pop(asked.number, None) is None:
            asked.session.outbox.send(reset_frame(asked.number, code, text))
            self._touched.add(asked.session)
