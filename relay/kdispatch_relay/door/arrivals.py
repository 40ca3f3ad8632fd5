"""Limits unauthenticated connections: how many there may be, how many of one source, and for how long.

Each has one deadline, which runs from accept until the connection has shown something useful: a request, or for a
tunnel a HELLO. A later request on the same connection has as much time, from its first byte.

When there are too many connections overall, idle and waiting ones are closed to admit new ones. An honest agent is
among them only for a few round trips. When one source has too many, its idle connections are closed. Those still
expected to show something keep their place, and new ones are refused: one address may stand for a whole office.
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

_GRACE: Final = 5.0  # seconds in which the HTTP server itself may close a connection that was idle for too long


class Arrival:
    """One unauthenticated connection. Its server reports its state, and sets ``drop``, which closes it at once."""

    __slots__ = ("_arrivals", "drop", "group", "peer", "trusted")

    def __init__(self, arrivals: Arrivals, peer: str, group: str, drop: Callable[[], None], *, trusted: bool) -> None:
        self._arrivals = arrivals
        self.peer = peer
        self.group = group  # the source that it counts for; empty if it counts for none
        self.drop = drop
        self.trusted = trusted  # it comes from a proxy, which names the real source

    def waits(self) -> None:
        """The connection has to show something before its deadline. An earlier deadline stays."""
        self._arrivals.wait(self)

    def works(self) -> None:
        """Its request has arrived completely."""
        self._arrivals.work(self)

    def rests(self) -> None:
        """Its request is answered, and there may be another one."""
        self._arrivals.rest(self)

    def carries_nothing(self) -> None:
        """It is the session of an agent that only measures: it has no deadline now, and is among the first to close."""
        self._arrivals.spare(self)

    def is_of(self, source: str) -> bool:
        """Its request comes from ``source``; returns whether that source may have one more connection."""
        return self._arrivals.regroup(self, source)

    def refused(self, code: str) -> None:
        """Count a refusal on this connection, unless the connection was already dropped for another reason."""
        self._arrivals.count(self, code)

    def ends(self) -> None:
        """The connection is closed, or has become an agent's session. A second call changes nothing."""
        self._arrivals.forget(self)


class Arrivals:
    """All unauthenticated connections of one relay. ``refused`` counts, by code, what was refused at this stage."""

    def __init__(self, trusted: Networks = (), limits: Limits = DEFAULT_LIMITS) -> None:
        self.refused: Counter[str] = Counter()
        self._trusted = trusted
        self._warned = False
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._loop, self._timed_out)
        self._groups: dict[str, int] = {}
        self._all: set[Arrival] = set()
        self._idle: dict[Arrival, None] = {}  # waiting or idle; the longest first
        self._deadlines: dict[Arrival, float] = {}  # all have the same time, so the first is due first
        self._resting: dict[Arrival, float] = {}  # until when there may be another request; also in order

    def __len__(self) -> int:
        return len(self._all)

    def admit(self, peer: str, drop: Callable[[], None]) -> Arrival | None:
        """Admit a new connection from ``peer``, with a deadline; ``None`` if the caller has to close it."""
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
        """The source of a request on this connection, given the request's ``X-Forwarded-For`` headers."""
        if not (arrival.trusted and forwarded):
            return arrival.peer
        return forwarded_source(arrival.peer, forwarded, self._trusted)

    def counted_for(self, arrival: Arrival, source: str, headers: CIMultiDictProxy[str]) -> str:
        """The source that a request counts for in rate limits; empty if it is unknown.

        With a server in front on this machine that is not configured as a proxy, all requests would have one source. So
        here, and nowhere else, the relay trusts that server's header: a sender that can forge it is on this machine, or
        has no source of its own anyway.
        """
        if arrival.group or arrival.trusted or not is_passed_on(headers):
            return arrival.group or group_of(source)
        if not self._warned:
            self._warned = True
            _log.warning(
                "Requests come through a server on this machine that is not a trusted proxy: except for limits, all "
                "count as coming from this machine. Start the relay with --trusted-proxy %s.",
                arrival.peer,
            )
        forwarded = headers.getall("X-Forwarded-For", [])
        believed = forwarded_source(arrival.peer, forwarded, (*self._trusted, *LOOPBACK))
        return "" if believed == arrival.peer else group_of(believed)

    def make_room(self, waited: float = 0.0) -> bool:
        """Close the connection that has been waiting or idle for longest; returns whether there was one.

        A connection with a deadline is closed only after it has had ``waited`` seconds.
        """
        most = self._loop.time() + self._limits.hello - waited
        longest = next((one for one in self._idle if self._deadlines.get(one, 0.0) <= most), None)
        if longest is None:
            return False
        self._refuse(longest, "busy")
        return True

    def close(self) -> None:
        """Stop watching deadlines."""
        self._alarm.cancel()

    # --- states of a connection -----------------------------------------------------------------

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
            if arrival.trusted:  # its next request may come from another source
                self._move(arrival, "")
            # aiohttp closes it earlier, but not if the peer does not read its answer.
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
        """The source that a connection from this address counts for; empty for a proxy's, which brings requests of all.

        A loopback address also counts for none: there may be a server in front that is not configured as a proxy.
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
