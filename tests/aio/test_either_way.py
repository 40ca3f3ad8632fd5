"""The fast paths of a session's I/O: each does what the general path beside it does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdispatch_protocol.endpoint.aio.driver import EndpointDriver
from kdispatch_protocol.endpoint.endpoint import Endpoint
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.aio.websocket_carrier import WebSocketCarrier, read_buffer
from kdispatch_protocol.session.aio.writer import SocketWriter
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import decode, frame, header
from kdispatch_protocol.wire.messages import Opened, Reset, Trying
from tests.aio.test_link import _Far, _Owner
from tests.aio.twin import SERVICE, MemoryTransport, Program, memory_pair, websocket
from tests.core.conversation import WELCOME
from tests.core.wire import is_alone

_LIMITS = Limits(credit=4096, window=400, window_floor=200, window_max=1000, early=100)


# --- SocketWriter: write_fast and write ----------------------------------------------------------------


class _Socket(MemoryTransport):
    """A transport whose socket takes as many bytes as it is told to; no write waits for the loop."""

    def __init__(self) -> None:
        super().__init__(asyncio.BaseProtocol())
        self.got = bytearray()  # what left, in order
        self.takes = 0
        self.broken = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self if name == "socket" else default

    def fileno(self) -> int:
        return 77

    def take(self, data: bytes) -> int:
        """Stands for os.write and os.writev."""
        if self.broken:
            raise ConnectionResetError(104, "reset")
        if not self.takes or self._waits:
            assert not self._waits, "a write to the socket overtakes what waits in the transport"
            raise BlockingIOError
        count = min(self.takes, len(data))
        self.takes -= count
        self.got += data[:count]
        return count

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert isinstance(data, bytes), "the caller reuses this memory"
        if not self._closing:
            self._waits += data

    def drain(self) -> None:
        self.got += self._waits
        self._waits.clear()


_WRITES = st.tuples(
    st.sampled_from(["write"] * 5 + ["drain", "break", "close"]), st.integers(1, 3000), st.integers(0, 4000)
)


@given(st.lists(_WRITES, max_size=20))
@settings(max_examples=200, deadline=None)
def test_a_socket_gets_the_same_either_way(happens: list[tuple[str, int, int]]) -> None:
    """With ``write_fast`` the bytes that left, those that wait and the first error are those of ``write``."""

    async def check() -> None:
        with pytest.MonkeyPatch.context() as patch:
            ends = [_Socket(), _Socket()]
            writers = [SocketWriter(end) for end in ends]
            for what, size, takes in happens:
                data = bytes([size % 251]) * size
                for place, (end, writer) in enumerate(zip(ends, writers, strict=True)):
                    patch.setattr("os.write", lambda _, data, end=end: end.take(bytes(data)))
                    patch.setattr("os.writev", lambda _, parts, end=end: end.take(b"".join(parts)))
                    end.takes = takes
                    memory = memoryview(bytearray(data))
                    match what:
                        case "write" if place:
                            writer.write([memory], size)
                        case "write":
                            writer.write_fast(memory)
                        case "drain":
                            end.drain()
                        case "break":
                            end.broken = True
                        case _:
                            end._closing = True
                    memory[:] = b"\xdb" * size
                one, two = ends
                assert (one.got, one._waits, writers[0].error) == (two.got, two._waits, writers[1].error)

    asyncio.run(check())


# --- WebSocketCarrier: send_fast and send --------------------------------------------------------------

_SENDS = st.tuples(
    st.sampled_from([1, 2, 64, 108, 109, 110, 500, 5000]), st.integers(0, 3), st.sampled_from([0, 1, 1 << 40]),
    st.sampled_from([0, 1 << 20, 1 << 20]),
)  # fmt: skip


@given(st.booleans(), st.lists(_SENDS, max_size=8))
@settings(max_examples=100, deadline=None)
def test_a_carrier_sends_the_same_either_way(server: bool, sends: list[tuple[int, int, int, int]]) -> None:
    """A DATA by ``send_fast`` is the message that ``send`` makes of it; if it was not sent, nothing was."""

    async def check() -> None:
        heard = []
        for fast in (True, False):
            owner, far = _Owner(), _Far(server=not server)
            near, other = memory_pair()
            other.set_protocol(far)
            carrier = WebSocketCarrier(owner, server=server, buffer=read_buffer(), max_message=1 << 20)
            carrier.attach(near)
            for size, flags, value, takes in sends:
                near.takes = takes
                near.pump()
                payload = memoryview(bytearray([size % 251]) * size)
                given = carrier.given
                was_full = carrier.full
                if not fast:
                    if not was_full:
                        carrier.send([header(frames.DATA, flags, 7, value, size), payload])
                else:
                    assert carrier.send_fast(flags, 7, value, payload) is not was_full
                assert (carrier.given == given) is was_full
                payload[:] = b"\xdb" * size  # it is reused
            near.takes = 1 << 30
            near.pump()
            heard.append((far.messages, carrier.given))
        assert heard[0] == heard[1]

    asyncio.run(check())


# --- EndpointDriver: receive_frames_fast and receive_frames --------------------------------------------


class _Reader(Program):
    """A program that pauses, resumes, fails or gives up when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.next = ""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        act, self.next = self.next, ""
        match act:
            case "pause":
                self.transport.pause_reading()
            case "fail":
                raise ZeroDivisionError
            case "abort":
                self.transport.abort()
            case "close":
                self.transport.close()
            case "answer":
                self.transport.write(b"answer" * 10)
            case _:
                pass


