"""Rates and round trips of agents under Wine beside the same agents on Linux: python -m tests.windows.rates.

Wine is not Windows, so nothing bounds these figures.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.net.harness import MIB, Network, Relay
from tests.net.tcp import Tcp, digest, echo, service, source
from tests.windows.environment import windows
from tests.windows.running import WindowsNetwork

_SIZE: Final = 200 * 1000 * 1000  #: bytes in each direction
_BLOCK: Final = random.Random(7).randbytes(MIB)
_TIMES: Final = 500  #: round trips of 16 bytes, one after the other


async def _measure(network: Network) -> tuple[float, float, float]:
    """Megabytes a second to the service and from it, and the median round trip in milliseconds."""
    rates = []
    for handle, up in ((digest, True), (source(_BLOCK, _SIZE), False)):
        name = await network.service()
        async with service(handle) as running:
            await network.host(name, running.port)
            _, port = await network.connect(name)
            began = time.monotonic()
            async with await Tcp.connect(port) as tcp:
                if up:
                    await tcp.send_forever(_BLOCK, _SIZE)
                    tcp.finish()
                await tcp.receive_all()
            rates.append(_SIZE / (time.monotonic() - began) / 1e6)
    name = await network.service()
    trips = []
    async with service(echo) as running:
        await network.host(name, running.port)
        _, port = await network.connect(name)
        async with await Tcp.connect(port) as tcp:
            for _ in range(_TIMES):
                began = time.monotonic()
                await tcp.send(bytes(16))
                await tcp.receive_exactly(16)
                trips.append(time.monotonic() - began)
    return rates[0], rates[1], statistics.median(trips) * 1e3


async def main() -> None:
    """Measure one after the other at one relay, and print a table."""
    made = windows()
    with tempfile.TemporaryDirectory(prefix="kdispatch-rates-") as folder:
        relay = Relay(Path(folder))
        print("| agents | to the service | from the service | round trip |\n|---|---|---|---|")
        try:
            await relay.start()
            for name in ("on Linux", "under Wine"):
                place = Path(folder) / name.replace(" ", "-")
                place.mkdir()
                linux = name == "on Linux"
                network = Network(place, relay.url, relay.token)
                if not linux:
                    network = WindowsNetwork(place, relay.url, relay.token, made)
                try:
                    up, down, trip = await _measure(network)
                finally:
                    network.stop()
                print(f"| {name} | {up:.0f} MB/s | {down:.0f} MB/s | {trip:.2f} ms |", flush=True)
        finally:
            relay.stop()


if __name__ == "__main__":
    asyncio.run(main())
