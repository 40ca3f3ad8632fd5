"""The service and the load of the benchmarks: blocking sockets, a thread each, so that they cost little themselves."""

from __future__ import annotations

import contextlib
import socket
import statistics
import threading
import time

BLOCK = bytes(256 * 1024)


def serve(listener: socket.socket) -> None:
    """Answer connections for ever: `d` and a size sends it, `u` counts until the end, `e` echoes."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, contextlib.suppress(OSError):
        match connection.recv(1):
            case b"d":
                left = int.from_bytes(connection.recv(8), "big")
                while left > 0:
                    connection.sendall(BLOCK[:left])
                    left -= len(BLOCK)
            case b"u":
                connection.sendall(_drain(connection).to_bytes(8, "big"))
            case b"e":
                while data := connection.recv(65536):
                    connection.sendall(data)


def _drain(connection: socket.socket) -> int:
    buffer = bytearray(1 << 20)
    total = 0
    while count := connection.recv_into(buffer):
        total += count
    return total


def download(port: int, size: int) -> float:
    """Bytes a second of one connection that reads."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"d" + size.to_bytes(8, "big"))
        began = time.monotonic()
        connection.shutdown(socket.SHUT_WR)
        received = _drain(connection)
    if received != size:
        raise RuntimeError(f"{received} of {size} bytes arrived")
    return size / (time.monotonic() - began)


def upload(port: int, size: int) -> float:
    """Bytes a second of one connection that writes, until the service has counted all of it."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"u")
        began = time.monotonic()
        for _ in range(size // len(BLOCK)):
            connection.sendall(BLOCK)
        connection.shutdown(socket.SHUT_WR)
        counted = int.from_bytes(connection.recv(8), "big")
    if counted != size // len(BLOCK) * len(BLOCK):
        raise RuntimeError(f"the service counted {counted} bytes")
    return counted / (time.monotonic() - began)


def round_trips(port: int, seconds: float) -> tuple[float, float]:
    """Median and 99th percentile of a 64-byte round trip, in seconds."""
    times = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(b"e")
        end = time.monotonic() + seconds
        while (began := time.perf_counter()) and time.monotonic() < end:
            connection.sendall(BLOCK[:64])
            got = 0
            while got < 64:
                got += len(connection.recv(64 - got))
            times.append(time.perf_counter() - began)
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


def opens(port: int, seconds: float) -> float:
    """Connections a second of one worker: connect, one byte there and back, close."""
    count = 0
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"ex")
            connection.recv(1)
        count += 1
    return count / (time.monotonic() - began)
