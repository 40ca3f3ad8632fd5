"""What the ways to a relay allow: how long a session may be silent there, and how old it may get.

Many boxes cut connections that are idle or old, and say nothing. An agent learns it from how its sessions end, and
then asks the relay sooner, or takes a new session sooner. No I/O: times are arguments, in seconds of a clock that never
goes back.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Final

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.liveness import Course, Cut

__all__ = ["PathLimits", "Paths"]

#: Of the silence that is cut, how much a session may be silent. A PING that is lost comes a second or two late.
_PING_PART: Final = 1 / 2
#: Of the age that is cut, at which a session is left. What is on it needs a moment to go over.
_ROTATE_PARTS: Final = (0.5, 0.7)
#: Seconds that something learnt counts before it is tried without it; each trial that fails doubles them.
_HOLD: Final = 3600.0
_HOLD_MOST: Final = 24 * 3600.0
#: Networks times URLs of the relay that an agent keeps in mind: a laptop has two or three.
_PATHS: Final = 8


class _Bound:
    """Something that cuts sessions at a certain point: suspected when that was seen once, believed when twice in a row.

    Two cuts are alike when they differ by no more than ``spread``, a part. A session that got as far as ``proof``, a
    part of where others were cut, is proof that nothing cuts there.
    """

    def __init__(self, spread: float, proof: float) -> None:
        self._spread = spread
        self._proof = proof
        self._suspected: float | None = None
        self._believed: float | None = None
        self._hold = _HOLD
        self._until = 0.0

    def at(self, now: float) -> float | None:
        """Where sessions are cut, as far as that is believed and to be heeded."""
        return self._believed if now < self._until else None

    def passed(self, point: float) -> None:
        """A session got past this point."""
        if self._suspected is not None and point >= self._suspected * self._proof:
            self._suspected = None
        if self._believed is not None and point >= self._believed * self._proof:
            self._believed, self._hold = None, _HOLD

    def cut(self, point: float, now: float) -> bool:
        """A session was cut at this point. Returns whether that is something new to believe."""
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
    """What one way to the relay allows."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._idle = _Bound(spread=0.25, proof=0.98)  # the silence before a PING is the same each time
        self._age = _Bound(spread=0.05, proof=1.1)  # boxes are exact, and of chance cuts few are as close together

    def idle_limit(self, now: float) -> float | None:
        """After how much silence sessions are cut here, if that is known and so soon that it matters."""
        return self._idle.at(now)

    def age_limit(self, now: float) -> float | None:
        """At what age, likewise."""
        return self._age.at(now)

    def ping(self, now: float) -> float:
        """After how much silence a session that begins now is to ask the relay."""
        limit = self.idle_limit(now)
        most = self._limits.ping
        return most if limit is None else min(most, max(self._limits.ping_least, limit * _PING_PART))

    def rotate(self, now: float) -> tuple[float, float]:
        """At which age at least, and at most, a session that begins now is to be left."""
        usual = self._limits.rotate
        span = usual * 5 / 6, usual * 7 / 6
        limit = self.age_limit(now)
        if limit is None:
            return span
        sooner = (max(self._limits.rotate_least, limit * part) for part in _ROTATE_PARTS)
        least, most = (min(pair) for pair in zip(span, sooner, strict=True))
        return least, most

    def over(self, course: Course) -> None:
        """A session here has ended, or was left."""
        self._idle.passed(course.survived)
        self._age.passed(course.lasted)

    def cut(self, course: Course, now: float) -> str:
        """A session was cut here, and the relay could be reached again at once. Returns what was learnt, if anything.

        Of a cut in a silence such as the session had survived before, the silence is not the reason.
        """
        silence = course.silence
        if course.survived < silence * 0.98 and silence > self._limits.ping_least:
            if self._idle.cut(silence, now):
                return (
                    f"The way to the relay cuts sessions that are silent for {self.idle_limit(now):.3g} s: "
                    f"from now on it is kept in use every {self.ping(now):.3g} s."
                )
            return ""
        regular = course.cut is Cut.CLOSED and course.lasted > self._limits.rotate_least
        if regular and self._age.cut(course.lasted, now):
            return (
                f"The way to the relay cuts sessions that are {self.age_limit(now):.3g} s old: "
                "from now on another takes over before."
            )
        return ""


class Paths:
    """The ways that an agent has used: from one network, by one of the relay's URLs."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: OrderedDict[tuple[str, str], PathLimits] = OrderedDict()
        self._cut: tuple[PathLimits, Course] | None = None  # the last session, until the relay is reached again

    def over(self, path: PathLimits, course: Course, *, said: bool) -> None:
        """A session on that way has ended, or was left; ``said`` is whether the relay had said goodbye."""
        path.over(course)
        self._cut = (path, course) if course.cut is not None and not said else None

    def unreachable(self) -> None:
        """The relay could not be reached: that the session before was lost has the same reason."""
        self._cut = None

    def reached(self, own: str, relay: str, now: float) -> tuple[PathLimits, str]:
        """The relay was reached from an address of this machine; returns the way, and what was learnt of it."""
        key = _network(own), relay
        path = self._known.setdefault(key, PathLimits(self._limits))
        self._known.move_to_end(key)
        if len(self._known) > _PATHS:
            self._known.popitem(last=False)
        cut, self._cut = self._cut, None
        return path, path.cut(cut[1], now) if cut is not None and cut[0] is path else ""


def _network(own: str) -> str:
    """The network that an address of this machine is in, as far as it shows: the address, and of IPv6 its first half.

    The second half changes by the day where a machine values its privacy.
    """
    try:
        address = ipaddress.ip_address(own.partition("%")[0])
    except ValueError:
        return ""
    return str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
