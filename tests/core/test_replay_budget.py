"""How much a process reads from its programs, and which of them it pauses, by what awaits acknowledgement."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.states import LegState
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames
from tests.core.conversation import SERVICE, Conversation
from tests.core.resuming import entry, hear, host, lose
from tests.core.world import SMALL

_SIP = 256  # the minimum of a read
_MOST = 600  # the maximum
_SCARCE = dataclasses.replace(SMALL, replay=2000)
_EAGER = Limits(replay=120_000, window_floor=1000, unsent=120_000)

ops = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 7), st.integers(1, _MOST)),
        st.tuples(st.just("write"), st.integers(0, 7), st.just(_MOST)),
        st.tuples(st.sampled_from(["ack", "attach"]), st.integers(0, 7), st.integers(0, 100)),
        st.tuples(st.sampled_from(["open", "flush", "eof", "reset", "lose"]), st.integers(0, 7), st.just(0)),
    ),
    max_size=80,
)


def test_a_spent_replay_budget_leaves_sips() -> None:
    """A process reads from a program up to its share, then up to its floor, then only a minimum."""
    talk = Conversation(limits=Limits(replay=30_000, window_floor=1000))
    table = talk.table
    stream, small = talk.client(), table.open(SERVICE, "77" * 16, talk.now)
    assert table.room(stream) == 7500
    table.write(small, bytes(100))
    table.write(stream, bytes(13_000))
    assert (table.room(stream), table.room(small)) == (1950, 8400)
    table.write(stream, bytes(16_899))
    assert (table.room(stream), table.room(small)) == (_SIP, 900)
    table.write(small, bytes(899))
    assert table.room(small) == _SIP


class Writers:
    """A host whose programs write all they may. ``asked``: each is read only as far as there is room."""

    def __init__(self, limits: Limits, *, asked: bool) -> None:
        self.talk = Conversation(limits=limits, offer=True)
        self.asked = asked
        self.may_write: dict[Stream, bool] = {}
        self.fresh = (f"{one:032x}" for one in range(1, 1000))
        self.open()

    def do(self, what: str, which: int, size: int) -> None:
        stream = list(self.may_write)[which % len(self.may_write)]
        match what:
            case "open":
                self.open()
            case "write":
                self.write(stream, size)
            case "ack":
                self.ack(stream, size, 3 * size)
            case "attach" if stream.leg is LegState.ATTACHING:
                out = stream.outbound
                hear(self.talk, entry(stream, received=out.base + (out.sent - out.base) * size // 100, limit=out.end))
            case "flush":
                self.talk.said()
            case "eof":
                self.talk.table.write_eof(stream)
            case "reset" if len(self.may_write) > 1:
                self.talk.table.reset(stream, "cancelled")
                del self.may_write[stream]
            case "lose":
                lose(self.talk)
            case _:
                pass
        self.listen()

    def listen(self) -> None:
        for event in self.talk.events():
            if isinstance(event, events.WritingResumed):
                self.may_write[event.stream] = True

    def open(self) -> Stream:
        uuid = next(self.fresh)
        stream = host(self.talk, number=2 * int(uuid, 16), uuid=uuid)
        self.may_write[stream] = True
        return stream

    def write(self, stream: Stream, size: int) -> None:
        """One read of its program, on the fast path where possible."""
        table = self.talk.table
        if not self.may_write[stream] or stream.outbound.eof:
            return
        data = bytes(min(size, table.room(stream)) if self.asked else size)
        self.talk.session.send_fast = lambda *_: True
        if not table.write_fast(stream, data):
            self.may_write[stream] = table.write(stream, data)

    def ack(self, stream: Stream, percent: int, more: int) -> None:
        out = stream.outbound
        if stream.leg is LegState.JOINED:
            received = out.base + (out.sent - out.base) * percent // 100
            fin = out.fin_sent and received == out.end
            self.talk.hear(frames.ack_frame(stream.number, received, out.limit + more, fin=fin))

    def acknowledge_all(self) -> None:
        """All peers are back, and acknowledge everything."""
        for stream in list(self.may_write):
            self.do("attach", list(self.may_write).index(stream), 0)
        for _ in range(2):
            for stream in self.may_write:
                self.ack(stream, 100, 1 << 20)
            self.do("flush", 0, 0)
        for stream in self.may_write:
            self.ack(stream, 100, 0)
        self.listen()

    def fill(self, stream: Stream) -> None:
        while self.may_write[stream]:
            self.write(stream, _MOST)
            self.do("flush", 0, 0)


@pytest.mark.slow
@given(st.booleans(), ops)
@settings(max_examples=500)
def test_the_replay_budget_holds_and_nobody_is_forgotten(asked: bool, happens: list[tuple[str, int, int]]) -> None:
    """Above the budget each stream has its floor and one read, and all continue once everything is acknowledged."""
    writers = Writers(_SCARCE, asked=asked)
    table, may_write = writers.talk.table, writers.may_write
    for op in happens:
        writers.do(*op)
        assert table.replay_held == sum(stream.outbound.size for stream in may_write)
        assert table.replay_held <= _SCARCE.replay + len(may_write) * (
            _SCARCE.window_floor + (_SIP if asked else _MOST)
        )
        assert all(may or stream.outbound.size for stream, may in may_write.items())
    writers.acknowledge_all()
    assert table.replay_held == 0
    assert all(may_write.values())


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_streams_that_write_all_they_can_come_to_equal_parts(count: int) -> None:
    """N streams that write all they can end with one N + 1st part of the replay budget each, in any order."""
    writers = Writers(_EAGER, asked=True)
    streams = [*writers.may_write]
    writers.fill(streams[0])
    assert streams[0].outbound.size == _EAGER.replay // 2
    streams += [writers.open() for _ in range(count - 1)]
    for _ in range(30):
        for stream in streams:
            writers.fill(stream)
            writers.ack(stream, 50, 1 << 20)
            writers.listen()
            writers.fill(stream)
    part = _EAGER.replay / (count + 1)
    assert all(0.9 * part < stream.outbound.size < 1.1 * part for stream in streams)


def test_streams_without_their_peers_leave_room() -> None:
    """While eight streams hold all they may without an answer, one more may have half a ninth of the budget sent."""
    writers = Writers(_EAGER, asked=True)
    eight = [*writers.may_write, *(writers.open() for _ in range(7))]
    while any(writers.may_write.values()):
        for stream in eight:
            writers.write(stream, _MOST)
            writers.do("flush", 0, 0)
    lose(writers.talk)
    stream = writers.open()
    for _ in range(10):
        writers.fill(stream)
        assert stream.outbound.size >= 0.8 * _EAGER.replay / 18
        writers.ack(stream, 100, 1 << 20)
        writers.listen()
        assert stream.outbound.size == 0
    assert not any(writers.may_write[one] for one in eight)
