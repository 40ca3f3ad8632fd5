"""docs/protocol.md is sufficient to talk to the relay and to the agents: `codec.py` uses nothing else."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import secrets
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from .codec import (
    ACK_FIN,
    MAX_MESSAGE,
    MAX_OFFSET,
    WAIT,
    Closed,
    Frame,
    Refused,
    Session,
    Stream,
    Type,
    WebSocket,
    ack,
    decode,
    early,
    host_id,
    message,
    process_id,
    raw,
)
from .world import MIB, SERVICE, WINDOW, World, agent_connect, agent_host, echo, sha


async def offer(session: Session, token: str, *, service: str = SERVICE) -> int:
    """Send OFFER; the caller reads the answer."""
    number = session.number()
    digest = secrets.token_hex(32)
    host = host_id(session.secret, service)
    await session.send(message(Type.OFFER, number, service=service, host=host, digest=digest, token=token))
    return number


async def host_agent(world: World, stack: AsyncExitStack) -> Session:
    session = await stack.enter_async_context(await world.session())
    await session.next(await offer(session, world.token), Type.OFFERED)
    return session


async def client_agent(world: World, stack: AsyncExitStack) -> Session:
    return await stack.enter_async_context(await world.session())


async def open_stream(client: Session, *, service: str = SERVICE, limit: int = WINDOW, **fields: Any) -> int:
    number = client.number()
    uuid = secrets.token_hex(16)
    await client.send(message(Type.OPEN, number, **{"service": service, "uuid": uuid, "limit": limit} | fields))
    return number


async def answer_open(host: Session, *, limit: int = WINDOW) -> Stream:
    """Answer the next OPEN with OPENED."""
    asked = await host.accept()
    await host.send(message(Type.OPENED, asked.stream, limit=limit, attempt=asked.json["attempt"]))
    return Stream(host, asked.stream, granted=limit, limit=asked.json["limit"])


async def connected(client: Session, number: int, *, granted: int = WINDOW, sent: int = 0) -> Stream:
    """Return the client's end after OPENED."""
    opened = await client.next(number, Type.OPENED)
    await client.send(ack(number, 0, granted))
    return Stream(client, number, granted=granted, limit=opened.json["limit"], sent=sent)


async def pair(world: World, stack: AsyncExitStack) -> tuple[Stream, Stream]:
    """Open a stream; returns the client's and the host's end."""
    host = await host_agent(world, stack)
    client = await client_agent(world, stack)
    number = await open_stream(client)
    there = await answer_open(host)
    await client.next(number, Type.TRYING)
    return await connected(client, number), there


async def nothing(session: Session, number: int) -> bool:
    """Whether no frame came for this number after the relay has handled everything sent before."""
    await session.ping()
    return session.quiet(number)


async def why(session: Session) -> str:
    """Return the code of the GOAWAY that ended the session."""
    await session.ended()
    queue = session.queue(0)
    while not queue.empty():
        frame = queue.get_nowait()
        if frame is not None and frame.type is Type.GOAWAY:
            return str(frame.json["code"])
    return "no GOAWAY"


# --- Carrier and session (sections 2 to 4)


async def test_upgrade_needs_the_subprotocol(world: World) -> None:
    """A tunnel without the subprotocol `kdispatch.1` is refused with a problem document that has a code."""
    with pytest.raises(Refused) as refused:
        await WebSocket.connect("127.0.0.1", world.port, subprotocol="other.1")
    assert refused.value.headers["content-type"].startswith("application/problem+json")
    assert refused.value.status == json.loads(refused.value.body)["status"]
    assert json.loads(refused.value.body)["code"]


async def test_welcome(world: World, stack: AsyncExitStack) -> None:
    """The relay answers HELLO with a WELCOME that has every required field."""
    welcome = (await client_agent(world, stack)).welcome
    assert welcome["version"] == 1
    assert re.fullmatch("[0-9a-f]{32}", welcome["relay"])
    assert all(welcome[key] > 0 for key in ("credit", "spread_ms", "opens", "streams"))


async def test_version_unsupported(world: World) -> None:
    """A HELLO without a common version gets GOAWAY `version_unsupported`, and the session ends."""
    socket = await WebSocket.connect("127.0.0.1", world.port)
    try:
        await socket.send(message(Type.HELLO, versions=[77], secret="ab" * 32).encode())
        async with asyncio.timeout(WAIT):
            (frame,) = decode(await socket.receive())
            assert frame.type is Type.GOAWAY
            assert frame.json["code"] == "version_unsupported"
            with pytest.raises(Closed):
                await socket.receive()
    finally:
        await socket.close()


