"""How many sockets a relay takes, so that descriptors are left for its database, its log and requests; and memory."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Final

from kdispatch_protocol.errors import KdispatchError

__all__ = ["Room", "queue_memory"]

_log = logging.getLogger("kdispatch.relay")

#: Descriptors of the relay itself: standard streams, the event loop, listening sockets, 11 of an SQLite database with
#: its readers, and files that are read or made now and then. 25 at most were seen.
_OWN: Final = 32
#: Of connections that are no session: a request of each kind, and a few that come at the same moment.
_ARRIVALS_LEAST: Final = 8
_SMALL: Final = 1_000  # sessions below which somebody should know
_LEAST: Final = _OWN + 2 * _ARRIVALS_LEAST


@dataclass(frozen=True, slots=True)
class Room:
    """``sessions`` there may be at a time, 0 where nothing bounds them, beside ``arrivals`` that are none."""

    sessions: int
    arrivals: int

    @classmethod
    def of(cls, descriptors: int | None, sessions: int, arrivals: int) -> Room:
        """As many as were asked for, as far as that many descriptors go; a warning says where these do not.

        Raises ``bad_request`` where a relay can't work with so few.
        """
        if descriptors is None:
            return cls(sessions, arrivals)
        if descriptors < _LEAST:
            text = (
                f"This process may open {descriptors} files, and a relay needs {_LEAST}: raise the limit (ulimit -n)."
            )
            raise KdispatchError("bad_request", text)
        left = descriptors - _OWN
        room_for_arrivals = min(arrivals, max(_ARRIVALS_LEAST, left // 4))
        most = min(left - room_for_arrivals, descriptors * 3 // 4)
        found = cls(min(sessions, most) if sessions else sessions, room_for_arrivals)
        if found != cls(sessions, arrivals):
            _log.log(
                logging.WARNING if found.sessions < _SMALL else logging.DEBUG,
                "This process may open %d files, so it takes %d sessions (of %d) and %d connections that are none yet "
                "(of %d). A higher limit (LimitNOFILE=, ulimit -n) allows more.",
                descriptors, found.sessions, sessions, found.arrivals, arrivals,
            )  # fmt: skip
        return found


def queue_memory() -> int:
    """Bytes that all queues together may hold: a quarter of the machine's memory, at most 1 GiB."""
    try:
        return min(1 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)
    except (ValueError, OSError, AttributeError):
        return 1 << 28
