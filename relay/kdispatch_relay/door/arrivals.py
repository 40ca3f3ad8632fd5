"""Sockets that are no agent's session yet, and most of which never will be: how many, whose, and for how long.

Each has one deadline, from when it is accepted until it has shown something of use: a request, or for a tunnel a HELLO.
A request that is asked for on the same connection later has as long from its first byte on.

Of all sockets those that show nothing, or nothing more, are let go for new ones when there are too many: an honest
agent is among them for a few round trips only. Of one source those that rest are let go; those that are expected to
show something keep their place, and new ones are refused: behind one address there may be a whole office.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Final

from multidict import CIMultiDictProxy

from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from kdispatch_protocol.session.aio.alarm import Alarm
from kdispatch_relay.sources import (
    LOOPBACK,
    Networks,
    address_of,
    forwarded_source,
    group_of,
    is_passed_on,
    is_trusted,
)

__all__ = ["Arrival", "Arrivals"]

_log = logging.getLogger("kdispatch.relay")

_GRACE: Final = 5.0  # seconds in which a connection that has rested for long enough is closed by whoever serves it


class Arrival:
    """One socket. Whoever serves it says what it is doing, and sets ``drop``, which closes it at once."""

    __slots__ = ("_arrivals", "drop", "group", "peer", "trusted")

    def __init__(self, arrivals: Arrivals, peer: str, group: str, drop: Callable[[], None], *, trusted: bool) -> None:
        self._arrivals = arrivals
        self.peer = peer
        self.group = group  # what it counts for; empty where nobody counts
        self.drop = drop
        self.trusted = trusted  # it is a proxy's, which says whose it really is

    def waits(self) -> None:
        """Something is expected of it, within the deadline; that of before stays where there is one."""
        self._arrivals.wait(self)

    def works(self) -> None:
        """Its request is here whole."""
        self._arrivals.work(self)

    def rests(self) -> None:
        """Its request is answered, and there may be another one."""
        self._arrivals.rest(self)

    def carries_nothing(self) -> None:
        """It is an agent's that only measures: it has no deadline any more, and is among the first to go."""
        self._arrivals.spare(self)

    def is_of(self, source: str) -> bool:
        """Its request turned out to be of ``source``; returns whether that may have one more."""
        return self._arrivals.regroup(self, source)

    def refused(self, code: str) -> None:
        """Something that came on it is refused; this counts it, unless it was dropped before for another reason."""
        self._arrivals.count(self, code)

    def ends(self) -> None:
        """It is closed, or an agent's session. Harmless when it is told again."""
        self._arrivals.forget(self)


