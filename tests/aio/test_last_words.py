"""What a program had written when it ended abruptly arrives at the other end, and then the reset."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from dataclasses import replace

import pytest

from kdispatch.local import last_words
from kdispatch.local.pipe import Pipe
from kdispatch_protocol.endpoint.streams import Stream
from tests.aio.ends import Connect, Ends
from tests.aio.sockets import tcp_pair
from tests.aio.twin import SCALED, SERVICE, Program, Twin, settle, twin, until
from tests.guards.promises import promised
from tests.net.tcp import Tcp


def _both(ends: Ends, which: str) -> tuple[Tcp, Tcp]:
    return (ends.client, ends.service) if which == "client" else (ends.service, ends.client)


async def _heard(tcp: Tcp) -> tuple[bytes, str]:
    """All that arrives, and how it ended."""
    data = bytearray()
    try:
        async with asyncio.timeout(10):
            while chunk := await tcp.receive():
                data += chunk
    except ConnectionError:
        return bytes(data), "reset"
    return bytes(data), "end"


async def _upload(tcp: Tcp) -> None:
    with contextlib.suppress(ConnectionError):
        await tcp.send_forever(bytes(65536), 50_000_000)


async def _gone(pair: Twin) -> None:
    await until(lambda: not (pair.host.streams or pair.client.streams or pair.host.pipes or pair.client.pipes))


@pytest.mark.parametrize("which", ["client", "service"])
async def test_an_answer_before_the_request_is_read(pair: Twin, connect: Connect, which: str) -> None:
    """The answer of a program that closes while its peer still sends always arrives."""
    for _ in range(10):
        ends = await connect()
        one, other = _both(ends, which)
        uploading = asyncio.create_task(_upload(other))
        await one.receive_exactly(100_000)
        await one.send(b"too large")
        one.close()
        assert await _heard(other) in {(b"too large", "reset"), (b"too large", "end")}
        await uploading
        await _gone(pair)


@pytest.mark.parametrize("which", ["client", "service"])
async def test_a_write_that_fails_first(pair: Twin, connect: Connect, which: str) -> None:
    """Unread data in the kernel arrives before the reset, also if a failed write shows that the connection is gone."""
    ends = await connect()
    one, other = _both(ends, which)
    pipe = ends.client_pipe if which == "client" else ends.host_pipe
    await other.send(b"unread")
    await until(lambda: pipe.stream is not None and pipe.stream.stream.inbound.received == 6)
    pipe.pause_socket()  # the loop reads nothing from it before it writes
    await one.send(b"last words")
    one.close()
    await other.send(b"more")
    assert await _heard(other) == (b"last words", "reset")
    await _gone(pair)


async def test_an_end_and_then_a_failed_write(pair: Twin, connect: Connect) -> None:
    """If the program had ended its side before, that end arrives after its data."""
    ends = await connect()
    ends.host_pipe.pause_socket()
    await ends.service.send(b"bye")
    ends.service.close()
    await ends.client.send(b"x")
    await asyncio.sleep(0.02)
    await ends.client.send(b"y")
    assert await _heard(ends.client) == (b"bye", "end")
    ends.client.close()
    await _gone(pair)


async def test_more_than_the_stream_takes_at_once(pair: Twin, connect: Connect) -> None:
    """Data that waits because the stream accepted no more is read as the peer takes it, to the last byte."""
    ends = await connect()
    said = bytes(range(256)) * 8000  # 2 MB, more than a window and what is kept unsent
    await ends.client.send(b"unread")
    await until(lambda: ends.host_pipe.stream is not None and ends.host_pipe.stream.stream.inbound.received == 6)
    sending = asyncio.create_task(ends.service.send(said))
    await asyncio.sleep(0.2)
    reading = asyncio.create_task(_heard(ends.client))
    await sending
    ends.service.reset()
    data, how = await reading
    assert how == "reset"
    assert data == said[: len(data)] and len(data) > 500_000  # a reset drops what the kernel had no room for
    await _gone(pair)


async def test_a_lost_session_takes_no_last_words_along(pair: Twin, connect: Connect) -> None:
    """What a program wrote while its session was lost arrives in the next session, and then the reset."""
    ends = await connect()
    await ends.client.send(b"unread")
    await until(lambda: ends.host_pipe.stream is not None and ends.host_pipe.stream.stream.inbound.received == 6)
    pair.host.abort()
    await settle()
    await ends.service.send(b"last words")
    ends.service.close()
    await settle()
    assert pair.host.streams == 1, "it waits for a session"
    pair.connect(pair.host)
    assert await _heard(ends.client) == (b"last words", "reset")
    await _gone(pair)


async def test_a_slow_reader_hears_all_before_the_reset(pair: Twin, connect: Connect) -> None:
    """A program that reads late finds all data, and only then the reset."""
    ends = await connect()
    await ends.client.send(b"unread")
    await until(lambda: ends.host_pipe.stream is not None and ends.host_pipe.stream.stream.inbound.received == 6)
    said = bytes(200_000)
    await ends.service.send(said)
    await until(lambda: ends.client_pipe.stream is not None and ends.client_pipe.stream.stream.inbound.received > 0)
    ends.service.reset()
    await until(lambda: not pair.client.streams)
    await asyncio.sleep(0.3)
    data, how = await _heard(ends.client)
    assert (len(data), how) == (len(said), "reset")
    await _gone(pair)


async def test_a_program_that_is_busy_sending(pair: Twin, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """A remote program that reads only after it has sent everything can send it, and then reads the answer."""
    monkeypatch.setattr(last_words, "_is_this_machine", lambda _: False)
    ends = await connect()
    sending = asyncio.create_task(ends.client.send_forever(bytes(65536), 3_000_000))
    await ends.service.receive_exactly(1000)
    await ends.service.send(b"too large")
    ends.service.close()
    await sending
    assert await _heard(ends.client) == (b"too large", "reset")
    await _gone(pair)


async def test_a_program_that_sends_for_ever(pair: Twin, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time for a remote program is limited, however much it sends."""
    monkeypatch.setattr(last_words, "_is_this_machine", lambda _: False)
    monkeypatch.setattr(last_words, "_PATIENCE", 0.3)
    ends = await connect()
    sending = asyncio.create_task(ends.client.send_forever(bytes(65536)))
    await ends.service.receive_exactly(1000)
    await ends.service.send(b"too large")
    ends.service.close()
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(sending, 20)
    await _gone(pair)


