"""The driver: which failure ends what, and that a driver that ends leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from kdispatch.library import Connector
from kdispatch.local.pipe import Pipe
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.errors import KdispatchError, StreamReset
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.session.aio.alarm import Alarm
from kdispatch_relay.switch.revocations import doubt
from tests.aio.sockets import tcp_pair
from tests.aio.twin import SERVICE, Program, Twin, memory_pair, running_gate, settle, twin, until, websocket
from tests.guards.promises import promised


@pytest.fixture
async def pair() -> AsyncIterator[Twin]:
    async with twin() as made:
        yield made


class _Broken(Program):
    def data_received(self, data: bytes) -> None:
        raise ZeroDivisionError


async def _still_carries(client: Program, host: Program) -> None:
    """Check that the stream works in both directions."""
    had = len(client.received), len(host.received)
    client.transport.write(b"ping")
    await host.has(had[1] + 4)
    host.transport.write(b"pong")
    await client.has(had[0] + 4)


async def test_failure_in_data_received(pair: Twin) -> None:
    """A program that fails in data_received loses its stream; other streams and the session go on."""
    client, host = await pair.stream()
    broken = _Broken()
    pair.client.open(SERVICE, broken)
    await until(lambda: len(pair.served) == 2)
    pair.served[1].transport.write(b"x")
    assert await pair.served[1].code() == "cancelled"
    assert await broken.ended() is None
    assert [type(failure["exception"]) for failure in pair.failures] == [ZeroDivisionError]
    await _still_carries(client, host)
    assert pair.client.streams == pair.host.streams == 1


async def test_failure_in_a_handler(pair: Twin) -> None:
    """A host's program that fails over a request refuses that stream, and its answers still go out at once."""
    client, host = await pair.stream()

    def fail(stream: Stream) -> None:
        raise ZeroDivisionError

    pair.serve = fail
    refused = Program()
    pair.client.open(SERVICE, refused)
    assert await refused.code() == "host_refused"
    assert [type(failure["exception"]) for failure in pair.failures] == [ZeroDivisionError]
    pair.serve = pair.take
    await _still_carries(client, host)
    await _still_carries(*(await pair.stream()))
    assert pair.host.streams == 2


async def test_failure_behind_accept(pair: Twin) -> None:
    """A handler that fails after it accepted the stream resets it, and its own program is told, too."""

    def take_and_fail(stream: Stream) -> None:
        pair.take(stream)
        raise ZeroDivisionError

    pair.serve = take_and_fail
    client = Program()
    pair.client.open(SERVICE, client)
    assert await client.code() == "host_refused"
    assert pair.host.streams == 0
    await settle()
    assert pair.served[0].lost.done(), "the program that was given the stream never hears of its end"
    assert not pair.host.programs.transports


async def test_stop_ends_pending_opens(pair: Twin) -> None:
    """A pending open is reset when the agent ends."""
    pair.store.answering.clear()
    doubt(pair.gate.switch, SERVICE)  # the answer is not cached
    waiting, unsent = Program(), Program()
    pair.client.open(SERVICE, waiting)
    await until(lambda: pair.store.asked == 2)
    pair.client.open(SERVICE, unsent)
    pair.client.stop()
    assert {await waiting.code(), await unsent.code()} <= {"open_interrupted", "cancelled"}
    assert pair.client.streams == 0
    pair.store.answering.set()


async def test_close_of_a_connector_ends_pending_opens() -> None:
    """A caller of ``open_connection`` gets an error at once when the connector is closed."""
    async with running_gate(Limits()) as relay:
        connector = Connector(str(relay.url))
        await connector.start()
        opening = asyncio.create_task(connector.open_connection(SERVICE))  # no host: the relay waits for one
        await until(lambda: relay.store.asked)
        await connector.aclose()
        with pytest.raises(StreamReset):
            async with asyncio.timeout(20):
                await opening


async def test_close_of_a_connector_that_is_starting() -> None:
    """A connector that is closed while it tries for its first session leaves neither a connection nor a task."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        before = asyncio.all_tasks()
        connector = Connector(f"http://127.0.0.1:{listener.getsockname()[1]}")
        starting = asyncio.create_task(connector.start())
        relay, _ = await loop.sock_accept(listener)
        with relay:
            assert (await loop.sock_recv(relay, 4096)).startswith(b"GET /api/v1/tunnel")
            await connector.aclose()
            with pytest.raises(asyncio.CancelledError):
                await starting
            assert asyncio.all_tasks() == before
            async with asyncio.timeout(20):
                with contextlib.suppress(ConnectionResetError):
                    assert await loop.sock_recv(relay, 1) == b""


async def test_close_of_a_connector_between_two_tries() -> None:
    """A connector that is closed while it waits for its next try leaves nothing either."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and no program listens there
        before = asyncio.all_tasks()
        connector = Connector(f"http://127.0.0.1:{taken.getsockname()[1]}")
        starting = asyncio.create_task(connector.start())
        await settle()
        await connector.aclose()
        with pytest.raises((asyncio.CancelledError, KdispatchError)):
            await starting
        assert asyncio.all_tasks() == before


