"""The load of the benchmarks, each in a separate process: python -m bench.load KIND ARGUMENTS, which prints JSON.

It moves bulk data in pieces of 512 KiB, which stay in a core's cache, and discards it. The column without proxies
shows the cost of this load itself, directly on the service.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from bench.processes import PYTHON, ROOT, cpu_seconds
from bench.service import BLOCK, PIECE, Loop

__all__ = ["beside", "run"]

_PATIENCE: Final = 30.0  # seconds for an answer; a longer wait is a failure
_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT
_BROKEN: Final = select.EPOLLHUP | select.EPOLLERR


def _connect(port: int, kind: bytes) -> socket.socket:
    sock = socket.socket()
    sock.settimeout(_PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.connect(("127.0.0.1", port))
    sock.sendall(kind)
    return sock


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionError("closed in the middle of an answer")
        data += piece
    return bytes(data)


class _Bulk:
    """Streams that send, receive or do both while ``turn`` runs."""

    def __init__(self, ports: Sequence[int], streams: int, kind: bytes) -> None:
        self.received = [0] * (streams * len(ports))
        self._loop = Loop()
        self._buffer = bytearray(PIECE)
        events = {b"d": _READ, b"u": _WRITE, b"b": _READ | _WRITE}[kind]
        for index in range(len(self.received)):
            sock = _connect(ports[index % len(ports)], kind)
            sock.setblocking(False)
            self._loop.add(sock, events, self._mover(sock, index))

    def _mover(self, sock: socket.socket, index: int) -> Callable[[int], None]:
        received, buffer = self.received, self._buffer

        def move(ready: int) -> None:
            if ready & _BROKEN:
                raise ConnectionError(
                    f"bulk stream {index} broke: {sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)}"
                )
            with contextlib.suppress(BlockingIOError):
                if ready & _READ:
                    received[index] += sock.recv_into(buffer)
                if ready & _WRITE:
                    sock.send(BLOCK)

        return move

    def turn(self, seconds: float) -> None:
        """Move data for ``seconds``."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._loop.turn(left)


def bulk(
    *, ports: Sequence[int], kind: str, streams: int, service: int, seconds: float, ramp: float, pids: Sequence[int]
) -> dict[str, Any]:
    """Bytes per second after ``ramp`` seconds, each stream's download rate, and CPU-seconds per GB for ``pids``."""
    control = _connect(service, b"c")
    moving = _Bulk(ports, streams, kind.encode())
    moving.turn(ramp)

    def counted() -> tuple[float, float, int, list[int]]:
        control.sendall(b"?")
        drained = int.from_bytes(_exactly(control, 8), "big")
        return time.monotonic(), cpu_seconds(pids), drained, list(moving.received)

    began, cpu_before, drained_before, before = counted()
    moving.turn(seconds)
    ended, cpu, drained, received = counted()
    each = [(now - then) / (ended - began) for now, then in zip(received, before, strict=True)]
    total = sum(each) + (drained - drained_before) / (ended - began)
    return {"rate": total, "each": each, "cpu": (cpu - cpu_before) / max(total * (ended - began) / 1e9, 1e-9)}


def trips(port: int, size: int, seconds: float) -> dict[str, Any]:
    """Seconds of consecutive round trips of ``size`` bytes: p50, p99, p99.9."""
    times: list[float] = []
    with _connect(port, b"e" + BLOCK[:1]) as sock:
        _exactly(sock, 1)  # the connection is established up to the service
        end = time.monotonic() + seconds
        while not times or time.monotonic() < end:
            began = time.perf_counter()
            sock.sendall(BLOCK[:size])
            _exactly(sock, size)
            times.append(time.perf_counter() - began)
    times.sort()
    return {f"p{rank:g}": times[int(len(times) * rank / 100)] for rank in (50, 99, 99.9)}


def _worker(port: int, end: float) -> tuple[int, int]:
    done = failed = 0
    request = b"e" + BLOCK[:64]
    while time.monotonic() < end:
        try:
            with _connect(port, request) as sock:
                _exactly(sock, 64)
            done += 1
        except OSError:
            failed += 1
    return done, failed


def opens(port: int, workers: int, seconds: float) -> dict[str, Any]:
    """Connections per second (connect, echo 64 bytes, close), by ``workers`` processes at once."""
    end = time.monotonic() + seconds
    pipes = []
    for _ in range(workers):
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.write(writing, json.dumps(_worker(port, end)).encode())
            os._exit(0)
        os.close(writing)
        pipes.append(reading)
    counts = [json.loads(os.read(pipe, 100)) for pipe in pipes]
    for _ in pipes:
        os.wait()
    return {"rate": sum(done for done, _ in counts) / seconds, "failed": sum(failed for _, failed in counts)}


def first(port: int, times: int, pause: float) -> dict[str, Any]:
    """Median seconds from connect() to the first echo."""
    took = []
    for _ in range(times):
        time.sleep(pause)
        began = time.perf_counter()
        with _connect(port, b"e" + BLOCK[:64]) as sock:
            _exactly(sock, 1)
            took.append(time.perf_counter() - began)
            _exactly(sock, 63)
    return {"p50": statistics.median(took)}


_KINDS: Final[dict[str, Callable[..., dict[str, Any]]]] = {"bulk": bulk, "trips": trips, "opens": opens, "first": first}


def run(work: str, /, **arguments: Any) -> dict[str, Any]:
    """Run a load in a separate process; returns its results."""
    with _started(work, arguments) as process:
        out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the load {work} {arguments} failed")
    found: dict[str, Any] = json.loads(out)
    return found


@contextlib.contextmanager
def beside(work: str, /, **arguments: Any) -> Iterator[None]:
    """Run a load for the duration of the block."""
    with _started(work, arguments) as process:
        try:
            yield
            if process.poll() is not None:
                raise RuntimeError(f"the load {work} {arguments} ended too early")
        finally:
            process.kill()


def _started(work: str, arguments: dict[str, Any]) -> subprocess.Popen[bytes]:
    command = [PYTHON, "-m", "bench.load", work, json.dumps(arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


if __name__ == "__main__":
    import sys

    print(json.dumps(_KINDS[sys.argv[1]](**json.loads(sys.argv[2]))))