@pytest.mark.timed
async def test_real_aborts_are_fast(pair: Twin, connect: Connect) -> None:
    """A reset by a program that wrote nothing, or nothing lately, arrives at the other end at once."""
    ends = await connect()
    began = time.monotonic()
    ends.service.reset()
    assert await _heard(ends.client) == (b"", "reset")
    assert time.monotonic() - began < promised(last_words._LOOK_EVERY)
    await _gone(pair)


async def test_a_program_that_never_reads_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data of a dead connection that its program never reads is kept for a limited time, and in a limited amount."""
    monkeypatch.setattr(last_words, "_LOOK_EVERY", 0.01)
    async with twin(replace(SCALED, last_words=0.2)) as pair:
        client, host = await pair.stream()
        client.transport.pause_reading()
        host.transport.write(b"x" * 1000)
        await until(lambda: client.transport.held == 1000)
        host.transport.reset("cancelled", "")
        await settle()
        assert "lost" not in client.told
        assert await client.code() == "cancelled"
        assert client.transport.held == 0

    async with twin(replace(SCALED, credit=100_000)) as pair:
        held = []
        for _ in range(5):
            client, host = await pair.stream()
            client.transport.pause_reading()
            host.transport.write(b"x" * 30_000)
            await until(lambda: client.transport.held == 30_000)  # noqa: B023 - called in this turn
            host.transport.reset("cancelled", "")
            await settle()
            held.append(client)
        assert [client.told[-1] == "lost" for client in held] == [True, True, False, False, False]


async def test_a_program_that_sends_on_behind_a_reset() -> None:
    """A program that sends before it reads gets the last data after a reset; one that sends for ever is reset."""
    limits = replace(SCALED, dropped=200_000)
    async with twin(limits) as pair:
        client, host = await pair.stream()
        client.transport.pause_reading()
        host.transport.write(b"x" * 1000)
        host.transport.reset_behind("cancelled", "")
        await until(lambda: client.transport.stream.ended)
        client.transport.write(bytes(limits.dropped))
        await settle()
        assert "lost" not in client.told and client.transport.held == 1000
        client.transport.write(b"x")
        await settle()
        assert client.told[-1] == "lost"


async def test_a_transport_that_closes(pair: Twin) -> None:
    """A program of the library that writes and closes while its peer still sends is read before the reset."""
    answered = Program()

    def serve(stream: Stream) -> None:
        transport = pair.host.accept(stream, answered)
        transport.write(b"too large" * 100_000)
        transport.close()

    pair.serve = serve
    client = Program()
    transport = pair.client.open(SERVICE, client)
    transport.write(bytes(100_000))
    assert await client.code() == "cancelled"
    assert client.received == b"too large" * 100_000


async def test_words_before_the_stream_is_open(pair: Twin) -> None:
    """A host gets what a program wrote before it dropped its connection, even if no host had opened it then."""
    program, agent = await tcp_pair()
    await program.send(b"a line for a log")
    program.reset()

    def made(pipe: Pipe) -> None:
        pair.client.open(SERVICE, pipe.remote)

    pipe = Pipe(pair.client, on_local=made)
    await pair.client.loop.create_connection(lambda: pipe.local, sock=agent)
    await until(lambda: pair.served)
    assert await pair.served[0].code() == "cancelled"
    assert pair.served[0].received == b"a line for a log"
    await _gone(pair)


@pytest.mark.slow
async def test_a_word_to_write_on_that_is_outdated(pair: Twin, connect: Connect) -> None:
    """Data in the kernel is read on, even if the stream accepted more and became full again meanwhile."""
    ends = await connect()
    await ends.client.send(b"unread")
    await until(lambda: ends.host_pipe.stream is not None and ends.host_pipe.stream.stream.inbound.received == 6)
    sending = asyncio.create_task(ends.service.send_forever(bytes(65536)))
    transport = ends.host_pipe.stream
    await until(lambda: transport is not None and transport.stream.writer_paused)
    await asyncio.sleep(0.2)  # the kernel becomes full as well
    sending.cancel()
    ends.service.reset()
    assert transport is not None
    await until(lambda: transport.stream.unheard and transport.stream.writer_paused)
    transport.writing_resumed()  # outdated by now
    data, how = await _heard(ends.client)
    assert len(data) > 500_000 and how == "reset"
    assert not transport.stream.unheard, "what the kernel had was not read to its end"
    await _gone(pair)


class _Uploader(Program):
    """Reads only when it has written ``size`` bytes, or can write no more."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self._left = size

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.pause_reading()
        self.transport.write(b"begin")

    def go_on(self) -> None:
        """Write as much as the stream accepts now."""
        while self._left > 0 and self.told[-1] != "pause" and not self.transport.stream.ended:
            self.transport.write(bytes(65536))
            self._left -= 65536
        if self._left <= 0 or self.transport.stream.ended:
            self.transport.resume_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.go_on()


