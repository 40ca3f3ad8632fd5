"""Every path to a relay: through each proxy, each TLS, and with each way to name a CA, a client reaches its host."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import sys
from pathlib import Path
from typing import Final

import pytest
from _pytest.mark import ParameterSet

from tests.net.harness import MIB
from tests.net.tcp import Tcp, echo, service
from tests.networks.site import PASSWORD, Authority
from tests.networks.ways import CREDENTIALS, WAYS, Park, Trust, Way, agents, proxy_url

pytestmark = pytest.mark.slow

_KDISPATCH: Final = str(Path(sys.executable).with_name("kdispatch"))
_SIZE: Final = 10 * MIB
_EDGES: Final = ("relay", "caddy")
_TRUSTS: Final[tuple[Trust, ...]] = ("SSL_CERT_FILE", "--ca-file")
#: This case runs in make test; the acceptance run has all.
_SMALL: Final = ("digest", "relay", "--ca-file")


def _cells() -> list[ParameterSet]:
    cells = itertools.product(WAYS, _EDGES, _TRUSTS)
    return [pytest.param(*cell, marks=() if cell == _SMALL else pytest.mark.accept) for cell in cells]


@pytest.mark.parametrize(("way", "edge", "trust"), _cells())
async def test_tunnel(tmp_path: Path, park: Park, authority: Authority, way: Way, edge: str, trust: Trust) -> None:
    """A client reaches its host, 10 MB come back intact, and no output or log has the proxy's password."""
    site = await park.site(edge)
    name = await site.service()
    data = random.Random(10).randbytes(_SIZE)
    async with (
        proxy_url(way, park) as proxy,
        service(echo) as echoing,
        agents(tmp_path, site, proxy, authority, trust) as ours,
    ):
        network = ours.network
        await network.host(name, echoing.port, *ours.options)
        _, port = await network.connect(name, *ours.options)
        async with asyncio.timeout(60), await Tcp.connect(port) as tcp:
            received, _ = await asyncio.gather(tcp.digest(_SIZE), tcp.send(data))
        assert received == (_SIZE, hashlib.sha256(data).digest())
        asked = network.program("whoami", _KDISPATCH, "whoami", *ours.options, "--quiet")
        assert (await asked.ended(), asked.out) == (0, b"ann\n"), asked.text
        told = "".join(process.text for process in network.processes) + park.logs
    assert CREDENTIALS not in told
    assert PASSWORD not in told
    if way in {"open", "basic", "digest"}:
        assert f"CONNECT relay.test:{site.port}" in (await park.squid(way)).passed
