from __future__ import annotations

import gc
import weakref

from hypothesis import given, settings
from hypothesis import strategies as st

from kdispatch_protocol.session.timers import Timer, Timers


def run(timers: Timers, now: float) -> None:
    for call in timers.due(now):
        call(now)


def test_nothing_pending() -> None:
    """Without timers there is no deadline, and nothing is due."""
    timers = Timers()
    assert (len(timers), timers.next_deadline(), list(timers.due(1e9))) == (0, None, [])


def test_due_in_order() -> None:
    """Due timers fire in the order of their times, equal times in the order of their creation, and each once."""
    timers = Timers()
    said: list[str] = []
    for when, name in [(3, "c"), (1, "a"), (2, "b1"), (2, "b2"), (9, "later")]:
        timers.add(when, lambda _, name=name: said.append(name))  # type: ignore[misc]  # binds the name
    assert timers.next_deadline() == 1
    run(timers, 3)
    assert said == ["a", "b1", "b2", "c"]
    run(timers, 3)
    assert said == ["a", "b1", "b2", "c"]
    assert (len(timers), timers.next_deadline()) == (1, 9)


def test_calls_are_given_the_time() -> None:
    """A timer is called with the current time, not with the time at which it was due."""
    timers = Timers()
    seen: list[float] = []
    timers.add(1, seen.append)
    run(timers, 7)
    assert seen == [7]


def test_cancelling() -> None:
    """A cancelled timer is never called and is not a deadline; a second cancel changes nothing."""
    timers = Timers()
    said: list[float] = []
    first, second = timers.add(1, said.append), timers.add(2, said.append)
    first.cancel()
    first.cancel()
    assert (len(timers), timers.next_deadline()) == (1, 2)
    run(timers, 5)
    assert said == [5]
    second.cancel()  # it has fired already
    assert (len(timers), timers.next_deadline()) == (0, None)


def test_cancelled_behind_the_first() -> None:
    """A cancelled timer that is skipped on the way is removed from the count."""
    timers = Timers()
    timers.add(1, lambda _: None)
    timers.add(2, lambda _: None).cancel()
    timers.add(3, lambda _: None)
    run(timers, 2)
    assert (len(timers), timers.next_deadline()) == (1, 3)


def test_cancelled_by_an_earlier_one() -> None:
    """A timer may cancel another one that is due at the same time."""
    timers = Timers()
    said: list[str] = []
    other: list[Timer] = []
    timers.add(1, lambda _: other[0].cancel())
    other.append(timers.add(1, lambda _: said.append("cancelled")))
    timers.add(1, lambda _: said.append("third"))
    run(timers, 1)
    assert said == ["third"]
    assert len(timers) == 0


def test_added_by_an_earlier_one() -> None:
    """A timer may add another one, which fires in the same call if it is due."""
    timers = Timers()
    said: list[str] = []

    def again(now: float) -> None:
        timers.add(now, lambda _: said.append("now"))
        timers.add(now + 1, lambda _: said.append("later"))

    timers.add(1, again)
    run(timers, 1)
    assert said == ["now"]
    assert timers.next_deadline() == 2


def test_a_cancelled_timer_lets_go() -> None:
    """A cancelled timer releases its callback at once, long before its time."""

    class Held:
        def method(self, now: float) -> None: ...

    timers = Timers()
    held = Held()
    gone = weakref.ref(held)
    timers.add(1e9, held.method).cancel()
    del held
    gc.collect()
    assert gone() is None


def test_sweeping() -> None:
    """The heap stays as large as the number of pending timers, however many are made and cancelled."""
    timers = Timers()
    kept = [timers.add(1e6 + n, lambda _: None) for n in range(100)]
    for n in range(100_000):
        timers.add(1e6 - n, lambda _: None).cancel()
        assert len(timers._heap) <= 2 * len(kept) + 300
    assert len(timers) == 100
    assert timers.next_deadline() == 1e6


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 30)),
            st.tuples(st.just("cancel"), st.integers(0, 40)),
            st.tuples(st.just("due"), st.integers(0, 30)),
        ),
        max_size=60,
    )
)
@settings(max_examples=150)
def test_as_a_sorted_list(steps: list[tuple[str, int]]) -> None:
    """Any sequence of adding, cancelling and waiting gives what a sorted list would."""
    timers = Timers()
    made: list[Timer] = []
    pending: dict[int, float] = {}
    said: list[int] = []
    for what, value in steps:
        if what == "add":
            place = len(made)
            made.append(timers.add(value, lambda _, place=place: said.append(place)))  # type: ignore[misc]  # binds it
            pending[place] = value
        elif what == "cancel" and value < len(made):
            made[value].cancel()
            pending.pop(value, None)
        elif what == "due":
            right = sorted((when, place) for place, when in pending.items() if when <= value)
            said.clear()
            run(timers, value)
            assert said == [place for _, place in right]
            for _, place in right:
                del pending[place]
        assert len(timers) == len(pending)
        assert timers.next_deadline() == min(pending.values(), default=None)


def test_thousands_in_due() -> None:
    """A sweep while others are due loses none of them."""
    timers = Timers()
    said: list[int] = []
    later = [timers.add(5, lambda _: said.append(-1)) for _ in range(1000)]

    def cancel_all(now: float) -> None:
        for timer in later:
            timer.cancel()

    timers.add(1, cancel_all)
    for n in range(100):
        timers.add(2, lambda _, n=n: said.append(n))  # type: ignore[misc]  # binds the number
    run(timers, 10)
    assert said == list(range(100))
    assert (len(timers), timers._heap) == (0, [])
