"""Two agents, a relay and the paths between them, in simulated time: how windows follow the capacity of a path.

The agents, the switch, the outboxes and the pace of batches are the real ones. A path is simulated as a rate, a delay
and the kernel's buffer before it. Programs write all they can, and read at once or at a rate.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.endpoint import Endpoint
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.limits import DEFAULT_LIMITS, KIB, Limits
from kdispatch_protocol.session.pace import Pace
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Buffer
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Offer
from kdispatch_relay.switch.intents import AskOffer
from kdispatch_relay.switch.registry import Terms
from kdispatch_relay.switch.sessions import SwitchSession
from kdispatch_relay.switch.switch import Switch
from tests.core.intents import cuts_of, questions_of

__all__ = ["FAST", "Download", "Paths", "Way"]

SERVICE = "ann/web"
#: Bytes a second of a path that is no bottleneck.
FAST = 2e9
_TICK = 0.005  # seconds between checks of deadlines
_BLOCK = bytes(64 * KIB)


class Way:
    """One direction of a session's connection, with a delay of ``seconds``."""

    def __init__(
        self, paths: Paths, seconds: float, collect: Callable[[int], list[Buffer]], deliver: Callable[[bytes], None]
    ) -> None:
        self.rate = FAST
        self._seconds = seconds
        self._paths = paths
        self._collect = collect
        self._deliver = deliver
        self._busy_until = 0.0
        self._full = False
        self._pace = Pace(paths.limits)
        self._given = 0

    @property
    def backlog(self) -> float:
        """Bytes in the kernel that have not left yet."""
        return max(0.0, self._busy_until - self._paths.now) * self.rate

    def flush(self) -> None:
        """Send what the socket takes, as a Link does."""
        now = self._paths.now
        while not self._full:
            message = b"".join(self._collect(self._pace.batch))
            if not message:
                return
            self._given += len(message)
            self._busy_until = max(now, self._busy_until) + len(message) / self.rate
            self._paths.at(self._busy_until + self._seconds, functools.partial(self._deliver, message))
            left = self.backlog - self._pace.batch  # the kernel holds at most one unsent batch
            if left > 0:
                self._full = True
                self._pace.filled(self._given - int(left), now)
                self._paths.at(now + left / self.rate, self._drained)

    def pause(self, seconds: float) -> None:
        """Delay what is under way and what follows: the other end is busy."""
        self._busy_until = max(self._paths.now, self._busy_until) + seconds

    def _drained(self) -> None:
        self._full = False
        self._pace.drained(self._paths.now)
        self.flush()


@dataclass
class Download:
    """A stream from the host to the client; its host writes all it can."""

    host: Stream
    client: Stream
    received: int = 0
    stopped: bool = False  # the host has stopped writing

    @property
    def window(self) -> int:
        """The bytes that its client allows to be under way."""
        return self.client.inbound.window


class _Agent:
    """One agent and its session."""

    def __init__(self, paths: Paths, secret: bytes, seconds: float) -> None:
        self.endpoint = Endpoint(secret, limits=paths.limits)
        self.session: SwitchSession = paths.switch.connect("", paths.now)
        self._paths = paths
        self.up = Way(paths, seconds, self._collect, self._at_relay)
        self.down = Way(paths, seconds, lambda most: self.session.outbox.collect(most, paths.now), self._at_agent)
        self.of_agent = self.endpoint.connect()

    def _collect(self, most: int) -> list[Buffer]:
        parts = self.endpoint.data_to_send(self.of_agent, most, self._paths.now)
        self._paths.deliver(self)  # paused writers continue
        return parts

    def _at_relay(self, message: bytes) -> None:
        self._paths.switch.receive_frames(self.session, frames.decode(message), self._paths.now)
        self._paths.settle()

    def _at_agent(self, message: bytes) -> None:
        self.endpoint.receive_frames(self.of_agent, frames.decode(message), self._paths.now)
        self._paths.happened(self)


class Paths:
    """``client`` and ``host``, joined by the relay; each leg has a delay of ``seconds`` each way."""

    def __init__(self, seconds: float, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.switch = Switch("00" * 16, lambda _: 0, self.now, limits=limits)
        self.client = _Agent(self, b"c" * 32, seconds)
        self.host = _Agent(self, b"h" * 32, seconds)
        self.downloads: list[Download] = []
        self._of: dict[Stream, Download] = {}
        offer = Offer(service=SERVICE, host=host_id(self.host.endpoint.process, SERVICE), digest="00" * 32, token="t")
        self.host.endpoint.offer(offer)
        self.at(0.0, self._tick)
        self.run(8 * seconds + 0.01)

    # --- time ------------------------------------------------------------------------------

    def at(self, when: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._count), call))

    def run(self, seconds: float, watch: Callable[[], None] | None = None) -> None:
        """Let this much time pass; ``watch`` is called at each tick."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, call = heapq.heappop(self._events)
            call()
            if watch is not None and call == self._tick:
                watch()
        self.now = end

    def _tick(self) -> None:
        self.at(self.now + _TICK, self._tick)
        self.switch.handle_timeout(self.now)
        for agent in (self.client, self.host):
            agent.endpoint.handle_timeout(self.now)
            self.happened(agent)
        self.settle()

    # --- what happens ----------------------------------------------------------------------

    def download(self, count: int = 1) -> list[Download]:
        """Begin this many downloads."""
        begun = []
        for _ in range(count):
            uuid = f"{len(self.downloads) + 1:032x}"
            stream = self.client.endpoint.table.open(SERVICE, uuid, self.now)
            begun.append(Download(host=stream, client=stream))
            self._of[stream] = begun[-1]
            self.downloads.append(begun[-1])
        self.client.up.flush()
        return begun

    def settle(self) -> None:
        """Carry out what the switch has decided."""
        switch = self.switch
        for question in questions_of(switch):
            if isinstance(question, AskOffer):
                switch.offers.allowed(question, Terms(public=True), self.now)
            else:
                switch.opens.allowed(question.route, Terms(public=True), self.now)  # type: ignore[union-attr]
        assert not cuts_of(switch), "an honest session was cut"
        switch.take_touched()
        for agent in (self.client, self.host):
            agent.down.flush()

    def happened(self, agent: _Agent) -> None:
        """Handle an endpoint's events, and send the frames that result."""
        self.deliver(agent)
        agent.up.flush()

    def deliver(self, agent: _Agent) -> None:
        """Handle an endpoint's events."""
        table = agent.endpoint.table
        while happened := agent.endpoint.take_events():
            for event in happened:
                match event:
                    case events.StreamRequested(stream):
                        table.accept(stream, self.now)
                        [download] = [one for one in self.downloads if one.client.uuid == stream.uuid]
                        download.host = stream
                        self._write(download)
                    case events.DataReceived(stream, data):
                        self._of[stream].received += len(data)
                        table.consumed(stream, len(data), self.now)
                    case events.WritingResumed(stream):
                        [download] = [one for one in self.downloads if one.host is stream]
                        self._write(download)
                    case events.StreamWasReset():
                        raise AssertionError(event)
                    case _:
                        pass

    def _write(self, download: Download) -> None:
        table = self.host.endpoint.table
        while not download.stopped and table.write(download.host, _BLOCK):
            pass

    # --- what is measured --------------------------------------------------------------------

    @property
    def received(self) -> int:
        """Bytes received by all downloads."""
        return sum(download.received for download in self.downloads)

    @property
    def queued(self) -> int:
        """Bytes that wait at the relay for the client."""
        return self.client.session.queued
