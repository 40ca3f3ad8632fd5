"""What an agent's endpoint reports, in the past tense."""

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
    "OfferRefused",
    "Offered",
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
    """WELCOME arrived: offers and opens go out now."""

    welcome: Welcome


@dataclass(frozen=True, slots=True)
class SessionRefused:
    """The relay said goodbye. A code that is final must not be tried again."""

    goaway: Goaway


@dataclass(frozen=True, slots=True)
class Offered:
    """The relay lists this process as a live host of the service."""

    service: str


@dataclass(frozen=True, slots=True)
class OfferRefused:
    """The relay refused or ended an offer; it is not repeated."""

    service: str
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class StreamRequested:
    """A client wants the service: dial it, then accept or refuse the stream."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The host's service took the connection."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Bytes for the program. Report them with ``consumed`` when it took them."""

    stream: Stream
    data: memoryview


@dataclass(frozen=True, slots=True)
class EndReceived:
    """The peer will send no more; all it sent was reported before."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class EndAcknowledged:
    """The peer has all that was written, and the end."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class WritingResumed:
    """A stream whose ``write`` said to stop may be written again."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class StreamFinished:
    """Both directions ended and both ends know it; the stream is gone."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class StreamWasReset:
    """The stream ended by a RESET from elsewhere, or for a reason found here; it is gone."""

    stream: Stream
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class AttachRefused:
    """Somebody's ATTACH was not taken, and changed nothing. ``bad_proof`` is an attempt at another's stream."""

    uuid: str
    process: str
    code: str


@dataclass(frozen=True, slots=True)
class PongReceived:
    """The relay answered ``ping`` with this value."""

    value: int


Event = (
    AttachRefused
    | SessionReady
    | SessionRefused
    | Offered
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
