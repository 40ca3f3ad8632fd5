"""A stream's end as programs see it: credit, half-close, and the end in every order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kdispatch_protocol.errors import StreamReset
from kdispatch_protocol.limits import KIB, Limits
from tests.aio.twin import SERVICE, Program, Twin, settle, twin, until

_LIMITS = Limits(ack_delay=0.005, window=64 * KIB, unsent=32 * KIB)
_WINDOW = _LIMITS.window


@pytest.fixture
async def pair() -> AsyncIterator[Twin]:
    async with twin(_LIMITS) as made:
        yield made
        assert not made.failures


async def _hold(pair: Twin, size: int) -> tuple[Program, Program]:
    """A stream with ``size`` bytes from its host held for the client, which has paused."""
    client, host = await pair.stream()
    client.transport.pause_reading()
    host.transport.write(b"x" * size)
    await until(lambda: client.transport.stream.inbound.received == size)
    return client, host


async def _finish(client: Program, host: Program) -> None:
    """End both directions, after the held data."""
    host.transport.write_eof()
    client.transport.write_eof()
    await until(lambda: client.transport.stream.ended and host.transport.stream.ended)


def _acknowledged(program: Program) -> bool:
    """Whether the peer has acknowledged everything."""
    return program.transport.stream.outbound.fin_acked


async def test_close_after_both_ends_finished(pair: Twin) -> None:
    """A transport with unread bytes of a finished stream is lost as soon as it is closed."""
    client, host = await _hold(pair, 1000)
    await _finish(client, host)
    await settle()
    assert not client.lost.done()
    client.transport.close()
    assert await client.ended() is None
    assert not client.received


async def test_held_bytes_of_a_finished_stream(pair: Twin) -> None:
    """Held data comes before the end, and the end before connection_lost, even if the stream has finished."""
    client, host = await _hold(pair, 1000)
    await _finish(client, host)
    client.transport.resume_reading()
    assert await client.ended() is None
    assert client.received == b"x" * 1000
    assert client.told == ["made", "eof", "lost"]


async def test_resets_wait_for_what_came_before(pair: Twin) -> None:
    """A paused program gets a RESET, with its code, after the bytes that it has yet to take."""
    client, host = await _hold(pair, 1000)
    host.transport.reset("host_refused", "no")
    await until(lambda: client.transport.stream.ended)
    await settle()
    assert not client.lost.done()
    client.transport.resume_reading()
    assert await client.code() == "host_refused"
    assert len(client.received) == 1000


async def test_end_acknowledged_before_close(pair: Twin) -> None:
    """Closing a transport whose end was acknowledged before completes at once, whatever the peer still does."""
    client, host = await pair.stream()
    client.transport.write(b"x")
    client.transport.write_eof()
    await until(lambda: _acknowledged(client))
    client.transport.close()
    await settle(2)
    assert client.lost.done() and await client.lost is None
    assert not host.lost.done()


async def test_end_acknowledged_after_close(pair: Twin) -> None:
    """A closed transport is lost once the peer has all of its bytes, and not before."""
    client, host = await pair.stream()
    client.transport.write(b"x" * 1000)
    client.transport.close()
    assert not _acknowledged(client)
    assert await client.ended() is None
    assert _acknowledged(client) and host.received == b"x" * 1000


async def test_close_with_unread_bytes(pair: Twin) -> None:
    """A close without reading gives the credit back; if the peer sends on, it gets a reset."""
    client, host = await pair.stream()
    client.transport.pause_reading()
    host.transport.write(b"x" * 2 * _WINDOW)
    await until(lambda: client.transport.stream.inbound.received == _WINDOW)
    client.transport.close()
    assert client.transport.stream.inbound.consumed == _WINDOW
    assert await host.code() == "cancelled"
    await client.ended()
    assert not client.received
    assert pair.client.endpoint.table.budget.promised == 0


async def test_credit_for_what_was_taken(pair: Twin) -> None:
    """While reading is paused, the peer gets one window, and no more until the program resumes."""
    client, host = await pair.stream()
    client.transport.pause_reading()
    assert not client.transport.is_reading()
    host.transport.write(b"x" * 3 * _WINDOW)
    await until(lambda: client.transport.stream.inbound.received == _WINDOW)
    await settle()
    assert client.transport.stream.inbound.received == _WINDOW and client.transport.stream.inbound.consumed == 0
    client.transport.resume_reading()
    assert client.transport.is_reading()
    await client.has(3 * _WINDOW)
    assert client.transport.stream.inbound.consumed == 3 * _WINDOW


class _Sipper(Program):
    """Pauses whenever it is given data."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.pause_reading()


