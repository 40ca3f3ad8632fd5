"""Section 10 of docs/protocol.md is sufficient to resume streams through the real relay."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack

import pytest

from .codec import Frame, Reset, Session, Type, message
from .resume import Agent, Ended, Resuming
from .world import MIB, World, refusal, sha

DATA = MIB[:300_000]


@pytest.fixture
async def ends(world: World, stack: AsyncExitStack) -> tuple[Agent, Agent]:
    """A client process, and a host process that offers the service."""
    host = await stack.enter_async_context(Agent(world.port, token=world.token))
    await host.offer()
    return await stack.enter_async_context(Agent(world.port)), host


async def pair(ends: tuple[Agent, Agent], data: bytes = b"") -> tuple[Resuming, Resuming]:
    """Open a stream; returns the client's and the host's end."""
    client, host = ends
    here = await client.open(data)
    there = await host.accept()
    await here.until(lambda: here.joined)
    return here, there


async def send(stream: Resuming, data: bytes) -> None:
    await stream.write(data)
    await stream.finish()


async def finish(here: Resuming, there: Resuming) -> None:
    """Finish both ends without another byte."""
    await asyncio.gather(here.finish(), there.finish())
    await asyncio.gather(here.read_all(), there.read_all())
    await asyncio.gather(here.closed(), there.closed())


@pytest.mark.parametrize("lost", ["client", "host", "both", "relay"])
async def test_lost_legs(world: World, ends: tuple[Agent, Agent], lost: str) -> None:
    """Bytes lost with one leg, both legs or the relay are sent again, and each end gets all bytes."""
    here, there = await pair(ends)
    for agent, name in zip(ends, ("client", "host"), strict=True):
        agent.session.deaf = lost in (name, "both", "relay")
    sending = [asyncio.create_task(send(stream, DATA)) for stream in (here, there)]
    await asyncio.sleep(0)
    assert (here.sent, there.sent) == (65_536, 65_536)
    if lost == "relay":
        await world.stop()
        await world.start()
    losing = [agent for agent in ends if agent.session.deaf]
    for agent in losing:
        await agent.lose()
    for agent in losing:
        await agent.connect()
    got = await asyncio.gather(here.read_all(), there.read_all())
    await asyncio.gather(*sending, here.closed(), there.closed())
    assert [sha(data) for data in got] == [sha(DATA)] * 2
    assert here.replayed + there.replayed > 0
    assert here.attached == there.attached == 1


async def test_ends_without_a_byte_to_send(ends: tuple[Agent, Agent]) -> None:
    """A FIN without acknowledgement is sent again, or `fin` in the entry acknowledges it."""
    here, there = await pair(ends, b"all of it")
    assert await there.read_exactly(9) == b"all of it"
    ends[1].session.deaf = True
    await here.finish()
    await ends[0].session.ping()
    await ends[1].connect()
    assert await there.read_all() == b""
    ends[0].session.deaf = True
    await there.write(b"answer")
    await there.finish()
    await ends[1].session.ping()
    await ends[0].connect()
    assert await here.read_all() == b"answer"
    await asyncio.gather(here.closed(), there.closed())


async def test_lower_limit(ends: tuple[Agent, Agent]) -> None:
    """The entry's limit replaces a higher one: no byte above it arrives until an ACK raises it."""
    here, there = await pair(ends)
    await ends[0].lose()
    here.window = 1000
    await ends[0].connect()
    await there.until(lambda: there.attached == 1)
    writing = asyncio.create_task(there.write(DATA[:5000]))
    await here.until(lambda: here.received == 1000)
    await ends[1].session.ping()
    await ends[0].session.ping()
    assert here.received == there.limit == 1000
    assert await here.read_exactly(5000) == DATA[:5000]
    await writing
    await finish(here, there)


async def test_asked(ends: tuple[Agent, Agent]) -> None:
    """An end that gets a request for a stream attaches it without a loss, and ignores frames with the old number."""
    client, host = ends
    here, there = await pair(ends)
    before = there.number
    host.session.ignores = Type.GONE
    await client.connect()
    await there.until(lambda: there.attached == 1)
    await here.until(lambda: here.attached == 1)
    assert there.number > before
    await host.session.send(message(Type.RESET, before, code="busy"), Frame(Type.FIN, before, 0))
    await here.write(b"x")
    assert await there.read_exactly(1) == b"x"
    await finish(here, there)


async def test_attached_without_a_loss(ends: tuple[Agent, Agent]) -> None:
    """If one end attaches a stream again, its older number ends, and the other end follows."""
    here, there = await pair(ends)
    await ends[0].attach([here])
    await there.until(lambda: there.attached == 1)
    await here.until(lambda: here.attached == 1)
    await finish(here, there)


async def test_both_ends_in_one_process(ends: tuple[Agent, Agent]) -> None:
    """A process that is both ends attaches both; with one end forgotten, the other gets `unknown_stream`."""
    _, agent = ends
    here, there = await pair((agent, agent), b"early")
    await agent.connect()
    await there.until(lambda: there.attached == 1)
    assert await there.read_exactly(5) == b"early"
    await there.stop()
    del agent.streams[there.name]
    await agent.connect()
    assert await here.reset_code() == "unknown_stream"


async def test_waits_for_the_peer(ends: tuple[Agent, Agent]) -> None:
    """An entry waits until the process that it names has a session."""
    here, there = await pair(ends)
    await ends[1].lose()
    await here.until(lambda: here.attaching)
    await ends[0].session.ping()
    await ends[0].connect()
    await ends[0].session.ping()
    assert here.attaching
    await ends[1].connect()
    await here.until(lambda: here.attached == 1)
    await finish(here, there)


