"""Servers that answer before they have read the request, through real agents: the answer arrives, as over plain TCP."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import math
import shutil
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from tests.docs.examples import free_ports
from tests.net.harness import KIB, MIB, Network, Relay, sizes

pytestmark = pytest.mark.slow

_BODY: Final = bytes(4 * MIB)
_BANNER: Final = b"\x04\x10#08004Too many connections"

_ANSWER: Final = bytes(3_000_000)  # more than a window, less than the agent's kernel takes
_UPLOAD: Final = 32_000_000
_SOON: Final = 25.0  # seconds; an upload that gets no credit takes 40 of them

_TEMPORARY: Final = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class _TooLarge(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.send_error(413)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@contextmanager
def _http_server() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _TooLarge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def _accepting(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_handle, args=(sock,), daemon=True).start()

    def _handle(sock: socket.socket) -> None:
        with sock:
            handle(sock)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _say_and_close(sock: socket.socket) -> None:
    """Answer and close without reading, as MySQL does at its limit."""
    sock.sendall(_BANNER)


def _say_and_reset(sock: socket.socket) -> None:
    """Read a part, answer, and reset the connection."""
    sock.recv(1000)
    sock.sendall(_BANNER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def _nginx(network: Network) -> Iterator[int]:
    program = shutil.which("nginx")
    if program is None:
        pytest.skip("nginx is not installed")
    [typed] = free_ports(1)
    port = int(typed)
    folder = network.folder
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in _TEMPORARY)
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr crit; events {{}}\n"
        f"http {{ access_log off; {temporary}\n"
        f"server {{ listen 127.0.0.1:{port}; client_max_body_size 1k; lingering_close off; }} }}\n"
    )
    running = network.program("nginx", program, "-e", "stderr", "-p", str(folder), "-c", str(config))
    for _ in range(500):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            break
        time.sleep(0.02)
    try:
        yield port
    finally:
        running.stop()


def _upload(port: int) -> bytes:
    """Send as much of a request as possible, then read: what a careful HTTP client does."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(_BODY)}\r\n\r\n".encode()
        with contextlib.suppress(ConnectionError):
            sock.sendall(head + _BODY)
        return _rest(sock)


def _rest(sock: socket.socket) -> bytes:
    data = bytearray()
    with contextlib.suppress(ConnectionError):
        while chunk := sock.recv(65536):
            data += chunk
    return bytes(data)