class _Agent:
    """A driver with one stream, and the relay's frames for it. ``fast``: a DATA that comes alone by the fast path."""

    def __init__(self, *, fast: bool) -> None:
        self.fast = fast
        self.passed = 0
        self.near, self.other = memory_pair()
        self.far = _Far(server=True)
        self.other.set_protocol(self.far)
        self.driver = EndpointDriver(Endpoint(b"c" * 32, limits=_LIMITS), lambda _: None)
        self.uplink = self.driver.connect(websocket(self.near, buffer=self.driver.buffer))
        self.hear(frame(frames.WELCOME, payload=WELCOME.encode()))
        self.program = _Reader()
        self.driver.open(SERVICE, self.program)
        self.stream = self.program.transport.stream
        trying = Trying(attempt=1, process="22" * 16, host="33" * 16)
        self.hear(frame(frames.TRYING, 1, payload=trying.encode()))
        self.hear(frame(frames.OPENED, 1, payload=Opened(limit=65536, attempt=1).encode()))

    def hear(self, message: bytes) -> None:
        """Handle a read that is this message."""
        memory = bytearray(message)
        received = decode(memory)
        if self.fast and is_alone(received) and self.uplink.link_read_fast(*received[0][1:]):
            self.passed += 1
        else:
            self.uplink.link_read(received, self.driver.loop.time())
        self.near.pump()
        memory[:] = b"\xdb" * len(memory)

    def do(self, what: str, size: int) -> None:
        start = self.stream.inbound.received
        match what:
            case "data":
                self.hear(frame(frames.DATA, 1, start, bytes([size]) * size, size & 1))
            case "again":
                self.hear(frame(frames.DATA, 1, max(0, start - size // 2), b"d" * size))
            case "gap":
                self.hear(frame(frames.DATA, 1, start + size, b"gap"))
            case "fin":
                self.hear(frame(frames.FIN, 1, start))
            case "reset":
                self.hear(frame(frames.RESET, 1, payload=Reset(code="cancelled").encode()))
            case "resume":
                self.program.transport.resume_reading()
            case _:
                self.program.next = what

    @property
    def state(self) -> tuple[object, ...]:
        stream, driver, inbound = self.stream, self.driver, self.stream.inbound
        offsets = inbound.received, inbound.consumed, inbound.limit, inbound.window, inbound.final
        said = [[(t, f, s, v, bytes(p)) for t, f, s, v, p in decode(one)] for one in self.far.messages]
        program = self.program
        ends = stream.state, stream.leg, stream.ack_timer is not None, driver.streams, driver._reading
        return (*offsets, *ends, said[2:], bytes(program.received), program.told, bool(self.uplink.session.outbox))


_HEARD = st.tuples(
    st.sampled_from(["data"] * 8 + ["again", "gap", "fin", "reset", "resume", "resume"]
                    + ["pause", "pause", "fail", "abort", "close", "answer"]),
    st.integers(1, 120),
)  # fmt: skip


@pytest.mark.slow
@given(st.lists(_HEARD, max_size=20))
@settings(max_examples=200, deadline=None)
def test_an_agent_does_the_same_either_way(happens: list[tuple[str, int]]) -> None:
    """With ``receive_frames_fast`` a program hears, and an agent says and counts, what it does on the general path."""

    async def check() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # programs that fail
        agents = [_Agent(fast=fast) for fast in (True, False)]
        for what, size in happens:
            for agent in agents:
                agent.do(what, size)
            for _ in range(4):
                await asyncio.sleep(0)
            for agent in agents:
                agent.near.pump()
            fast, general = agents
            assert fast.state == general.state
        for agent in agents:
            agent.driver.stop()
        await asyncio.sleep(0)

    # Time stands still: otherwise a timer may fire for one of them only, and windows grow by time.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.get_loop().time = lambda: 1000.0  # type: ignore[method-assign]
        runner.run(check())


async def test_the_fast_path_of_an_agent_is_taken() -> None:
    """The test above compares two paths, and not one with itself."""
    agent = _Agent(fast=True)
    agent.do("data", 100)
    assert agent.passed == 1 and agent.program.received == b"d" * 100
    agent.driver.stop()
