"""Standard output and standard error whose writes never block: what runs an event loop writes through these.

A pipe that nobody reads, a terminal that was stopped with Ctrl-S, or a file on a disk that hangs would
otherwise stop the event loop, and every connection with it. Each such place has one thread that writes, and a
bounded queue before it. Lines that find no room, or that the place refuses, are dropped and counted; the count
is told as soon as the place takes lines again. The descriptors stay as they are: a terminal's belong to the
shell, too.
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

__all__ = ["Place", "UnblockedStream", "finish_output", "leave", "unblock_output"]

#: Bytes that wait for one place: two thousand lines, which a slow terminal takes in seconds.
_MOST: Final = 256 * 1024
_LINE: Final = 1024  # with fewer bytes left there is no room for a usual line
_AT_ONCE: Final = 64 * 1024  # bytes of one write, about what a pipe holds
#: Seconds between two writes: a busy log costs one write for many lines, and its loop one wake-up.
_REST: Final = 0.01
_AGAIN: Final = 0.02  # seconds before another try, where another program made the descriptor non-blocking
#: Seconds that the end of the process waits for what was said last.
_AT_THE_END: Final = 1.0

#: Writes some of the bytes and returns how many; ``None`` for none at the moment. Raises ``OSError``.
Write = Callable[[bytes], int | None]


class Place:
    """What one thread writes to, by ``write``. ``told`` makes a line of the number of lines that were dropped.

    ``refused`` hears, in that thread, the first error of a write.
    """

    def __init__(self, write: Write, refused: Callable[[Exception], None] | None = None) -> None:
        self.told: Callable[[int], str] = _told
        self._on_refusal = refused
        self._write = write
        # Reentrant: a signal's handler, or the collector's, may write while this thread is in put().
        self._lock = threading.RLock()
        self._queue: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._held = 0  # bytes in the queue, and of the write under way
        self._no_room = 0  # lines that were dropped behind what the queue holds
        self._refused = 0  # lines that the place did not take; the thread's own
        self._within = False  # the place has the beginning of a line; the thread's own
        self._hurry = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def full(self) -> bool:
        """Whether the next line has no room. Once lines are dropped that is so until half of the queue is out."""
        return self._held > (_MOST // 2 if self._no_room else _MOST - _LINE)

    def drop(self, lines: int) -> None:
        """Count lines that nobody made, because there is no room."""
        with self._lock:
            self._no_room += lines

    def put(self, data: bytes) -> None:
        """Write whole lines soon, or count them as dropped. Never blocks, and never fails."""
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
        """Wait until all of it is written, at most so long; returns whether it is.

        Where the system has no thread for it, this writes by itself: the last words say what there is too little of.
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
        """Start the thread, if there is none; returns whether there is one. Call this early.

        A later line may find no room for a thread. It would wait for the next one, and there may be none.
        """
        if self._thread is None:
            # A daemon: one that hangs in a write must not hold up the end of the process.
            thread = threading.Thread(target=self._run, name="kdispatch output", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has no room for a thread; there may be some at the next line
                return False
            self._thread = thread
        return True

    # --- inner ----------------------------------------------------------------------------------

    def _run(self) -> None:
        if hasattr(signal, "pthread_sigmask"):  # signals are the main thread's
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
        """Wait for something to write; an event asks to be set when all before it is written."""
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
        """Write this, behind the number of lines that the place has refused; what it refuses now is counted."""
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
        """Write until the end or until the place refuses; returns how many bytes it took."""
        view, done = memoryview(data), 0
        while done < len(data):
            try:
                count = self._write(bytes(view[done:]) if done else data)
            except (OSError, ValueError) as error:  # ValueError: of a stream that was closed
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
    """A text stream on a :class:`Place`, in the stead of ``under``."""

    def __init__(self, place: Place, under: TextIO) -> None:
        self.place = place
        self._under = under
        self._encoding = under.encoding or "utf-8"

    @property
    def encoding(self) -> str:  # type: ignore[override]  # read-only, as the base's is
        """The one of the stream before."""
        return self._encoding

    @property
    def errors(self) -> str:  # type: ignore[override]  # read-only, as the base's is
        """What the encoding lacks is escaped."""
        return "backslashreplace"

    def write(self, text: str, /) -> int:
        """Write soon."""
        if os.linesep != "\n":
            text = text.replace("\n", os.linesep)
        self.place.put(text.encode(self._encoding, "backslashreplace"))
        return len(text)

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The descriptor that is written to."""
        return self._under.fileno()

    def isatty(self) -> bool:
        """Whether that is a terminal."""
        return self._under.isatty()


_places: Final[list[Place]] = []


def unblock_output(errors_to: Write | None = None) -> None:
    """From now on nothing that this process writes to ``sys.stdout`` and ``sys.stderr`` blocks its caller.

    ``errors_to`` writes what goes to standard error, in place of its descriptor. Streams that are not the
    interpreter's own (a test's) stay as they are. Call :func:`finish_output` before ``os._exit``.
    """
    made: dict[tuple[int, ...], Place] = {}
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
    """Give what was written last its time, at most so many seconds; before the process ends."""
    deadline = time.monotonic() + seconds
    for place in _places:
        place.finish(max(0.0, deadline - time.monotonic()))


def leave(status: int) -> NoReturn:
    """End the process at once, and wait for no thread: where the system refused one, libraries leave others behind."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    finish_output()
    os._exit(status)


def _place(stream: TextIO, write: Write | None, made: dict[tuple[int, ...], Place]) -> Place:
    """The place that the stream leads to: one for both streams where they lead to the same, so lines keep order."""
    found = os.fstat(stream.fileno())
    # Windows numbers files only: all its pipes and consoles are 0, and what is for one of them must not go to another.
    key = (found.st_dev, found.st_ino) if found.st_ino else (stream.fileno(),)
    if key not in made:
        # Not by the buffer: at the end of the process its lock may be held by the thread that hangs.
        buffer = stream.buffer
        # Of standard error's own refusal there is nobody to tell.
        refused = _tell_of_the_result if made else None
        made[key] = Place(write or getattr(buffer, "raw", buffer).write, refused)
    return made[key]


def _tell_of_the_result(error: Exception) -> None:
    """Standard output does not take the result, and the log is elsewhere. A reader that left needs no word."""
    if not isinstance(error, BrokenPipeError):
        words = getattr(error, "strerror", None) or error
        logging.getLogger("kdispatch.output").warning("The result can't be written: %s. This process goes on.", words)


def _lines(data: bytes) -> int:
    return data.count(b"\n")


def _told(lines: int) -> str:
    return f"{lines} lines were left out here: nothing took them.\n"
