"""Repeat connection attempts until one succeeds; while one hangs, start others in parallel.

A path that drops packets gives no answer, and the kernel retransmits more and more rarely. An attempt that hangs must
not delay the next one, which may find the path working again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from kdispatch_protocol.errors import KdispatchError

__all__ = ["redial"]

#: Parallel tries. Each ends within the 15 s of a handshake, and the next starts after 2.5 s of silence.
_BESIDE: Final = 6
#: Seconds between two checks of the clocks. Timers stop while a machine sleeps; then the wall clock steps.
_LOOK: Final = 1.0
_STEP: Final = 2.0  # smallest such step, in seconds

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
    """Return the result of the first successful ``dial()``; the first one starts after ``pause`` seconds.

    ``failed`` gets each failure and returns the seconds until the next try; what it raises is raised here.
    ``silence`` returns the seconds without a result after which the next try starts in parallel. ``waits`` gets
    the time of the next try, or ``None`` while one is running. ``let_go`` gets the results of tries that came too late.
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
                if task is newest:  # older tries were not waited for
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
    """Wait for the first tries to end; returns an empty list when it is time for the next one.

    The latter includes the moment when the machine wakes, because it may be in another network.
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
