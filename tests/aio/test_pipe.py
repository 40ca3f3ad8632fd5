"""A local connection bound to a stream: each kind of end arrives as the same kind at the other side."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from kdispatch.local import pipe as pipe_module
from kdispatch.local.pipe import Pipe, reset_when_closed
from kdispatch_protocol.endpoint.streams import Stream
from tests.aio.ends import Connect, Ends
from tests.aio.sockets import tcp_pair
from tests.aio.twin import SERVICE, Twin, settle, until
from tests.net.tcp import Tcp


async def _talk(ends: Ends) -> None:
    async with asyncio.timeout(20):
        await ends.client.send(b"question")
        assert await ends.service.receive_exactly(8) == b"question"
        await ends.service.send(b"answer")
        assert await ends.client.receive_exactly(6) == b"answer"


async def _is_reset(tcp: Tcp) -> None:
    """Read what arrived, until a reset."""
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(tcp.receive_all(), 5)


async def _all_gone(pair: Twin) -> None:
    await until(lambda: not (pair.host.streams or pair.client.streams or pair.host.pipes or pair.client.pipes))


def _linger(pipe: Pipe) -> tuple[int, int]:
    assert pipe.socket is not None
    sock = pipe.socket.get_extra_info("socket")
    on, seconds = struct.unpack("ii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
    return on, seconds


async def test_reset_goes_through(pair: Twin, connect: Connect) -> None:
    """A program's reset arrives as a reset, in either direction."""
    for which in ("client", "service"):
        ends = await connect()
        await _talk(ends)
        one, other = (ends.client, ends.service) if which == "client" else (ends.service, ends.client)
        one.reset()
        await _is_reset(other)
        await _all_gone(pair)


async def test_end_goes_through(pair: Twin, connect: Connect) -> None:
    """A half-close arrives as one, after the data before it, and then both connections are gone."""
    ends = await connect()
    await _talk(ends)
    await ends.client.send(b"last words")
    ends.client.finish()
    async with asyncio.timeout(20):
        assert await ends.service.receive_all() == b"last words"
        await ends.service.send(b"x" * 100_000)
        ends.service.finish()
        assert await ends.client.receive_all() == b"x" * 100_000
    await _all_gone(pair)


