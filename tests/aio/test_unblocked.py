"""Output never blocks a process, wherever it goes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdispatch_protocol.process import unblocked
from kdispatch_protocol.process.unblocked import OutputPlace
from tests.guards.environment import inherited

LEFT_OUT = re.compile(r"(\d+) lines were left out here")


class Slow:
    """A destination that accepts ``most`` bytes at a time, and nothing while it is stopped or fails."""

    def __init__(self, most: int = 1 << 20) -> None:
        self.most = most
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.error: int | None = None
        self.taken = b""
        self.nothing = 0  # how often it accepts nothing for now

    def __call__(self, data: bytes) -> int | None:
        self.goes_on.wait()
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        if self.nothing:
            self.nothing -= 1
            return None
        self.taken += data[: self.most]
        return min(self.most, len(data))

    @property
    def lines(self) -> list[str]:
        return self.taken.decode().splitlines()


def test_lines_keep_their_order() -> None:
    """All lines arrive complete and in order, however little the destination accepts at a time."""
    slow = Slow(most=7)
    slow.nothing = 2
    place = OutputPlace(slow)
    for number in range(500):
        place.put(f"line {number}\n".encode())
    assert place.finish(5)
    assert slow.lines == [f"line {number}" for number in range(500)]


def test_a_place_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines for a destination that hangs are dropped and counted; the count is written where they are missing."""
    monkeypatch.setattr(unblocked, "_MOST", 1000)
    monkeypatch.setattr(unblocked, "_LINE", 0)
    slow = Slow()
    place = OutputPlace(slow)
    slow.goes_on.clear()
    for number in range(1000):
        place.put(f"line {number:04}\n".encode())
    assert not place.finish(0.05)
    slow.goes_on.set()
    assert place.finish(5)
    place.put(b"later\n")
    assert place.finish(5)
    *kept, told, last = slow.lines
    assert kept == [f"line {number:04}" for number in range(len(kept))] and 50 < len(kept) < 120
    found = LEFT_OUT.match(told)
    assert found and int(found[1]) == 1000 - len(kept)
    assert last == "later"


def test_the_count_stands_between_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a gap, the next lines follow the number of lines that are missing."""
    monkeypatch.setattr(unblocked, "_MOST", 100)
    monkeypatch.setattr(unblocked, "_LINE", 0)
    slow = Slow()
    place = OutputPlace(slow)
    slow.goes_on.clear()
    place.put(b"a" * 89 + b"\n")
    for _ in range(7):
        place.put(b"b" * 39 + b"\n")
    slow.goes_on.set()
    assert place.finish(5)
    place.put(b"c\n")
    assert place.finish(5)
    assert slow.lines[1:] == ["7 lines were left out here: nothing took them.", "c"]


def test_the_count_stands_where_lines_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line after a gap, while others still wait, is written after the gap's count."""
    monkeypatch.setattr(unblocked, "_MOST", 100)
    monkeypatch.setattr(unblocked, "_LINE", 0)
    monkeypatch.setattr(unblocked, "_AT_ONCE", 1)
    steps, taken = threading.Semaphore(0), bytearray()

    def step(data: bytes) -> int:
        steps.acquire()
        taken.extend(data)
        return len(data)

    place = OutputPlace(step)
    for letter in (b"a", b"b", b"c", b"d"):  # the third has no room
        place.put(letter * 44 + b"\n")
    steps.release()
    deadline = time.monotonic() + 5
    while place.full and time.monotonic() < deadline:
        time.sleep(0.001)
    place.put(b"e\n")
    steps.release(10)
    assert place.finish(5)
    lines = taken.decode().splitlines()
    assert [line[0] for line in lines] == ["a", "b", "2", "e"]


def test_a_place_that_refuses() -> None:
    """Lines that a full disk refuses are counted and reported when it accepts again; a partial line is ended first."""
    slow = Slow(most=4)
    place = OutputPlace(slow)
    place.put(b"one\n")
    assert place.finish(5)
    slow.error = errno.ENOSPC
    for number in range(30):
        place.put(f"lost {number}\n".encode())
        assert place.finish(5)
    slow.error = None
    place.put(b"two\n")
    assert place.finish(5)
    assert slow.lines == ["one", "30 lines were left out here: nothing took them.", "two"]


