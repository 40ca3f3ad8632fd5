from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kdispatch_protocol.limits import KIB, Limits
from kdispatch_protocol.session.outbox import Outbox
from kdispatch_protocol.wire.frames import Buffer

QUANTUM = 1000
LIMITS = Limits(quantum=QUANTUM)


class Lane:
    """A source of whole frames of given sizes; each frame names its lane."""

    def __init__(self, name: bytes, *sizes: int) -> None:
        self.name = name
        self.sizes = list(sizes)
        self.deficit = 0
        self.queued = False
        self.asked: list[int] = []

    def pull(self, most: int, parts: list[Buffer], now: float) -> int:
        self.asked.append(most)
        size = 0
        while self.sizes and size < most:
            parts.append(self.name * self.sizes[0])
            size += self.sizes.pop(0)
        return size

    def ready(self) -> bool:
        return bool(self.sizes)


class Blocked(Lane):
    """A source that lost what it had to send, like a reset stream."""

    def pull(self, most: int, parts: list[Buffer], now: float) -> int:
        self.sizes.clear()
        return 0


class Stream:
    """An object that owes an ACK."""

    def __init__(self, frame: bytes) -> None:
        self.frame = frame

    def make_ack(self) -> bytes:
        return self.frame


def box(*lanes: Lane) -> Outbox:
    outbox = Outbox(LIMITS)
    for lane in lanes:
        outbox.activate(lane)
    return outbox


def turns(parts: list[Buffer]) -> list[tuple[str, int]]:
    """Which lane sent how much, frame by frame."""
    return [(chr(part[0]), len(part)) for part in parts]


def test_an_empty_outbox() -> None:
    """An empty outbox is false and returns nothing."""
    outbox = box()
    assert not outbox
    assert outbox.collect(1 << 20, 0) == []


def test_control_first_then_acks_then_data() -> None:
    """Control frames go first, in their order, then ACKs, then data."""
    outbox = box(Lane(b"d", 10, 10))
    outbox.acknowledge(Stream(b"ack"))
    outbox.send(b"one")
    outbox.send(b"two")
    assert outbox
    assert outbox.collect(1 << 20, 0) == [b"one", b"two", b"ack", b"d" * 10, b"d" * 10]
    assert not outbox


def test_control_overtakes_waiting_data() -> None:
    """Urgent frames come next, however much data waits."""
    outbox = box(Lane(b"d", *[100] * 50))
    outbox.collect(200, 0)
    outbox.send(b"urgent")
    outbox.acknowledge(Stream(b"ack"))
    assert outbox.collect(200, 0)[:3] == [b"urgent", b"ack", b"d" * 100]


def test_one_ack_per_stream() -> None:
    """A stream has at most one ACK in the queue, filled in when it is written."""
    outbox = box()
    stream = Stream(b"old")
    outbox.acknowledge(stream)
    outbox.acknowledge(Stream(b"other"))
    outbox.acknowledge(stream)
    stream.frame = b"new"
    assert outbox.collect(100, 0) == [b"new", b"other"]
    outbox.acknowledge(stream)
    assert outbox.collect(100, 0) == [b"new"]


def test_an_ack_that_nobody_needs_any_more() -> None:
    """A stream that has nothing to acknowledge when its turn comes sends nothing."""
    outbox = box()
    outbox.acknowledge(Stream(b""))
    assert outbox
    assert outbox.collect(100, 0) == []
    assert not outbox


def test_an_ack_that_waits_for_company() -> None:
    """A delayed ACK causes no sending by itself, goes along once with other frames, and is due when it is hurried."""
    outbox = box()
    outbox.acknowledge_soon(Stream(b"a"))
    assert not outbox
    outbox.send(b"c")
    assert outbox.collect(99, 0) == [b"c", b"a"]
    assert (bool(outbox), outbox.collect(99, 0)) == (False, [])
    twice = Stream(b"b")
    outbox.acknowledge_soon(twice)
    outbox.acknowledge(twice)
    assert outbox.collect(99, 0) == [b"b"]
    outbox.acknowledge_soon(Stream(b"d"))
    outbox.hurry()
    assert outbox
    assert outbox.collect(99, 0) == [b"d"]


