"""Marks for tests that only some systems can run: tests/windows runs tests/core and tests/agent under Wine, too."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Final

import pytest

from kdispatch.machine.operating_system import HERE

__all__ = ["POSIX", "WAITS_FOR_SOCKETS", "is_private", "tasks"]

POSIX: Final = pytest.mark.skipif(sys.platform == "win32", reason="Windows has nothing of the kind")
WAITS_FOR_SOCKETS: Final = pytest.mark.skipif(
    not HERE.waits_for_sockets, reason="Windows' event loop can't wait for a socket of our own"
)


def is_private(path: Path) -> bool:
    """Whether the file's mode allows only its owner; always true on Windows, where modes say nothing."""
    return sys.platform == "win32" or path.stat().st_mode & 0o077 == 0


def tasks() -> set[asyncio.Task[object]]:
    """The loop's tasks, without those by which Windows' event loop itself accepts connections."""
    return {task for task in asyncio.all_tasks() if "IocpProactor" not in getattr(task.get_coro(), "__qualname__", "")}