async def test_pause_in_the_same_breath(pair: Twin) -> None:
    """If a program pauses while data is delivered, the bytes count as taken when it resumes."""
    sipper = _Sipper()
    pair.client.open(SERVICE, sipper)
    await until(lambda: pair.served)
    pair.served[0].transport.write(b"x" * 1000)
    await sipper.has(1000)
    assert sipper.transport.stream.inbound.consumed == 0
    pair.served[0].transport.write(b"y" * 500)
    await until(lambda: sipper.transport.stream.inbound.received == 1500)
    sipper.transport.resume_reading()  # delivers the second piece, at which it pauses again
    await settle()
    assert sipper.transport.stream.inbound.consumed == 1000
    sipper.transport.resume_reading()
    await settle()
    assert sipper.transport.stream.inbound.consumed == 1500
    assert sipper.received == b"x" * 1000 + b"y" * 500


class _Filled(asyncio.BufferedProtocol):
    """Reads into a buffer of 100 bytes."""

    def __init__(self) -> None:
        self.buffer = bytearray(100)
        self.received = bytearray()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self.buffer[:nbytes]


async def test_buffered_protocol(pair: Twin) -> None:
    """A buffered protocol gets everything through its own small buffer."""
    filled = _Filled()
    pair.client.open(SERVICE, filled)
    await until(lambda: pair.served)
    data = bytes(range(256)) * 10
    pair.served[0].transport.write(data)
    await until(lambda: len(filled.received) == len(data))
    assert filled.received == data


async def test_empty_buffer_ends_the_stream() -> None:
    """A buffered protocol that returns an empty buffer fails its own stream."""
    async with twin(_LIMITS) as pair:
        filled = _Filled()
        filled.buffer = bytearray()
        pair.client.open(SERVICE, filled)
        await until(lambda: pair.served)
        pair.served[0].transport.write(b"x")
        assert await pair.served[0].code() == "cancelled"
        assert "empty buffer" in str(pair.failures[0]["exception"])


class _Typed(Program):
    def __init__(self, *, takes_views: bool) -> None:
        super().__init__()
        self.takes_views = takes_views
        self.kinds: set[type] = set()

    def data_received(self, data: bytes) -> None:
        self.kinds.add(type(data))
        super().data_received(data)


