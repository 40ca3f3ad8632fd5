"""How many sockets a relay accepts, leaving descriptors for database, log and requests; and how much memory."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Final

from kdispatch_protocol.errors import KdispatchError

__all__ = ["Room", "queue_memory"]

_log = logging.getLogger("kdispatch.relay")

#: Descriptors of the relay itself: standard streams, the event loop, listening sockets, 11 for an SQLite database with
#: its readers, and files that are used now and then. At most 25 were observed.
_OWN: Final = 32
#: Connections without a session: a request of each kind, and a few that come at the same moment.
_ARRIVALS_LEAST: Final = 8
_SMALL: Final = 1_000  # below this many sessions, the operator gets a warning
_LEAST: Final = _OWN + 2 * _ARRIVALS_LEAST


@dataclass(frozen=True, slots=True)
class Room:
    """``sessions`` at a time (0: no limit), beside ``arrivals``: connections without a session."""

    sessions: int
    arrivals: int

    @classmethod
    def of(cls, descriptors: int | None, sessions: int, arrivals: int) -> Room:
        """The wanted numbers, as far as the descriptors allow; a warning says where they do not.

        Raises ``bad_request`` if a relay cannot work with so few descriptors.
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
                "This process may open %d files, so it takes %d sessions (of %d) and %d connections without a session "
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
