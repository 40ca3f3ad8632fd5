"""A protocol called during a read, with more frames behind its own, may do anything without harm to those frames."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from kdispatch_protocol.limits import KIB, Limits
from kdispatch_protocol.session.aio.websocket_carrier import WebSocketCarrier
from tests.aio.twin import SERVICE, MemoryTransport, Program, Twin, settle, twin, until


@pytest.fixture
async def pair() -> AsyncIterator[Twin]:
    async with twin() as made:
        yield made


class Acting(Program):
    """Performs an action, once, when its bytes contain the word."""

    def __init__(self, act: Callable[[Acting], None]) -> None:
        super().__init__()
        self._act = act
        self.acted = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if b"now" in self.received and not self.acted:
            self.acted += 1
            self._act(self)


async def opened(pair: Twin, program: Program) -> Program:
    """A stream to this program; returns the host's end."""
    before = len(pair.served)
    pair.client.open(SERVICE, program)
    await until(lambda: len(pair.served) > before and program.transport.stream.state.value == "open")
    return pair.served[before]


def _say(data: bytes, *programs: Program) -> None:
    for program in programs:
        program.transport.write(data)


def relay_side(pair: Twin) -> MemoryTransport:
    """The relay's end of the client's connection."""
    [session] = pair.client.sessions
    link = session.link
    assert isinstance(link.carrier, WebSocketCarrier) and isinstance(link.carrier._transport, MemoryTransport)
    peer = link.carrier._transport.peer
    assert peer is not None
    return peer


async def in_one_read(pair: Twin, says: Callable[[], None]) -> None:
    """What a host's programs send meanwhile reaches the client in one message, or nearly."""
    relay = relay_side(pair)
    relay.takes = 0
    says()
    await settle()
    relay.takes = 1 << 62
    relay.pump()
    await settle()


def writes(program: Acting) -> None:
    program.transport.write(b"an answer")


def ends(program: Acting) -> None:
    program.transport.write(b"a last word")
    program.transport.write_eof()


def closes(program: Acting) -> None:
    program.transport.close()


def aborts(program: Acting) -> None:
    program.transport.abort()


def raises(program: Acting) -> None:
    raise ZeroDivisionError


def pauses(program: Acting) -> None:
    program.transport.pause_reading()
    asyncio.get_running_loop().call_later(0.01, program.transport.resume_reading)


def pauses_and_resumes(program: Acting) -> None:
    program.transport.pause_reading()
    program.transport.resume_reading()


def pauses_and_closes(program: Acting) -> None:
    program.transport.pause_reading()
    program.transport.close()


def aborts_and_raises(program: Acting) -> None:
    program.transport.abort()
    raise ZeroDivisionError


GOES_ON = [writes, ends, pauses, pauses_and_resumes]
IS_OVER = [closes, aborts, raises, pauses_and_closes, aborts_and_raises]


@pytest.mark.parametrize("act", [*GOES_ON, *IS_OVER])
async def test_what_a_program_does_to_its_own_stream(pair: Twin, act: Callable[[Acting], None]) -> None:
    """Streams with later frames in the same read get all of them, and so does this one if its program goes on."""
    program, other = Acting(act), Program()
    to_program, to_other = await opened(pair, program), await opened(pair, other)

    def says() -> None:
        for _ in range(3):
            to_other.transport.write(b"other ")
            to_program.transport.write(b"now ")
        to_other.transport.write_eof()

    await in_one_read(pair, says)
    await other.has(18)
    await other.at_end.wait()
    assert other.received == b"other " * 3 and program.acted == 1
    if act in GOES_ON:
        await program.has(12)
        assert program.received == b"now " * 3
        if act in {writes, ends}:
            await to_program.has(9)
    else:
        to_program.transport.write(b"more")
        assert await to_program.code() == "cancelled"
        await program.ended()
        assert pair.client.streams == 1
    assert len(pair.failures) == (act in {raises, aborts_and_raises})
    budget = pair.client.endpoint.table.budget
    assert budget.within(1) and other.transport.stream.inbound.consumed == 18


async def test_opening_another_stream(pair: Twin) -> None:
    """A stream opened during a read exists within the loop's next turns."""
    another = Program()

    def opens(_: Acting) -> None:
        pair.client.open(SERVICE, another).write(b"at once")

    program, other = Acting(opens), Program()
    to_program, to_other = await opened(pair, program), await opened(pair, other)
    await in_one_read(pair, lambda: _say(b"now ", to_program, to_other))
    await until(lambda: len(pair.served) == 3)
    await pair.served[2].has(7)
    assert other.received == b"now "


@pytest.mark.parametrize("way", ["disconnect", "abort"])
async def test_ending_the_session(pair: Twin, way: str) -> None:
    """A session that is given up during a read loses nothing: all streams go on in the next one."""
    program, other = Acting(lambda _: getattr(pair.client, way)()), Program()
    to_program, to_other = await opened(pair, program), await opened(pair, other)

    def says() -> None:
        for place in range(6):
            to_program.transport.write(b"now %d " % place)
            to_other.transport.write(b"other %d " % place)

    await in_one_read(pair, says)
    program.transport.write(b"meanwhile")
    await until(lambda: not pair.client.sessions)
    pair.connect(pair.client)
    await program.has(36)
    await other.has(48)
    await to_program.has(9)
    assert program.received == b"".join(b"now %d " % place for place in range(6))
    assert other.received == b"".join(b"other %d " % place for place in range(6))


async def test_stopping_the_driver(pair: Twin) -> None:
    """A program may stop the driver during a read: all streams end, and nothing of them is left."""
    program, other = Acting(lambda _: pair.client.stop()), Program()
    to_program, to_other = await opened(pair, program), await opened(pair, other)
    await in_one_read(pair, lambda: _say(b"now ", to_program, to_other))
    assert {await program.code(), await other.code()} == {"cancelled"}
    assert not pair.client.streams and not pair.failures
    assert pair.client.endpoint.table.budget.promised == 0


async def test_a_close_in_the_breath_of_a_pause_gives_the_credit_back() -> None:
    """A program that pauses and closes at the bytes that fill its window still lets the peer learn of the close."""
    limits = Limits(window=16 * KIB, window_floor=16 * KIB, early=16 * KIB)
    async with twin(limits) as pair:
        program = Acting(pauses_and_closes)
        to_program = await opened(pair, program)
        to_program.transport.write(b"now " * 4 * KIB + b"and more")
        assert await to_program.code() == "cancelled"
        await program.ended()


async def test_disconnecting_when_a_writer_may_go_on() -> None:
    """A session that a resumed writer gives up between two batches loses and swaps nothing."""
    limits = Limits(ack_delay=0.005, grace=5, unsent=4 * KIB)
    async with twin(limits) as pair:

        class Leaving(Program):
            def resume_writing(self) -> None:
                super().resume_writing()
                pair.client.disconnect()

        writer, other = Leaving(), Program()
        reader, to_other = await opened(pair, writer), await opened(pair, other)
        data = bytes(range(251)) * 800
        other.transport.write(data)  # more than a batch
        writer.transport.write(data[: 5 * KIB])
        await until(lambda: not pair.client.sessions)
        pair.connect(pair.client)
        await until(lambda: len(to_other.received) == len(data) or to_other.lost.done())
        assert to_other.received == data and reader.received == data[: 5 * KIB]