class Arrivals:
    """All of one relay. ``refused`` counts by code what was refused, before anything else was done for it."""

    def __init__(self, trusted: Networks = (), limits: Limits = DEFAULT_LIMITS) -> None:
        self.refused: Counter[str] = Counter()
        self._trusted = trusted
        self._warned = False
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._loop, self._timed_out)
        self._groups: dict[str, int] = {}
        self._all: set[Arrival] = set()
        self._idle: dict[Arrival, None] = {}  # nothing is done for these; the first has been so for longest
        self._deadlines: dict[Arrival, float] = {}  # all are given as long, so the first is due first
        self._resting: dict[Arrival, float] = {}  # likewise: until when there may be another request

    def __len__(self) -> int:
        return len(self._all)

    def admit(self, peer: str, drop: Callable[[], None]) -> Arrival | None:
        """A new socket from ``peer``, which waits; ``None`` where it is to be closed."""
        address = address_of(peer)
        trusted = address is not None and is_trusted(address, self._trusted)
        group = self._group_of(peer)
        if not self._has_place(group) or not self._has_room():
            self.refused["busy"] += 1
            return None
        arrival = Arrival(self, peer, group, drop, trusted=trusted)
        self._all.add(arrival)
        self._enter(group)
        self.wait(arrival)
        return arrival

    def source_of(self, arrival: Arrival, forwarded: list[str]) -> str:
        """From where a request on it comes, which has these ``X-Forwarded-For`` headers."""
        if not (arrival.trusted and forwarded):
            return arrival.peer
        return forwarded_source(arrival.peer, forwarded, self._trusted)

    def counted_for(self, arrival: Arrival, source: str, headers: CIMultiDictProxy[str]) -> str:
        """What a request of ``source`` counts for where something may be done so and so often; empty where unknown.

        A server in front on this machine that nobody has told of would be everybody's source. So here, and nowhere
        else, it is believed: whoever could forge its word there is on this machine, or has no source of his own anyway.
        """
        if arrival.group or arrival.trusted or not is_passed_on(headers):
            return arrival.group or group_of(source)
        if not self._warned:
            self._warned = True
            _log.warning(
                "Requests come by a server on this machine that is no trusted proxy: all of them seem to come from "
                "here, but for limits. Start the relay with --trusted-proxy %s.",
                arrival.peer,
            )
        forwarded = headers.getall("X-Forwarded-For", [])
        believed = forwarded_source(arrival.peer, forwarded, (*self._trusted, *LOOPBACK))
        return "" if believed == arrival.peer else group_of(believed)

    def make_room(self, waited: float = 0.0) -> bool:
        """Close the socket for which nothing has been done for longest; returns whether there was one.

        One that is expected to show something must have had so many seconds for it.
        """
        most = self._loop.time() + self._limits.hello - waited
        longest = next((one for one in self._idle if self._deadlines.get(one, 0.0) <= most), None)
        if longest is None:
            return False
        self._refuse(longest, "busy")
        return True

    def close(self) -> None:
        """Look at no deadline any more."""
        self._alarm.cancel()

    # --- what becomes of one --------------------------------------------------------------------

    def wait(self, arrival: Arrival) -> None:
        """See :meth:`Arrival.waits`."""
        if arrival in self._deadlines or arrival not in self._all:
            return
        deadline = self._loop.time() + self._limits.hello
        self._deadlines[arrival] = deadline
        self._resting.pop(arrival, None)
        self._idle.pop(arrival, None)
        self._idle[arrival] = None
        self._alarm.set(deadline)

    def work(self, arrival: Arrival) -> None:
        """See :meth:`Arrival.works`."""
        self._deadlines.pop(arrival, None)
        self._resting.pop(arrival, None)
        self._idle.pop(arrival, None)

    def rest(self, arrival: Arrival) -> None:
        """See :meth:`Arrival.rests`."""
        if arrival in self._all:
            self.spare(arrival)
            if arrival.trusted:  # its next request is somebody else's
                self._move(arrival, "")
            # aiohttp closes it before; but not where its answer is not read.
            self._resting[arrival] = self._loop.time() + self._limits.keep_alive + _GRACE
            self._alarm.set(self._resting[arrival])

    def spare(self, arrival: Arrival) -> None:
        """See :meth:`Arrival.carries_nothing`."""
        if arrival in self._all:
            self.work(arrival)
            self._idle[arrival] = None

    def regroup(self, arrival: Arrival, source: str) -> bool:
        """See :meth:`Arrival.is_of`."""
        group = self._group_of(source)
        if arrival not in self._all or group == arrival.group:
            return True
        if not self._has_place(group):
            return False
        self._move(arrival, group)
        return True

    def forget(self, arrival: Arrival) -> None:
        """See :meth:`Arrival.ends`."""
        if arrival in self._all:
            self._all.remove(arrival)
            self._leave(arrival.group)
            self.work(arrival)

    def count(self, arrival: Arrival, code: str) -> None:
        """See :meth:`Arrival.refused`."""
        if arrival in self._all:
            self.refused[code] += 1

    # --- inner ----------------------------------------------------------------------------------

    def _group_of(self, source: str) -> str:
        """What a socket from there counts for: for nobody where it is a proxy's, which brings everybody's.

        On this machine there may be one that nobody has told of.
        """
        address = address_of(source)
        if address is None or address.is_loopback or is_trusted(address, self._trusted):
            return ""
        return group_of(source)

    def _has_place(self, group: str) -> bool:
        if self._groups.get(group, 0) < self._limits.arrivals_source:
            return True
        rests = next((one for one in self._idle if one.group == group and one not in self._deadlines), None)
        if rests is None:
            return False
        self._refuse(rests, "busy")
        return True

    def _move(self, arrival: Arrival, group: str) -> None:
        self._leave(arrival.group)
        arrival.group = group
        self._enter(group)

    def _has_room(self) -> bool:
        return len(self._all) < self._limits.arrivals or self.make_room()

    def _refuse(self, arrival: Arrival, code: str) -> None:
        self.refused[code] += 1
        self.forget(arrival)
        arrival.drop()

    def _timed_out(self) -> None:
        now = self._loop.time()
        for due in (self._deadlines, self._resting):
            while due:
                arrival, deadline = next(iter(due.items()))
                if deadline > now:
                    self._alarm.set(deadline)
                    break
                self._refuse(arrival, "timed_out")

    def _enter(self, group: str) -> None:
        if group:
            self._groups[group] = self._groups.get(group, 0) + 1

    def _leave(self, group: str) -> None:
        left = self._groups.get(group, 0) - 1
        if left > 0:
            self._groups[group] = left
        else:
            self._groups.pop(group, None)
