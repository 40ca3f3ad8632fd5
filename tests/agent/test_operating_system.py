"""Differences between operating systems are in one file, and the Windows part works as described."""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import kdispatch
from kdispatch.machine import windows_console
from kdispatch.machine.operating_system import Posix, Windows
from kdispatch.machine.places import Place
from tests.guards.systems import POSIX

PACKAGE = Path(kdispatch.__file__).parent


def test_branches_are_in_one_file() -> None:
    """No other file of the agent checks which system it runs on."""
    asks = re.compile(r"\bsys\.platform\b|\bos\.name\b|\bplatform\.system\b|\bmsvcrt\b|\bfcntl\b")
    found = {path.name for path in PACKAGE.rglob("*.py") if asks.search(path.read_text())}
    assert found == {"operating_system.py"}


def test_same_methods() -> None:
    """Both classes have the same methods with the same parameters."""

    def methods(kind: type) -> dict[str, inspect.Signature]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {name: inspect.signature(f) for name, f in found if not name.startswith("_")}

    assert methods(Posix) == methods(Windows)
    assert len(methods(Posix)) == 25


@POSIX
def test_posix_lock(tmp_path: Path) -> None:
    """A lock excludes every other opener until its descriptor is closed."""
    path = tmp_path / "lock"
    first, second = os.open(path, os.O_RDWR | os.O_CREAT), os.open(path, os.O_RDWR)
    try:
        assert Posix().try_lock(first)
        assert not Posix().try_lock(second)
        os.close(first)
        assert Posix().try_lock(second)
    finally:
        os.close(second)


class _FakeLocks:
    """msvcrt's locks of one byte: a second lock of the same place fails."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.held: list[tuple[int, int]] = []

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        assert (mode, count) == (self.LK_NBLCK, 1)
        place = (os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR))
        if place in self.held:
            raise PermissionError(13, "locked")
        self.held.append(place)


def test_windows_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows locks a byte after the file's content, so that others may read it, and stays at the file's start."""
    locks = _FakeLocks()
    monkeypatch.setitem(sys.modules, "msvcrt", locks)
    path = tmp_path / "record"
    path.write_bytes(b"content")
    with path.open("r+b", buffering=0) as first, path.open("r+b", buffering=0) as second:
        assert Windows().try_lock(first.fileno())
        assert not Windows().try_lock(second.fileno())
        assert locks.held[0][1] > path.stat().st_size
        assert first.read() == second.read() == b"content"


@pytest.mark.parametrize(
    "system", [pytest.param(Posix(), id="posix", marks=POSIX), pytest.param(Windows(), id="windows")]
)
def test_a_log_that_starts_anew(system: Posix | Windows, tmp_path: Path) -> None:
    """What an open log had is kept under the other name, and its descriptor goes on at the start of an empty file."""
    path, old = tmp_path / "log", tmp_path / "log.1"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.write(descriptor, b"before")
        system.start_anew(descriptor, path, old)
        os.write(descriptor, b"after")
        assert (path.read_bytes(), old.read_bytes()) == (b"after", b"before")
    finally:
        os.close(descriptor)


def test_windows_waits_for_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another program has open takes a new content once it is closed, and its removal is left."""
    source, target = tmp_path / "new", tmp_path / "file"
    source.write_text("new")
    opened = 3

    def replace(self: Path, other: Path) -> None:
        nonlocal opened
        opened -= 1
        if opened:
            raise PermissionError(13, "Sharing violation")
        really(self, other)

    really = Path.replace
    monkeypatch.setattr(Path, "replace", replace)
    Windows().replace(source, target)
    assert target.read_text() == "new"

    def unlink(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Sharing violation")

    monkeypatch.setattr(Path, "unlink", unlink)
    Windows().remove(target)
    assert target.exists()


def test_modes() -> None:
    """A mode that lets others in counts only where modes have a meaning."""
    assert [Posix().others_may_use(mode) for mode in (0o600, 0o640, 0o604)] == [False, True, True]
    assert not Windows().others_may_use(0o666)


def test_spawning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in the background has its own session, or a console without a window, outside of its job if it may."""
    assert Posix().spawn_options() == [{"start_new_session": True}]
    monkeypatch.setattr(subprocess, "CREATE_NO_WINDOW", 1, raising=False)
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 2, raising=False)
    monkeypatch.setattr(subprocess, "CREATE_BREAKAWAY_FROM_JOB", 4, raising=False)
    assert Windows().spawn_options() == [{"creationflags": 7}, {"creationflags": 3}]


