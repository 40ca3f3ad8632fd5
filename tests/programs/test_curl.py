"""The installed curl, and a web server through a tunnel."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from aiohttp import web

from tests.net.harness import KIB, Network, needs, sizes
from tests.programs.tunnel import KB, MB, digest, random_file, succeeds, tunnel

pytestmark = [pytest.mark.slow, needs("curl")]

_CURL: Final = ("curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--disable")
_AT_ONCE: Final = 100


class _Web:
    """Serves ``content``, and answers an upload with its SHA-256; /together answers when all requests are open."""

    def __init__(self, content: Path) -> None:
        self._content = content
        self._together = asyncio.Barrier(_AT_ONCE)
        self.chunked_uploads = 0

    async def _get(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(self._content)

    async def _chunked(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        with self._content.open("rb") as file:
            # Chunks of many sizes, so that their borders vary.
            size = 1
            while data := file.read(size):
                await response.write(data)
                size = size * 3 % (200 * KIB) + 1
        return response

    async def _put(self, request: web.Request) -> web.StreamResponse:
        self.chunked_uploads += request.headers.get("Transfer-Encoding") == "chunked"
        hashed = hashlib.sha256()
        async for chunk in request.content.iter_chunked(64 * KIB):
            hashed.update(chunk)
        return web.Response(text=hashed.hexdigest())

    async def _wait_for_all(self, request: web.Request) -> web.StreamResponse:
        """Answer only when ``_AT_ONCE`` requests wait, which proves that all are open at once."""
        await self._together.wait()
        number = request.match_info["number"]
        return web.Response(body=number.encode() + self._content.read_bytes())

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[int]:
        app = web.Application()
        app.add_routes([web.get("/file", self._get), web.put("/file", self._put), web.get("/chunked", self._chunked)])
        app.add_routes([web.get("/together/{number}", self._wait_for_all)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()


@pytest.mark.parametrize("size", sizes(20 * MB, 200 * MB))
async def test_whole_files(network: Network, tmp_path: Path, size: int) -> None:
    """curl downloads and uploads a whole file with an unchanged SHA-256."""
    content, got = random_file(tmp_path, size), tmp_path / "got"
    async with _Web(content).serve() as server:
        url = f"http://127.0.0.1:{await tunnel(network, server)}/file"
        await succeeds(network.program("curl", *_CURL, "--output", str(got), url), 600)
        assert digest(got) == digest(content)
        uploaded = await succeeds(network.program("curl", *_CURL, "--upload-file", str(content), url), 600)
        assert uploaded.decode() == digest(content)


async def test_chunked(network: Network, tmp_path: Path) -> None:
    """A response and an upload in chunks, without a known length, arrive complete."""
    content, got, headers = random_file(tmp_path, 5 * MB), tmp_path / "got", tmp_path / "headers"
    served = _Web(content)
    async with served.serve() as server:
        url = f"http://127.0.0.1:{await tunnel(network, server)}"
        options = ["--output", str(got), "--dump-header", str(headers)]
        await succeeds(network.program("curl", *_CURL, *options, f"{url}/chunked"))
        assert "transfer-encoding: chunked" in headers.read_text().lower()
        assert digest(got) == digest(content)
        # curl does not know the size of standard input, so it sends chunks.
        put = network.program("curl", *_CURL, "--upload-file", "-", f"{url}/file", given=content)
        assert (await succeeds(put)).decode() == digest(content)
        assert served.chunked_uploads == 1


async def test_kept_alive(network: Network, tmp_path: Path) -> None:
    """Three requests of one curl use one connection."""
    async with _Web(random_file(tmp_path, 1 * MB)).serve() as server:
        url = f"http://127.0.0.1:{await tunnel(network, server)}/file"
        three = ["--output", os.devnull, url] * 3
        kept = network.program("curl", *_CURL, "--range", "0-999", "--write-out", "%{num_connects} ", *three)
        assert (await succeeds(kept)).split() == [b"1", b"0", b"0"]


@pytest.mark.parametrize("size", sizes(50 * KB, 2 * MB))
async def test_parallel(network: Network, tmp_path: Path, size: int) -> None:
    """A hundred transfers of one curl are open at once, and each gets its own complete answer."""
    content = random_file(tmp_path, size)
    async with _Web(content).serve() as server:
        url = f"http://127.0.0.1:{await tunnel(network, server)}/together/[1-{_AT_ONCE}]"
        options = ["--parallel", "--parallel-immediate", "--parallel-max", str(_AT_ONCE)]
        options += ["--output", str(tmp_path / "got-#1")]
        await succeeds(network.program("curl", *_CURL, *options, url), 300)
    wrong = [
        number
        for number in range(1, _AT_ONCE + 1)
        if (tmp_path / f"got-{number}").read_bytes() != str(number).encode() + content.read_bytes()
    ]
    assert not wrong