async def test_a_reader_that_wants_more_than_its_limit(pair: Twin) -> None:
    """Held data comes in a later turn: asyncio's StreamReader resumes before it waits, and would not be woken."""
    client, host = await pair.stream()
    size = 8 * _WINDOW
    reader = asyncio.StreamReader(limit=1000)
    protocol = asyncio.StreamReaderProtocol(reader)
    client.transport.set_protocol(protocol)
    protocol.connection_made(client.transport)
    sent = bytes(range(256)) * (size // 256)
    host.transport.write(sent[:3000])
    await until(lambda: not client.transport.is_reading())
    host.transport.write(sent[3000:])
    await until(lambda: client.transport.held > 0)
    async with asyncio.timeout(20):
        assert await reader.readexactly(size) == sent
    host.transport.abort()
    await until(client.transport.is_closing)


@pytest.mark.parametrize(("takes_views", "kind"), [(True, memoryview), (False, bytes)])
async def test_views(pair: Twin, takes_views: bool, kind: type) -> None:
    """Only a protocol that requests views of the message gets them."""
    typed = _Typed(takes_views=takes_views)
    pair.client.open(SERVICE, typed)
    await until(lambda: pair.served)
    pair.served[0].transport.write(b"x" * 5000)
    await typed.has(5000)
    assert typed.kinds == {kind}


async def test_set_protocol(pair: Twin) -> None:
    """After a change of protocol, data goes to the new one, in the form that it takes."""
    client, host = await pair.stream()
    host.transport.write(b"old")
    await client.has(3)
    typed = _Typed(takes_views=True)
    client.transport.set_protocol(typed)
    assert client.transport.get_protocol() is typed
    host.transport.write(b"new")
    await typed.has(3)
    assert (bytes(client.received), bytes(typed.received)) == (b"old", b"new")
    assert typed.kinds == {memoryview}


async def test_extra_info(pair: Twin) -> None:
    """A transport knows its service, its host and its stream; other extra info has the default."""
    client, host = await pair.stream()
    transport = client.transport
    identity = pair.gate.hosts_of(SERVICE)[0].host
    assert transport.get_extra_info("service") == SERVICE
    assert transport.get_extra_info("host") == identity
    assert transport.get_extra_info("peername") == (SERVICE, identity)
    assert transport.get_extra_info("stream") == host.transport.get_extra_info("stream")
    assert transport.get_extra_info("sslcontext", "none") == "none"


async def test_write_buffer_limits(pair: Twin) -> None:
    """The marks are the protocol's; invalid ones are refused as by asyncio."""
    client, _host = await pair.stream()
    client.transport.set_write_buffer_limits(high=10, low=5)
    assert client.transport.get_write_buffer_limits() == (_LIMITS.unsent // 2, _LIMITS.unsent)
    for high, low in ((5, 10), (5, -1)):
        with pytest.raises(ValueError, match="must be >="):
            client.transport.set_write_buffer_limits(high=high, low=low)


async def test_writelines(pair: Twin) -> None:
    """Pieces arrive as one run of bytes."""
    client, host = await pair.stream()
    client.transport.writelines([b"ab", bytearray(b"cd"), memoryview(b"ef")])
    await host.has(6)
    assert host.received == b"abcdef"


async def test_pause_and_resume_are_paired(pair: Twin) -> None:
    """A writer is paused once when too much waits, and resumed once when little does."""
    client, host = await pair.stream()
    host.transport.pause_reading()
    for _ in range(5):
        client.transport.write(b"x" * _WINDOW)
    assert client.told == ["made", "pause"]
    await until(lambda: host.transport.stream.inbound.received == _WINDOW)
    assert client.told == ["made", "pause"]
    host.transport.resume_reading()
    await host.has(5 * _WINDOW)
    await until(lambda: client.told[-1] == "resume")
    client.transport.write(b"x" * _WINDOW)
    await host.has(6 * _WINDOW)
    await until(lambda: client.told == ["made", "pause", "resume", "pause", "resume"])
    assert client.transport.get_write_buffer_size() == 0


async def test_write_after_close(pair: Twin) -> None:
    """Writes after the close are dropped without an error."""
    client, host = await pair.stream()
    client.transport.write(b"before")
    client.transport.close()
    assert client.transport.is_closing() and not client.transport.is_reading()
    client.transport.write(b"after")
    client.transport.write_eof()
    client.transport.close()
    await host.at_end.wait()
    assert host.received == b"before"
    await client.ended()
    client.transport.write(b"later")
    client.transport.abort()
    await settle()
    assert client.told.count("lost") == 1


async def test_abort(pair: Twin) -> None:
    """An abort resets the peer, and nothing of the stream is left."""
    client, host = await pair.stream()
    client.transport.write(b"x" * 3 * _WINDOW)
    client.transport.abort()
    assert await client.ended() is None
    assert await host.code() == "cancelled"
    await until(lambda: not pair.host.streams)
    assert not pair.client.streams
    assert pair.client.endpoint.table.replay_held == 0


async def test_eof_that_does_not_keep_open(pair: Twin) -> None:
    """A program that returns None from ``eof_received`` is closed, as by asyncio's transports."""
    client, host = await pair.stream()
    client.keep_open = False
    host.transport.write_eof()
    assert await client.ended() is None
    assert client.told == ["made", "eof", "lost"]
    await host.at_end.wait()


async def test_error_is_a_connection_reset(pair: Twin) -> None:
    """Programs that do not know kdispatch see a reset as the error that sockets give."""
    client, host = await pair.stream()
    host.transport.abort()
    error = await client.ended()
    assert isinstance(error, ConnectionResetError) and isinstance(error, StreamReset)


async def test_an_outdated_word_to_write_on(pair: Twin) -> None:
    """A program that wrote too much again, before its pending resume, is resumed when it may write."""
    client, host = await pair.stream()
    host.transport.pause_reading()
    while "pause" not in client.told:
        client.transport.write(bytes(100_000))
    client.transport.writing_resumed()  # outdated by now
    assert client.told[-1] == "pause"
    host.transport.resume_reading()
    await until(lambda: client.told[-1] == "resume")