async def test_fragments_and_websocket_pings(world: World, stack: AsyncExitStack) -> None:
    """A message may come in fragments, and the relay answers WebSocket pings between them."""
    client = await client_agent(world, stack)
    frames = Frame(Type.PING, value=1).encode() + Frame(Type.PING, value=2).encode()
    await client.socket.send_fragments(frames[:5], frames[5:20], frames[20:])
    await client.socket.send_ping(b"are you there?")
    assert [(await client.next(0, Type.PONG)).value for _ in range(2)] == [1, 2]
    async with asyncio.timeout(WAIT):
        assert await client.socket.pongs.get() == b"are you there?"


async def test_ping(world: World, stack: AsyncExitStack) -> None:
    """The relay answers PING with PONG and the same value."""
    client = await client_agent(world, stack)
    for value in (0, 1, (1 << 64) - 1):
        await client.send(Frame(Type.PING, value=value))
        assert (await client.next(0, Type.PONG)).value == value


async def test_superseded(world: World, stack: AsyncExitStack) -> None:
    """A second session with the same secret replaces the first, which gets GOAWAY `superseded`."""
    first = await host_agent(world, stack)
    second = await stack.enter_async_context(await world.session(first.secret))
    assert (await first.next(0, Type.GOAWAY)).json["code"] == "superseded"
    await first.ended()
    await second.ping()


OPEN = {"service": SERVICE, "uuid": "ab" * 16, "limit": WINDOW}


def opening(number: int, **changed: Any) -> bytes:
    return message(Type.OPEN, number, **OPEN | changed).encode()


SESSION_ERRORS = {
    "number used twice": opening(1) + opening(1),
    "number shrinks": opening(3) + opening(1),
    "type 0": raw(0),
    "type 19": raw(19),
    "flag of ping": raw(Type.PING, flags=1),
    "flag of data": raw(Type.DATA, 1, payload=b"x", flags=4),
    "truncated header": raw(Type.PING)[:-1],
    "truncated payload": raw(Type.DATA, 1, payload=b"xyz")[:-1],
    "truncated second frame": raw(Type.PING) + b"\x80",
    "length of ping": raw(Type.PING, payload=b"x"),
    "data without bytes": raw(Type.DATA, 1),
    "length of data": raw(Type.DATA, 1, payload=bytes(131_073)),
    "length of early": raw(Type.EARLY, 1, 1 << 48, bytes(16_385)),
    "length of ack": raw(Type.ACK, 1, 0, bytes(7)),
    "stream that should not be": raw(Type.PING, 1),
    "stream missing": raw(Type.DATA, 0, payload=b"x"),
    "offset out of range": raw(Type.DATA, 1, MAX_OFFSET + 1, b"x"),
    "final offset out of range": raw(Type.FIN, 1, MAX_OFFSET + 1),
    "received out of range": raw(Type.ACK, 1, MAX_OFFSET + 1, bytes(8)),
    "json value missing": raw(Type.OPEN, 1, payload=b"{}"),
    "json no object": raw(Type.OPEN, 1, payload=b"[]"),
    "json not utf 8": raw(Type.OPEN, 1, payload=b"\xff\xff"),
    "json negative": opening(1, limit=-1),
    "hex in capitals": opening(1, uuid="AB" * 16),
    "no service": opening(1, service="ann/-web"),
    "token not ascii": opening(1, token="é"),
    "even number": opening(2),
}


async def test_session_errors(world: World, stack: AsyncExitStack) -> None:
    """A malformed frame, or one with a wrong number, ends only its own session, with GOAWAY `protocol_error`."""
    other = await client_agent(world, stack)
    found = {}
    for name, data in SESSION_ERRORS.items():
        client = await client_agent(world, stack)
        await client.socket.send(data)
        found[name] = await why(client)
    assert found == dict.fromkeys(SESSION_ERRORS, "protocol_error")
    number = await open_stream(other, service="ann/nothing")
    await other.next(number, Type.RESET)


async def test_limit_out_of_range(world: World, stack: AsyncExitStack) -> None:
    """An ACK with a limit above 2^62 is a session error."""
    here, _ = await pair(world, stack)
    await here.session.socket.send(raw(Type.ACK, here.number, 0, (MAX_OFFSET + 1).to_bytes(8, "big")))
    assert await why(here.session) == "protocol_error"


