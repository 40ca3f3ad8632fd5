from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from kdispatch_protocol.endpoint.windows import CreditBudget, Inbound
from kdispatch_protocol.errors import RemoteProtocolError
from kdispatch_protocol.limits import KIB, MIB, Limits
from kdispatch_protocol.wire import frames

# Small, so that every edge is near.
TIGHT = Limits(window=256, window_max=1500, window_tight=64, window_floor=16, credit=1024, ack_bytes=100)


def opened(limits: Limits = TIGHT, total: int | None = None) -> Inbound:
    """A stream's receiving half, whose first limit was sent."""
    inbound = Inbound(CreditBudget(limits.credit if total is None else total, limits))
    inbound.grant()
    return inbound


class Half:
    """One stream and its honest sender, with the acknowledgements that the rules require."""

    def __init__(self, budget: CreditBudget) -> None:
        self.inbound = Inbound(budget)
        self.limit_seen = 0  # the sender's view
        self.sent = 0
        self.highest_limit = 0
        self.ended = False

    def acknowledge(self) -> None:
        self.limit_seen = max(self.limit_seen, self.inbound.grant())
        assert not self.inbound.unacknowledged


class Credit(RuleBasedStateMachine):
    """Streams of one session that open, receive, consume and end in any order."""

    halves = Bundle("halves")

    @initialize(total=st.sampled_from([0, 1, 100, 1024, 5000]))
    def start(self, total: int) -> None:
        self.budget = CreditBudget(total, TIGHT)
        self.live: list[Half] = []
        self.now = 0.0

    @rule(target=halves)
    def open(self) -> Half:
        half = Half(self.budget)
        half.acknowledge()
        assert half.inbound.limit >= TIGHT.window_floor
        self.live.append(half)
        return half

    @rule(half=halves, share=st.floats(0, 1), flags=st.integers(0, 3), took=st.sampled_from([0.0, 0.01, 1.0]))
    def send(self, half: Half, share: float, flags: int, took: float) -> None:
        count = int((half.limit_seen - half.sent) * share)
        self.now += took
        if half.ended or not count:
            return
        assert half.inbound.accept(half.sent, count) == 0
        half.inbound.note(flags, count, self.now)
        half.sent += count

    @rule(half=halves, marked=st.booleans())
    def stream(self, half: Half, marked: bool) -> None:
        """A sender that uses up its credit again and again, and a program that takes all of it."""
        for _ in range(10):
            self.send(half, 1.0, frames.BLOCKED | (frames.MARKED if marked else 0), 0.01)
            self.drain(half)

    @rule(half=halves, back=st.integers(0, 300), ahead=st.integers(0, 300))
    def repeat(self, half: Half, back: int, ahead: int) -> None:
        """Bytes that arrive again, with or without new ones after them."""
        start = max(0, half.sent - back)
        end = max(start, min(half.sent + ahead, half.limit_seen))
        if half.ended:
            end = min(end, half.sent)
        if end > start:
            known = half.inbound.accept(start, end - start)
            assert known == min(half.sent - start, end - start)
            half.sent = max(half.sent, end)

    @rule(half=halves, beyond=st.integers(1, 50), gap=st.integers(1, 50))
    def misbehave(self, half: Half, beyond: int, gap: int) -> None:
        """A sender's violations are reported, and change nothing."""
        inbound = half.inbound
        before = (inbound.received, inbound.limit, self.budget.promised)
        with pytest.raises(RemoteProtocolError) as over:
            inbound.accept(inbound.received, inbound.limit - inbound.received + beyond)
        assert over.value.code == "credit_exceeded"
        if inbound.received + gap < inbound.limit:
            with pytest.raises(RemoteProtocolError) as gapped:
                inbound.accept(inbound.received + gap, 1)
            assert gapped.value.code == "offset_mismatch"
        for final in (inbound.received + gap, inbound.received - gap):
            with pytest.raises(RemoteProtocolError) as ended:
                inbound.finish(final)
            assert ended.value.code == "offset_mismatch"
        assert (inbound.received, inbound.limit, self.budget.promised) == before

    @rule(half=halves, share=st.floats(0, 1))
    def consume(self, half: Half, share: float) -> None:
        inbound = half.inbound
        if inbound.consume(int((inbound.received - inbound.consumed) * share)):
            half.acknowledge()

    @rule(half=halves)
    def delay_over(self, half: Half) -> None:
        """The timer of the delayed ACK fires."""
        if half.inbound.unacknowledged:
            half.acknowledge()

    @rule(half=halves)
    def drain(self, half: Half) -> None:
        """After a reader took everything, and an ACK by the rules, the sender always has something to send."""
        inbound = half.inbound
        if inbound.consume(inbound.received - inbound.consumed) or inbound.unacknowledged:
            half.acknowledge()
        if not half.ended:
            assert half.limit_seen > half.sent

    @rule(half=halves)
    def finish(self, half: Half) -> None:
        half.inbound.finish(half.sent)
        half.ended = True
        assert half.inbound.unacknowledged or half.inbound.told_fin
        half.acknowledge()

    @rule(half=consumes(halves))
    def reset(self, half: Half) -> None:
        half.inbound.release()
        self.live.remove(half)

    @invariant()
    def offsets_are_in_order(self) -> None:
        for half in self.live:
            inbound = half.inbound
            assert inbound.consumed <= inbound.received <= inbound.limit
            assert half.sent == inbound.received
            assert TIGHT.window_floor <= inbound.window <= TIGHT.window_max
            if not half.ended:
                assert inbound.limit >= half.highest_limit
                half.highest_limit = inbound.limit

    @invariant()
    def budget_is_kept(self) -> None:
        promised = sum(half.inbound.limit - half.inbound.received for half in self.live)
        assert self.budget.promised == promised
        assert promised <= self.budget.total + TIGHT.window_floor * len(self.live)
        for half in self.live:  # with all that the program has not taken, it is at most the largest window so far
            assert half.inbound.limit - half.inbound.consumed <= TIGHT.window_max
        assert self.budget.within(len(self.live))