async def _answered(pair: Twin, which: str, how: str, size: float) -> tuple[_Uploader, Program]:
    """A program that uploads ``size`` bytes, and one that has answered with 1 MB and closed, at the end ``which``."""
    uploader, other = _Uploader(size), Program()
    one, two = (other, uploader) if which == "client" else (uploader, other)

    def serve(stream: Stream) -> None:
        pair.host.accept(stream, two)

    pair.serve = serve
    pair.client.open(SERVICE, one)
    await other.has(5)
    other.transport.pause_reading()
    uploader.go_on()
    other.transport.write(bytes(1_000_000))
    if how == "close":
        other.transport.close()
    else:
        other.transport.reset_behind("cancelled", "")
    return uploader, other


@pytest.mark.parametrize("which", ["client", "service"])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_an_upload_beside_a_large_answer(pair: Twin, which: str, how: str) -> None:
    """A program that sends everything before it reads gets the whole answer of one that has closed meanwhile."""
    uploader, _ = await _answered(pair, which, how, 5_000_000)
    assert await uploader.code() == "cancelled"
    assert len(uploader.received) == 1_000_000
    await _gone(pair)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["client", "service"])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_an_upload_that_never_ends(which: str, how: str) -> None:
    """A program that sends for ever and never reads moves no more than the bound, and is reset in time."""
    limits = replace(SCALED, dropped=1_000_000, last_chance=0.2)
    async with twin(limits) as pair:
        uploader, other = await _answered(pair, which, how, math.inf)
        inbound = other.transport.stream.inbound
        before, window = inbound.consumed, inbound.window
        assert await uploader.code() == "cancelled"
        assert inbound.consumed <= before + limits.dropped
        assert inbound.received <= before + limits.dropped + window
        await _gone(pair)
