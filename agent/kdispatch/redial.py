"""Tries for a connection until one succeeds; where one says nothing, others begin beside it.

A path that swallows packets answers nothing for as long as it does so, and the kernel asks again ever more seldom.
A try that hangs must not keep the next one from finding a way that is there again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from kdispatch_protocol.errors import KdispatchError

__all__ = ["redial"]

#: Tries under way at once. Each ends within the 15 s of a handshake, and the next begins after 2.5 s of silence.
_BESIDE: Final = 6
#: Seconds between two looks at the clocks. Timers stand still while a machine sleeps; then the wall clock steps.
_LOOK: Final = 1.0
_STEP: Final = 2.0  # seconds by which it does so at least

_T = TypeVar("_T")


async def redial(
    dial: Callable[[], Coroutine[Any, Any, _T]],
    *,
    pause: float,
    failed: Callable[[KdispatchError], float],
    silence: Callable[[], float],
    waits: Callable[[float | None], None],
    let_go: Callable[[_T], None],
) -> _T:
    """What the first successful ``dial()`` returns; the first one begins after ``pause`` seconds.

    ``failed`` takes each failure and returns the seconds until the next try; what it raises is raised here.
    ``silence`` says after how many seconds without a result the next try begins beside. ``waits`` hears when the
    next try is, and ``None`` while one is under way. ``let_go`` takes what a try returns that came too late.
    """
    loop = asyncio.get_running_loop()
    running: list[asyncio.Task[_T]] = []
    newest: asyncio.Task[_T] | None = None
    due = loop.time() + pause
    waits(due)
    try:
        while True:
            ended = await _ended(running, due)
            for task in ended:
                running.remove(task)
                error = task.exception()
                if error is None:
                    return task.result()
                if not isinstance(error, KdispatchError):
                    raise error
                pause = failed(error)
                if task is newest:  # of older ones nothing more was expected
                    due = loop.time() + pause
                    waits(due)
            if not ended:
                due = loop.time() + silence()
                if len(running) < _BESIDE:
                    newest = asyncio.ensure_future(dial())
                    running.append(newest)
                    waits(None)
    finally:
        waits(None)
        for task in running:
            task.cancel()
        for outcome in await asyncio.gather(*running, return_exceptions=True):
            if not isinstance(outcome, BaseException):
                let_go(outcome)


async def _ended(running: list[asyncio.Task[_T]], due: float) -> list[asyncio.Task[_T]]:
    """The first tries that end; none when it is time for the next one.

    That is also when the machine wakes: it may be in another network now.
    """
    loop = asyncio.get_running_loop()
    apart = time.time() - loop.time()
    while (left := due - loop.time()) > 0 and time.time() - loop.time() - apart < _STEP:
        seconds = min(left, _LOOK)
        if not running:
            await asyncio.sleep(seconds)
            continue
        done, _ = await asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if done:
            return [task for task in running if task in done]
    return [task for task in running if task.done()]
