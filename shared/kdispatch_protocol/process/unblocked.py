"""Standard output and standard error whose writes never block. Programs with an event loop write through these.

A pipe without a reader, a terminal stopped with Ctrl-S, or a file on a hanging disk would otherwise block
the event loop and every connection in it. Each such place has one thread that writes, and a bounded queue
before it. Lines that find no room, or that the place refuses, are dropped and counted. The count is reported
as soon as the place takes lines again. The descriptors' flags stay unchanged, because a terminal's descriptor
is shared with the shell.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final, NoReturn, TextIO

__all__ = ["OutputPlace", "UnblockedStream", "finish_output", "leave", "unblock_output"]

#: Bytes queued for one place: two thousand lines, which a slow terminal takes in seconds.
_MOST: Final = 256 * 1024
_LINE: Final = 1024  # with fewer bytes left there is no room for a typical line
_AT_ONCE: Final = 64 * 1024  # bytes per write, about what a pipe holds
#: Seconds between two writes: a busy log then costs one write for many lines, and its loop one wake-up.
_REST: Final = 0.01
_AGAIN: Final = 0.02  # seconds before a retry, if another program made the descriptor non-blocking
#: Seconds that the exiting process waits for its last lines.
_AT_THE_END: Final = 1.0

#: Writes some of the bytes and returns how many; ``None`` if it can't now. Raises ``OSError``.
Write = Callable[[bytes], int | None]


class OutputPlace:
    """The target of one writing thread, through ``write``. ``told`` formats a line with the number of dropped lines.

    ``refused`` is called in that thread with the first error of a write.
    """

    def __init__(self, write: Write, refused: Callable[[Exception], None] | None = None) -> None:
        self.told: Callable[[int], str] = _told
        self._on_refusal = refused
        self._write = write
        # Reentrant: a signal handler or the garbage collector may write while this thread is in put().
        self._lock = threading.RLock()
        self._queue: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._held = 0  # bytes in the queue and in the current write
        self._no_room = 0  # lines dropped after what the queue holds
        self._refused = 0  # lines that the place refused; only the thread uses this
        self._within = False  # the place has an incomplete line; only the thread uses this
        self._hurry = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def full(self) -> bool:
        """Whether the next line has no room. After a dropped line this stays true until half of the queue is out."""
        return self._held > (_MOST // 2 if self._no_room else _MOST - _LINE)

    def drop(self, lines: int) -> None:
        """Count lines that were not formatted because there is no room."""
        with self._lock:
            self._no_room += lines

    def put(self, data: bytes) -> None:
        """Queue whole lines, or count them as dropped. Never blocks and never raises."""
        with self._lock:
            if self.full or self._held + len(data) > _MOST:
                self._no_room += _lines(data)
                return
            if self._no_room:
                notice = self.told(self._no_room).encode(errors="backslashreplace")
                data = notice + data
                self._no_room = 0
            self._held += len(data)
            self._queue.put(data)
            self.start()

    def finish(self, seconds: float) -> bool:
        """Wait until everything is written, for at most ``seconds``; returns whether it is.

        If the system refuses a thread, this writes directly: the last lines say which resource is missing.
        """
        if self._thread is None and not self._held:
            return True
        if not self.start():
            with contextlib.suppress(Empty):
                while isinstance(data := self._queue.get_nowait(), bytes):
                    self._put_out(data)
                    self._held -= len(data)
            return True
        done = threading.Event()
        self._queue.put(done)
        self._hurry.set()
        return done.wait(seconds)

    def start(self) -> bool:
        """Start the thread if there is none; returns whether there is one. Call this early.

        Later the system may refuse a thread. Lines would then wait until the next line tries again, if one ever comes.
        """
        if self._thread is None:
            # A daemon thread, because a hanging write must not delay the end of the process.
            thread = threading.Thread(target=self._run, name="kdispatch output", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system refuses a thread; the next line tries again
                return False
            self._thread = thread
        return True

    # --- inner ----------------------------------------------------------------------------------

    def _run(self) -> None:
        if hasattr(signal, "pthread_sigmask"):  # the main thread handles signals
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            data, done = self._take()
            self._put_out(data)
            with self._lock:
                self._held -= len(data)
                if self._no_room and self._queue.empty():
                    self._refused, self._no_room = self._refused + self._no_room, 0
            if self._refused:
                self._put_out(b"")
            if done is not None:
                done.set()
                self._hurry.clear()
            self._hurry.wait(_REST)

    def _take(self) -> tuple[bytes, threading.Event | None]:
        """Wait for data. An event in the queue asks to be set when all data before it is written."""
        item = self._queue.get()
        parts: list[bytes] = []
        size = 0
        with contextlib.suppress(Empty):
            while isinstance(item, bytes):
                parts.append(item)
                size += len(item)
                if size >= _AT_ONCE:
                    break
                item = self._queue.get_nowait()
        return b"".join(parts), item if isinstance(item, threading.Event) else None

    def _put_out(self, data: bytes) -> None:
        """Write ``data`` after the count of refused lines, and count what is refused now."""
        notice = self.told(self._refused).encode(errors="backslashreplace") if self._refused else b""
        if notice and self._within:
            notice = b"\n" + notice
        whole = notice + data
        done = self._write_all(whole)
        if done:
            self._within = not whole[:done].endswith(b"\n")
        if done >= len(notice):
            self._refused = 0
        self._refused += _lines(data[max(0, done - len(notice)) :])

    def _write_all(self, data: bytes) -> int:
        """Write until the end or until the place refuses; returns how many bytes were taken."""
        view, done = memoryview(data), 0
        while done < len(data):
            try:
                count = self._write(bytes(view[done:]) if done else data)
            except (OSError, ValueError) as error:  # a closed stream raises ValueError
                if self._on_refusal is not None:
                    tell, self._on_refusal = self._on_refusal, None
                    tell(error)
                break
            if count is None:
                time.sleep(_AGAIN)
            else:
                done += count
        return done


class UnblockedStream(io.TextIOBase):
    """A text stream on a :class:`OutputPlace`, replacing ``under``."""

    def __init__(self, place: OutputPlace, under: TextIO) -> None:
        self.place = place
        self._under = under
        self._encoding = under.encoding or "utf-8"

    @property
    def encoding(self) -> str:  # type: ignore[override]  # read-only, as the base's is
        """The encoding of the replaced stream."""
        return self._encoding

    @property
    def errors(self) -> str:  # type: ignore[override]  # read-only, as the base's is
        """Characters that the encoding lacks are escaped."""
        return "backslashreplace"

    def write(self, text: str, /) -> int:
        """Queue the text."""
        if os.linesep != "\n":
            text = text.replace("\n", os.linesep)
        self.place.put(text.encode(self._encoding, "backslashreplace"))
        return len(text)

    def writable(self) -> bool:
        """True."""
        return True

    def fileno(self) -> int:
        """The descriptor that is written to."""
        return self._under.fileno()

    def isatty(self) -> bool:
        """Whether the descriptor is a terminal."""
        return self._under.isatty()


_places: Final[list[OutputPlace]] = []


def unblock_output(errors_to: Write | None = None) -> None:
    """Make all writes of this process to ``sys.stdout`` and ``sys.stderr`` non-blocking for their callers.

    ``errors_to`` writes what goes to standard error, instead of its descriptor. Streams that are not the interpreter's
    own (such as a test's) stay unchanged. Call :func:`finish_output` before ``os._exit``.
    """
    made: dict[tuple[int, ...], OutputPlace] = {}
    for name in ("stderr", "stdout"):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue
        stream.flush()
        own = errors_to if name == "stderr" else None
        setattr(sys, name, UnblockedStream(_place(stream, own, made), stream))
    if not _places:
        atexit.register(finish_output)
    for place in made.values():
        place.start()
        _places.append(place)


def finish_output(seconds: float = _AT_THE_END) -> None:
    """Before the process ends, wait at most ``seconds`` until the last lines are written."""
    deadline = time.monotonic() + seconds
    for place in _places:
        place.finish(max(0.0, deadline - time.monotonic()))


def leave(status: int) -> NoReturn:
    """End the process at once, without joining threads: libraries leave some behind when the system refused one."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    finish_output()
    os._exit(status)


def _place(stream: TextIO, write: Write | None, made: dict[tuple[int, ...], OutputPlace]) -> OutputPlace:
    """The place for the stream. Streams to the same file share one place, so that their lines keep their order."""
    found = os.fstat(stream.fileno())
    # On Windows only files have numbers. All pipes and consoles have 0, and their output must not be mixed.
    key = (found.st_dev, found.st_ino) if found.st_ino else (stream.fileno(),)
    if key not in made:
        # Not through the buffer: when the process ends, the hanging thread may hold the buffer's lock.
        buffer = stream.buffer
        # A refusal by standard error can't be reported anywhere.
        refused = _tell_of_the_result if made else None
        made[key] = OutputPlace(write or getattr(buffer, "raw", buffer).write, refused)
    return made[key]


def _tell_of_the_result(error: Exception) -> None:
    """Log that standard output refuses the result. A reader that closed its pipe needs no message."""
    if not isinstance(error, BrokenPipeError):
        words = getattr(error, "strerror", None) or error
        logging.getLogger("kdispatch.output").warning("The result can't be written: %s. This process goes on.", words)


def _lines(data: bytes) -> int:
    return data.count(b"\n")


def _told(lines: int) -> str:
    return f"{lines} lines were left out here: nothing took them.\n"
