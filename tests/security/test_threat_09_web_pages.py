"""Threat 9: a web page opens a tunnel, or sends requests, with its visitor's access."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from kdispatch_relay.api.routes import ROUTES
from tests.security.site import Caller, site

_UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Protocol": "kdispatch.1",
}


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1", "", "file://"])
async def test_any_origin_is_refused(folder: Path, origin: str) -> None:
    """A page of any origin gets no tunnel, and every route refuses its requests that carry a token."""
    async with site(folder) as relay, Caller.of(relay) as caller:
        admin = await caller.admin()
        headers = {"Origin": origin}
        asked = await caller("GET", "/api/v1/tunnel", headers=_UPGRADE | headers)
        assert asked.status == 403
        assert asked.body["code"] == "not_permitted"
        for route in ROUTES:
            if route.path.startswith("/api/"):
                path = route.path.format(handle="ann", name="web", host="0" * 32, token="0" * 16, invite="0" * 16)
                answer = await caller(route.method, path, admin, headers=headers)
                assert answer.status == 403, route.label
                assert "Access-Control-Allow-Origin" not in answer.headers


async def test_aiohttp_alone_would_accept(unused_tcp_port: int) -> None:
    """The refusal is the relay's own: a bare aiohttp server accepts a WebSocket of any origin."""

    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.close()
        return socket

    app = web.Application()
    app.router.add_get("/", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"http://127.0.0.1:{unused_tcp_port}/", origin="https://evil.example") as opened,
        ):
            assert (await opened.receive()).type in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED}
    finally:
        await runner.cleanup()
