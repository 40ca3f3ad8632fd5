"""Everything that differs between operating systems: one class for each kind, with the same methods, and ``HERE``.

No other file of the agent asks which system it runs on. ``Windows`` imports what
only Windows has when it is used, so that its tests run anywhere.
"""

from __future__ import annotations

import _thread
import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict

if TYPE_CHECKING:
    import asyncio
    import ssl

__all__ = ["HERE", "Posix", "SpawnOptions", "Windows"]

#: Where Windows locks a byte: its locks keep others from reading, so it is one that no file here reaches.
_LOCKED_BYTE: Final = 1 << 30
#: The request for the bytes that the kernel holds and the other end has not acknowledged, by system.
_TIOCOUTQ: Final = {"linux": 0x5411, "darwin": 0x40047473}
#: Where Linux' struct tcp_info (tcp.h) has the milliseconds since bytes were sent last.
_LAST_SENT: Final = 44


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
    #: Whether what a program said before its connection broke can still be read.
    keeps_unread: Final = True
    #: Whether a write fails with EPIPE where the other end was finished before the connection broke.
    tells_end: Final = sys.platform == "linux"

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

    def is_read_only(self, descriptor: int) -> bool:
        """Whether an open file is on a file system that takes no changes."""
        with contextlib.suppress(OSError):
            return bool(os.fstatvfs(descriptor).f_flag & os.ST_RDONLY)
        return False

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

    def own_port(self, sock: socket.socket) -> None:
        """Before ``bind``: nobody else is to listen at the same address, and old connections do not keep it busy."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def unacknowledged(self, sock: socket.socket) -> int:
        """Bytes in the kernel that the other end's has not acknowledged; raises ``OSError``."""
        fcntl: Any = importlib.import_module("fcntl")
        told: bytes = (
            fcntl.ioctl(sock.fileno(), _TIOCOUTQ[sys.platform], bytes(4)) if sys.platform in _TIOCOUTQ else bytes(4)
        )
        return int.from_bytes(told, sys.byteorder)

    def since_sent(self, sock: socket.socket) -> int | None:
        """Milliseconds since bytes were sent last; ``None`` where that is not told. Raises ``OSError``."""
        if sys.platform != "linux":
            return None
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_SENT + 4)
        return int.from_bytes(info[_LAST_SENT:], sys.byteorder) if len(info) == _LAST_SENT + 4 else None

    def spawn_options(self) -> SpawnOptions:
        """How a process is started that outlives its terminal: in a session of its own."""
        return {"start_new_session": True}

    def on_stop(self, loop: asyncio.AbstractEventLoop, act: Callable[[int], None]) -> None:
        """Call ``act`` with the number of each signal that asks this process to end.

        SIGHUP, of a terminal that is closed, is one of them unless it was ignored at the start, as by nohup.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, act, number)

    def heed_interrupts(self) -> None:
        """Let ``kill -INT`` end this process although SIGINT was ignored at its start; Ctrl-C stays ignored.

        Shells start a script's background commands so: Ctrl-C is for what the script has in the foreground. Python
        would keep every SIGINT from a command, and asyncio none. Call it in the main thread, before there is another.
        """
        if not hasattr(signal, "sigwaitinfo"):  # macOS: agents hear both there, other commands neither
            return
        # A command that does this starts its children with the signal blocked.
        blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        if blocked or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            threading.Thread(target=_pass_explicit_interrupts_on, name="interrupts", daemon=True).start()

    def place(self) -> tuple[str, str, str, str]:
        """What tells this place from others: machine, boot, pid namespace, network cards; empty where unknown."""
        if sys.platform == "darwin":
            return "", _told("sysctl", "-n", "kern.bootsessionuuid"), "", ""
        namespace = ""
        with contextlib.suppress(OSError):
            namespace = str(Path("/proc/self/ns/pid").readlink())
        return _text("/etc/machine-id"), _text("/proc/sys/kernel/random/boot_id"), namespace, _network_cards()

    def process_started(self, pid: int) -> str | None:
        """When a process began, in the system's own words; ``None`` where there is none, or the system doesn't say."""
        if sys.platform == "darwin":
            return _told("ps", "-o", "lstart=", "-p", str(pid)) or None
        own = str(os.getpid())
        with contextlib.suppress(OSError, ValueError, IndexError):
            if str(pid) != own and str(Path("/proc/self").readlink()) != own:
                return None  # /proc counts in another pid namespace: its numbers are other processes
            stat = Path("/proc", "self" if str(pid) == own else str(pid), "stat").read_text()
            # Behind the command, which may hold anything: field 22 of proc(5), in ticks since the boot.
            return str(int(stat.rpartition(")")[2].split()[19]))
        return None

    def ask_to_stop(self, pid: int, started: str | None) -> bool:
        """Let the process drain and end that has this number and began then; whether there is such a one."""
        return self._signal(pid, started, signal.SIGTERM)

    def end_now(self, pid: int, started: str | None) -> bool:
        """End it whatever it is doing; whether there is such a one."""
        return self._signal(pid, started, signal.SIGKILL)

    def _signal(self, pid: int, started: str | None, number: int) -> bool:
        # The handle comes first: what it names stays the same process, and the number may be another's at any moment.
        try:
            handle = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
        except ProcessLookupError:
            return False
        except OSError:  # an old kernel, or a sandbox that knows no such call
            handle = None
        try:
            if started is None or self.process_started(pid) != started:
                return False
            if handle is None:
                os.kill(pid, number)
            else:
                signal.pidfd_send_signal(handle, number)
        except (ProcessLookupError, PermissionError):
            return False
        finally:
            if handle is not None:
                os.close(handle)
        return True

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
    keeps_unread: Final = False  # it drops them with the connection
    tells_end: Final = False

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

    def is_read_only(self, descriptor: int) -> bool:  # noqa: ARG002 - modes are not looked at
        """It makes no difference here."""
        return False

    def bind_private(self, path: Path) -> socket.socket | None:  # noqa: ARG002 - asyncio has no unix sockets here
        """There are no unix sockets."""
        return None

    def own_port(self, sock: socket.socket) -> None:
        """The same. ``SO_REUSEADDR`` would let any program share the port here."""
        exclusive: Any = socket
        sock.setsockopt(socket.SOL_SOCKET, exclusive.SO_EXCLUSIVEADDRUSE, 1)

    def unacknowledged(self, sock: socket.socket) -> int:  # noqa: ARG002 - see since_sent
        """It is not told."""
        return 0

    def since_sent(self, sock: socket.socket) -> int | None:  # noqa: ARG002 - SIO_TCP_INFO needs a call of its own
        """It is not told."""
        return None

    def spawn_options(self) -> SpawnOptions:
        """How a process is started that outlives its console: without one, and out of its group."""
        flags: Any = subprocess
        return {"creationflags": flags.DETACHED_PROCESS | flags.CREATE_NEW_PROCESS_GROUP}

    def on_stop(self, loop: asyncio.AbstractEventLoop, act: Callable[[int], None]) -> None:
        """asyncio's own handling of Ctrl-C stays: its loops take no handlers here."""

    def heed_interrupts(self) -> None:
        """Nothing is ignored here."""

    def place(self) -> tuple[str, str, str, str]:
        """The machine is known by its name alone."""
        return "", "", "", ""

    def process_started(self, pid: int) -> str | None:  # noqa: ARG002 - see ask_to_stop
        """Python's library doesn't tell."""
        return None

    def ask_to_stop(self, pid: int, started: str | None) -> bool:
        """There is no asking: the process ends."""
        return self.end_now(pid, started)

    def end_now(self, pid: int, started: str | None) -> bool:  # noqa: ARG002 - see process_started
        """End the process. That it holds its record's lock, which others can't get here, is all that is known of it."""
        try:
            os.kill(pid, signal.SIGTERM)  # TerminateProcess, for every number that is no console event
        except (ProcessLookupError, PermissionError):  # the latter is said of a process that has just ended
            return False
        return True

    def system_proxies(self, host: str) -> Mapping[str, str]:
        """The same, from the registry."""
        return _settings_of("registry", host)

    def system_trust(self) -> ssl.SSLContext | None:
        """The same."""
        return _system_trust()


def _pass_explicit_interrupts_on() -> None:
    """Let the main thread handle those SIGINTs that another process sent, and not those of the terminal."""
    while True:
        # Those of a process have a code of 0 or less, those of the kernel a larger one: sigaction(2).
        if signal.sigwaitinfo({signal.SIGINT}).si_code <= 0:
            _thread.interrupt_main()


def _text(path: str) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path(path).read_text("ascii").strip()
    return ""


def _told(*command: str) -> str:
    """What a program of the system says; empty where it fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # A command of ours; the locale is fixed because two of these texts are compared.
        environment = {**os.environ, "LC_ALL": "C"}
        return subprocess.run(  # noqa: S603
            command, env=environment, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    return ""


def _network_cards() -> str:
    """The addresses of Linux' network cards, and not of bridges, tunnels and the like, which come and go."""
    found = []
    with contextlib.suppress(OSError):
        found = [_text(f"{card}/address") for card in Path("/sys/class/net").iterdir() if (card / "device").exists()]
    return " ".join(sorted(found))


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
