"""The states of one end of a stream, and those of its leg, in two tables. Only these tables change them.

A client's end starts as OPENING when its program connects. The relay names the
host that it asks (TRYING, once for each host tried); the client may then send
early data. OPENED makes the stream OPEN. A host's end starts as OPENING when the
OPEN arrives, and becomes OPEN when its local service takes the connection.

From there each direction finishes independently (half-close), as in TCP. Our end
of the data is a FIN that the peer acknowledges. The peer's end counts as arrived
once every byte before it has arrived. The stream is CLOSED when both happened. A
RESET, from either end or from the relay, ends it at any time. Frames that arrive
later for a stream in an end state are ignored.

A leg is the stream's place in one session. An OPEN asks for it, or an ATTACH once
the stream exists. The leg is JOINED when the other end has answered, and only then
do frames of the stream pass. A stream that moves attaches in a newer session too.
Its leg changes over when both ends have attached there.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from kdispatch_protocol.transitions import no_transition

__all__ = ["END_STATES", "LEGS", "SENDING", "TABLE", "Input", "LegInput", "LegState", "State", "next_leg", "next_state"]


class State(StrEnum):
    """State of one end."""

    OPENING = "opening"  # OPEN was sent or received; no answer yet
    TRYING = "trying"  # client: the relay asks a host
    OPEN = "open"
    LOCAL_FIN = "local fin"  # our FIN was sent
    LOCAL_DONE = "local done"  # our FIN was acknowledged; the peer still sends
    PEER_FIN = "peer fin"  # the peer's end arrived; we still send
    LAST_ACK = "last ack"  # both ends have sent their FIN; ours is not acknowledged
    CLOSED = "closed"
    RESET = "reset"


class Input(StrEnum):
    """Input that changes a state."""

    TRIED = "TRYING received"
    OPENED = "OPENED received or sent"
    UNTRIED = "the host asked has nothing of it"
    FIN_SENT = "FIN sent"
    FIN_ACKED = "our FIN acknowledged"
    FIN_ARRIVED = "peer's end arrived"
    ABORTED = "RESET sent or received"


class LegState(StrEnum):
    """What may pass for a stream on its session."""

    NONE = "none"  # no session carries the stream
    ASKED = "asked"  # OPEN was sent, or was received and not answered yet
    ATTACHING = "attaching"  # ATTACH was sent; the peer's has not arrived
    JOINED = "joined"  # DATA, ACK and FIN may pass


class LegInput(StrEnum):
    """Input that changes a leg."""

    ASKED = "OPEN sent or received"
    ANSWERED = "OPENED sent or received"
    ATTACHED = "ATTACH sent"
    MET = "the peer's ATTACH received"
    SWITCHED = "both ends attached in another session"
    LOST = "the number is given up"


END_STATES: Final = frozenset({State.CLOSED, State.RESET})
#: States in which DATA may be sent (early data in TRYING has its own frame type).
#: After our FIN only data and a FIN that a lost session dropped are sent again.
SENDING: Final = frozenset({State.OPEN, State.PEER_FIN, State.LOCAL_FIN, State.LAST_ACK})

TABLE: Final[dict[tuple[State, Input], State]] = {
    (State.OPENING, Input.TRIED): State.TRYING,
    (State.OPENING, Input.OPENED): State.OPEN,
    (State.TRYING, Input.TRIED): State.TRYING,
    (State.TRYING, Input.OPENED): State.OPEN,
    (State.TRYING, Input.UNTRIED): State.OPENING,
    (State.OPEN, Input.FIN_SENT): State.LOCAL_FIN,
    (State.OPEN, Input.FIN_ARRIVED): State.PEER_FIN,
    (State.LOCAL_FIN, Input.FIN_SENT): State.LOCAL_FIN,
    (State.LOCAL_FIN, Input.FIN_ACKED): State.LOCAL_DONE,
    (State.LOCAL_FIN, Input.FIN_ARRIVED): State.LAST_ACK,
    (State.LOCAL_DONE, Input.FIN_ARRIVED): State.CLOSED,
    (State.PEER_FIN, Input.FIN_SENT): State.LAST_ACK,
    (State.LAST_ACK, Input.FIN_SENT): State.LAST_ACK,
    (State.LAST_ACK, Input.FIN_ACKED): State.CLOSED,
} | {(state, Input.ABORTED): State.RESET for state in State if state not in {State.CLOSED, State.RESET}}


def next_state(state: State, by: Input) -> State:
    """The table's next state; raises ``LocalProtocolError`` if there is none."""
    following = TABLE.get((state, by))
    if following is None:
        raise no_transition("stream", state, by)
    return following


LEGS: Final[dict[tuple[LegState, LegInput], LegState]] = {
    (LegState.NONE, LegInput.ASKED): LegState.ASKED,
    (LegState.ASKED, LegInput.ANSWERED): LegState.JOINED,
    (LegState.NONE, LegInput.ATTACHED): LegState.ATTACHING,
    (LegState.ATTACHING, LegInput.MET): LegState.JOINED,
    (LegState.NONE, LegInput.SWITCHED): LegState.JOINED,
} | {(leg, LegInput.LOST): LegState.NONE for leg in LegState}


def next_leg(leg: LegState, by: LegInput) -> LegState:
    """The table's next leg; raises ``LocalProtocolError`` if there is none."""
    following = LEGS.get((leg, by))
    if following is None:
        raise no_transition("leg", leg, by)
    return following