def test_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows ends a process either way, and ignores one that is gone; for Posix see test_places."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    assert Windows().ask_to_stop(8, None)
    assert sent == [(8, signal.SIGTERM)]

    def denied(pid: int, number: int) -> None:
        raise PermissionError(5, "Access is denied")

    monkeypatch.setattr(os, "kill", denied)
    assert not Windows().end_now(8, None)


@POSIX
async def test_signals() -> None:
    """Posix handles SIGINT and SIGTERM on the loop."""
    heard: list[int] = []
    loop = asyncio.get_running_loop()
    Posix().on_stop(loop, heard.append, lambda *_: None)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.01)
        assert heard == [signal.SIGTERM]
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@POSIX
@pytest.mark.parametrize(
    ("event", "service", "acts"),
    [
        (0, False, []),
        (1, False, [21]),
        (2, False, [(21, 2.0), "stays"]),
        (5, False, [(21, 2.0), "stays"]),
        (5, True, []),
        (6, True, [(21, 2.0), "stays"]),
        (9, False, []),
    ],
    ids=["ctrl-c", "ctrl-break", "close", "log-off", "log-off-seen-by-a-service", "shutdown", "unknown"],
)
async def test_console_events(event: int, service: bool, acts: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """In Windows' thread, an event asks the loop to end in time, and only those that are not its own go to Python."""
    seen: list[object] = []
    handlers: list[Callable[[int], bool]] = []
    monkeypatch.setattr(windows_console, "on_event", handlers.append)
    monkeypatch.setattr(windows_console, "_is_service", lambda: service)
    monkeypatch.setattr(windows_console, "_stay", lambda: seen.append("stays"))
    kept = signal.getsignal(signal.SIGINT)
    try:
        Windows().on_stop(_Loop(), seen.append, lambda *told: seen.append(told))  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.01)
    finally:
        signal.signal(signal.SIGINT, kept)
    assert seen == [signal.SIGINT]
    [handler] = handlers
    assert await asyncio.to_thread(handler, event) == (event in {1, 2, 5, 6})
    assert seen[1:] == acts


@pytest.mark.parametrize(
    ("number", "console", "obeys", "expected"),
    [(0, True, False, True), (0, False, True, False), (1, True, True, True), (1, True, False, False)],
    ids=["input", "NUL", "output", "without escapes"],
)
def test_consoles(monkeypatch: pytest.MonkeyPatch, number: int, console: bool, obeys: bool, expected: bool) -> None:
    """NUL is no console, and neither is an output that can't be made to obey escape sequences."""
    modes: list[tuple[int, int]] = []

    def get_mode(handle: ctypes.c_void_p, _: object) -> bool:
        assert handle.value == -10 - number & (1 << 64) - 1
        return console

    def set_mode(handle: ctypes.c_void_p, mode: int) -> bool:
        modes.append((handle.value or 0, mode))
        return obeys

    def handle(number: int) -> int:
        return number

    kernel = SimpleNamespace(GetStdHandle=handle, GetConsoleMode=get_mode, SetConsoleMode=set_mode)
    monkeypatch.setattr(windows_console, "_kernel", lambda: (ctypes, kernel))
    stream = SimpleNamespace(isatty=lambda: True, fileno=lambda: number)
    assert Windows().is_terminal(stream) == expected  # type: ignore[arg-type]  # what it needs of one
    assert len(modes) == number


class _Loop:
    """The one method that Windows' loops have, too."""

    def call_soon_threadsafe(self, call: Callable[..., None], *arguments: float) -> None:
        call(*arguments)


def test_windows_closes_before_asyncio_shuts_down() -> None:
    """A reset closes the socket once its transport is aborted: asyncio would first tell the program of a normal end."""
    said: list[str] = []
    transport, sock = (
        SimpleNamespace(abort=lambda: said.append("abort")),
        SimpleNamespace(close=lambda: said.append("close")),
    )
    Windows().reset(transport, sock)  # type: ignore[arg-type]  # what it needs of them
    assert said == ["abort", "close"]


def test_windows_tells_machines_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent's slot counts on the machine that wrote it, and not on a clone, which has another name."""
    facts = {"machine": "c5c7b99d", "name": "lab-1"}
    monkeypatch.setattr("kdispatch.machine.windows_facts.machine", lambda: facts["machine"])
    monkeypatch.setattr("socket.gethostname", lambda: facts["name"])
    monkeypatch.setattr("kdispatch.machine.places.HERE", Windows())
    written = Place.here()
    assert Place.here().same_kernel(written)
    facts["name"] = "lab-2"
    assert not Place.here().same_kernel(written)
    assert not Place.here().rebooted_from(written)
    facts["machine"] = ""  # the registry can't be read: no slot counts
    assert not Place.here().same_kernel(Place.here())
