"""Limits of the paths to a relay: how long a session may be silent there, and how old it may get.

Many boxes cut idle or old connections without notice. An agent learns the limits from how its sessions end. Then it
pings sooner, or replaces its session sooner. No I/O: times are arguments, in seconds of a monotonic clock.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Final

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.liveness import Course, Cut

__all__ = ["PathLimits", "Paths"]

#: Part of the silence limit after which to ping. A lost PING arrives a second or two later.
_PING_PART: Final = 1 / 2
#: Parts of the age limit at which to leave a session. Its streams need a moment to move.
_ROTATE_PARTS: Final = (0.5, 0.7)
#: Seconds for which a learned limit holds before a trial without it; each failed trial doubles them.
_HOLD: Final = 3600.0
_HOLD_MOST: Final = 24 * 3600.0
#: Pairs of network and URL that an agent remembers: a laptop has two or three.
_PATHS: Final = 8


class _Bound:
    """A point at which sessions are cut: suspected after one cut, believed after two in a row.

    Two cuts count as equal if they differ by at most ``spread``, as a part. A session that passes ``proof``, a part of
    the known point, proves that nothing cuts there.
    """

    def __init__(self, spread: float, proof: float) -> None:
        self._spread = spread
        self._proof = proof
        self._suspected: float | None = None
        self._believed: float | None = None
        self._hold = _HOLD
        self._until = 0.0

    def at(self, now: float) -> float | None:
        """The believed limit, if it must be respected now; ``None`` otherwise."""
        return self._believed if now < self._until else None

    def passed(self, point: float) -> None:
        """Record that a session got past this point."""
        if self._suspected is not None and point >= self._suspected * self._proof:
            self._suspected = None
        if self._believed is not None and point >= self._believed * self._proof:
            self._believed, self._hold = None, _HOLD

    def cut(self, point: float, now: float) -> bool:
        """Record that a session was cut at this point; returns whether this established a new limit."""
        if self._believed is not None and now >= self._until and point >= self._believed * (1 - self._spread):
            self._hold = min(2 * self._hold, _HOLD_MOST)
            self._until = now + self._hold
        elif self._suspected is not None and abs(point - self._suspected) <= self._spread * max(point, self._suspected):
            self._believed, self._suspected = min(point, self._suspected), None
            self._until = now + self._hold
            return True
        else:
            self._suspected = point
        return False


class PathLimits:
    """The limits of one path to the relay."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._idle = _Bound(spread=0.25, proof=0.98)  # the silence before a PING is always the same
        self._age = _Bound(spread=0.05, proof=1.1)  # boxes are exact, and random cuts rarely come so close together

    def idle_limit(self, now: float) -> float | None:
        """The silence in seconds after which sessions are cut, if it is known and short enough to matter."""
        return self._idle.at(now)

    def age_limit(self, now: float) -> float | None:
        """The age in seconds at which sessions are cut, under the same conditions."""
        return self._age.at(now)

    def ping(self, now: float) -> float:
        """The silence in seconds after which a session that starts now must ping."""
        limit = self.idle_limit(now)
        most = self._limits.ping
        return most if limit is None else min(most, max(self._limits.ping_least, limit * _PING_PART))

    def rotate(self, now: float) -> tuple[float, float]:
        """The smallest and largest age in seconds at which to leave a session that starts now."""
        usual = self._limits.rotate
        span = usual * 5 / 6, usual * 7 / 6
        limit = self.age_limit(now)
        if limit is None:
            return span
        sooner = (max(self._limits.rotate_least, limit * part) for part in _ROTATE_PARTS)
        least, most = (min(pair) for pair in zip(span, sooner, strict=True))
        return least, most

    def over(self, course: Course) -> None:
        """Record that a session here ended, or was left."""
        self._idle.passed(course.survived)
        self._age.passed(course.lasted)

    def cut(self, course: Course, now: float) -> str:
        """Record that a session was cut here, with the relay still reachable. Returns a message, if this is news.

        If the session had survived a similar silence before, the silence is not the cause.
        """
        silence = course.silence
        if course.survived < silence * 0.98 and silence > self._limits.ping_least:
            if self._idle.cut(silence, now):
                return (
                    f"The path to the relay cuts sessions that are silent for {self.idle_limit(now):.3g} s: "
                    f"from now on the agent sends something every {self.ping(now):.3g} s."
                )
            return ""
        regular = course.cut is Cut.CLOSED and course.lasted > self._limits.rotate_least
        if regular and self._age.cut(course.lasted, now):
            return (
                f"The path to the relay cuts sessions that are {self.age_limit(now):.3g} s old: "
                "from now on a new session replaces each one before that age."
            )
        return ""


class Paths:
    """The paths that an agent has used: a network of this machine, and one of the relay's URLs."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: OrderedDict[tuple[str, str], PathLimits] = OrderedDict()
        self._cut: tuple[PathLimits, Course] | None = None  # the last session, until the relay is reached again

    def over(self, path: PathLimits, course: Course, *, said: bool) -> None:
        """Record that a session on that path ended, or was left; ``said``: the relay had sent a GOAWAY."""
        path.over(course)
        self._cut = (path, course) if course.cut is not None and not said else None

    def unreachable(self) -> None:
        """The relay could not be reached: the loss of the last session has the same cause."""
        self._cut = None

    def reached(self, own: str, relay: str, now: float) -> tuple[PathLimits, str]:
        """The relay was reached from a local address; returns the path, and a message about what was learned."""
        key = _network(own), relay
        path = self._known.setdefault(key, PathLimits(self._limits))
        self._known.move_to_end(key)
        if len(self._known) > _PATHS:
            self._known.popitem(last=False)
        cut, self._cut = self._cut, None
        return path, path.cut(cut[1], now) if cut is not None and cut[0] is path else ""


def _network(own: str) -> str:
    """The network of a local address, as far as visible: the address, for IPv6 its first half.

    The second half changes daily on a machine with privacy extensions.
    """
    try:
        address = ipaddress.ip_address(own.partition("%")[0])
    except ValueError:
        return ""
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
