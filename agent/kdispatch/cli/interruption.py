"""What asks a command to end: a signal, or another command at an agent's control socket."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Final, NoReturn

from kdispatch.machine.operating_system import HERE

if TYPE_CHECKING:
    import asyncio

__all__ = ["LAST_WORDS", "Interruption"]

#: Seconds that an agent has, once it is to end at once, to tell its streams' other ends.
LAST_WORDS: Final = 2.0
_HANGUP: Final = getattr(signal, "SIGHUP", None)
_FLUSH: Final = 0.2  # seconds for what was said last, where standard error takes it


class Interruption:
    """Cancels a command's task when it is asked to end.

    The first time the command may finish what runs. The second time that is
    cancelled, too, where it ``drains``; any other command's process ends.
    """

    def __init__(self, *, drains: bool = False) -> None:
        self._drains = drains
        self._task: asyncio.Task[object] | None = None
        self._signals: list[int] = []

    def watch(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[object]) -> None:
        """Ask this task to end, by its cancellation, from the first signal on."""
        self._task = task
        HERE.on_stop(loop, self.ask)

    @property
    def status(self) -> int | None:
        """How a process ends that was asked to; ``None`` for one that wasn't."""
        return 128 + self._signals[-1] if self._signals else None

    @property
    def at_once(self) -> bool:
        """What runs is not to be waited for."""
        return len(self._signals) > 1

    def ask(self, number: int = signal.SIGTERM) -> None:
        """End, as this signal asks for it."""
        assert self._task is not None, "watch() comes first"
        if number == _HANGUP and self._signals:
            return  # a shell and the kernel both send one, and some supervisors one behind SIGTERM
        self._signals.append(number)
        if self.at_once:
            if not self._drains or len(self._signals) > 2:
                # Whatever is being done, the person wants out now.
                _exit(128 + number)
            self._task.get_loop().call_later(LAST_WORDS, _exit, 128 + number)
        self._task.cancel()

    def drain(self) -> None:
        """Ask as a first signal does, unless something has asked."""
        if not self._signals:
            self.ask()

    def end(self) -> None:
        """Ask as a second signal does."""
        self.drain()
        if not self.at_once:
            self.ask()


def _exit(status: int) -> NoReturn:
    from kdispatch_protocol.process.unblocked import finish_output  # noqa: PLC0415 - most commands run no agent

    finish_output(_FLUSH)
    os._exit(status)
