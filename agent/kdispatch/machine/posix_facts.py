"""What POSIX systems tell, by files, programs and signals: parts of
:class:`~kdispatch.machine.operating_system.Posix`.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

__all__ = ["network_cards", "pass_explicit_interrupts_on", "send", "started", "text", "told"]


def pass_explicit_interrupts_on() -> None:
    """Let the main thread handle SIGINTs from other processes, but not those from the terminal."""
    while True:
        # A SIGINT from a process has a code of 0 or less, one from the kernel a larger one: sigaction(2).
        if signal.sigwaitinfo({signal.SIGINT}).si_code <= 0:
            _thread.interrupt_main()


def send(number: int, pid: int, is_meant: Callable[[], bool]) -> bool:
    """Send a signal to the process with this pid if ``is_meant`` says so; returns whether it got the signal."""
    # Get the handle first: it always names the same process, while the pid may be reused at any moment.
    try:
        handle = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    except ProcessLookupError:
        return False
    except OSError:  # an old kernel, or a sandbox without this call
        handle = None
    try:
        if not is_meant():
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


def started(pid: int) -> str | None:
    """When a process began, from Linux's ``/proc``; ``None`` if there is no such process here."""
    own = str(os.getpid())
    with contextlib.suppress(OSError, ValueError, IndexError):
        if str(pid) != own and str(Path("/proc/self").readlink()) != own:
            return None  # /proc belongs to another pid namespace: its numbers mean other processes
        stat = Path("/proc", "self" if str(pid) == own else str(pid), "stat").read_text()
        # After the command, which may contain anything: field 22 of proc(5), in ticks since boot.
        return str(int(stat.rpartition(")")[2].split()[19]))
    return None


def text(path: str) -> str:
    """The content of a system's file; empty if it can't be read."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path(path).read_text("ascii").strip()
    return ""


def told(*command: str) -> str:
    """The output of a system program; empty if it fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        # A fixed command; the locale is fixed because two of these texts are compared.
        environment = {**os.environ, "LC_ALL": "C"}
        return subprocess.run(  # noqa: S603
            command, env=environment, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    return ""


def network_cards() -> str:
    """The addresses of Linux's network cards, without bridges, tunnels and the like, which come and go."""
    found = []
    with contextlib.suppress(OSError):
        found = [text(f"{card}/address") for card in Path("/sys/class/net").iterdir() if (card / "device").exists()]
    return " ".join(sorted(found))
