from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from kdispatch.machine import posix_input
from tests.guards.systems import POSIX

pytestmark = POSIX


def test_a_signal_that_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal whose handler returns neither ends the wait for a line nor takes a byte of it."""
    ours, theirs = os.pipe()
    handled: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: handled.append(number))

    def act() -> None:
        for part in (b"on", b"e\ntw"):
            time.sleep(0.05)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            time.sleep(0.05)
            os.write(theirs, part)
        os.write(theirs, b"o")
        os.close(theirs)

    acting = threading.Thread(target=act)
    with Path(f"/dev/fd/{ours}").open() as stdin:
        os.close(ours)
        monkeypatch.setattr(sys, "stdin", stdin)
        acting.start()
        lines = [posix_input.read_line(100), posix_input.read_line(2), posix_input.read_line(100)]
    acting.join()
    signal.signal(signal.SIGUSR1, before)
    assert lines == [b"one\n", b"tw", b"o"]
    assert handled == [signal.SIGUSR1] * 2
