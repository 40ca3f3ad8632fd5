from __future__ import annotations

import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kdispatch_protocol.endpoint.replay import Outbound
from kdispatch_protocol.errors import LocalProtocolError, RemoteProtocolError
from kdispatch_protocol.wire.frames import Buffer

KINDS: list[type[bytes | bytearray | memoryview]] = [bytes, bytearray, memoryview]
SIZES = st.integers(0, 40) | st.sampled_from([1000, 1023, 1024, 1025, 2000, 16 * 1024, 16 * 1024 + 1, 70_000])


def bytes_at(offset: int, count: int) -> bytes:
    """The bytes of a stream at these offsets; each offset has its own."""
    blocks = range(offset // 4, (offset + count) // 4 + 1)
    return b"".join(block.to_bytes(4, "big") for block in blocks)[offset % 4 :][:count]


def taken(outbound: Outbound, most: int) -> bytes:
    parts: list[Buffer] = []
    count = outbound.take(most, parts)
    joined = b"".join(parts)
    assert count == len(joined)
    return joined


def filled(*sizes: int, limit: int = 1 << 40) -> Outbound:
    """A sender's half to which pieces of these sizes were written."""
    outbound = Outbound()
    outbound.limit = limit
    for size in sizes:
        outbound.write(bytes_at(outbound.end, size))
    return outbound


def chunks(outbound: Outbound) -> int:
    """How many objects hold its bytes."""
    return sum(len(queue) for queue in (outbound._unsent, outbound._replay) if queue is not None)


class Replay(RuleBasedStateMachine):
    """The sending half next to a simple model: offsets into a sequence of known bytes."""

    @initialize()
    def start(self) -> None:
        self.outbound = Outbound()
        self.base = self.sent = self.end = self.limit = 0
        self.reached = 0  # how far it was sent before the rewind
        self.kept: list[tuple[int, list[Buffer], bytes]] = []  # bytes handed out, compared later
        self.ended = False

    @rule(size=SIZES, kind=st.sampled_from(KINDS))
    def write(self, size: int, kind: type[bytes | bytearray | memoryview]) -> None:
        data = bytearray(bytes_at(self.end, size))
        if self.ended:
            with pytest.raises(LocalProtocolError):
                self.outbound.write(data)
            return
        self.outbound.write(bytes(data) if kind is bytes else kind(data))
        data[:] = b"?" * len(data)  # the writer may reuse its memory
        self.end += size

    @rule(most=st.integers(-5, 50) | SIZES)
    def take(self, most: int) -> None:
        parts: list[Buffer] = []
        count = self.outbound.take(most, parts)
        assert count == max(0, min(most, self.limit - self.sent, self.end - self.sent))
        assert b"".join(parts) == bytes_at(self.sent, count)
        assert all(len(part) for part in parts)
        self.kept.append((self.sent, parts, bytes_at(self.sent, count)))
        self.sent += count

    @rule(share=st.floats(0, 1), more=st.integers(0, 100) | SIZES)
    def acknowledge(self, share: float, more: int) -> None:
        received = self.base + int((max(self.sent, self.reached) - self.base) * share)
        assert self.outbound.acknowledge(received, self.base + more, fin=False) == received - self.base
        self.limit = max(self.limit, self.base + more)
        self.base = received
        self.sent = max(self.sent, received)

    @rule(back=st.integers(0, 100))
    def old_acknowledgement(self, back: int) -> None:
        assert self.outbound.acknowledge(max(0, self.base - back), 0, fin=False) == 0

    @rule(beyond=st.integers(1, 100))
    def untrue_acknowledgement(self, beyond: int) -> None:
        for received, fin in ((max(self.sent, self.reached) + beyond, False), (self.sent, True)):
            with pytest.raises(RemoteProtocolError) as error:
                self.outbound.acknowledge(received, 1 << 40, fin=fin)
            assert error.value.code == "offset_mismatch"

    @rule()
    def rewind(self) -> None:
        self.outbound.rewind()
        self.reached = max(self.reached, self.sent)
        self.sent = self.base

    @rule()
    def restart(self) -> None:
        if not self.base:  # to a peer that has none of it
            self.outbound.restart()
            self.reached = self.sent = 0

    @rule()
    def end_it(self) -> None:
        self.outbound.eof = self.ended = True

    @invariant()
    def offsets_agree(self) -> None:
        out = self.outbound
        assert (out.base, out.sent, out.end, out.limit) == (self.base, self.sent, self.end, self.limit)
        assert (out.size, out.unsent) == (self.end - self.base, self.end - self.sent)
        held = sum(len(c) for queue in (out._unsent, out._replay) if queue for c in queue)
        assert held == out.size  # acknowledged bytes are freed, and no byte is kept twice

    def teardown(self) -> None:
        """What was handed out has not changed, and the rest comes out right."""
        self.outbound.limit = self.end
        assert taken(self.outbound, self.end) == bytes_at(self.sent, self.end - self.sent)
        self.outbound.rewind()
        assert taken(self.outbound, self.end) == bytes_at(self.base, self.end - self.base)
        for _, parts, right in self.kept:
            assert b"".join(parts) == right
        assert self.outbound.clear() == self.end - self.base
        assert self.outbound.size == 0


Replay.TestCase.settings = settings(max_examples=50, stateful_step_count=40)
TestReplay = Replay.TestCase


def test_bytes_are_not_copied() -> None:
    """Large bytes are handed out, kept and sent again as the same object that was written."""
    data = bytes(100_000)
    outbound = filled()
    outbound.write(data)
    first: list[Buffer] = []
    outbound.take(100_000, first)
    outbound.rewind()
    second: list[Buffer] = []
    outbound.take(100_000, second)
    assert first[0] is data
    assert second[0] is data


def test_views_of_other_items() -> None:
    """A view counts its bytes, for items of any size."""
    outbound = filled()
    outbound.write(memoryview(b"abcdefgh").cast("I"))
    assert outbound.end == 8
    assert taken(outbound, 100) == b"abcdefgh"


def test_byte_by_byte_stays_compact() -> None:
    """A million writes of one byte take a hundred objects: unsent, sent and after a rewind."""
    outbound = Outbound()
    outbound.limit = 1 << 40
    began = time.process_time()
    for _ in range(1_000_000):
        outbound.write(b"x")
    assert time.process_time() - began < 10
    assert chunks(outbound) <= 1_000_000 // (16 * 1024) + 2
    while outbound.unsent:
        taken(outbound, 100)
    assert chunks(outbound) <= 1_000_000 // (16 * 1024) + 2
    outbound.rewind()
    assert taken(outbound, 1 << 40) == b"x" * 1_000_000
    assert outbound.acknowledge(1_000_000, 0, fin=False) == 1_000_000
    assert chunks(outbound) == 0


def test_small_writes_behind_a_split_chunk() -> None:
    """Small writes gather in their own run behind the rest of a partly sent chunk."""
    outbound = filled(50_000)
    assert taken(outbound, 10) == bytes_at(0, 10)
    for _ in range(100):
        outbound.write(bytes_at(outbound.end, 3))
    assert outbound._unsent is not None
    assert len(outbound._unsent) == 2
    assert taken(outbound, 1 << 20) == bytes_at(10, 50_290)


def test_nothing_goes_beyond_the_limit() -> None:
    """Written bytes wait for credit."""
    outbound = filled(100, limit=0)
    assert taken(outbound, 100) == b""
    outbound.acknowledge(0, 30, fin=False)
    assert taken(outbound, 100) == bytes_at(0, 30)
    outbound.acknowledge(0, 20, fin=False)  # an older, lower limit changes nothing
    assert (outbound.limit, taken(outbound, 100)) == (30, b"")


def test_an_empty_half() -> None:
    """A half without writes needs no queue, returns nothing and frees nothing."""
    outbound = filled()
    outbound.write(b"")
    outbound.rewind()
    assert (taken(outbound, 10), outbound.clear(), chunks(outbound)) == (b"", 0, 0)
    assert outbound._unsent is None


def test_acknowledging_the_end() -> None:
    """The end is acknowledged by its flag at its offset once it was sent, and stays acknowledged."""
    outbound = filled(10)
    taken(outbound, 10)
    outbound.eof = True
    with pytest.raises(RemoteProtocolError):
        outbound.acknowledge(10, 10, fin=True)
    outbound.fin_sent = True
    with pytest.raises(RemoteProtocolError):
        outbound.acknowledge(9, 10, fin=True)
    assert not outbound.fin_acked
    assert outbound.acknowledge(10, 10, fin=True) == 10
    outbound.acknowledge(10, 10, fin=False)
    assert outbound.fin_acked


def test_rewind_repeats_the_end() -> None:
    """After a rewind the end has to be sent again, too."""
    outbound = filled(10)
    taken(outbound, 10)
    outbound.eof = outbound.fin_sent = True
    outbound.rewind()
    assert (outbound.sent, outbound.fin_sent) == (0, False)


def test_a_cleared_half() -> None:
    """A half that was cleared returns what it freed, and holds nothing."""
    outbound = filled(10, 2000, 30)
    taken(outbound, 500)
    outbound.acknowledge(100, 0, fin=False)
    assert outbound.clear() == 1940
    assert (outbound.size, outbound.unsent, chunks(outbound)) == (0, 0, 0)
    assert taken(outbound, 100) == b""