Credit.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestCredit = Credit.TestCase


def test_first_windows() -> None:
    """First windows are 256 KiB while under half is promised, then 64 and 16 KiB."""
    budget = CreditBudget(1 * MIB, Limits())
    sizes = []
    for _ in range(14):
        inbound = Inbound(budget)
        inbound.grant()
        sizes.append((inbound.window // KIB, inbound.limit // KIB))
    assert sizes[:3] == [(256, 256), (256, 256), (64, 64)]
    assert [window for window, _ in sizes] == sorted((window for window, _ in sizes), reverse=True)
    assert sizes[-1] == (16, 16)
    assert budget.within(14)


def test_half_of_what_is_left() -> None:
    """One grant takes at most half of what is left, above the floor that every stream has."""
    budget = CreditBudget(300, TIGHT)
    first, second, third = Inbound(budget), Inbound(budget), Inbound(budget)
    assert (first.grant(), second.grant(), third.grant()) == (150, 75, 37)
    assert first.grant() == 150
    assert budget.share(0) == (300 - 262) // 2


def test_a_spent_budget_leaves_the_floor() -> None:
    """With nothing left, a stream still gets its floor, and more again when others are gone."""
    budget = CreditBudget(1000, TIGHT)
    poor = Inbound(budget)
    budget.promised = 1000
    assert budget.share(0) == 0
    assert (poor.grant(), poor.grant()) == (16, 16)
    budget.promised = 16
    assert poor.grant() == 256


def test_duplicates() -> None:
    """Known bytes are subtracted, also if new ones follow them in one frame."""
    inbound = opened()
    assert inbound.accept(0, 10) == 0
    assert inbound.accept(0, 10) == 10
    assert inbound.accept(3, 4) == 4
    assert inbound.accept(5, 10) == 5
    assert inbound.received == 15


@pytest.mark.parametrize(
    ("offset", "length", "code"),
    [(0, 257, "credit_exceeded"), (256, 1, "credit_exceeded"), (11, 1, "offset_mismatch"), (1 << 62, 1 << 17, None)],
)
def test_data_that_breaks_the_rules(offset: int, length: int, code: str | None) -> None:
    """Data over the limit or after a gap is refused with its code, however large the numbers."""
    inbound = opened()
    inbound.accept(0, 10)
    with pytest.raises(RemoteProtocolError) as error:
        inbound.accept(offset, length)
    assert error.value.code == (code or "credit_exceeded")
    assert inbound.received == 10


def test_data_behind_the_end() -> None:
    """Nothing may follow an end; a repetition of the bytes before it is allowed."""
    inbound = opened()
    inbound.accept(0, 10)
    inbound.finish(10)
    assert inbound.accept(5, 5) == 5
    with pytest.raises(RemoteProtocolError, match="over the limit"):
        inbound.accept(10, 1)
    inbound.limit += 1  # even with credit left
    with pytest.raises(RemoteProtocolError, match="behind the end") as error:
        inbound.accept(10, 1)
    assert error.value.code == "offset_mismatch"


def test_the_end() -> None:
    """An end may be repeated, but not moved, and gives its credit back."""
    inbound = opened()
    inbound.accept(0, 10)
    assert inbound.budget.promised == 246
    with pytest.raises(RemoteProtocolError):
        inbound.finish(11)
    known = [inbound.finished]
    inbound.finish(10)
    inbound.finish(10)
    known.append(inbound.finished)
    assert known == [False, True]
    assert inbound.budget.promised == 0
    with pytest.raises(RemoteProtocolError):
        inbound.finish(9)


def test_an_ended_stream_grants_no_more() -> None:
    """After the end the limit stays, an ACK is due once for the end, and consuming causes none."""
    inbound = opened()
    inbound.accept(0, 200)
    inbound.finish(200)
    due = [inbound.unacknowledged]
    assert inbound.grant() == 200
    due.append(inbound.unacknowledged)
    assert not inbound.consume(200)
    due.append(inbound.unacknowledged)
    assert due == [True, False, False]


@pytest.mark.parametrize(("window", "due_at"), [(256, 64), (1000, 100)])
def test_when_an_ack_is_due(window: int, due_at: int) -> None:
    """An ACK is due at a quarter of what was granted, or at ack_bytes, whichever is less."""
    inbound = opened(Limits(window=window, ack_bytes=100), total=10_000)
    inbound.accept(0, 200)
    assert not inbound.consume(due_at - 1)
    assert inbound.consume(1)
    assert inbound.grant() == due_at + window


@pytest.mark.parametrize("news", ["bytes that arrived", "bytes consumed", "the end"])
def test_what_is_unacknowledged(news: str) -> None:
    """Bytes that arrived, bytes that were consumed, and the end are each reported to the peer once."""
    inbound = opened()
    inbound.accept(0, 1)
    inbound.grant()
    due = [inbound.unacknowledged]
    match news:
        case "bytes that arrived":
            inbound.accept(1, 1)
        case "bytes consumed":
            inbound.consume(1)
        case _:
            inbound.finish(1)
    due.append(inbound.unacknowledged)
    inbound.grant()
    due.append(inbound.unacknowledged)
    assert due == [False, True, False]


def test_consuming_too_much() -> None:
    """A program cannot consume more than has arrived: that would be an internal defect, and fails an assertion."""
    inbound = opened()
    inbound.accept(0, 5)
    with pytest.raises(AssertionError):
        inbound.consume(6)


@given(st.integers(1, 1 << 40), st.integers(0, 1 << 40), st.integers(0, 1 << 40))
@settings(max_examples=50)
def test_a_share_is_never_negative(total: int, others: int, own: int) -> None:
    """A stream may have half of what the others leave, and nothing if the budget is overdrawn."""
    budget = CreditBudget(total, TIGHT)
    budget.promised = promised = others + own
    assert budget.share(own) == max(0, (total - others) // 2)
    assert budget.within(0) is (promised <= total)
