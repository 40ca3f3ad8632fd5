"""The console of a process on Windows: a part of :class:`~kdispatch.machine.operating_system.Windows`."""

from __future__ import annotations

import contextlib
import importlib
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio

__all__ = ["is_input", "on_stop"]

_STANDARD_INPUT: Final = -10


def is_input() -> bool:
    """Whether standard input is a console. For ``isatty`` NUL is one, too."""
    ctypes: Any = importlib.import_module("ctypes")
    kernel = ctypes.WinDLL("kernel32")
    kernel.GetStdHandle.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(kernel.GetStdHandle(_STANDARD_INPUT))
    return bool(kernel.GetConsoleMode(handle, ctypes.byref(ctypes.c_ulong())))


def on_stop(loop: asyncio.AbstractEventLoop, act: Callable[[int], None]) -> None:
    """Call ``act`` with the number of each Ctrl-C and Ctrl-Break. asyncio's loops accept no handlers here.

    They do wake up when Python has a signal to handle.
    """

    def heard(number: int, _: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the process about to end
            loop.call_soon_threadsafe(act, number)

    for name in ("SIGINT", "SIGBREAK"):
        if number := getattr(signal, name, None):
            signal.signal(number, heard)
