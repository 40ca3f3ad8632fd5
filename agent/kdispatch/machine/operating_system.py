"""Everything that differs between operating systems: one class for each, with the same methods, and ``HERE``.

No other file of the agent checks which system it runs on. ``Windows`` imports
Windows modules on use only, so that its tests run anywhere.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO, TypedDict

from kdispatch.machine import posix_facts, posix_input, system_network, windows_console, windows_facts

if TYPE_CHECKING:
    import asyncio
    import ssl

__all__ = ["HERE", "Posix", "SpawnOptions", "Windows"]

_Act = Callable[[int], None]
_Hurry = Callable[[int, float], None]

#: The byte that Windows locks. Its locks keep others from reading, so it is beyond the end of all files here.
_LOCKED_BYTE: Final = 1 << 30
#: By system: the ioctl request for the number of bytes that the kernel holds and the other end has not acknowledged.
_TIOCOUTQ: Final = {"linux": 0x5411, "darwin": 0x40047473}
#: Seconds that Windows waits for other programs that have a file open; kdispatch reads its files in a millisecond.
_READERS_WAIT: Final = 1.0
#: Offset in Linux's struct tcp_info (tcp.h) of the milliseconds since bytes were last sent.
_LAST_SENT: Final = 44


class SpawnOptions(TypedDict, total=False):
    """Options for ``subprocess.Popen`` besides the command."""

    start_new_session: bool
    creationflags: int


class Posix:
    """Linux, macOS and similar systems."""

    #: The family of unix sockets; ``None`` where Python has none.
    unix: Final[int | None] = getattr(socket, "AF_UNIX", None)
    #: Whether every event loop can wait for our own sockets (``add_writer``).
    waits_for_sockets: Final = True
    #: Whether bytes that a program sent before its connection broke can still be read.
    keeps_unread: Final = True
    #: Whether a write fails with EPIPE if the other end had finished before the connection broke.
    tells_end: Final = sys.platform == "linux"
    #: Flags for ``os.open`` with which bytes are read and written unchanged.
    open_flags: Final = 0
    #: The encoding of output to pipes and files; ``None`` is the locale's.
    pipe_encoding: Final[str | None] = None
    #: Whether users type commands in PowerShell, and not in a POSIX shell.
    powershell: Final = False

    def try_lock(self, descriptor: int) -> bool:
        """Lock an open file for this process until the descriptor is closed; returns whether it succeeded."""
        fcntl: Any = importlib.import_module("fcntl")
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    def sync_directory(self, directory: Path) -> None:
        """Return when new names in the directory are on disk."""
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        """Give a file the name of another, which is gone then; raises ``OSError``."""
        source.replace(target)

    def remove(self, path: Path) -> None:
        """Remove a file, if it is there; raises ``OSError``."""
        path.unlink(missing_ok=True)

    def start_anew(self, descriptor: int, path: Path, old: Path) -> None:
        """Keep the content of the open file ``path`` as ``old``, and let the descriptor write to an empty file.

        Raises ``OSError``.
        """
        path.replace(old)
        fresh = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(fresh, descriptor)
        os.close(fresh)

    def others_may_use(self, mode: int) -> bool:
        """Whether a file's mode lets other users read or change it."""
        return bool(mode & 0o077)

    def is_ours(self, owner: int) -> bool:
        """Whether the user with this id runs this process."""
        return owner == os.getuid()

    def is_read_only(self, descriptor: int) -> bool:
        """Whether an open file is on a read-only file system."""
        with contextlib.suppress(OSError):
            return bool(os.fstatvfs(descriptor).f_flag & os.ST_RDONLY)
        return False

    def bind_private(self, path: Path) -> socket.socket | None:
        """A unix socket at ``path`` for this user only, not listening yet; raises ``OSError``."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(path))
            path.chmod(0o600)  # before it listens, so that no other mode ever let anyone in
        except BaseException:
            sock.close()
            raise
        return sock

    def own_port(self, sock: socket.socket) -> None:
        """Call before ``bind``: no other program can then listen there, and old connections do not block the port."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def unacknowledged(self, sock: socket.socket) -> int:
        """Bytes in the kernel that the other end has not acknowledged; raises ``OSError``."""
        fcntl: Any = importlib.import_module("fcntl")
        told: bytes = (
            fcntl.ioctl(sock.fileno(), _TIOCOUTQ[sys.platform], bytes(4)) if sys.platform in _TIOCOUTQ else bytes(4)
        )
        return int.from_bytes(told, sys.byteorder)

    def reset(self, transport: asyncio.Transport, sock: socket.socket | None) -> None:  # noqa: ARG002 - see Windows
        """Abort a transport that was made of ``sock`` and resets its connection when it is closed."""
        transport.abort()

    def since_sent(self, sock: socket.socket) -> int | None:
        """Milliseconds since bytes were last sent; ``None`` if the system does not tell. Raises ``OSError``."""
        if sys.platform != "linux":
            return None
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_SENT + 4)
        return int.from_bytes(info[_LAST_SENT:], sys.byteorder) if len(info) == _LAST_SENT + 4 else None

    def is_terminal(self, stream: TextIO) -> bool:
        """Whether a person types what a standard stream reads, or a screen shows what is written to it."""
        return stream.isatty()

    def read_line(self, most: int) -> bytes:
        """Read a line of standard input, of at most so many bytes; a signal ends the wait at once."""
        return posix_input.read_line(most)

    def read_hidden(self, prompt: str, most: int) -> bytes:
        """Ask for a line at the terminal of standard input, which does not show it."""
        return posix_input.read_hidden(prompt, most)

    def spawn_options(self) -> Sequence[SpawnOptions]:
        """Options to start a process that outlives its terminal: in its own session.

        If the system denies the first, try the next.
        """
        return [{"start_new_session": True}]

    def on_stop(self, loop: asyncio.AbstractEventLoop, act: _Act, hurry: _Hurry) -> None:  # noqa: ARG002 - see Windows
        """Call ``act`` with the number of each signal that asks this process to end.

        This includes SIGHUP, from a closed terminal, unless it was ignored at the start, as under nohup. Where the
        system itself ends the process soon, call ``hurry`` with the number and the seconds for running work.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, act, number)

    def heed_interrupts(self) -> None:
        """Let ``kill -INT`` end this process even if SIGINT was ignored at its start; Ctrl-C stays ignored.

        Shells start a script's background commands with SIGINT ignored, as Ctrl-C is for the foreground command. Python
        would then ignore every SIGINT in a command, and asyncio would handle every one. Call this in the main thread
        before starting another.
        """
        if not hasattr(signal, "sigwaitinfo"):  # macOS: agents handle both there, other commands neither
            return
        # A command that does this starts its children with the signal blocked.
        blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        if blocked or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            threading.Thread(target=posix_facts.pass_explicit_interrupts_on, name="interrupts", daemon=True).start()

    def place(self) -> tuple[str, str, str, str]:
        """Identifies this place: machine, boot, pid namespace, network cards; empty where unknown."""
        if sys.platform == "darwin":
            return "", posix_facts.told("sysctl", "-n", "kern.bootsessionuuid"), "", ""
        namespace = ""
        with contextlib.suppress(OSError):
            namespace = str(Path("/proc/self/ns/pid").readlink())
        return (
            posix_facts.text("/etc/machine-id"),
            posix_facts.text("/proc/sys/kernel/random/boot_id"),
            namespace,
            posix_facts.network_cards(),
        )

    def process_started(self, pid: int) -> str | None:
        """The start time of a process in the system's format; ``None`` if there is no such process or it is unknown."""
        if sys.platform == "darwin":
            return posix_facts.told("ps", "-o", "lstart=", "-p", str(pid)) or None
        return posix_facts.started(pid)

    def ask_to_stop(self, pid: int, started: str | None) -> bool:
        """Ask the process with this pid and start time to drain and end; returns whether it exists."""
        return posix_facts.send(signal.SIGTERM, pid, lambda: self.process_started(pid) == started is not None)

    def end_now(self, pid: int, started: str | None) -> bool:
        """End the process at once; returns whether it exists."""
        return posix_facts.send(signal.SIGKILL, pid, lambda: self.process_started(pid) == started is not None)

    def system_proxies(self, host: str) -> Mapping[str, str]:
        """The proxies for ``host`` from the user's settings, by scheme. Linux has no such settings."""
        return system_network.proxies("macosx_sysconf", host) if sys.platform == "darwin" else {}

    def system_trust(self) -> ssl.SSLContext | None:
        """A context with the system's trust store; ``None`` if that is in files, which OpenSSL reads itself.

        On Linux truststore would read them for each connection, which takes 30 ms.
        """
        return system_network.trust() if sys.platform == "darwin" else None


