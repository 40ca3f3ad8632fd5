"""WebSocket frames that no honest agent sends, to a relay in a process of its own."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Offer, Open, Opened
from tests.core.wire import KEY, ws_frame
from tests.net.harness import KIB, MIB, Network, Relay
from tests.relay.test_gate import _Agent

_FIN: Final = 0x80
_CONT, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10

WRONG: Final[list[tuple[str, bytes, int]]] = [
    ("a reserved bit", ws_frame(_FIN | 0x40 | _BINARY, b"x", masked=True), 1002),
    ("an unknown opcode", ws_frame(_FIN | 3, b"x", masked=True), 1002),
    ("an unknown control opcode", ws_frame(_FIN | 11, b"", masked=True), 1002),
    ("no mask", ws_frame(_FIN | _BINARY, b"x", masked=False), 1002),
    ("text", ws_frame(_FIN | _TEXT, b"hello", masked=True), 1003),
    ("a ping in fragments", ws_frame(_PING, b"x", masked=True), 1002),
    ("a ping of 126 bytes", ws_frame(_FIN | _PING, b"x" * 126, masked=True), 1002),
    ("a continuation of nothing", ws_frame(_FIN | _CONT, b"x", masked=True), 1002),
    ("a message in another", ws_frame(_BINARY, frame(frames.PING), masked=True) * 2, 1002),
    ("a close of one byte", ws_frame(_FIN | _CLOSE, b"x", masked=True), 1002),
    ("a close code that must not be sent", ws_frame(_FIN | _CLOSE, b"\x03\xed", masked=True), 1002),
    ("a reason that is not UTF-8", ws_frame(_FIN | _CLOSE, b"\x03\xe8\xff", masked=True), 1007),
    ("4 GiB", b"\x82\xff" + struct.pack("!Q", 4 << 30) + KEY + b"x" * KIB, 1009),
    ("2^63 bytes", b"\x82\xff" + struct.pack("!Q", 1 << 63) + KEY, 1009),
    ("a message of 256 KiB and one byte", ws_frame(_FIN | _BINARY, b"", masked=True, length=256 * KIB + 1), 1009),
    (
        "as much in fragments",
        ws_frame(_BINARY, frame(frames.PING), masked=True) + ws_frame(_CONT, b"", masked=True, length=256 * KIB),
        1009,
    ),
    ("an empty message", ws_frame(_FIN | _BINARY, b"", masked=True), 1008),
    ("a message that ends within a frame", ws_frame(_FIN | _BINARY, frame(frames.PING)[:9], masked=True), 1008),
]
#: Not wrong, if strange: the session goes on.
STRANGE: Final[list[tuple[str, bytes]]] = [
    ("a pong that nobody asked for", ws_frame(_FIN | _PONG, b"hello", masked=True)),
    ("a thousand pings", ws_frame(_FIN | _PING, b"p" * 125, masked=True) * 1000),
    ("empty fragments", ws_frame(_BINARY, b"", masked=True) + ws_frame(_CONT, b"", masked=True) * 1000
     + ws_frame(_FIN | _CONT, frame(frames.PING), masked=True)),
    ("pings between fragments", b"".join(
        ws_frame(_BINARY if not n else _FIN | _CONT if n == 15 else _CONT, frame(frames.PING)[n : n + 1], masked=True)
        + ws_frame(_FIN | _PING, b"", masked=True) for n in range(16))),
]  # fmt: skip


def _of(relay: Relay, number: int = 1) -> Any:
    """An agent, driven by the test, at this relay."""
    place: Any = SimpleNamespace(port=int(relay.url.rpartition(":")[2]))
    return _Agent.of(place, bytes([number]) * 32)


async def _answers(agent: _Agent, value: int) -> None:
    agent.send(frame(frames.PING, value=value))
    while (await agent.next(frames.PONG))[3] != value:
        pass


@pytest.mark.parametrize(("data", "code"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
async def test_a_wrong_frame(shared_relay: Relay, data: bytes, code: int) -> None:
    """Each wrong frame ends its session with the code of RFC 6455 for it, and no other session."""
    async with _of(shared_relay, 2) as honest, _of(shared_relay) as agent:
        agent._writer.write(data)
        await agent.end()
        assert agent.wire.closing is not None and agent.wire.closing.code == code
        await _answers(honest, 5)


@pytest.mark.parametrize("data", [case[1] for case in STRANGE], ids=[case[0] for case in STRANGE])
async def test_a_strange_frame(shared_relay: Relay, data: bytes) -> None:
    """A valid frame is accepted, however unusual it is."""
    async with _of(shared_relay) as agent:
        agent._writer.write(data)
        await _answers(agent, 77)


class _Watched:
    """What the relay uses from now on."""

    def __init__(self, relay: Relay) -> None:
        self._folder = Path(f"/proc/{relay.running.pid}")
        (self._folder / "clear_refs").write_text("5")  # the peak is what it holds now (proc_pid_clear_refs(5))
        self._held, self._worked = self._peak(), self._cpu()

    def _peak(self) -> int:
        return int((self._folder / "status").read_text().partition("VmHWM:")[2].split()[0]) * KIB

    def _cpu(self) -> float:
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def more(self) -> int:
        """Bytes held beyond the start, at most."""
        return self._peak() - self._held

    @property
    def seconds(self) -> float:
        """Seconds of CPU time."""
        return self._cpu() - self._worked


async def _stream(network: Network, host: _Agent, client: _Agent, limit: int) -> None:
    """A stream, number 1 at the client and 2 at the host."""
    service = await network.service()
    token = network.environment["KDISPATCH_TOKEN"]
    offer = Offer(service=service, host=host_id(host.process, service), digest="00" * 32, token=token)
    host.send(frame(frames.OFFER, 1, payload=offer.encode()))
    await host.next(frames.OFFERED)
    client.send(frame(frames.OPEN, 1, payload=Open(service=service, uuid="11" * 16, limit=limit, token=token).encode()))
    asked = Open.parse((await host.next(frames.OPEN))[4])
    host.send(frame(frames.OPENED, 2, payload=Opened(limit=limit, attempt=asked.attempt or 1).encode()))
    await client.next(frames.OPENED)


@pytest.mark.slow
async def test_a_hundred_thousand_fragments(own_relay: Relay, network: Network) -> None:
    """A message in 100,000 fragments of one byte passes completely, and the relay needs hardly more memory for it."""
    data = bytes(range(250)) * 400
    message = frame(frames.DATA, 1, 0, data)
    async with _of(own_relay, 2) as host, _of(own_relay) as client:
        await _stream(network, host, client, 256 * KIB)
        watched = _Watched(own_relay)
        wire = ws_frame(_BINARY, message[:1], masked=True)
        wire += b"".join(ws_frame(_CONT, message[n : n + 1], masked=True) for n in range(1, len(message)))
        client._writer.write(wire + ws_frame(_FIN | _CONT, b"", masked=True))
        received = bytearray()
        async with asyncio.timeout(20):
            while len(received) < len(data):
                received += (await host.next(frames.DATA))[4]
        assert received == data
        await _answers(client, 3)
        print(f"100,000 fragments: {watched.more / MIB:.1f} MiB more, {watched.seconds:.2f} s of CPU time")
        assert watched.more < 24 * MIB


async def test_four_gigabytes_are_announced(own_relay: Relay) -> None:
    """An announced length of 4 GiB costs the relay no memory: the session ends before any byte of it is read."""
    async with _of(own_relay) as warm:
        await _answers(warm, 1)
    watched = _Watched(own_relay)
    for _ in range(10):
        async with _of(own_relay) as agent:
            agent._writer.write(b"\x82\xff" + struct.pack("!Q", 4 << 30) + KEY + bytes(256 * KIB))
            while agent.wire.closing is None:
                agent.wire.receive_data(await agent._reader.read(1000))
            assert agent.wire.closing.code == 1009
    assert watched.more < 4 * MIB
