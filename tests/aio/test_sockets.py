"""Errors of listening on a port."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from kdispatch_protocol.session.aio.sockets import cannot_listen


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EADDRINUSE, "port_in_use"),
        (errno.EACCES, "port_forbidden"),
        (errno.EPERM, "port_forbidden"),
        (errno.EADDRNOTAVAIL, "address_not_here"),
        (errno.EAFNOSUPPORT, "address_not_here"),
        (errno.EINVAL, "bad_request"),
    ],
)
def test_each_reason_has_its_code(number: int, code: str) -> None:
    """A port in use, a forbidden port, and an address of another machine have different codes."""
    error = cannot_listen("127.0.0.1:443", OSError(number, f"error while attempting to bind: {os.strerror(number)}"))
    assert (error.code, error.text) == (code, f"127.0.0.1:443 can't be listened on: {os.strerror(number)}.")


def test_other_words() -> None:
    """asyncio's own error for a name without a usable address has no number; one for an unknown name says so."""
    assert cannot_listen("lan:80", OSError("could not bind on any address out of [...]")).code == "address_not_here"
    unknown = cannot_listen("x:80", socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    assert (unknown.code, unknown.text) == ("bad_request", "x:80 can't be listened on: Name or service not known.")


def test_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows, "permission denied" also means that another program uses the port exclusively."""
    monkeypatch.setattr(os, "name", "nt")
    assert cannot_listen("127.0.0.1:443", PermissionError(errno.EACCES, "")).code == "port_in_use"
