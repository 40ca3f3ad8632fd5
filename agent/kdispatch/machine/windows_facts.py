"""What Windows tells of its machine: a part of :class:`~kdispatch.machine.operating_system.Windows`."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

__all__ = ["machine"]


def machine() -> str:
    """The id that Windows got when it was installed; empty if it can't be read."""
    with contextlib.suppress(ImportError, OSError):
        registry: Any = importlib.import_module("winreg")
        access = registry.KEY_READ | registry.KEY_WOW64_64KEY
        with registry.OpenKey(registry.HKEY_LOCAL_MACHINE, r"SOFTWARE\Microsoft\Cryptography", 0, access) as key:
            return str(registry.QueryValueEx(key, "MachineGuid")[0])
    return ""