async def test_reset_while_reading_is_paused(pair: Twin, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset is noticed even while the connection is not read because the other end is slow."""
    monkeypatch.setattr(pipe_module, "_LOOK_EVERY", 0.02)
    ends = await connect()
    local = ends.client_pipe.socket
    remote = ends.host_pipe.stream
    assert local is not None and remote is not None
    inbound = remote.stream.inbound
    sending = asyncio.create_task(ends.client.send_forever(b"x" * 65536))
    # The service's socket is full and the window is used up, so the client's program is not read from.
    stuck = 0

    def is_stuck() -> bool:
        nonlocal stuck
        full = not remote.is_reading() and inbound.received == inbound.limit and not local.is_reading()
        stuck = stuck + 1 if full else 0
        return stuck == 20  # and stays so: the kernel may let the service's buffer grow once more

    await until(is_stuck, seconds=10)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert not local.is_reading() and pair.client.streams == 1
    ends.client.reset()
    await until(lambda: not pair.client.streams and not pair.host.streams)
    await _is_reset(ends.service)
    await _all_gone(pair)


async def test_end_for_a_connection_that_is_reset(pair: Twin, connect: Connect) -> None:
    """The peer's end for a connection that the kernel has already closed ends that pipe, and nothing else."""
    other = await connect()
    ends = await connect()
    await _talk(ends)
    ends.host_pipe.pause_socket()  # so that the loop does not see the reset first
    ends.service.reset()
    ends.client.finish()
    await _is_reset(ends.client)
    await _talk(other)
    assert pair.client.streams == pair.host.streams == 1
    assert not pair.failures


async def test_an_agent_that_dies(connect: Connect) -> None:
    """From the start, a connection is set to be reset if its process dies."""
    ends = await connect()
    assert _linger(ends.client_pipe) == _linger(ends.host_pipe) == (1, 0)
    await _talk(ends)
    assert _linger(ends.client_pipe) == _linger(ends.host_pipe) == (1, 0)


async def test_connections_inherit_it_from_their_listener(pair: Twin) -> None:
    """An accepted connection inherits this setting from its listener, without any action of its pipe."""
    made: asyncio.Queue[Pipe] = asyncio.Queue()
    server = await pair.client.loop.create_server(
        lambda: Pipe(pair.client, on_local=made.put_nowait, resets=True).local, "127.0.0.1", 0, start_serving=False
    )
    async with server:
        (listener,) = server.sockets
        reset_when_closed(listener)
        await server.start_serving()
        program = await Tcp.connect(listener.getsockname()[1])
        pipe = await made.get()
        assert _linger(pipe) == (1, 0)
        pipe.abort()
        await _is_reset(program)
        program.close()


async def test_aborted_pipe(pair: Twin, connect: Connect) -> None:
    """Streams whose session is lost for longer than the grace reset both programs."""
    ends = await connect()
    await _talk(ends)
    pair.client.abort()
    await _is_reset(ends.client)
    await _is_reset(ends.service)


async def test_abort_after_the_end(pair: Twin, connect: Connect) -> None:
    """A pipe whose connection is gone can be aborted, whichever loop has closed it."""
    ends = await connect()
    await _talk(ends)
    assert ends.client_pipe.socket is not None
    ends.client_pipe.socket.abort()
    await _all_gone(pair)
    await settle()
    ends.client_pipe.abort()


async def test_finished_pipe(pair: Twin, connect: Connect) -> None:
    """A finished stream's connection is closed normally, even to a program that reads late."""
    ends = await connect()
    await ends.service.send(b"x" * 50_000)
    ends.service.finish()
    ends.client.finish()
    await _all_gone(pair)
    await settle()
    async with asyncio.timeout(20):
        assert await ends.client.receive_all() == b"x" * 50_000
        assert await ends.service.receive_all() == b""


async def _finished_before_it_was_read(pair: Twin) -> tuple[Tcp, Pipe]:
    """A program that has 200 kB of a finished stream under way, a few of them in the kernel."""
    program, agent = await tcp_pair(buffers=4096)
    pipe = Pipe(pair.host, on_local=Pipe.pause_socket)  # until it has a stream
    await pair.host.loop.create_connection(lambda: pipe.local, sock=agent)

    def serve(stream: Stream) -> None:
        pair.host.accept(stream, pipe.remote)
        pipe.resume_socket()

    pair.serve = serve
    source = Pipe(pair.client)
    pair.client.open(SERVICE, source.remote)
    assert source.stream is not None
    source.stream.write(b"x" * 200_000)
    source.stream.write_eof()
    program.finish()
    await until(lambda: pair.host.streams == 0)
    return program, pipe


async def test_last_bytes_in_the_kernel(pair: Twin) -> None:
    """A finished connection's last bytes are not dropped with the socket, however slowly they are read."""
    program, pipe = await _finished_before_it_was_read(pair)
    received = 0
    async with program, asyncio.timeout(20):
        while pipe in pair.host.pipes:
            received += len(await program.receive(1000))
            await asyncio.sleep(0)
        received += len(await program.receive_all())
    assert received == 200_000


async def test_stop_while_bytes_wait(pair: Twin) -> None:
    """An agent that ends before a slow program has read everything resets it instead of ending it early."""
    program, _ = await _finished_before_it_was_read(pair)
    pair.host.stop()
    async with program:
        await _is_reset(program)


async def test_a_finished_connection_that_waits_to_be_read_is_no_reset(
    pair: Twin, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both ends finished, the kernel closed and reading paused, what waits still arrives, and then the end."""
    monkeypatch.setattr(pipe_module, "_LOOK_EVERY", 0.02)
    ends = await connect()
    ends.service.finish()
    async with asyncio.timeout(20):
        assert await ends.client.receive_all() == b""
        ends.client_pipe.pause_socket()
        await ends.client.send(b"x" * 50_000)
        ends.client.finish()
        await asyncio.sleep(0.2)  # ten checks
        ends.client_pipe.resume_socket()
        assert await ends.service.receive_all() == b"x" * 50_000
    await _all_gone(pair)


async def test_what_a_service_says_before_its_stream_is_kept(pair: Twin) -> None:
    """Bytes and an end that arrive before the stream exists, as on uvloop despite the pause, reach the client."""
    service, at_host = await tcp_pair()
    client, at_client = await tcp_pair()
    host_pipe = Pipe(pair.host)  # not paused: as if the pause had come too late
    await pair.host.loop.create_connection(lambda: host_pipe.local, sock=at_host)
    await service.send(b"banner")
    service.finish()
    await until(lambda: len(host_pipe._unclaimed) > 0)

    def serve(stream: Stream) -> None:
        pair.host.accept(stream, host_pipe.remote)
        host_pipe.resume_socket()

    pair.serve = serve

    def made(pipe: Pipe) -> None:
        pair.client.open(SERVICE, pipe.remote)

    client_pipe = Pipe(pair.client, on_local=made)
    await pair.client.loop.create_connection(lambda: client_pipe.local, sock=at_client)
    async with asyncio.timeout(20):
        assert await client.receive_all() == b"banner"
        client.finish()
        assert await service.receive_all() == b""
    await _all_gone(pair)
    client.close()
    service.close()


def _opened_without_sockets(pair: Twin) -> tuple[Pipe, Pipe]:
    """The host's and the client's pipe of a stream, both without a socket so far."""
    host_pipe, source = Pipe(pair.host), Pipe(pair.client)

    def serve(stream: Stream) -> None:
        pair.host.accept(stream, host_pipe.remote)

    pair.serve = serve
    pair.client.open(SERVICE, source.remote)
    return host_pipe, source


async def test_a_stream_before_its_socket(pair: Twin) -> None:
    """Data and end of a stream whose local socket is not there yet wait for that socket."""
    service, at_host = await tcp_pair()
    host_pipe, source = _opened_without_sockets(pair)
    assert source.stream is not None
    source.stream.write(b"early words")
    source.stream.write_eof()
    await until(lambda: pair.host.streams == 1)
    await settle()
    host_pipe.take(at_host)
    async with service, asyncio.timeout(20):
        assert await service.receive_all() == b"early words"
        service.finish()
        await _all_gone(pair)


async def test_a_stream_that_is_reset_before_its_socket(pair: Twin) -> None:
    """A socket that is attached after its stream was reset is reset as well."""
    service, at_host = await tcp_pair()
    host_pipe, source = _opened_without_sockets(pair)
    await until(lambda: host_pipe.stream is not None)
    assert source.stream is not None
    source.stream.abort()
    await until(lambda: not pair.host.streams)
    await settle()
    host_pipe.take(at_host)
    async with service:
        await _is_reset(service)
    await _all_gone(pair)
    await settle()
    assert at_host.fileno() == -1
