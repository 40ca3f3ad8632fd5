"""The installed iperf3, at both ends."""

from __future__ import annotations

import json

import pytest

from tests.net.harness import Network, needs, sizes
from tests.programs.servers import iperf3
from tests.programs.tunnel import succeeds, tunnel

pytestmark = [pytest.mark.slow, needs("iperf3")]


@pytest.mark.parametrize("seconds", sizes(1, 10))
async def test_iperf3(network: Network, seconds: int) -> None:
    """iperf3 measures each direction, with one connection and with four, without an error."""
    listens, server = await iperf3(network)
    port = await tunnel(network, listens)
    for number, options in enumerate(([], ["-R"], ["-P", "4"], ["-P", "4", "-R"]), start=1):
        # The server prints this before each test. A new connection could overtake the last bytes of an earlier one.
        await server.says(rf"(?s)(?:Server listening on.*){{{number}}}")
        command = ["iperf3", "-c", "127.0.0.1", "-p", str(port), "-t", str(seconds), "--json", *options]
        result = json.loads(await succeeds(network.program("iperf3", *command), 60 + seconds))
        assert "error" not in result
        assert len(result["start"]["connected"]) == (4 if "-P" in options else 1)
        received = result["end"]["sum_received"]
        assert received["bytes"] > 0
        print(f"\niperf3 {' '.join(options) or 'one way'}: {received['bits_per_second'] / 1e6:.0f} Mbit/s")
