"""Accepts connections of local programs, and pauses while this process or its machine has no room for another.

The event loops' own servers do not pause. asyncio's retries a thousand times per turn, and logs a line each time.
uvloop's accepts the connection and closes it, so to the program its service seems to hang up.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
from collections.abc import Callable
from typing import Final

from kdispatch.addresses import place, written
from kdispatch.machine.operating_system import HERE
from kdispatch.running_log import RunningLog
from kdispatch_protocol.process.descriptors import SHORT, is_reserved

__all__ = ["Acceptor"]

_AT_ONCE: Final = 100  # connections accepted before others have their turn
_PAUSE: Final = 0.25  # seconds to wait without room before the next try


class Acceptor:
    """Passes each connection of a listening socket, which it owns, to ``accepted``. Call :meth:`close` at the end."""

    def __init__(self, sock: socket.socket, accepted: Callable[[socket.socket], None], log: RunningLog) -> None:
        sock.setblocking(False)  # noqa: FBT003 - it takes no keywords
        self._socket = sock
        self._accepted = accepted
        self._log = log
        self._loop = asyncio.get_running_loop()
        own = sock.getsockname()
        self._where = place(written(own), own[1])
        self._low = False  # the newest connection used a reserved descriptor
        self._full = False  # connections are pending, and the log says so
        self._waiting: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None  # used if the event loop can't watch sockets
        self._watch()

    def close(self) -> None:
        """Accept no more connections. It is safe to call this again."""
        if self._waiting is not None:
            self._waiting.cancel()
        elif self._task is not None:
            self._task.cancel()
        elif self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
        self._socket.close()

    def _watch(self) -> None:
        self._waiting = None
        if HERE.waits_for_sockets:
            self._loop.add_reader(self._socket, self._ready)
        elif self._task is None:
            self._task = self._loop.create_task(self._accept(), name="kdispatch listener")

    def _ready(self) -> None:
        try:
            for _ in range(_AT_ONCE):
                self._check_room()
                self._take(self._socket.accept()[0])
        except BlockingIOError:  # no connection is pending any more
            self._has_room()
        except (InterruptedError, ConnectionAbortedError):
            pass  # a connection may still be pending: the socket stays readable
        except OSError as error:
            self._pause(error)

    def _check_room(self) -> None:
        if self._low:
            descriptor = os.dup(self._socket.fileno())
            os.close(descriptor)
            if is_reserved(descriptor):
                if not self._is_pending():
                    raise BlockingIOError
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            self._low = False

    def _is_pending(self) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def _take(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)  # noqa: FBT003 - it takes no keywords
        self._low = is_reserved(accepted.fileno())
        self._accepted(accepted)

    def _has_room(self) -> None:
        # Only once none is pending: under pressure each connection that ends would cost two lines of the log.
        if self._full:
            self._full = False
            self._log.info(f"Connections to {self._where} are taken again.")

    def _pause(self, error: OSError) -> None:
        # While a connection is pending, a watched socket would wake the loop again at once.
        self._loop.remove_reader(self._socket)
        self._waiting = self._loop.call_later(_PAUSE, self._watch)
        self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not self._full:
            self._full = True
            text = f"New connections to {self._where} wait: {error.strerror or error}."
            if error.errno in SHORT:
                text += " They are taken when others have ended; a higher limit (ulimit -n) allows more at a time."
            self._log.warning(text, code="busy")

    async def _accept(self) -> None:
        while True:
            try:
                accepted, _ = await self._loop.sock_accept(self._socket)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._tell(error)
                await asyncio.sleep(_PAUSE)
                continue
            self._take(accepted)
            self._has_room()  # whether another one is pending, these loops do not tell
