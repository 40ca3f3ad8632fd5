"""Notifies systemd of the relay's state, if systemd started it as ``Type=notify`` (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket

__all__ = ["tell_supervisor"]


def tell_supervisor(state: str) -> None:
    """Send ``READY=1``, ``STOPPING=1`` or the like. Does nothing without a supervisor, or if it does not listen."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.0)
        sock.sendto(state.encode(), "\0" + path[1:] if path[0] == "@" else path)
