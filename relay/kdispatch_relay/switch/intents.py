"""What the switch wants the gate to do: it can ask no store and close no connection itself."""

from __future__ import annotations

from dataclasses import dataclass

from kdispatch_protocol.wire.messages import Offer
from kdispatch_relay.switch.sessions import Session

__all__ = ["AskOffer", "AttachRefused", "Cut", "StreamEnded", "said_by_agent"]

# Codes that only a relay may say: an agent that hears one of its access stops for good.
_OF_RELAY = frozenset({"revoked", "token_refused", "not_permitted", "unknown_service"})


def said_by_agent(code: str) -> str:
    """An agent's code, as the other end of its stream may hear it."""
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
        """What the host rests on."""
        return self.offer.token


@dataclass(frozen=True, slots=True)
class Cut:
    """Intent: say GOAWAY with the code, then close the session's carrier."""

    session: Session
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class AttachRefused:
    """Report: an agent's ATTACH came to nothing; ``peer`` is the process that it named."""

    service: str
    agent: str  # process id
    source: str
    peer: str
    code: str


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """Report: a stream, or an open that came to nothing, is over. ``code`` is ``closed`` where it finished.

    ``sent`` and ``received`` are the client's bytes that were passed on. ``began`` is a time of the switch's clock.
    """

    service: str
    host: str  # its id; empty where none was asked at the end
    client: str  # its process id
    source: str
    sent: int
    received: int
    began: float
    code: str