async def test_drain_waits_for_local_programs(pair: Twin) -> None:
    """A drain ends when slow local programs have all of their bytes, not when the streams are finished."""
    program, agent = await tcp_pair(buffers=4096)
    pipe = Pipe(pair.host, on_local=Pipe.pause_socket)  # until it has a stream
    await pair.host.loop.create_connection(lambda: pipe.local, sock=agent)

    def serve(stream: Stream) -> None:
        pair.host.accept(stream, pipe.remote)
        pipe.resume_socket()

    pair.serve = serve
    client = Program()
    pair.client.open(SERVICE, client)
    data = bytes(range(256)) * 800
    client.transport.write(data)
    client.transport.write_eof()
    program.finish()
    await client.at_end.wait()
    await client.ended()
    await until(lambda: pair.host.streams == 0)
    draining = asyncio.create_task(pair.host.drain(5))
    await settle()
    assert not draining.done() and pair.host.pipes == {pipe}
    async with asyncio.timeout(20):
        assert await program.receive_all() == data
        await draining
    assert not pair.host.pipes
    program.close()


@pytest.mark.timed
async def test_drain_ends_in_time(pair: Twin) -> None:
    """A drain does not take longer than its time."""
    await pair.stream()
    began = pair.host.loop.time()
    await pair.host.drain(0.05)
    assert 0.04 < pair.host.loop.time() - began < promised(2)
    assert pair.host.streams == 1


async def test_drain_behind_a_cancellation(pair: Twin) -> None:
    """A task that was cancelled, and goes on to drain, ends its drain in time and is not cancelled once more."""
    await pair.stream()
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(1)
    await pair.host.drain(0.05)
    assert task.uncancel() == 0


async def test_clock_after_a_session_was_given_up() -> None:
    """Deadlines go on when an unanswered session is given up, and in the next session."""
    limits = Limits(ack_delay=0.02, open_total=0.1, open_host=0.05, open_wait=0.15)
    async with twin(limits) as pair:
        pair.client.abort()
        await until(lambda: not pair.client.sessions)
        mute, _ = memory_pair()
        lost = pair.client.connect(websocket(mute)).lost
        waiting = Program()
        pair.client.open(SERVICE, waiting)  # its deadline is by far the earliest
        pair.client.abort()  # as the uplink does when the handshake has timed out
        assert (await lost)[0] == "cancelled"
        assert await waiting.code() == "relay_unreachable"
        pair.connect(pair.client)
        client, host = await pair.stream()
        host.transport.write(b"x")
        await client.has(1)
        await until(lambda: host.transport.stream.outbound.size == 0, 1)  # the ACK, which a timer sends


async def test_stop_resets_what_is_left(pair: Twin) -> None:
    """An agent that ends silently resets its streams, and the other end resets them when the grace is over."""
    client, host = await pair.stream()
    pair.client.stop()
    assert (await client.code(), await host.code()) == ("cancelled", "resume_expired")


async def test_an_orderly_end_is_told(pair: Twin) -> None:
    """Streams that an agent ends before its session are reset at the other end at once."""
    client, host = await pair.stream()
    pair.client.end_streams()
    pair.client.disconnect()
    assert (await client.code(), await host.code()) == ("cancelled", "cancelled")


async def test_a_stream_goes_on_in_the_next_session(pair: Twin) -> None:
    """What was written before, during and after an interruption of the session arrives, in both directions."""
    client, host = await pair.stream()
    client.transport.write(b"before ")
    pair.client.abort()
    client.transport.write(b"while ")
    host.transport.write(b"there")
    await until(lambda: not pair.client.sessions)
    pair.connect(pair.client)
    client.transport.write(b"after")
    await host.has(18)
    await client.has(5)
    assert bytes(host.received) == b"before while after"
    assert bytes(client.received) == b"there"


async def test_streams_over_tls_like_connections() -> None:
    """Sessions work over transports that are full at the mark, like asyncio's TLS transports."""
    async with twin(tls=True) as pair:
        client, host = await pair.stream()
        for _ in range(20):
            await _still_carries(client, host)
        client.transport.write(b"x" * 2_000_000)
        await host.has(2_000_080)


async def test_alarm_after_cancel() -> None:
    """An alarm that was cancelled, or has fired, can be set to any later time."""
    loop = asyncio.get_running_loop()
    rings = asyncio.Queue[float]()
    alarm = Alarm(loop, lambda: rings.put_nowait(loop.time()))
    alarm.set(loop.time() + 0.001)
    alarm.cancel()
    for _ in range(2):
        due = loop.time() + 0.01
        alarm.set(due)
        alarm.set(due + 99)  # a later time does not move it
        async with asyncio.timeout(20):
            assert await rings.get() >= due


async def test_alarms_never_ring_early() -> None:
    """An alarm never fires before its exact time: a caller that finds nothing due would set it again at once."""
    loop = asyncio.get_running_loop()
    rings = asyncio.Queue[float]()
    alarm = Alarm(loop, lambda: rings.put_nowait(loop.time()))
    for number in range(24):
        due = loop.time() + 0.001 * (number % 6)
        alarm.set(due)
        async with asyncio.timeout(20):
            assert await rings.get() >= due