async def test_text_message(world: World, stack: AsyncExitStack) -> None:
    """A text message ends the session with the close code 1003."""
    client = await client_agent(world, stack)
    await client.socket.send_text("hello")
    assert (await client.ended()).code == 1003


async def test_largest_message(world: World, stack: AsyncExitStack) -> None:
    """A message of 262,144 bytes is accepted, and one more byte ends the session with the close code 1009."""
    client = await client_agent(world, stack)
    dropped = raw(Type.DATA, 2, payload=bytes(MAX_MESSAGE // 2 - 16)) * 2
    assert len(dropped) == MAX_MESSAGE
    await client.socket.send(dropped)
    await client.ping()
    await client.socket.send(bytes(MAX_MESSAGE + 1))
    assert (await client.ended()).code == 1009


async def test_largest_message_before_welcome(world: World) -> None:
    """Before WELCOME a message of more than 16,384 bytes ends the session with the close code 1009."""
    socket = await WebSocket.connect("127.0.0.1", world.port)
    try:
        await socket.send(message(Type.HELLO, versions=[1], secret="ab" * 32, ignored="x" * 16_384).encode())
        async with asyncio.timeout(WAIT):
            with pytest.raises(Closed) as closed:
                await socket.receive()
        assert closed.value.code == 1009
    finally:
        await socket.close()


async def test_unknown_numbers_and_keys(world: World, stack: AsyncExitStack) -> None:
    """DATA for an unknown number gets GONE, other frames for it are dropped, and unknown JSON keys are ignored."""
    client = await client_agent(world, stack)
    await client.send(
        Frame(Type.DATA, 2, 0, b"x"),
        Frame(Type.FIN, 99, 7),
        ack(99, 0, 5),
        message(Type.RESET, 98, code="busy"),
        early(1, 1, 0, b"x"),
    )
    await client.next(2, Type.GONE)
    await client.ping()
    assert client.quiet(99)
    number = await open_stream(client, service="ann/other", color="blue")
    await client.next(number, Type.RESET)


# --- Offers (section 5)


async def test_offer(world: World, stack: AsyncExitStack) -> None:
    """OFFERED has the host id from the page's formula, and the relay lists the host under it."""
    session = await client_agent(world, stack)
    offered = await session.next(await offer(session, world.token), Type.OFFERED)
    expected = host_id(session.secret, SERVICE)
    assert offered.json["host"] == expected
    listed = await world.get(f"/api/v1/services/{SERVICE}/hosts")
    assert [host["host"] for host in listed["hosts"]] == [expected]


async def test_offer_with_a_wrong_token(world: World, stack: AsyncExitStack) -> None:
    """An OFFER with a wrong token gets RESET `token_refused`, and the session continues."""
    session = await client_agent(world, stack)
    refused = await session.next(await offer(session, f"{world.token[:-4]}zzzz"), Type.RESET)
    assert refused.json["code"] == "token_refused"
    await session.next(await offer(session, world.token), Type.OFFERED)


async def test_withdraw(world: World, stack: AsyncExitStack) -> None:
    """WITHDRAW ends the offer, and open streams continue."""
    host = await client_agent(world, stack)
    offered = await offer(host, world.token)
    await host.next(offered, Type.OFFERED)
    client = await client_agent(world, stack)
    number = await open_stream(client)
    there = await answer_open(host)
    await client.next(number, Type.TRYING)
    here = await connected(client, number)
    await host.send(Frame(Type.WITHDRAW, offered))
    await host.ping()
    assert (await world.get(f"/api/v1/services/{SERVICE}"))["live_hosts"] == 0
    await here.write(b"still here")
    assert await there.read_exactly(10) == b"still here"


# --- Opening (section 6)


async def test_open(world: World, stack: AsyncExitStack) -> None:
    """The host's OPEN has the client's uuid and limit, attempt, process and key, and no secret of the client."""
    host = await host_agent(world, stack)
    client = await client_agent(world, stack)
    secret = secrets.token_bytes(32)
    pin = host_id(host.secret, SERVICE)
    uuid = secrets.token_hex(16)
    number = await open_stream(client, uuid=uuid, token=world.admin, pin=pin, secret=secret.hex())
    asked = await host.accept()
    assert asked.stream % 2 == 0
    assert not {"token", "pin", "secret"} & asked.json.keys()
    fields = {"service": SERVICE, "uuid": uuid, "limit": WINDOW, "attempt": 1, "process": process_id(client.secret)}
    key = hmac.new(secret, bytes.fromhex(process_id(host.secret)), hashlib.sha256).hexdigest()
    assert asked.json == fields | {"key": key}
    trying = await client.next(number, Type.TRYING)
    assert trying.json == {"attempt": 1, "process": process_id(host.secret), "host": pin}


async def test_early_data_reaches_one_host(world: World, stack: AsyncExitStack) -> None:
    """Early data waits for OPENED; a refusing host's part is dropped, and the next host gets only its own."""
    hosts = [await host_agent(world, stack) for _ in range(2)]
    client = await client_agent(world, stack)
    number = await open_stream(client)
    asked = {asyncio.create_task(host.accept()): host for host in hosts}
    done, waiting = await asyncio.wait(asked, timeout=WAIT, return_when=asyncio.FIRST_COMPLETED)
    (one,), (other,) = done, waiting
    first, second = asked[one], asked[other]
    refusing = one.result().stream
    assert (await client.next(number, Type.TRYING)).json["attempt"] == 1
    await client.send(early(number, 1, 0, b"for the "), early(number, 1, 8, b"first"))
    await client.ping()
    assert await nothing(first, refusing)
    await first.send(message(Type.RESET, refusing, code="host_refused"))

    async with asyncio.timeout(WAIT):
        opened = await other
    assert opened.json["attempt"] == 2
    trying = await client.next(number, Type.TRYING)
    assert trying.json["attempt"] == 2
    assert trying.json["process"] == process_id(second.secret)
    await client.send(early(number, 1, 13, b"too late"), early(number, 2, 0, b"for the second"))
    await client.ping()
    assert await nothing(second, opened.stream)
    await second.send(message(Type.OPENED, opened.stream, limit=WINDOW, attempt=2))
    await client.send(early(number, 2, 14, b", early and late"))
    there = Stream(second, opened.stream, granted=WINDOW, limit=WINDOW)
    here = await connected(client, number, sent=30)
    await here.write(b", then data")
    await here.finish()
    assert await there.read_all() == b"for the second, early and late, then data"
    assert await nothing(first, refusing)
    assert first.no_open()


async def test_three_hosts_refuse(world: World, stack: AsyncExitStack) -> None:
    """The relay tries at most three hosts, each once, and then the client gets the last one's code."""
    hosts = [await host_agent(world, stack) for _ in range(4)]
    asked: list[str] = []

    async def refuse(host: Session) -> None:
        while True:
            opened = await host.accept()
            asked.append(host_id(host.secret, SERVICE))
            await host.send(message(Type.RESET, opened.stream, code="host_refused"))

    refusing = [asyncio.create_task(refuse(host)) for host in hosts]
    client = await client_agent(world, stack)
    number = await open_stream(client)
    tried = [(await client.next(number, Type.TRYING)).json for _ in range(3)]
    assert (await client.next(number, Type.RESET)).json["code"] == "host_refused"
    for task in refusing:
        task.cancel()
    await asyncio.wait(refusing, timeout=WAIT)
    assert [trying["attempt"] for trying in tried] == [1, 2, 3]
    assert [trying["host"] for trying in tried] == asked
    assert len(set(asked)) == 3


async def test_pin(world: World, stack: AsyncExitStack) -> None:
    """A client's `pin` selects this host and no other."""
    hosts = [await host_agent(world, stack) for _ in range(3)]
    client = await client_agent(world, stack)
    for host in hosts:
        await open_stream(client, pin=host_id(host.secret, SERVICE))
        await host.accept()
    assert all(host.no_open() for host in hosts)


async def test_unknown_service(world: World, stack: AsyncExitStack) -> None:
    """An OPEN of a service that does not exist gets RESET `unknown_service`."""
    client = await client_agent(world, stack)
    number = await open_stream(client, service="ann/nothing")
    assert (await client.next(number, Type.RESET)).json["code"] == "unknown_service"


async def test_lost_host(world: World, stack: AsyncExitStack) -> None:
    """If a session is lost, the other end of an open stream gets GONE."""
    here, there = await pair(world, stack)
    await there.session.socket.close()
    assert await here.reset_code() == "gone"


# --- Data (section 7)


async def test_data_both_ways(world: World, stack: AsyncExitStack) -> None:
    """A megabyte passes unchanged in each direction, within the limits from ACKs, and each FIN is acknowledged."""
    host = await host_agent(world, stack)
    client = await client_agent(world, stack)
    up, down = secrets.token_bytes(64) + MIB, secrets.token_bytes(64) + MIB[::-1]
    number = await open_stream(client)
    asked = await host.accept()
    assert (await client.next(number, Type.TRYING)).json["attempt"] == 1
    await client.send(early(number, 1, 0, up[:10_000]), early(number, 1, 10_000, up[10_000:16_384]))
    await host.send(
        message(Type.OPENED, asked.stream, limit=WINDOW, attempt=1), Frame(Type.DATA, asked.stream, 0, down[:100])
    )
    there = Stream(host, asked.stream, granted=WINDOW, limit=asked.json["limit"], sent=100)
    here = await connected(client, number, sent=16_384)

    async def send(stream: Stream, data: bytes) -> None:
        await stream.write(data)
        await stream.finish()

    async with asyncio.timeout(WAIT):
        got_up, got_down, _, _ = await asyncio.gather(
            there.read_all(), here.read_all(), send(here, up[16_384:]), send(there, down[100:])
        )
        await asyncio.gather(here.closed(), there.closed())
    assert (sha(got_up), sha(got_down)) == (sha(up), sha(down))
    assert here.blocked
    assert there.blocked
    assert here.acked == there.acked == len(up) == len(down)


async def test_number_is_forgotten(world: World, stack: AsyncExitStack) -> None:
    """After both directions are finished, frames with the stream's number are dropped."""
    here, there = await pair(world, stack)
    await asyncio.gather(here.finish(), there.finish())
    await asyncio.gather(here.closed(), there.closed())
    await here.session.send(Frame(Type.DATA, here.number, 0, b"late"), message(Type.RESET, here.number, code="busy"))
    await here.session.ping()
    assert await nothing(there.session, there.number)


async def test_half_close(world: World, stack: AsyncExitStack) -> None:
    """After the client's FIN is acknowledged, the host's bytes still arrive."""
    here, there = await pair(world, stack)
    await here.write(b"all of it?")
    await here.finish()
    assert await there.read_all() == b"all of it?"
    async with asyncio.timeout(WAIT):
        got, _ = await asyncio.gather(here.read_all(), _answer_all(there, MIB[:200_000]))
    assert sha(got) == sha(MIB[:200_000])
    await asyncio.gather(here.closed(), there.closed())


async def _answer_all(stream: Stream, data: bytes) -> None:
    await stream.write(data)
    await stream.finish()


@pytest.mark.parametrize("sender", ["client", "host"])
async def test_over_the_limit(world: World, stack: AsyncExitStack, sender: str) -> None:
    """DATA at or above the limit resets this stream at both ends with `credit_exceeded`, and no other stream."""
    here, there = await pair(world, stack)
    guilty, other = (here, there) if sender == "client" else (there, here)
    await guilty.write(MIB[: WINDOW - 1])
    over = Frame(Type.DATA, guilty.number, WINDOW - 1, b"xy")
    await guilty.session.send(over)
    assert await guilty.reset_code() == "credit_exceeded"
    assert await other.reset_code() == "credit_exceeded"
    await guilty.session.ping()


@pytest.mark.parametrize("sender", ["client", "host"])
async def test_reset(world: World, stack: AsyncExitStack, sender: str) -> None:
    """RESET also ends the stream at the other end, with its code and text."""
    here, there = await pair(world, stack)
    guilty, other = (here, there) if sender == "client" else (there, here)
    await guilty.session.send(message(Type.RESET, guilty.number, code="busy", text="Enough."))
    assert await other.reset_code() == "busy"
    await guilty.session.send(Frame(Type.DATA, guilty.number, 0, b"late"))
    await guilty.session.ping()
    assert await nothing(other.session, other.number)


async def test_fin_needs_no_credit(world: World, stack: AsyncExitStack) -> None:
    """Without credit FIN still passes, and is acknowledged with `fin` and the final offset."""
    host = await host_agent(world, stack)
    client = await client_agent(world, stack)
    number = await open_stream(client)
    asked = await host.accept()
    await host.send(message(Type.OPENED, asked.stream, limit=16_384, attempt=1))
    await client.next(number, Type.TRYING)
    await client.next(number, Type.OPENED)
    await client.send(ack(number, 0, WINDOW), Frame(Type.DATA, number, 0, bytes(16_384), 1))
    await client.send(Frame(Type.FIN, number, 16_384))
    await host.next(asked.stream, Type.ACK)
    received = 0
    while received < 16_384:  # a relay may split a frame into the pieces that it read
        received += len((await host.next(asked.stream, Type.DATA)).payload)
    assert received == 16_384
    assert (await host.next(asked.stream, Type.FIN)).value == 16_384
    await host.send(ack(asked.stream, 16_384, 16_384, fin=True))
    told = await client.next(number, Type.ACK)
    assert (told.value, told.limit, told.flags) == (16_384, 16_384, ACK_FIN)


# --- The real agents


async def through_agent_host(client: Session, first: bytes) -> Stream:
    """Open a stream to the real host with early data; the relay holds OPEN until the host comes."""
    number = await open_stream(client)
    assert (await client.next(number, Type.TRYING)).json["attempt"] == 1
    await client.send(early(number, 1, 0, first))
    return await connected(client, number, sent=len(first))


async def test_against_agent_host(world: World, tmp_path: Path, stack: AsyncExitStack) -> None:
    """A client of this implementation reaches a service behind `agent host`: data, half-close, RESET on errors."""
    client = await client_agent(world, stack)
    async with echo() as port, agent_host(world, tmp_path, port):
        stream = await through_agent_host(client, MIB[:16_384])
        async with asyncio.timeout(WAIT):
            got, _ = await asyncio.gather(stream.read_all(), _answer_all(stream, MIB[16_384:]))
            await stream.closed()
        assert sha(got) == sha(MIB)
        assert stream.acked == len(MIB)

        gap = await through_agent_host(client, b"x")
        await client.send(Frame(Type.DATA, gap.number, 2, b"z"))
        assert await gap.reset_code() == "offset_mismatch"

        known = await through_agent_host(client, b"abcdef")
        await client.send(Frame(Type.DATA, known.number, 3, b"def"))
        await client.send(Frame(Type.DATA, known.number, 4, b"efghi"))
        assert await known.read_exactly(9) == b"abcdefghi"

        over = await through_agent_host(client, b"x")
        await client.send(Frame(Type.DATA, over.number, over.limit, b"y"))
        assert await over.reset_code() in {"credit_exceeded", "offset_mismatch"}


async def test_against_agent_connect(world: World, tmp_path: Path, stack: AsyncExitStack) -> None:
    """A host of this implementation serves `agent connect`: early data, limits, half-close, RESET as TCP reset."""
    host = await host_agent(world, stack)
    async with agent_connect(world, tmp_path) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(MIB)
        writer.write_eof()
        asked = await host.accept()
        granted = 20_000
        await host.send(message(Type.OPENED, asked.stream, limit=granted, attempt=asked.json["attempt"]))
        stream = Stream(host, asked.stream, granted=granted, limit=asked.json["limit"])
        async with asyncio.timeout(WAIT):
            assert sha(await stream.read_all()) == sha(MIB)
            got, _ = await asyncio.gather(reader.read(-1), _answer_all(stream, MIB[::-1]))
            await stream.closed()
        assert sha(got) == sha(MIB[::-1])
        writer.close()
        await writer.wait_closed()

        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello")
        stream = await answer_open(host)
        assert await stream.read_exactly(5) == b"hello"
        await host.send(message(Type.RESET, stream.number, code="host_timeout"))
        async with asyncio.timeout(WAIT):
            with pytest.raises(ConnectionResetError):
                await reader.read()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_agent_connect_answers_opened_at_once(world: World, tmp_path: Path, stack: AsyncExitStack) -> None:
    """The real client answers OPENED with an ACK without data to send, and resets a stream whose DATA has a gap."""
    host = await host_agent(world, stack)
    async with agent_connect(world, tmp_path) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        asked = await host.accept()
        await host.send(message(Type.OPENED, asked.stream, limit=16_384, attempt=1))
        told = await host.next(asked.stream, Type.ACK)
        assert (told.value, told.flags) == (0, 0)
        assert told.limit >= asked.json["limit"]
        await host.send(Frame(Type.DATA, asked.stream, 1, b"behind a gap"))
        assert (await host.next(asked.stream, Type.RESET)).json["code"] == "offset_mismatch"
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
