"""The middlebox breaks what its rules say, and nothing else."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from tests.net.tcp import Tcp, service
from tests.networks.middlebox import ISSUER, KIB, Interception, Rules, middlebox

_PLAIN = b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n"
_UPGRADE = b"GET / HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
_ANSWER = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


async def _server(tcp: Tcp) -> None:
    """Answer with a head, then with the request's head, then echo."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += await tcp.receive()
    await tcp.send(_ANSWER + head)
    async for chunk in tcp.chunks():
        await tcp.send(bytes(chunk))


async def _talk(port: int, request: bytes) -> tuple[Tcp, bytes]:
    """Send a request through the box; returns the connection, and the request as the server got it."""
    tcp = await Tcp.connect(port)
    await tcp.send(request)
    await tcp.receive_exactly(len(_ANSWER))
    seen = b""
    while b"\r\n\r\n" not in seen:
        seen += await tcp.receive()
    return tcp, seen


@pytest.fixture
def interception(tmp_path: Path) -> Interception:
    return Interception(tmp_path)


async def test_passes_everything_on() -> None:
    """Without rules the box passes both directions unchanged, including their ends."""
    async with service(_server) as running, middlebox(running.port) as box:
        tcp, seen = await _talk(box.port, _UPGRADE)
        async with tcp:
            assert seen == _UPGRADE
            await tcp.send(b"x")
            assert await tcp.receive() == b"x"
            tcp.finish()
            assert await tcp.receive() == b""
        assert box.cuts == 0


async def test_strips_and_refuses_upgrades_only() -> None:
    """A stripped request has neither Upgrade nor Connection; a refusing box answers only upgrades with 400."""
    async with service(_server) as running, middlebox(running.port, Rules(strips=True)) as box:
        tcp, seen = await _talk(box.port, _UPGRADE)
        tcp.close()
        assert seen == _PLAIN
        box.rules = Rules(refuses=True)
        tcp, _ = await _talk(box.port, _PLAIN)
        tcp.close()
        async with await Tcp.connect(box.port) as tcp:
            await tcp.send(_UPGRADE)
            assert (await tcp.receive_all()).startswith(b"HTTP/1.1 400 ")


async def test_holds_bytes_back() -> None:
    """After the head of an upgrade's answer, no byte passes until the threshold is reached."""
    rules = Rules(buffers=4 * KIB)
    async with service(_server) as running, middlebox(running.port, rules) as box, await Tcp.connect(box.port) as tcp:
        await tcp.send(_UPGRADE)
        assert await tcp.receive() == _ANSWER
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await tcp.receive()
        await tcp.send(bytes(4 * KIB))
        assert len(await tcp.receive_exactly(4 * KIB)) == 4 * KIB


@pytest.mark.slow
async def test_cuts_the_silent_or_the_old() -> None:
    """``idle`` spares connections with bytes in the counted direction, ``life`` none, and a silent cut sends no end."""
    async with service(_server) as running, middlebox(running.port, Rules(idle=0.6)) as box:
        tcp, _ = await _talk(box.port, _PLAIN)
        async with tcp:
            for _ in range(5):
                await asyncio.sleep(0.15)
                await tcp.send(b"x")
                assert await tcp.receive() == b"x"
            assert await tcp.receive() == b""
        assert box.cuts == 1
        box.rules = Rules(idle=0.6, counts="up")
        tcp, _ = await _talk(box.port, _PLAIN)
        async with tcp:
            for _ in range(5):
                await asyncio.sleep(0.15)
                await tcp.send(b"x")
            assert await tcp.receive_all() == b"xxxxx"
        assert box.cuts == 2
        box.rules = Rules(life=0.1, silently=True)
        tcp, _ = await _talk(box.port, _PLAIN)
        async with tcp:
            await asyncio.sleep(0.15)
            await tcp.send(b"x")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await tcp.receive()


async def test_opens_tls(interception: Interception) -> None:
    """Towards agents the box has a certificate that the network's own CA signed, with the CA's name in it."""
    trusting = ssl.create_default_context(cafile=str(interception.ca_file))
    async with service(_server) as running, middlebox(running.port, opens=interception) as box:
        reader, writer = await asyncio.open_connection("127.0.0.1", box.port, ssl=trusting)
        certificate = writer.get_extra_info("ssl_object").getpeercert()
        assert ISSUER in str(certificate["issuer"])
        writer.write(_PLAIN)
        assert await reader.readexactly(len(_ANSWER)) == _ANSWER
        writer.close()
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", box.port, ssl=ssl.create_default_context())


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_box_that_ends_while_an_end_reads_nothing() -> None:
    """A box that ends while its bytes wait for an end closes that connection, before the block ends."""
    taken: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: taken.append(writer), "127.0.0.1", 0, limit=1024)
    async with server:
        before = _descriptors()
        async with middlebox(server.sockets[0].getsockname()[1]) as box:
            _, agent = await asyncio.open_connection("127.0.0.1", box.port)
            agent.write(b"GET / HTTP/1.1\r\n\r\n" + bytes(8 << 20))
            while not taken:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)  # the box has more than the relay's socket takes
            agent.transport.abort()
            await asyncio.sleep(0.05)  # the box ends the connection, and waits for the relay
        assert _descriptors() == before + 1  # the relay's own end
        taken[0].transport.abort()
        await asyncio.sleep(0)