@pytest.mark.parametrize("later", [True, False])
def test_no_room_for_a_thread(monkeypatch: pytest.MonkeyPatch, *, later: bool) -> None:
    """If the system refuses a thread, the lines wait for one, and are written at the end."""
    slow = Slow()
    place = OutputPlace(slow)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        place.put(b"one\n")
        assert slow.lines == []
        place.put(b"two\n")
        if not later:
            assert place.finish(5)
            assert slow.lines == ["one", "two"]
    place.put(b"three\n")
    assert place.finish(5)
    assert slow.lines == ["one", "two", "three"]


def test_places_without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system does not number pipes (Windows), output for one pipe never goes to the other."""
    readers, streams = [], []
    for _ in range(2):
        reader, writer = os.pipe()
        readers.append(reader)
        streams.append(os.fdopen(writer, "w"))
    monkeypatch.setattr(os, "fstat", lambda _: os.stat_result((0o010600, 0, 0, *(0,) * 7)))
    made: dict[tuple[int, ...], OutputPlace] = {}
    for stream, text in zip(streams, (b"to the first\n", b"to the second\n"), strict=True):
        place = unblocked._place(stream, None, made)
        place.put(text)
        assert place.finish(5)
    assert [os.read(reader, 100) for reader in readers] == [b"to the first\n", b"to the second\n"]
    for stream in streams:
        stream.close()
    for reader in readers:
        os.close(reader)


# --- real places ------------------------------------------------------------------------------------

#: Writes a great deal to both streams in every way there is, then says on descriptor 3 that its loop still turns.
TALKING = """
import asyncio, logging, os, sys, time, warnings
from kdispatch_protocol.process.logs import configure_logs
from kdispatch_protocol.process.unblocked import unblock_output

async def main():
    unblock_output()
    configure_logs(sys.argv[1], verbose=True)
    loop, late = asyncio.get_running_loop(), 0.0
    for number in range(3000):
        began = time.perf_counter()
        logging.getLogger("kdispatch.agent").debug("A connection ended.", extra={"number": number, "text": "x" * 200})
        print("reached", number, flush=True)
        if number % 500 == 0:
            warnings.warn(f"warning {number}")
            loop.call_exception_handler({"message": "task failed", "exception": ValueError("x" * 500)})
        late = max(late, time.perf_counter() - began)
        await asyncio.sleep(0)
    os.write(3, f"alive {late:.3f}\\n".encode())
    await loop.run_in_executor(None, os.read, 4, 1)
    logging.getLogger("kdispatch.agent").warning("the last one")
    if sys.argv[2:]:
        raise RuntimeError("the end")