class Windows:
    """Windows. This has run under Wine only: see docs/platforms.md."""

    unix: Final[int | None] = None
    waits_for_sockets: Final = False  # not with its Proactor loop
    keeps_unread: Final = False  # it drops them with the connection
    tells_end: Final = False
    open_flags: Final[int] = getattr(os, "O_BINARY", 0)
    pipe_encoding: Final[str | None] = "utf-8"  # the code page lacks most characters, and readers expect UTF-8
    powershell: Final = True

    def try_lock(self, descriptor: int) -> bool:
        """Lock an open file for this process until the descriptor is closed; returns whether it succeeded."""
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

    def replace(self, source: Path, target: Path) -> None:
        """The same. The name of an open file can't be taken, so this waits a while for readers of the target."""
        deadline = time.monotonic() + _READERS_WAIT
        while True:
            try:
                source.replace(target)
            except PermissionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def remove(self, path: Path) -> None:
        """The same, but a file that a process has open stays. The next command that finds it removes it."""
        with contextlib.suppress(PermissionError):
            path.unlink(missing_ok=True)

    def start_anew(self, descriptor: int, path: Path, old: Path) -> None:
        """The same. An open file can't be renamed, so its content is copied."""
        shutil.copyfile(path, old)
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)

    def others_may_use(self, mode: int) -> bool:  # noqa: ARG002 - a mode says nothing about access lists
        """False: a profile's files belong to its owner, and the mode says nothing."""
        return False

    def is_ours(self, owner: int) -> bool:  # noqa: ARG002 - files have no owner's number here
        """False: owners have no number here."""
        return False

    def is_read_only(self, descriptor: int) -> bool:  # noqa: ARG002 - modes are not looked at
        """False: it makes no difference here."""
        return False

    def bind_private(self, path: Path) -> socket.socket | None:  # noqa: ARG002 - asyncio has no unix sockets here
        """``None``: there are no unix sockets."""
        return None

    def own_port(self, sock: socket.socket) -> None:
        """Like the other; ``SO_REUSEADDR`` would let any program share the port here."""
        exclusive: Any = socket
        sock.setsockopt(socket.SOL_SOCKET, exclusive.SO_EXCLUSIVEADDRUSE, 1)

    def unacknowledged(self, sock: socket.socket) -> int:  # noqa: ARG002 - see since_sent
        """Not available here."""
        return 0

    def reset(self, transport: asyncio.Transport, sock: socket.socket | None) -> None:
        """The same. asyncio shuts a socket down before it closes it, which the program would take for a normal end."""
        transport.abort()
        if sock is not None:
            sock.close()  # before asyncio does, in the loop's next turn

    def since_sent(self, sock: socket.socket) -> int | None:  # noqa: ARG002 - SIO_TCP_INFO needs a call of its own
        """Not available here."""
        return None

    def is_terminal(self, stream: TextIO) -> bool:
        """The same. ``isatty`` is true for NUL, too, and ``getpass`` would then read a console that is not there."""
        return stream.isatty() and windows_console.is_console(stream.fileno())

    def read_line(self, most: int) -> bytes:
        """Read a line of standard input, of at most so many bytes. Ctrl-C ends a read of a console here."""
        return sys.stdin.buffer.readline(most)

    def read_hidden(self, prompt: str, most: int) -> bytes:
        """Ask for a line at the console, which does not show it."""
        getpass: Any = importlib.import_module("getpass")
        return str(getpass.getpass(prompt)).encode()[:most]

    def spawn_options(self) -> Sequence[SpawnOptions]:
        """The same: in its own group and console, which has no window. Without a console a venv's Python shows one.

        Outside of its job, too, if that lets it: an ssh server and others end all processes of a job with a session.
        """
        flags: Any = subprocess
        own = flags.CREATE_NO_WINDOW | flags.CREATE_NEW_PROCESS_GROUP
        return [{"creationflags": own | flags.CREATE_BREAKAWAY_FROM_JOB}, {"creationflags": own}]

    def on_stop(self, loop: asyncio.AbstractEventLoop, act: _Act, hurry: _Hurry) -> None:
        """The same for Ctrl-C and Ctrl-Break, and ``hurry`` for a closed console, log-off and shutdown."""
        windows_console.on_stop(loop, act, hurry)

    def heed_interrupts(self) -> None:
        """Nothing is ignored here."""

    def place(self) -> tuple[str, str, str, str]:
        """The machine, and in place of its boot the machine with its name.

        Only locks tell here whether a process lives, and they end with the boot. Clones of a machine get other names.
        """
        machine = windows_facts.machine()
        return machine, f"{machine} {socket.gethostname()}" if machine else "", "", ""

    def process_started(self, pid: int) -> str | None:  # noqa: ARG002 - see ask_to_stop
        """Python's library does not tell."""
        return None

    def ask_to_stop(self, pid: int, started: str | None) -> bool:
        """A process can't be asked here: end it."""
        return self.end_now(pid, started)

    def end_now(self, pid: int, started: str | None) -> bool:  # noqa: ARG002 - see process_started
        """End the process. Only the lock that it holds on its record identifies it."""
        try:
            os.kill(pid, signal.SIGTERM)  # TerminateProcess, for any number that is no console event
        except (ProcessLookupError, PermissionError):  # Windows raises the latter for one that just ended
            return False
        return True

    def system_proxies(self, host: str) -> Mapping[str, str]:
        """The same, from the registry."""
        return system_network.proxies("registry", host)

    def system_trust(self) -> ssl.SSLContext | None:
        """A context with the system's trust store."""
        return system_network.trust()


HERE: Final[Posix | Windows] = Windows() if os.name == "nt" else Posix()