async def test_unknown_stream(ends: tuple[Agent, Agent]) -> None:
    """RESET by uuid reports to the attaching end that the stream is unknown, or how it ended."""
    client, host = ends
    here, there = await pair(ends)
    await there.stop()
    del host.streams[there.name]
    await client.connect()
    assert await here.reset_code() == "unknown_stream"

    here, there = await pair(ends)
    client.session.deaf = True
    await there.session.send(message(Type.RESET, there.number, code="host_timeout"))
    await there.stop()
    del host.streams[there.name]
    host.became[there.name] = Ended("host_timeout", there.peer, heard=False)
    await client.connect()
    assert await here.reset_code() == "host_timeout"


async def test_closed(ends: tuple[Agent, Agent]) -> None:
    """`closed` replaces a missing acknowledgement of FIN; for a stream that misses more it is a mismatch."""
    client, host = ends
    here, there = await pair(ends)
    await there.finish()
    assert await here.read_all() == b""
    await client.session.ping()
    client.session.deaf = True
    await here.finish()
    await there.closed()
    await client.connect()
    await here.closed()

    here, there = await pair(ends)
    await there.stop()
    del host.streams[there.name]
    host.became[there.name] = Ended("closed", there.peer, heard=True)
    await client.connect()
    assert await here.reset_code() == "offset_mismatch"


async def test_opening_goes_on(ends: tuple[Agent, Agent]) -> None:
    """A client that lost OPENED attaches to the host in TRYING, and the entry replaces OPENED."""
    client, host = ends
    client.session.deaf_after = Type.TRYING
    here = await client.open(b"early")
    asked, there = await host.take()
    assert there is not None
    await there.opened(asked.json, 65_536)
    assert await there.read_exactly(5) == b"early"
    await client.connect()
    await here.until(lambda: here.attached == 1)
    await here.write(b" and late")
    assert await there.read_exactly(9) == b" and late"
    await finish(here, there)


@pytest.mark.parametrize("data", [b"early", b""])
async def test_opening_anew(ends: tuple[Agent, Agent], data: bytes) -> None:
    """A client sends OPEN again if its host has no byte of it, without ATTACH if it sent no early data."""
    client, host = ends
    here = await client.open(data)
    asked, there = await host.take()
    assert there is not None
    await here.until(lambda: bool(here.peer) and here.sent == len(data))
    await client.lose()
    assert await there.reset_code() == "cancelled"
    await client.connect()
    there = await host.accept()
    assert there.uuid == asked.json["uuid"]
    await here.until(lambda: here.joined)
    assert here.attach == bool(data)
    await here.write(b"late")
    assert await there.read_exactly(len(data) + 4) == data + b"late"
    await finish(here, there)


async def test_same_open_again(ends: tuple[Agent, Agent]) -> None:
    """A host that has the stream without a byte replaces it by the client's second OPEN."""
    client, host = ends
    client.session.deaf_after = Type.TRYING
    here = await client.open()
    asked, there = await host.take()
    assert there is not None
    await there.opened(asked.json, 65_536)
    await host.session.ping()
    await client.connect()
    again = await host.accept()
    await here.until(lambda: here.joined)
    assert again is not there
    assert again.uuid == there.uuid
    await finish(here, again)


async def test_forged_proof(ends: tuple[Agent, Agent], stack: AsyncExitStack) -> None:
    """An entry with a wrong proof is refused with `bad_proof`, an older one with GONE, and the owner still resumes."""
    client, _ = ends
    here, there = await pair(ends)
    old = here.entry()
    await client.connect()
    await here.until(lambda: here.attached == 1)
    await client.lose()
    # The thief has the process's secret, but not the stream's.
    thief = await stack.enter_async_context(await Session.start("127.0.0.1", client.port, client.secret))
    assert await refusal(thief, old) == "gone"
    assert await refusal(thief, here.entry(proof=secrets.token_hex(32))) == "bad_proof"
    await client.connect()
    await here.until(lambda: here.attached == 2)
    await finish(here, there)


async def test_stranger(world: World, ends: tuple[Agent, Agent], stack: AsyncExitStack) -> None:
    """Another process's entry for the stream is refused with `unknown_stream`, and the owner still resumes."""
    client, _ = ends
    here, there = await pair(ends)
    stranger = await stack.enter_async_context(Agent(world.port))
    await client.lose()
    assert await refusal(stranger.session, here.entry()) == "unknown_stream"
    await client.connect()
    await here.until(lambda: here.attached == 1)
    await finish(here, there)


@pytest.mark.parametrize("later", [False, True])
async def test_peer_restarted(world: World, ends: tuple[Agent, Agent], stack: AsyncExitStack, *, later: bool) -> None:
    """If a successor names the host as its predecessor, a waiting or later client gets `peer_restarted`."""
    client, host = ends
    here, _ = await pair(ends)
    asking = await client.open(b"early")
    await asking.until(lambda: bool(asking.sent))
    await client.lose()
    if later:
        successor = Agent(world.port)
        await successor.connect(predecessors=[host.secret.hex()])
        stack.push_async_exit(successor)
        await client.connect()
    else:
        await host.lose()
        await client.connect()
        await client.session.ping()
        successor = Agent(world.port)
        await successor.connect(predecessors=[host.secret.hex()])
        stack.push_async_exit(successor)
    assert await here.reset_code() == "peer_restarted"
    assert await asking.reset_code() == "open_interrupted"
    with pytest.raises(Reset):
        await here.write(b"x")


async def test_attach_needs_the_token(ends: tuple[Agent, Agent]) -> None:
    """A host's ATTACH without the service's token is refused for each stream, by its number."""
    _, host = ends
    _, there = await pair(ends)
    host.token = None
    await host.session.ping()
    await host.attach([there])
    assert await there.reset_code() in {"token_refused", "not_permitted"}
