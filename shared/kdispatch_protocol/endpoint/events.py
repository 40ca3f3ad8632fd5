"""Events that an agent's endpoint reports, named in the past tense."""

from __future__ import annotations

from dataclasses import dataclass

from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.wire.messages import Goaway, Welcome

__all__ = [
    "AttachRefused",
    "DataReceived",
    "EndAcknowledged",
    "EndReceived",
    "Event",
    "OfferListed",
    "OfferRefused",
    "SessionReady",
    "SessionRefused",
    "StreamFinished",
    "StreamOpened",
    "StreamRequested",
    "StreamWasReset",
    "WritingResumed",
]


@dataclass(frozen=True, slots=True)
class SessionReady:
    """The relay's WELCOME arrived: the endpoint now sends offers and opens."""

    welcome: Welcome


@dataclass(frozen=True, slots=True)
class SessionRefused:
    """The relay sent a GOAWAY. After a final code, do not connect again."""

    goaway: Goaway


@dataclass(frozen=True, slots=True)
class OfferListed:
    """The relay lists this process as a live host of the service."""

    service: str


@dataclass(frozen=True, slots=True)
class OfferRefused:
    """The relay refused or ended an offer; the endpoint does not repeat it."""

    service: str
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class StreamRequested:
    """A client asks for the service: dial it, then accept or refuse the stream."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The host's service took the connection."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Bytes for the program. Call ``StreamTable.consume`` when the program has taken them."""

    stream: Stream
    data: memoryview


@dataclass(frozen=True, slots=True)
class EndReceived:
    """The peer sends no more; all its bytes were reported before."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class EndAcknowledged:
    """The peer has all written bytes, and the end."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class WritingResumed:
    """The program may write again to a stream whose ``write`` returned false."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class StreamFinished:
    """Both directions ended and both ends know it; the stream is removed."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class StreamWasReset:
    """A RESET arrived for the stream, or this end found a reason to reset it; the stream is removed."""

    stream: Stream
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class AttachRefused:
    """An ATTACH was refused and changed nothing. ``bad_proof``: a process tried to attach a foreign stream."""

    uuid: str
    process: str
    code: str


@dataclass(frozen=True, slots=True)
class PongReceived:
    """The relay answered a ``ping`` that had this value."""

    value: int


Event = (
    AttachRefused
    | SessionReady
    | SessionRefused
    | OfferListed
    | OfferRefused
    | PongReceived
    | StreamRequested
    | StreamOpened
    | DataReceived
    | EndReceived
    | EndAcknowledged
    | WritingResumed
    | StreamFinished
    | StreamWasReset
)
