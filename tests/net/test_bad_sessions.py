"""The log of a relay in its own process, for sessions that break the protocol."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
from collections.abc import Callable

import pytest

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.messages import Hello
from tests.net.flood import message, upgraded
from tests.net.harness import Relay


def _to_the_end(sock: socket.socket) -> None:
    """End this direction, so that the relay need not wait for an answer to its close frame."""
    sock.shutdown(socket.SHUT_WR)
    while sock.recv(4096):
        pass


def _greet(sock: socket.socket) -> None:
    """Send HELLO, and wait for the answer, because a read that breaks a rule is dropped entirely."""
    hello = Hello(versions=[1], secret=secrets.token_hex(32))
    sock.sendall(message(frame(frames.HELLO, payload=hello.encode())))
    assert sock.recv(4096)


def _bad_frame(port: int) -> None:
    with upgraded(port) as sock:
        _greet(sock)
        sock.sendall(message(b"\xff" * 16))
        _to_the_end(sock)


def _bad_json(port: int) -> None:
    with upgraded(port) as sock:
        _greet(sock)
        sock.sendall(message(frame(frames.OPEN, 1, payload=b"[]")))
        _to_the_end(sock)


def _bad_websocket(port: int) -> None:
    with upgraded(port) as sock:
        _greet(sock)
        sock.sendall(b"\x81\x80\0\0\0\0")
        _to_the_end(sock)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [_bad_frame, _bad_json, _bad_websocket])
async def test_bad_sessions_of_one_source(own_relay: Relay, bad: Callable[[int], None]) -> None:
    """A real relay logs a few lines for 200 bad sessions, and at its end how many it left out."""
    port = own_relay.address.port
    for _ in range(200):
        await asyncio.to_thread(bad, port)
    process = own_relay.running
    process.send_signal(signal.SIGTERM)
    await process.ended()
    lines = [line for line in process.err.splitlines() if "warning" in line]
    assert 10 <= len(lines) <= 40, process.err
    assert "session ended: protocol_error" in lines[0]
    assert any("Left out" in line and "1 source" in line for line in lines)