def test_a_batch_ends_at_a_whole_frame() -> None:
    """A batch ends with the frame that fills it; the rest keeps its place."""
    outbox = box(Lane(b"d", 60, 60, 60))
    outbox.send(b"c" * 70)
    outbox.send(b"e" * 70)
    outbox.send(b"f")
    assert turns(outbox.collect(100, 0)) == [("c", 70), ("e", 70)]
    outbox.acknowledge(Stream(b"a" * 90))
    outbox.acknowledge(Stream(b"b" * 90))
    assert turns(outbox.collect(90, 0)) == [("f", 1), ("a", 90)]
    assert turns(outbox.collect(100, 0)) == [("b", 90), ("d", 60)]
    assert turns(outbox.collect(100, 0)) == [("d", 60), ("d", 60)]
    assert outbox.collect(0, 0) == []


def test_turns_of_a_quantum() -> None:
    """Sources take turns of a quantum each, in the order in which they came."""
    outbox = box(Lane(b"a", *[500] * 6), Lane(b"b", *[500] * 2), Lane(b"c", *[1000] * 2))
    order = "".join(name for name, _ in turns(outbox.collect(1 << 20, 0)))
    assert order == "aabbcaacaa"


def test_a_large_frame_is_paid_for() -> None:
    """A source whose frame was larger than its quantum waits longer for its next turn."""
    outbox = box(Lane(b"a", *[3000] * 2), Lane(b"b", *[1000] * 6))
    order = "".join(name for name, _ in turns(outbox.collect(1 << 20, 0)))
    assert order == "abbbabbb"


def test_activating_again() -> None:
    """A source has one place in the ring, however often it is activated."""
    a, b = Lane(b"a", *[1000] * 3), Lane(b"b", *[1000] * 3)
    outbox = box(a, a, b, a, b)
    assert "".join(name for name, _ in turns(outbox.collect(1 << 20, 0))) == "ababab"


def test_a_source_with_nothing_left_leaves() -> None:
    """A source that is not ready leaves the ring, gains no credit while it is away, and may come back."""
    lane = Lane(b"a", 10)
    outbox = box(lane)
    outbox.collect(1 << 20, 0)
    assert (lane.queued, lane.deficit, bool(outbox)) == (False, 0, False)
    lane.sizes = [5000]
    outbox.activate(lane)
    outbox.activate(Lane(b"b", 10))
    assert turns(outbox.collect(1 << 20, 0)) == [("a", 5000), ("b", 10)]
    assert (lane.queued, lane.deficit) == (False, -4000)  # but its debt stays


def test_a_lone_source_takes_no_turns() -> None:
    """While no other source waits, a source may fill the batch without owing anything to later sources."""
    lane = Lane(b"a", *[300] * 30)
    outbox = box(lane)
    outbox.collect(6000, 0)
    assert (lane.asked, lane.deficit, len(lane.sizes)) == ([6000], 0, 10)
    outbox.activate(Lane(b"b", 10))
    assert turns(outbox.collect(1 << 20, 0)) == [*[("a", 300)] * 4, ("b", 10), *[("a", 300)] * 6]
    assert lane.deficit == 0


def test_a_source_that_was_reset() -> None:
    """A source that turns out to be empty passes its turn to the next."""
    reset = Blocked(b"r", 10)
    outbox = box(reset, Lane(b"a", 10))
    assert turns(outbox.collect(1 << 20, 0)) == [("a", 10)]
    assert (reset.queued, reset.deficit, bool(outbox)) == (False, 0, False)


def test_a_source_is_not_asked_for_more_than_the_batch_has_room() -> None:
    """The last source of a batch is asked for as much as is missing."""
    lane = Lane(b"a", *[100] * 10)
    outbox = box(lane)
    outbox.send(b"c" * 70)
    outbox.collect(100, 0)
    assert lane.asked == [30]


