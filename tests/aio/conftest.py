"""Two agents joined by a gate, and connections of programs through both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from kdispatch.local.pipe import Pipe
from kdispatch_protocol.endpoint.streams import Stream
from tests.aio.ends import Connect, Ends
from tests.aio.sockets import tcp_pair
from tests.aio.twin import SERVICE, Twin, twin, until


@pytest.fixture
async def pair() -> AsyncIterator[Twin]:
    async with twin() as made:
        yield made
        assert not made.failures


@pytest.fixture
async def connect(pair: Twin) -> AsyncIterator[Connect]:
    """Open one connection through both agents."""
    async with AsyncExitStack() as ending:

        async def one() -> Ends:
            client, at_client = await tcp_pair()
            service, at_host = await tcp_pair(buffers=16 * 1024)
            ending.callback(client.close)
            ending.callback(service.close)
            host_pipe = Pipe(pair.host, on_local=Pipe.pause_socket)
            await pair.host.loop.create_connection(lambda: host_pipe.local, sock=at_host)

            def serve(stream: Stream) -> None:
                pair.host.accept(stream, host_pipe.remote)
                host_pipe.resume_socket()

            def made(pipe: Pipe) -> None:
                pair.client.open(SERVICE, pipe.remote)

            pair.serve = serve
            client_pipe = Pipe(pair.client, on_local=made)
            await pair.client.loop.create_connection(lambda: client_pipe.local, sock=at_client)
            await until(lambda: client_pipe.stream is not None and client_pipe.stream.stream.state.value == "open")
            return Ends(client, service, client_pipe, host_pipe)

        yield one
