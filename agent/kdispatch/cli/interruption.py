"""Requests to end a command: by a signal, or by another command at an agent's control socket."""

from __future__ import annotations

import math
import os
import signal
from typing import TYPE_CHECKING, Final, NoReturn

from kdispatch.machine.operating_system import HERE

if TYPE_CHECKING:
    import asyncio

__all__ = ["LAST_WORDS", "Interruption", "uncancel_current_task"]

#: Seconds that an agent has to tell its streams' peers, once it must end at once.
LAST_WORDS: Final = 2.0
_HANGUP: Final = getattr(signal, "SIGHUP", None)
_FLUSH: Final = 0.2  # seconds to write the last output


class Interruption:
    """Cancels a command's task when it is asked to end.

    After the first request the command may finish running work. After the second
    that is cancelled as well, if it ``drains``; any other command's process ends.
    """

    def __init__(self, *, drains: bool = False) -> None:
        self._drains = drains
        self._task: asyncio.Task[object] | None = None
        self._signals: list[int] = []
        #: Seconds that running work may take at most after the first request.
        self.patience = math.inf

    def watch(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[object]) -> None:
        """Watch for signals, and end this task by cancelling it."""
        self._task = task
        HERE.on_stop(loop, self.ask, self.hurry)

    @property
    def status(self) -> int | None:
        """The exit status after a request to end; ``None`` without one."""
        return 128 + self._signals[-1] if self._signals else None

    @property
    def at_once(self) -> bool:
        """Whether to end without waiting for running work."""
        return len(self._signals) > 1

    def ask(self, number: int = signal.SIGTERM) -> None:
        """Handle a request to end, as for this signal."""
        assert self._task is not None, "watch() comes first"
        if number == _HANGUP and self._signals:
            return  # a shell and the kernel both send one, and some supervisors send one after SIGTERM
        self._signals.append(number)
        if self.at_once:
            if not self._drains or len(self._signals) > 2:
                # The user wants to leave now, whatever is running.
                _exit(128 + number)
            self._task.get_loop().call_later(LAST_WORDS, _exit, 128 + number)
        self._task.cancel()

    def hurry(self, number: int, seconds: float) -> None:
        """Handle a request to end from a system that soon ends this process: running work has so many seconds.

        Work that has its time already, from an earlier request, ends at once.
        """
        if not self._signals:
            self.patience = seconds
        if not self.at_once:
            self.ask(number)

    def drain(self) -> None:
        """Act like a first signal, unless there was one."""
        if not self._signals:
            self.ask()

    def end(self) -> None:
        """Act like a second signal."""
        self.drain()
        if not self.at_once:
            self.ask()


def uncancel_current_task() -> None:
    """Call it after ``CancelledError`` if the task continues: a later time-out must not count as a cancellation."""
    import asyncio  # noqa: PLC0415 - help and completion do not need it

    if (task := asyncio.current_task()) is not None:
        task.uncancel()


def _exit(status: int) -> NoReturn:
    from kdispatch_protocol.process.unblocked import finish_output  # noqa: PLC0415 - most commands run no agent

    finish_output(_FLUSH)
    os._exit(status)
