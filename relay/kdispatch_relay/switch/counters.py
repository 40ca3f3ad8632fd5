"""What has gone through the switch since it began, as plain integers. They count always, whatever the log level is."""

from __future__ import annotations

from collections import Counter

from kdispatch_protocol.errors import CODES

__all__ = ["Counters"]

#: An agent chooses the codes of its RESETs. Those that are not in the table count together.
_OTHER = "other"


class Counters:
    """Totals of one switch. ``ended`` counts streams by code, ``failed`` opens that came to nothing, by code.

    ``sent`` are bytes of clients that were passed on, ``received`` those of hosts. Both count when a stream leaves its
    route: at its end, and when it goes on over another one. Bytes that an end sends again count again.
    """

    __slots__ = ("attached", "cuts", "ended", "failed", "moved", "opened", "opens", "received", "sent", "sessions")

    def __init__(self) -> None:
        self.sessions = 0  # that said HELLO
        self.opens = 0
        self.opened = 0
        self.attached = 0  # times that two ends attached, and a stream went on
        self.moved = 0  # of these, how often the older route was still there
        self.sent = 0
        self.received = 0
        self.ended: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.cuts: Counter[str] = Counter()  # sessions that this end ended, by code

    def stream_ended(self, code: str, *, opened: bool) -> None:
        """A stream is over, or an open came to nothing."""
        (self.ended if opened else self.failed)[_known(code)] += 1

    def cut(self, code: str) -> None:
        """A session's connection is gone, and this end ended it: the switch, the link or the gate."""
        self.cuts[_known(code)] += 1


def _known(code: str) -> str:
    """The code as it is counted: the number of keys is bounded by the table."""
    return code if code in CODES else _OTHER
