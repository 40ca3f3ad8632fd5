"""The console of a process on Windows: a part of :class:`~kdispatch.machine.operating_system.Windows`.

Windows calls a console's handlers in a thread of its own, which it starts for each event. Ctrl-C stays with
Python, which handles it as SIGINT. Python would handle all other events as SIGBREAK and return at once.
Windows ends the process when a handler returns from the end of its console.
"""

from __future__ import annotations

import contextlib
import importlib
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio

__all__ = ["is_console", "on_event", "on_stop"]

_STANDARD_INPUT: Final = -10  # output is -11, and error -12
_ESCAPES: Final = 4  # ENABLE_VIRTUAL_TERMINAL_PROCESSING, of Windows 10 and later
#: Events, by the numbers that Windows gives to ``HandlerRoutine``.
_BREAK: Final = 1
_CLOSE: Final = 2
_LOGOFF: Final = 5
_SHUTDOWN: Final = 6
_SIGBREAK: Final = 21  # Python's number of all of them
#: Seconds for running work once the console is closed. Windows ends the process after five; the rest is for last words.
_AFTER_CLOSE: Final = 2.0
_NO_RETURN: Final = 60_000  # milliseconds: longer than Windows waits for a handler

_handlers: Final[list[object]] = []  # Windows calls them at any time, so they must never be freed


def is_console(number: int) -> bool:
    """Whether standard input (0), output (1) or error (2) is a console. For ``isatty`` NUL is one, too.

    From now on an output obeys escape sequences; one that can't is no console here.
    """
    ctypes, kernel = _kernel()
    kernel.GetStdHandle.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(kernel.GetStdHandle(_STANDARD_INPUT - number))
    mode = ctypes.c_ulong()
    if not kernel.GetConsoleMode(handle, ctypes.byref(mode)):
        return False
    return number == 0 or bool(kernel.SetConsoleMode(handle, mode.value | _ESCAPES))


def on_stop(loop: asyncio.AbstractEventLoop, act: Callable[[int], None], hurry: Callable[[int, float], None]) -> None:
    """Call ``act`` with the number of each Ctrl-C and Ctrl-Break, and ``hurry`` when Windows ends the console.

    asyncio's loops accept no handlers for signals here. They do wake up when Python has a signal to handle.
    """

    def soon(call: Callable[..., None], *arguments: float) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the process about to end
            loop.call_soon_threadsafe(call, *arguments)

    signal.signal(signal.SIGINT, lambda number, _: soon(act, number))

    def heard(event: int) -> bool:
        """Handle an event in Windows' thread; returns whether no other handler gets it."""
        if event == _BREAK:
            soon(act, _SIGBREAK)
        elif event in {_CLOSE, _SHUTDOWN} or (event == _LOGOFF and not _is_service()):
            soon(hurry, _SIGBREAK, _AFTER_CLOSE)
            _stay()
        return event in {_BREAK, _CLOSE, _LOGOFF, _SHUTDOWN}

    on_event(heard)


def on_event(heard: Callable[[int], bool]) -> None:
    """Let Windows call ``heard`` with each event of the console, before it calls Python's handler."""
    ctypes, kernel = _kernel()
    handler = ctypes.WINFUNCTYPE(ctypes.c_int, ctypes.c_ulong)(heard)
    _handlers.append(handler)
    kernel.SetConsoleCtrlHandler(handler, 1)


def _stay() -> None:
    """Keep a handler from returning for as long as the process lives."""
    _, kernel = _kernel()
    kernel.Sleep(_NO_RETURN)  # not Python's, which would want the interpreter's lock at the end


def _is_service() -> bool:
    """Whether this is in the session of services, where tasks run for users who are not logged on.

    Its processes get an event when any user logs off, and go on.
    """
    ctypes, kernel = _kernel()
    session = ctypes.c_ulong()
    told = kernel.ProcessIdToSessionId(kernel.GetCurrentProcessId(), ctypes.byref(session))
    return bool(told) and session.value == 0


def _kernel() -> tuple[Any, Any]:
    """The module ``ctypes``, and Windows' own functions."""
    ctypes: Any = importlib.import_module("ctypes")
    return ctypes, ctypes.WinDLL("kernel32")
