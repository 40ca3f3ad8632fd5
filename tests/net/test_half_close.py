"""Each direction of a connection ends by itself, as with TCP."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import signal

import pytest

from tests.net.harness import KIB, MIB, Network
from tests.net.tcp import Tcp, banner, digest, echo, service

pytestmark = pytest.mark.slow


async def test_answer_follows_the_clients_end(network: Network) -> None:
    """A service that answers after the end of a big upload gets all of it, and its answer arrives."""
    name = await network.service()
    data = random.Random(5).randbytes(20 * MIB)
    async with service(digest) as running:
        await network.host(name, running.port)
        _, port = await network.connect(name)
        async with await Tcp.connect(port) as tcp:
            await tcp.send(data)
            tcp.finish()
            assert await tcp.receive_all() == hashlib.sha256(data).digest()


async def test_client_speaks_after_the_services_end(network: Network) -> None:
    """A client that has read the service's end can still send, and the service reads it to the end."""
    heard = asyncio.Future[bytes]()

    async def early_end(tcp: Tcp) -> None:
        await tcp.send(b"that is all")
        tcp.finish()
        heard.set_result(await tcp.receive_all())

    name = await network.service()
    async with service(early_end) as running:
        await network.host(name, running.port)
        _, port = await network.connect(name)
        async with await Tcp.connect(port) as tcp:
            assert await tcp.receive_all() == b"that is all"
            await tcp.send(b"x" * MIB)
            tcp.finish()
            assert await asyncio.wait_for(heard, 10) == b"x" * MIB


async def test_end_at_once_is_an_end(network: Network) -> None:
    """A connection that ends without a byte is an empty request, and gets its answer."""
    name = await network.service()
    async with service(digest) as running:
        await network.host(name, running.port)
        _, port = await network.connect(name)
        async with await Tcp.connect(port) as tcp:
            tcp.finish()
            assert await tcp.receive_all() == hashlib.sha256(b"").digest()


async def test_service_speaks_first(network: Network) -> None:
    """A service's banner arrives although the client sends nothing, and a dialogue follows."""
    name = await network.service()
    async with service(banner) as running:
        await network.host(name, running.port)
        _, port = await network.connect(name)
        async with await Tcp.connect(port) as tcp:
            assert await tcp.receive_exactly(11) == b"220 ready\r\n"
            await tcp.send(b"EHLO\r\n")
            assert await tcp.receive_exactly(6) == b"EHLO\r\n"


async def test_slow_reader_gets_everything_after_the_end(network: Network) -> None:
    """A reader that starts long after the sender has closed still gets every byte, then a clean end."""
    data = random.Random(6).randbytes(MIB)

    async def send_and_close(tcp: Tcp) -> None:
        await tcp.send(data)

    name = await network.service()
    async with service(send_and_close) as running:
        await network.host(name, running.port)
        _, port = await network.connect(name)
        async with await Tcp.connect(port, receive_buffer=8192) as tcp:
            await asyncio.sleep(0.5)
            assert await tcp.receive_all() == data


async def test_drain_lets_a_slow_reader_finish(network: Network) -> None:
    """An agent that is told to end first delivers the rest of an ended stream to a slow reader."""
    offered = [64 * MIB]

    async def send_and_close(tcp: Tcp) -> None:
        await tcp.send_forever(bytes(16 * KIB), offered[0])

    async def kernel_holds() -> int:
        """What a reader still gets from a stopped agent: the agent itself held none of it any more."""
        agent, port = await network.connect(name)
        async with await Tcp.connect(port, receive_buffer=8 * KIB) as tcp:
            await asyncio.sleep(0.7)
            agent.send_signal(signal.SIGSTOP)
            size = 0
            with contextlib.suppress(TimeoutError):
                while True:
                    size += len(await asyncio.wait_for(tcp.receive(), 0.5))
            agent.stop(signal.SIGKILL)
            return size

    name = await network.service()
    async with service(send_and_close) as running:
        await network.host(name, running.port)
        # Of slightly more than that, the agent holds the last bytes.
        kernels = await kernel_holds()
        offered[0] = kernels + 100 * KIB
        agent, port = await network.connect(name, "--drain-time", "5")
        async with await Tcp.connect(port, receive_buffer=8 * KIB) as tcp:
            tcp.finish()
            await asyncio.sleep(0.7)
            stopping = asyncio.create_task(asyncio.to_thread(agent.stop, signal.SIGTERM))
            await asyncio.sleep(0.5)
            assert (await tcp.digest())[0] == offered[0]
            assert await stopping == 0


async def test_echo_of_the_whole_dialogue(network: Network) -> None:
    """An echo of a stream that is written and read at once equals that stream, and ends after it."""
    data = random.Random(8).randbytes(5 * MIB)
    name = await network.service()
    async with service(echo) as running:
        await network.host(name, running.port)
        _, port = await network.connect(name)
        async with await Tcp.connect(port) as tcp:

            async def send() -> None:
                await tcp.send(data)
                tcp.finish()

            received, _ = await asyncio.gather(tcp.digest(), send())
            assert received == (len(data), hashlib.sha256(data).digest())
