"""What the switch asks of the gate, because it cannot query a store or close a connection itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdispatch_protocol.wire.messages import Offer
from kdispatch_relay.switch.agents import AgentSession
from kdispatch_relay.switch.routes import Route
from kdispatch_relay.switch.sessions import SwitchSession

if TYPE_CHECKING:
    from kdispatch_relay.switch.attachments import Half

__all__ = [
    "AskAttach",
    "AskOffer",
    "AskOpen",
    "CutSession",
    "FirstStream",
    "Intent",
    "IntentQueue",
    "Question",
    "RefusedAttach",
    "StreamEnded",
    "said_by_agent",
]

# Codes about access that only a relay may send: an agent that gets one stops for good.
_OF_RELAY = frozenset({"revoked", "token_refused", "not_permitted", "unknown_service"})


def said_by_agent(code: str) -> str:
    """The code that an agent sent, as the other end of the stream may see it."""
    return "cancelled" if code in _OF_RELAY else code


@dataclass(frozen=True, slots=True)
class AskOffer:
    """Intent: find out whether the session may host the service, then call ``allowed`` or ``refused`` of the offers."""

    session: AgentSession
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
class AskOpen:
    """Intent: find out whether the route's client may open its service, then call ``allowed`` or ``refused``."""

    route: Route

    @property
    def service(self) -> str:
        """The service asked for."""
        return self.route.message.service

    @property
    def token(self) -> str | None:
        """The token that the client shows."""
        return self.route.message.token

    @property
    def session(self) -> AgentSession:
        """The client's session."""
        return self.route.opener


@dataclass(frozen=True, slots=True)
class AskAttach:
    """Intent: find out whether the agent of these halves may still use the service.

    The gate then calls ``allowed`` or ``refused``.
    """

    session: AgentSession
    service: str
    role: str
    token: str | None
    halves: list[Half]

    def alive(self) -> Iterator[Half]:
        """The halves that were not dropped meanwhile."""
        return (half for half in self.halves if half.session.halves.get(half.number) is half)


@dataclass(frozen=True, slots=True)
class CutSession:
    """Intent: send GOAWAY with the code, then close the session's carrier."""

    session: SwitchSession
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class RefusedAttach:
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


@dataclass(frozen=True, slots=True)
class FirstStream:
    """Report: an agent's session opened its first stream of a service."""

    route: Route


Question = AskOffer | AskOpen | AskAttach
Intent = Question | CutSession | FirstStream | RefusedAttach | StreamEnded


class IntentQueue:
    """What the parts of the switch ask of the gate, in the order in which it came up. The gate empties it each turn."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: list[Intent] = []  #: read it to see whether there is one; it is another list after each take

    def put(self, intent: Intent) -> None:
        """Add one. The gate takes it before the switch gets the next frames."""
        self.waiting.append(intent)

    def take_all(self) -> list[Intent]:
        """All of them. The queue is empty then."""
        taken, self.waiting = self.waiting, []
        return taken

    def has(self, kind: type[Intent]) -> bool:
        """Whether one of this kind waits."""
        return any(isinstance(intent, kind) for intent in self.waiting)
