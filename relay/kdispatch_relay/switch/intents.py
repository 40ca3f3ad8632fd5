"""What the switch asks of the gate, because it cannot query a store or close a connection itself."""

from __future__ import annotations

from dataclasses import dataclass

from kdispatch_protocol.wire.messages import Offer
from kdispatch_relay.switch.sessions import Session

__all__ = ["AskOffer", "AttachRefused", "Cut", "StreamEnded", "said_by_agent"]

# Codes about access that only a relay may send: an agent that gets one stops for good.
_OF_RELAY = frozenset({"revoked", "token_refused", "not_permitted", "unknown_service"})


def said_by_agent(code: str) -> str:
    """The code that an agent sent, as the other end of the stream may see it."""
    return "cancelled" if code in _OF_RELAY else code


@dataclass(frozen=True, slots=True)
class AskOffer:
    """Intent: find out whether the session may host the service, then call ``allowed`` or ``refused`` of the offers."""

    session: Session
    number: int
    offer: Offer

    @property
    def service(self) -> str:
        """The service offered."""
        return self.offer.service

    @property
    def token(self) -> str | None:
        """The token that the host shows."""
        return self.offer.token


@dataclass(frozen=True, slots=True)
class Cut:
    """Intent: send GOAWAY with the code, then close the session's carrier."""

    session: Session
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class AttachRefused:
    """Report: an agent's ATTACH was refused. ``peer`` is the process that it named."""

    service: str
    agent: str  # its process id
    source: str
    peer: str
    code: str


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """Report: a stream has ended, or an open failed. ``code`` is ``closed`` if the stream finished.

    ``sent`` and ``received`` are the client's bytes that were passed on. ``began`` is a time of the switch's clock.
    """

    service: str
    host: str  # its id; empty if no host was being asked at the end
    client: str  # its process id
    source: str
    sent: int
    received: int
    began: float
    code: str
