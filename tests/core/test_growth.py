"""How a window follows the flags of the frames in it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.windows import CreditBudget, Inbound
from kdispatch_protocol.limits import KIB, MIB, Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import BLOCKED, MARKED, frame
from kdispatch_protocol.wire.messages import Opened, Trying
from tests.core.conversation import SERVICE, WELCOME, Conversation, open_frame

LIMITS = Limits(window_near=16 * MIB)  # a test of its own covers the distance of the peer


class Path:
    """A receiver whose peer uses up its credit, over a path that marks a share of it."""

    def __init__(self, *, total: int = 64 * MIB, limits: Limits = LIMITS) -> None:
        self.budget = CreditBudget(total, limits)
        self.inbound = Inbound(self.budget)
        self.inbound.grant()
        self.now = 0.0

    def window(self, *, marked: float = 0.0, blocked: bool = True, taken: float = 1.0, took: float = 0.0) -> int:
        """Let one window's worth of bytes arrive; returns the window after it."""
        inbound = self.inbound
        size = inbound.limit - inbound.received
        late = int(size * marked)
        for count, flags in ((late, MARKED), (size - late, BLOCKED if blocked else 0)):
            inbound.accept(inbound.received, count)
            inbound.note(flags, count, self.now)
        self.now += took
        inbound.note(0, 0, self.now)
        inbound.consume(int(inbound.received * taken) - inbound.consumed)
        inbound.grant()
        return inbound.window

    def windows(self, count: int, **what: float) -> list[int]:
        return [self.window(**what) // KIB for _ in range(count)]  # type: ignore[arg-type]


def test_a_window_that_holds_the_sender_back_doubles() -> None:
    """While the sender uses up its limit and nothing is marked, each window that arrives doubles it, up to 16 MiB."""
    assert Path().windows(8) == [512, 1024, 2048, 4096, 8192, 16384, 16384, 16384]


def test_a_window_that_suffices_stays() -> None:
    """A window stays as it is if the sender never used up its limit."""
    path = Path()
    assert [path.window(blocked=False) // KIB for _ in range(4)] == [256] * 4
    path.window()
    assert [path.window(blocked=False) // KIB for _ in range(4)] == [512] * 4


def test_a_program_that_takes_little_gets_no_more() -> None:
    """A window does not grow while more than an eighth of it waits for the program."""
    assert Path().windows(3, taken=0.8) == [256] * 3
    assert Path().windows(1, taken=0.9) == [512]


def test_marks_shrink_it_gently_at_first() -> None:
    """If all bytes are marked, a window shrinks by an eighth at first, then faster, down to the floor."""
    assert Path().windows(12, marked=1.0) == [224, 175, 124, 81, 50, 29, 16, 16, 16, 16, 16, 16]


def test_few_marks_shrink_it_little() -> None:
    """A window of which a tenth is always marked shrinks by at most a twentieth."""
    before = Path()
    sizes = [256, *before.windows(20, marked=0.1)]
    assert all(after >= int(size * 0.949) - 1 for size, after in itertools.pairwise(sizes))


def test_after_a_mark_it_grows_by_an_eighth() -> None:
    """After a mark on a path, the window grows by an eighth at a time."""
    path = Path()
    path.window(marked=1.0)
    assert path.windows(3) == [252, 283, 318]


def test_a_marked_window_is_not_waited_for() -> None:
    """A large window on a path that became slow shrinks after half a second of marks, before all of it has arrived."""
    path = Path()
    path.windows(6)
    inbound = path.inbound
    sizes = []
    for _ in range(8):
        inbound.accept(inbound.received, 64 * KIB)
        path.now += 0.26
        inbound.note(MARKED, 64 * KIB, path.now)
        inbound.consume(64 * KIB)
        inbound.grant()
        sizes.append(inbound.window)
    assert sizes[0] == 16 * MIB
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 5


def test_a_limit_never_goes_down() -> None:
    """A window that shrinks takes nothing back: the limit stays until the bytes that it allows have arrived."""
    path = Path()
    path.windows(6)
    inbound = path.inbound
    limit = inbound.limit
    limits = []
    while inbound.received < limit:
        path.now += 1.0
        inbound.accept(inbound.received, MIB)
        inbound.note(MARKED, MIB, path.now)
        inbound.consume(MIB)
        limits.append(inbound.grant())
    assert limits[1:10] == [limits[0]] * 9
    assert limits == sorted(limits)
    assert inbound.limit - inbound.consumed == inbound.window == LIMITS.window_floor


def test_windows_share_the_budget() -> None:
    """N streams that want all they can get end with one N + 1st part of the budget each, in any order of arrival."""
    budget = CreditBudget(64 * MIB, LIMITS)
    paths = []
    for _ in range(8):
        path = Path()
        path.budget = budget
        path.inbound = Inbound(budget)
        path.inbound.grant()
        paths.append(path)
        for _ in range(40):
            for one in paths:
                one.window()
    held = [path.inbound.limit - path.inbound.received for path in paths]
    assert sum(held) <= 64 * MIB
    assert all(abs(part - 64 * MIB // 9) < 100 * KIB for part in held), held


def test_a_poor_stream_grows_once_there_is_room() -> None:
    """A stream that began with 16 KiB because others used the budget grows when they are gone."""
    budget = CreditBudget(2 * MIB, LIMITS)
    path = Path()
    path.budget = budget
    budget.promised = 2 * MIB
    path.inbound = Inbound(budget)
    path.inbound.grant()
    assert path.windows(3) == [16, 16, 16]
    budget.promised -= 2 * MIB
    assert path.windows(7) == [32, 64, 128, 256, 512, 1024, 1024]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.floats(0, 1), st.sampled_from([0.0, 0.1, 1.0]))))
def test_always_within_bounds(rounds: list[tuple[float, bool, float, float]]) -> None:
    """Whatever arrives, a window stays between 16 KiB and 16 MiB, and at most doubles."""
    path = Path()
    before = path.inbound.window
    for marked, blocked, taken, took in rounds:
        after = path.window(marked=marked, blocked=blocked, taken=taken, took=took)
        assert LIMITS.window_floor <= after <= min(LIMITS.window_max, 2 * before)
        before = after


@pytest.mark.parametrize("flags", [0, BLOCKED, MARKED])
def test_nothing_is_kept_for_a_stream_without_flags(flags: int) -> None:
    """A stream that is never blocked or marked, as most are, needs only one empty field for this."""
    path = Path()
    path.inbound.accept(0, 100)
    path.inbound.note(flags, 100, 1.0)
    assert (path.inbound.grows is None) is (flags == 0)


@pytest.mark.parametrize(
    ("round_trip", "most"), [(0.0005, 768 * KIB), (0.010, 6710886), (0.050, 16 * MIB), (9.0, 16 * MIB)]
)
def test_a_near_peer_needs_no_large_window(round_trip: float, most: int) -> None:
    """A window grows to what fills the round trip at 640 MiB a second, and to 768 KiB over any."""
    path = Path(limits=Limits())
    path.inbound.reaches(round_trip)
    assert path.windows(10)[-1] == most // KIB


@pytest.mark.parametrize(("seconds", "most"), [(0.001, 768 * KIB), (0.020, int(0.020 * 640 * MIB))])
def test_the_round_trip_of_the_open_counts(seconds: float, most: int) -> None:
    """Each end measures the round trip from its OPEN, or OPENED, to the answer."""
    talk = Conversation(offer=True)
    client = talk.table.open(SERVICE, "5a" * 16, talk.now)
    number = client.number
    talk.now += seconds
    trying = Trying(attempt=1, process="22" * 16, host="33" * 16)
    talk.hear(
        frame(frames.TRYING, number, payload=trying.encode()),
        frame(frames.OPENED, number, payload=Opened(limit=65536, attempt=1).encode()),
    )
    assert client.inbound.most == most
    host = talk.host()
    talk.now += seconds
    talk.hear(frames.ack_frame(host.number, 0, 65536, fin=False))
    assert host.inbound.most == most


def test_a_busy_moment_does_not_make_a_peer_far() -> None:
    """The least time that a peer took to answer counts for its later streams, until either end has a new session."""
    talk = Conversation(offer=True)

    def host(number: int, seconds: float) -> int:
        talk.hear(open_frame(number, uuid=f"{number:032x}"))
        [event] = [e for e in talk.events() if isinstance(e, events.StreamRequested)]
        talk.table.accept(event.stream, talk.now)
        talk.said()
        talk.now += seconds
        talk.hear(frames.ack_frame(number, 0, 65536, fin=False))
        return event.stream.inbound.most

    assert host(2, 0.001) == 768 * KIB
    assert host(4, 0.020) == 768 * KIB
    talk.lose()
    talk.connect()
    talk.said()
    talk.hear(frame(frames.WELCOME, payload=WELCOME.encode()))
    assert host(6, 0.020) == int(0.020 * 640 * MIB)