def test_small_batches_make_short_turns() -> None:
    """A session with small batches gives each source a quarter of a batch, so that later ones wait less."""
    lanes = [Lane(bytes([ord("a") + number]), *[1 * KIB] * 64) for number in range(8)]
    outbox = Outbox(Limits())
    for lane in lanes:
        outbox.activate(lane)
    outbox.collect(16 * KIB, 0)
    assert [sum(lane.asked) // KIB for lane in lanes] == [4, 4, 4, 4, 0, 0, 0, 0]
    outbox.collect(128 * KIB, 0)
    assert [sum(lane.asked) // KIB for lane in lanes] == [4, 4, 4, 4, 32, 32, 32, 32]


@given(st.lists(st.lists(st.integers(1, 3000), min_size=1, max_size=40), min_size=2, max_size=8))
@settings(max_examples=150)
def test_fair_shares(frames: list[list[int]]) -> None:
    """While sources have something to send, their totals differ by less than two quanta and a frame each."""
    lanes = [Lane(bytes((97 + place,)), *sizes) for place, sizes in enumerate(frames)]
    left = {chr(97 + place): sum(sizes) for place, sizes in enumerate(frames)}
    bound = 2 * QUANTUM + max(size for sizes in frames for size in sizes)
    sent = dict.fromkeys(left, 0)
    for name, size in turns(box(*lanes).collect(1 << 30, 0)):
        sent[name] += size
        busy = [sent[other] for other in left if sent[other] < left[other]]
        assert max(busy, default=0) - min(busy, default=0) < bound
    assert sent == left


@given(
    st.lists(st.lists(st.integers(1, 3000), min_size=1, max_size=20), min_size=1, max_size=8),
    st.lists(st.integers(1, 5000), min_size=1, max_size=5),
)
@settings(max_examples=150)
def test_no_starvation(frames: list[list[int]], batches: list[int]) -> None:
    """In batches of any sizes, all frames go out, each lane's in order, and no batch is empty or far too large."""
    lanes = [Lane(bytes((97 + place,)), *sizes) for place, sizes in enumerate(frames)]
    outbox = box(*lanes)
    sent: dict[str, list[int]] = {chr(lane.name[0]): [] for lane in lanes}
    count = 0
    while outbox:
        most = batches[count % len(batches)]
        count += 1
        batch = turns(outbox.collect(most, 0))
        assert batch
        assert sum(size for _, size in batch) < most + 3000
        for name, size in batch:
            sent[name].append(size)
    assert list(sent.values()) == frames


def test_a_late_comer_does_not_wait() -> None:
    """A source that joins many busy ones is served within one round."""
    outbox = box(*(Lane(bytes((97 + place,)), *[1000] * 50) for place in range(10)))
    outbox.collect(25 * KIB, 0)
    outbox.activate(Lane(b"z", 10))
    order = "".join(name for name, _ in turns(outbox.collect(11 * 1000, 0)))
    assert "z" in order


class _Endless:
    """A source of frames of one size that never becomes empty."""

    def __init__(self, frame: int) -> None:
        self.deficit, self.queued, self.sent, self._frame = 0, False, 0, frame

    def pull(self, most: int, parts: list[Buffer], now: float) -> int:
        size = 0
        while size < most:
            parts.append(bytes(self._frame))
            size += self._frame
        self.sent += size
        return size

    def ready(self) -> bool:
        return True


def test_a_source_saves_no_turns() -> None:
    """A source that was limited by small batches gets no more than its quantum later."""
    outbox = Outbox(Limits(quantum=1000))
    old, new = _Endless(500), _Endless(500)
    outbox.activate(old)
    for _ in range(1000):
        outbox.collect(500, 0)
    outbox.activate(new)
    old.sent = 0
    for _ in range(200):
        outbox.collect(4000, 0)
    assert abs(old.sent - new.sent) <= 2 * 1000 + 500


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=8), st.lists(st.integers(1, 3000), min_size=2, max_size=5))
@settings(max_examples=100, deadline=None)
def test_sources_get_the_same_whatever_the_batches(batches: list[int], sizes: list[int]) -> None:
    """Sources that always have something to send get equal amounts, for any sizes of batches and frames."""
    outbox = Outbox(Limits(quantum=1000))
    endless = [_Endless(size) for size in sizes]
    for source in endless:
        outbox.activate(source)
    for number in range(300):
        outbox.collect(batches[number % len(batches)], 0)
        sent = [source.sent for source in endless]
        assert max(sent) - min(sent) <= 2 * 1000 + max(sizes)
