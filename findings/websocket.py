"""Common parts of the scripts beside this file: an upstream with WebSockets, and requests to the server before it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY = "AAAAAAAAAAAAAAAAAAAAAA=="
_UPGRADE = f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {_KEY}\r\n"


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def upstream() -> int:
    """Start a server that accepts WebSockets and answers other requests with 200; returns its port.

    A WebSocket echoes. With the path /talks it sends by itself, with /mute it only reads.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)

    def accept() -> None:
        while True:
            threading.Thread(target=_serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


def _serve(sock: socket.socket) -> None:
    with sock, contextlib.suppress(OSError):
        head = b""
        while b"\r\n\r\n" not in head:
            head += (data := sock.recv(4096))
            if not data:
                return
        if b"websocket" not in head.lower():
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            return
        accept = base64.b64encode(hashlib.sha1(_KEY.encode() + _GUID, usedforsecurity=False).digest())
        sock.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        line = head.partition(b"\r\n")[0]
        if b"talks" in line:
            while True:
                sock.sendall(b"\x82\x01x")
                time.sleep(0.5)
        while data := sock.recv(65536):
            if b"mute" not in line:
                sock.sendall(data)


def upgraded(port: int, path: str = "/", host: str = "localhost") -> tuple[socket.socket, bytes]:
    """Open a WebSocket; returns the connection, and the answer's first line."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{_UPGRADE}\r\n".encode())
    return sock, sock.recv(4096).partition(b"\r\n")[0]


def asked(port: int, path: str = "/", wait: float = 30, host: str = "localhost") -> bytes:
    """Return the first line of the answer to a plain request; raises ``TimeoutError`` after ``wait`` seconds."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        return sock.recv(4096).partition(b"\r\n")[0]


def lasts(port: int, path: str = "/", *, speaks: bool = False, most: float = 15) -> float:
    """Return how many seconds a WebSocket lasts, at most ``most``; with ``speaks`` the client sends twice a second."""
    sock, answer = upgraded(port, path)
    assert b" 101 " in answer, answer
    began = time.monotonic()
    sock.settimeout(0.5)
    with sock, contextlib.suppress(OSError):
        while time.monotonic() - began < most:
            if speaks:
                sock.sendall(b"\x82\x81\0\0\0\0x")
            with contextlib.suppress(TimeoutError):
                if not sock.recv(4096):
                    break
                time.sleep(0.2)
    return time.monotonic() - began


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for the duration of the block, which begins when the server accepts connections."""
    process = subprocess.Popen(command)
    try:
        for _ in range(150):
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, f"{command[0]} has ended"
            time.sleep(0.1)
        yield process
    finally:
        for pid in [process.pid, *_below(process.pid)]:  # first the parent, which would start new children
            subprocess.run(["kill", "-9", str(pid)], check=False, stderr=subprocess.DEVNULL)
        process.wait()


def _below(pid: int) -> list[int]:
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [each for child in children for each in (child, *_below(child))]