async def _count(port: int, times: int, answer: bytes) -> int:
    """How many of the uploads, four at a time, get the answer."""
    got = 0
    for _ in range(times // 4):
        answers = await asyncio.gather(*(asyncio.to_thread(_upload, port) for _ in range(4)))
        got += sum(answer in data for data in answers)
    return got


@pytest.mark.parametrize("times", sizes(12, 40))
@pytest.mark.parametrize("kind", ["http.server", "banner", "reset", "nginx"])
async def test_answers_before_the_request_is_read(network: Network, kind: str, times: int) -> None:
    """Each upload to a server that answers early and closes gets the answer, as often as over plain TCP."""
    servers = {
        "http.server": (_http_server(), b" 413 "),
        "banner": (_accepting(_say_and_close), _BANNER),
        "reset": (_accepting(_say_and_reset), _BANNER),
        "nginx": (_nginx(network), b" 413 "),
    }
    running, answer = servers[kind]
    name = await network.service()
    with running as port:
        await network.host(name, port)
        _, through = await network.connect(name)
        tunnel, plain = await _count(through, times, answer), await _count(port, times, answer)
    print(f"{kind}: {tunnel} of {times} answers through the tunnel, {plain} of {times} without it")
    assert tunnel == times


@pytest.mark.parametrize("times", sizes(12, 40))
async def test_last_words_of_a_client(network: Network, times: int) -> None:
    """When clients send something and drop their connection while the service still sends, each message arrives."""
    heard = Counter[bytes]()

    def serve(sock: socket.socket) -> None:
        sock.settimeout(30)
        with contextlib.suppress(ConnectionError):
            while True:
                sock.sendall(_BODY)
        heard[_rest(sock)] += 1

    def talk(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            sock.recv(1000)
            sock.sendall(b"QUIT, and no thanks")

    name = await network.service()
    with _accepting(serve) as port:
        await network.host(name, port)
        _, through = await network.connect(name)
        for _ in range(times):
            await asyncio.to_thread(talk, through)
        async with asyncio.timeout(20):
            while heard.total() < times:  # noqa: ASYNC110 - threads count
                await asyncio.sleep(0.02)
    assert heard == {b"QUIT, and no thanks": times}


class _Answering:
    """A program that reads a little, answers, and closes when its answer is in the agent's kernel."""

    def __init__(self) -> None:
        self.closing = threading.Event()

    def __call__(self, sock: socket.socket) -> None:
        sock.settimeout(30)
        sock.recv(1000)
        sock.sendall(_ANSWER)
        time.sleep(0.5)
        self.closing.set()


def _send_and_read(sock: socket.socket, size: float, *, reads: bool = False) -> tuple[int, float]:
    """Send ``size`` bytes, then read, or read meanwhile; returns what arrived, and the seconds from there to the reset.

    For a program that reads only at the end, the time counts from the start.
    """
    sock.settimeout(60)
    began = last = time.monotonic()
    sent = received = 0
    with contextlib.suppress(ConnectionError):
        while sent < size:
            sent += sock.send(bytes(64 * KIB))
            with contextlib.suppress(BlockingIOError):
                while reads and (chunk := sock.recv(64 * KIB, socket.MSG_DONTWAIT)):
                    received += len(chunk)
                    last = time.monotonic()
    received += len(_rest(sock))
    return received, time.monotonic() - (last if reads else began)


async def _beside(network: Network, *, client_closes: bool, size: float, reads: bool = False) -> tuple[int, float]:
    """The result of :func:`_send_and_read` for a program whose peer, the client or the service, answers and closes."""
    found: list[tuple[int, float]] = []
    answering = _Answering()

    def upload(sock: socket.socket) -> None:
        found.append(_send_and_read(sock, size, reads=reads))

    def connect(port: int, handle: Callable[[socket.socket], None]) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            handle(sock)

    name = await network.service()
    with _accepting(upload if client_closes else answering) as port:
        await network.host(name, port)
        _, through = await network.connect(name)
        await asyncio.to_thread(connect, through, answering if client_closes else upload)
        async with asyncio.timeout(90):
            while not found:  # noqa: ASYNC110 - a thread reports
                await asyncio.sleep(0.01)
    print(f"{found[0][0]} bytes of the answer, {found[0][1]:.2f} s")
    return found[0]


_WHO = pytest.mark.parametrize("client_closes", [False, True], ids=["service-closes", "client-closes"])


@_WHO
async def test_an_upload_before_the_answer_is_read(network: Network, *, client_closes: bool) -> None:
    """A program that sends 32 MB before it reads gets the whole answer of a peer that has closed, and soon."""
    received, seconds = await _beside(network, client_closes=client_closes, size=_UPLOAD)
    assert received == len(_ANSWER)
    assert seconds < _SOON


@_WHO
async def test_an_endless_sender_that_reads(network: Network, *, client_closes: bool) -> None:
    """A program that sends for ever and reads gets the whole answer, and is reset soon after it."""
    received, seconds = await _beside(network, client_closes=client_closes, size=math.inf, reads=True)
    assert received == len(_ANSWER)
    assert seconds < _SOON


@_WHO
async def test_an_endless_sender_that_reads_nothing(network: Network, *, client_closes: bool) -> None:
    """A program that sends for ever and reads nothing is reset soon."""
    _, seconds = await _beside(network, client_closes=client_closes, size=math.inf)
    assert seconds < _SOON


async def test_a_relay_that_is_killed_behind_an_answer(network: Network, own_relay: Relay) -> None:
    """The answer of a service that has closed arrives, even if the relay is killed at that moment."""
    answering = _Answering()
    name = await network.service()
    with _accepting(answering) as port:
        await network.host(name, port)
        _, through = await network.connect(name)
        with socket.create_connection(("127.0.0.1", through), timeout=30) as sock:
            uploading = asyncio.create_task(asyncio.to_thread(_send_and_read, sock, _UPLOAD))
            await asyncio.to_thread(answering.closing.wait, 30)
            own_relay.stop(signal.SIGKILL)
            await own_relay.start()
            received, _ = await uploading
    assert received == len(_ANSWER)
