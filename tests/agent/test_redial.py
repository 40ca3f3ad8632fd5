"""Tries for a connection: one after the other if they fail, in parallel if they stay silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from kdispatch.redial import redial
from kdispatch_protocol.errors import KdispatchError
from tests.agent.played import played

Dial = Callable[[], Awaitable[int]]


class _Tries:
    """Runs ``redial`` with the behaviour of each try, by its number from 0; the last one applies to all later tries."""

    def __init__(self, *tries: Dial, pause: float = 3.0) -> None:
        self._tries = tries
        self._pause = pause
        self.at: list[float] = []
        self.cancelled = 0
        self.let_go: list[int] = []
        self.waits: list[float | None] = []

    async def _dial(self) -> int:
        number = len(self.at)
        self.at.append(asyncio.get_running_loop().time())
        try:
            return await self._tries[min(number, len(self._tries) - 1)]()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def _failed(self, error: KdispatchError) -> float:
        if error.code == "revoked":
            raise error
        return self._pause

    async def _run(self) -> tuple[int, float]:
        result = await redial(
            self._dial,
            pause=1.0,
            failed=self._failed,
            silence=lambda: 2.0,
            waits=self.waits.append,
            let_go=self.let_go.append,
        )
        return result, asyncio.get_running_loop().time()

    def run(self) -> tuple[int, float]:
        return played(self._run())


def _after(seconds: float, result: int) -> Dial:
    async def dial() -> int:
        await asyncio.sleep(seconds)
        return result

    return dial


def _fails(after: float = 0.0, code: str = "relay_unreachable") -> Dial:
    async def dial() -> int:
        await asyncio.sleep(after)
        raise KdispatchError(code)

    return dial


async def _silent() -> int:
    await asyncio.Event().wait()
    return 0


async def _late() -> int:
    """Succeeds at the moment in which it is cancelled."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return 7
    return 0


def test_one_after_the_other() -> None:
    """After a failure comes the pause, and then the next try."""
    tries = _Tries(_fails(0.5), _fails(0.5), _after(0.5, 1))
    assert tries.run() == (1, 8.5)
    assert tries.at == [1.0, 4.5, 8.0]
    assert tries.waits == [1.0, None, 4.5, None, 8.0, None, None]


def test_beside_a_silent_one() -> None:
    """Another try begins beside a silent one; the first result counts, and the rest is cancelled."""
    tries = _Tries(_silent, _silent, _after(0.5, 3))
    assert tries.run() == (3, 5.5)
    assert tries.at == [1.0, 3.0, 5.0]
    assert tries.cancelled == 2


def test_an_older_one_may_win() -> None:
    """A try that was only slow is still used, whatever began beside it."""
    assert _Tries(_after(3.0, 1), _silent).run() == (1, 4.0)


def test_an_older_one_fails() -> None:
    """The failure of an older try does not change when the next one begins."""
    tries = _Tries(_fails(2.5), _silent, _after(0.0, 2))
    assert tries.run() == (2, 5.0)


def test_so_many_at_once() -> None:
    """However long there is no answer, only a limited number of tries is under way."""
    tries = _Tries(*[_silent] * 6, _after(0.0, 1))
    with pytest.raises(TimeoutError):
        played(asyncio.wait_for(tries._run(), 600))
    assert len(tries.at) == tries.cancelled == 6


def test_what_comes_too_late_is_let_go() -> None:
    """A connection from a try that ends after another one has won is closed."""
    tries = _Tries(_late, _after(0.0, 1))
    assert tries.run()[0] == 1
    assert tries.let_go == [7]


def test_a_final_failure() -> None:
    """A failure that makes further tries useless ends the others, too."""
    tries = _Tries(_silent, _fails(code="revoked"))
    with pytest.raises(KdispatchError, match="revoked"):
        tries.run()
    assert tries.cancelled == 1


def test_a_defect_is_raised() -> None:
    """An error that is not a network failure is raised, and not retried."""

    async def broken() -> int:
        raise LookupError

    with pytest.raises(LookupError):
        _Tries(broken).run()


def test_a_machine_that_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a step of the wall clock, as after a sleep in which timers stopped, the next try comes at once."""
    slept = iter([0.0, 0.0, 0.0, *[3600.0] * 1000])
    monkeypatch.setattr(time, "time", lambda: asyncio.get_running_loop().time() + next(slept))
    tries = _Tries(_fails(), _after(0.0, 1), pause=50.0)
    assert tries.run()[1] < 5.0
