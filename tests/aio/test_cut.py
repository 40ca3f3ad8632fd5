"""However a box silently ends a connection, the link reports a cut."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from pathlib import Path

import pytest
import trustme

from kdispatch_protocol.limits import KIB, Limits
from kdispatch_protocol.session.aio.link import Link
from kdispatch_protocol.session.liveness import Course, Cut
from kdispatch_protocol.wire.frames import Buffer, Frame
from tests.aio.twin import websocket
from tests.net.way import way


class _Owner:
    """Owner of an idle link."""

    def __init__(self) -> None:
        self.over: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def link_read_fast(self, flags: int, number: int, value: int, payload: Buffer, /) -> bool:
        return False

    def link_read(self, received: list[Frame], now: float) -> None:
        pass

    def link_violated(self, code: str, text: str) -> None:
        raise AssertionError(code)

    def link_idle(self, count: int, now: float) -> None:
        pass

    def link_pieces(self, count: int, received: list[Frame], now: float) -> None:
        pass

    def link_unsent(self, size: int) -> None:
        pass

    def link_collect(self, most: int, now: float) -> list[Buffer]:
        return []

    def link_ask(self) -> None:
        pass

    def link_lost(self, code: str, text: str) -> None:
        self.over.set_result(code)


def _contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    return server, ssl.create_default_context(cafile=str(folder / "ca.pem"))


async def _cut(contexts: tuple[ssl.SSLContext, ssl.SSLContext] | None, how: str) -> Course:
    def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if how == "closed":
            writer.close()
        elif how == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(take, "127.0.0.1", 0, ssl=contexts[0] if contexts else None)
    to = server.sockets[0].getsockname()[1]
    async with server, way(to) as path:
        port = path.port if how == "by a box" else to
        transport, _ = await asyncio.get_running_loop().create_connection(
            asyncio.Protocol, "127.0.0.1", port, ssl=contexts[1] if contexts else None
        )
        owner = _Owner()
        link = Link(owner, Limits(), websocket(transport, max_message=64 * KIB), server=False)
        link.carrier.start()
        if how == "by a box":
            path.cut()
        async with asyncio.timeout(20):
            assert await owner.over == ""
        for writer in writers:
            writer.transport.abort()
        return link.course


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("how", ["closed", "by a box", "reset"])
async def test_cut(tmp_path: Path, how: str, *, tls: bool) -> None:
    """A close, with or without TLS's own goodbye, and a reset all count as cuts."""
    course = await _cut(_contexts(tmp_path) if tls else None, how)
    assert course.cut is Cut.CLOSED
