"""Everything that differs between operating systems: one class for each kind, with the same methods, and ``HERE``.

No other file of the agent asks which system it runs on. ``Windows`` imports what
only Windows has when it is used, so that its tests run anywhere.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict

if TYPE_CHECKING:
    import asyncio
    import ssl

__all__ = ["HERE", "Posix", "SpawnOptions", "Windows"]

#: Where Windows locks a byte: its locks keep others from reading, so it is one that no file here reaches.
_LOCKED_BYTE: Final = 1 << 30


class SpawnOptions(TypedDict, total=False):
    """What ``subprocess.Popen`` is told besides the command."""

    start_new_session: bool
    creationflags: int


class Posix:
    """Linux, macOS and their kin."""

    #: Whether a stopped agent can be asked to drain first.
    asks: Final = True
    #: Whether every event loop can wait for a socket of ours (``add_writer``).
    waits_for_sockets: Final = True

    def try_lock(self, descriptor: int) -> bool:
        """Lock an open file for this process alone, until the descriptor is closed; whether that could be done."""
        fcntl: Any = importlib.import_module("fcntl")
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    def sync_directory(self, directory: Path) -> None:
        """Return when new names in the directory are on the disk."""
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def others_may_use(self, mode: int) -> bool:
        """Whether a file's mode lets other users read or change it."""
        return bool(mode & 0o077)

    def is_ours(self, owner: int) -> bool:
        """Whether the user with this number is the one that runs this process."""
        return owner == os.getuid()

    def bind_private(self, path: Path) -> socket.socket | None:
        """A unix socket at ``path``, for this user only, which does not listen yet; raises ``OSError``."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(path))
            path.chmod(0o600)  # before it listens: nobody was let in by another mode
        except BaseException:
            sock.close()
            raise
        return sock

    def spawn_options(self) -> SpawnOptions:
        """How a process is started that outlives its terminal: in a session of its own."""
        return {"start_new_session": True}

    def on_stop(self, loop: asyncio.AbstractEventLoop, act: Callable[[int], None]) -> None:
        """Call ``act`` with the number of each signal that asks this process to end."""
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, act, number)

    def ask_to_stop(self, pid: int) -> None:
        """Let a process drain and end; raises ``ProcessLookupError`` where there is none."""
        os.kill(pid, signal.SIGTERM)

    def end_now(self, pid: int) -> None:
        """End a process whatever it is doing; raises ``ProcessLookupError`` where there is none."""
        os.kill(pid, signal.SIGKILL)

    def system_proxies(self, host: str) -> Mapping[str, str]:
        """The addresses of the proxies that the user's settings name for ``host``, by scheme; Linux has no such."""
        return _settings_of("macosx_sysconf", host) if sys.platform == "darwin" else {}

    def system_trust(self) -> ssl.SSLContext | None:
        """A context that trusts whom the system trusts; ``None`` where that is in files, which OpenSSL reads itself.

        On Linux truststore would read them at each connection, which takes 30 ms.
        """
        return _system_trust() if sys.platform == "darwin" else None


class Windows:
    """Windows, on which none of this has been run: see docs/platforms.md."""

    asks: Final = False  # a process without a console hears no Ctrl-C
    waits_for_sockets: Final = False  # not its Proactor loop

    def try_lock(self, descriptor: int) -> bool:
        """Lock an open file for this process alone, until the descriptor is closed; whether that could be done."""
        msvcrt: Any = importlib.import_module("msvcrt")
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True

    def sync_directory(self, directory: Path) -> None:
        """Windows writes names through."""

    def others_may_use(self, mode: int) -> bool:  # noqa: ARG002 - a mode says nothing about access lists
        """A profile's files are its owner's; the mode tells nothing."""
        return False

    def is_ours(self, owner: int) -> bool:  # noqa: ARG002 - files have no owner's number here
        """Nobody's number is known."""
        return False

    def bind_private(self, path: Path) -> socket.socket | None:  # noqa: ARG002 - asyncio has no unix sockets here
        """There are no unix sockets."""
        return None

    def spawn_options(self) -> SpawnOptions:
        """How a process is started that outlives its console: without one, and out of its group."""
        flags: Any = subprocess
        return {"creationflags": flags.DETACHED_PROCESS | flags.CREATE_NEW_PROCESS_GROUP}

    def on_stop(self, loop: asyncio.AbstractEventLoop, act: Callable[[int], None]) -> None:
        """asyncio's own handling of Ctrl-C stays: its loops take no handlers here."""

    def ask_to_stop(self, pid: int) -> None:
        """There is no asking: the process ends."""
        self.end_now(pid)

    def end_now(self, pid: int) -> None:
        """End a process whatever it is doing; raises ``ProcessLookupError`` where there is none."""
        try:
            os.kill(pid, signal.SIGTERM)  # TerminateProcess, for every number that is no console event
        except PermissionError:  # what Windows says of a process that has just ended
            raise ProcessLookupError(pid) from None

    def system_proxies(self, host: str) -> Mapping[str, str]:
        """The same, from the registry."""
        return _settings_of("registry", host)

    def system_trust(self) -> ssl.SSLContext | None:
        """The same."""
        return _system_trust()


def _system_trust() -> ssl.SSLContext:
    import ssl  # noqa: PLC0415 - most commands need none

    import truststore  # noqa: PLC0415 - only some systems have it

    context: ssl.SSLContext = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return context


def _settings_of(system: str, host: str) -> Mapping[str, str]:
    import urllib.request  # noqa: PLC0415 - takes 50 ms, and only some systems have such settings

    functions: Any = urllib.request
    if getattr(functions, f"proxy_bypass_{system}")(host):
        return {}
    found: Mapping[str, str] = getattr(functions, f"getproxies_{system}")()
    return found


HERE: Final[Posix | Windows] = Windows() if os.name == "nt" else Posix()
