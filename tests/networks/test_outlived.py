"""Connected agents survive another server in their relay's place for a while."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

import pytest

from tests.net.harness import eventually
from tests.net.tcp import Tcp, echo, service
from tests.networks.site import Authority, Site
from tests.networks.ways import agents

_PAGE: Final = "<html><title>No</title></html>"
_BACK: Final = 20.0  # seconds; with pending connections an agent tries again every few seconds
_TRIES: Final = 12  # by two agents in somewhat more than 5 s


async def _says(tcp: Tcp, word: bytes) -> bool:
    await tcp.send(word)
    return await tcp.receive_exactly(len(word)) == word


async def _outlive(folder: Path, authority: Authority, pages: tuple[int, ...]) -> str:
    site = await Site.start(folder, authority, "caddy")
    try:
        name = await site.service()
        async with service(echo) as echoing, agents(folder, site, "", authority, "SSL_CERT_FILE") as ours:
            host = await ours.network.host(name, echoing.port, "--grace", "300")
            client, port = await ours.network.connect(name, "--grace", "300")
            async with await Tcp.connect(port) as tcp:
                assert await _says(tcp, b"before")
                for status in pages:
                    caddy = await site.answers(status, _PAGE)
                    await eventually(lambda: caddy.log.count(f'"status":{status}') >= 2, expected=True, wait=40)  # noqa: B023
                await asyncio.sleep(5)  # both keep trying, at a moderate rate
                tries = caddy.log.count(f'"status":{pages[-1]}')
                await site.is_back()
                began = time.monotonic()
                async with asyncio.timeout(_BACK):
                    assert await _says(tcp, b"after")
                    async with await Tcp.connect(port) as new:
                        assert await _says(new, b"anew")
                took = time.monotonic() - began
            assert (host.status, client.status) == (None, None)
            assert 2 <= tries <= _TRIES
            return f"{' and '.join(map(str, pages))}: back after {took:.1f} s, {tries} tries of two agents meanwhile"
    finally:
        site.stop()


@pytest.mark.accept
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_pages_in_the_relays_place(tmp_path: Path, authority: Authority) -> None:
    """Neither a captive portal nor a maintenance page ends an agent: its connection goes on when the relay is back."""
    for name in ("portal", "maintenance"):
        (tmp_path / name).mkdir()
    portal = _outlive(tmp_path / "portal", authority, (200,))
    maintenance = _outlive(tmp_path / "maintenance", authority, (503, 401))
    print("; ".join(await asyncio.gather(portal, maintenance)))
