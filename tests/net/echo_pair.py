"""An honest host and client in blocking sockets, which measure the time of small echoes between them."""

from __future__ import annotations

import time
from typing import Final

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import Frame, decode, frame
from kdispatch_protocol.wire.identity import host_id, process_id
from kdispatch_protocol.wire.messages import Hello, Offer, Open, Opened
from kdispatch_protocol.wire.websocket import WebSocketReader
from tests.net.flood import message, upgraded

__all__ = ["EchoPair", "percentile"]

_SIZE: Final = 64  # bytes of an echo
_PAUSE: Final = 0.002  # seconds between two


def percentile(times: list[float], share: float) -> float:
    """The time that this share does not exceed."""
    return sorted(times)[min(len(times) - 1, int(len(times) * share))]


class _Peer:
    """One agent."""

    def __init__(self, port: int, secret: bytes, *, tls: bool) -> None:
        self.process = process_id(secret)
        self._sock = upgraded(port, tls=tls)
        self._reader = WebSocketReader(server=False, max_message=1 << 20)
        self._message = bytearray()
        self._frames: list[Frame] = []
        self.send(frame(frames.HELLO, payload=Hello(versions=[1], secret=secret.hex()).encode()))
        self.next(frames.WELCOME)

    def send(self, data: bytes) -> None:
        self._sock.sendall(message(data))

    def next(self, type_: int) -> Frame:
        """The next frame of this type; frames before it are dropped."""
        while True:
            while self._frames:
                found = self._frames.pop(0)
                if found[0] == type_:
                    return found
            data = self._sock.recv(65536)
            assert data, "the relay has closed an honest session"
            for piece, ends in self._reader.receive_data(data):
                self._message += piece
                if ends:
                    self._frames += decode(bytes(self._message))
                    self._message = bytearray()

    def close(self) -> None:
        self._sock.close()


class EchoPair:
    """An open stream of a service whose host sends everything back."""

    def __init__(self, port: int, service: str, token: str, *, tls: bool = False) -> None:
        self._host, self._client = (_Peer(port, secret * 32, tls=tls) for secret in (b"h", b"c"))
        identity = host_id(self._host.process, service)
        offer = Offer(service=service, host=identity, digest="00" * 32, token=token)
        self._host.send(frame(frames.OFFER, 1, payload=offer.encode()))
        self._host.next(frames.OFFERED)
        wish = Open(service=service, uuid="11" * 16, limit=1 << 40, token=token)
        self._client.send(frame(frames.OPEN, 1, payload=wish.encode()))
        self._number = self._host.next(frames.OPEN)[2]
        self._host.send(frame(frames.OPENED, self._number, payload=Opened(limit=1 << 40, attempt=1).encode()))
        self._client.next(frames.OPENED)
        self._offset = 0

    def echo(self) -> float:
        """The seconds of one echo."""
        began = time.perf_counter()
        data = bytes(_SIZE)
        self._client.send(frame(frames.DATA, 1, self._offset, data))
        self._host.next(frames.DATA)
        self._host.send(frame(frames.DATA, self._number, self._offset, data))
        self._client.next(frames.DATA)
        self._offset += _SIZE
        return time.perf_counter() - began

    def measure(self, seconds: float) -> list[float]:
        """Measure one echo after another for this long."""
        ends = time.monotonic() + seconds
        times = []
        while time.monotonic() < ends:
            times.append(self.echo())
            time.sleep(_PAUSE)
        return times

    def close(self) -> None:
        """End both sessions."""
        self._host.close()
        self._client.close()