asyncio.run(main())
"""


class Talker:
    """A process whose standard output and standard error both go to ``place``."""

    def __init__(self, place: int, log_format: str = "text", *more: str) -> None:
        self._said, said = os.pipe()
        told, self._told = os.pipe()
        script = f"import os; os.dup2({said}, 30); os.dup2({told}, 4); os.dup2(30, 3)\n{TALKING}"
        command = [sys.executable, "-c", script, log_format, *more]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=place, stderr=place, pass_fds=(said, told), env=inherited()
        )
        os.close(said)
        os.close(told)

    def is_alive(self) -> float:
        """Wait until it has written all; returns the longest turn of its loop."""
        with os.fdopen(self._said) as said:
            return float(said.readline().split()[1])

    def goes_on(self) -> None:
        os.write(self._told, b"x")
        os.close(self._told)

    def ended(self) -> tuple[int, float]:
        """Its status, and the seconds to its end."""
        began = time.monotonic()
        return self.process.wait(10), time.monotonic() - began


@contextlib.contextmanager
def talker(place: int, log_format: str = "text", *more: str) -> Iterator[Talker]:
    one = Talker(place, log_format, *more)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        for descriptor in (reader, writer):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def read_all(reader: int) -> str:
    with open(reader, errors="replace", closefd=False) as file:
        return file.read()


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("fails",)])
def test_a_pipe_that_nobody_reads(more: tuple[str, ...]) -> None:
    """A process whose standard error is not read goes on, and ends within the time for its last output."""
    with pipe() as (_reader, writer), talker(writer, "text", *more) as talking:
        assert talking.is_alive() < 1.0
        talking.goes_on()
        status, seconds = talking.ended()
    assert (status, seconds < 5.0) == (len(more), True)


@pytest.mark.slow
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_pipe_that_is_read_again(log_format: str) -> None:
    """The log reports in its own form how many lines are missing, and goes on; the last output is there."""
    with pipe() as (reader, writer), talker(writer, log_format, "fails") as talking:
        os.close(writer)
        talking.is_alive()
        said: list[str] = []
        thread = threading.Thread(target=lambda: said.append(read_all(reader)))
        thread.start()
        time.sleep(0.3)
        talking.goes_on()
        status, _ = talking.ended()
        thread.join(10)
    assert status == 1
    text = said[0]
    (missing,) = LEFT_OUT.findall(text)
    # A record, a line of standard output, and now and then several lines of a warning or a traceback.
    there = text.count("A connection ended.") + text.count("reached ")
    assert there < 6000 <= there + int(missing) < 6100
    assert text.index("left out") < text.index("the last one") < text.index("RuntimeError: the end")
    if log_format == "json":
        assert f'"lines": {missing}' in text


@pytest.mark.slow
def test_a_fifo() -> None:
    """A FIFO that is open but never read behaves in the same way."""
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    path = folder / f"kdispatch-fifo-{os.getpid()}"
    os.mkfifo(path)
    try:
        both = os.open(path, os.O_RDWR)
        with talker(both) as talking:
            assert talking.is_alive() < 1.0
            talking.goes_on()
            assert talking.ended()[0] == 0
        os.close(both)
    finally:
        path.unlink()


@pytest.mark.slow
def test_a_terminal_that_was_stopped() -> None:
    """Ctrl-S stops no process; Ctrl-Q shows the number of lines. The terminal's descriptor stays blocking."""
    ours, theirs = pty.openpty()
    try:
        termios.tcflow(theirs, termios.TCOOFF)
        with talker(theirs) as talking:
            assert talking.is_alive() < 1.0
            assert not fcntl.fcntl(theirs, fcntl.F_GETFL) & os.O_NONBLOCK
            termios.tcflow(theirs, termios.TCOON)
            shown = _shown(ours, lambda text: "left out here" in text)
            talking.goes_on()
            shown += _shown(ours, lambda text: "the last one" in text)
            assert talking.ended()[0] == 0
        assert len(LEFT_OUT.findall(shown)) == 1
    finally:
        os.close(ours)
        os.close(theirs)


def _shown(terminal: int, enough: Callable[[str], bool]) -> str:
    text = ""
    while not enough(text):
        text += os.read(terminal, 65536).decode(errors="replace")
    return text


@pytest.mark.slow
def test_standard_error_that_is_gone() -> None:
    """A reader that left, and a full device, stop nothing and leave no traceback."""
    with pipe() as (reader, writer), talker(writer) as talking:
        os.close(reader)
        talking.is_alive()
        talking.goes_on()
        assert talking.ended()[0] == 0
    full = os.open("/dev/full", os.O_WRONLY)
    with talker(full) as talking:
        talking.is_alive()
        talking.goes_on()
        assert talking.ended()[0] == 0
    os.close(full)


_RESULT = """
import sys
from kdispatch_protocol.process.logs import configure_logs
from kdispatch_protocol.process.unblocked import finish_output, unblock_output
unblock_output()
configure_logs()
for _ in range(2):
    print("the port")
    finish_output()
"""


@pytest.mark.slow
@pytest.mark.parametrize("full", [True, False])
def test_a_result_that_is_lost(full: bool) -> None:
    """A full disk behind standard output is logged once; a reader that left is not."""
    reader, gone = os.pipe()
    os.close(reader)
    place = os.open("/dev/full", os.O_WRONLY) if full else os.dup(gone)
    done = subprocess.run(
        [sys.executable, "-c", _RESULT], stdout=place, stderr=subprocess.PIPE, text=True, env=inherited(), check=False
    )
    os.close(gone)
    os.close(place)
    told = done.stderr.count("The result can't be written: No space left on device. This process goes on.")
    assert (done.returncode, told, done.stderr.count("\n")) == (0, int(full), int(full))


_ONE_LINE = """
import sys, threading
from kdispatch_protocol.process.unblocked import unblock_output
unblock_output()
def refuse(thread):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
print("listening")
sys.stdin.read()
"""


def test_the_only_line() -> None:
    """A line that no other follows is written, also if the system has no room for another thread."""
    with subprocess.Popen(
        [sys.executable, "-c", _ONE_LINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=inherited()
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert select.select([process.stdout], [], [], 20)[0]
            assert process.stdout.readline() == "listening\n"
        finally:
            process.stdin.close()
