"""Create an account and services on a relay: python -m bench.account RELAY SERVICE..., which prints the token.

One process creates all of them, so that the tests of tests/speed stay short.
"""

from __future__ import annotations

import asyncio
import sys

from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch.rest.client import RestClient

__all__: list[str] = []


async def _main(url: str, *services: str) -> None:
    async with RestClient(Dialer(RelayUrl.parse(url))) as rest:
        rest.token = (await rest.sign_up("ann")).token
        for service in services:
            await rest.create_service(service)
    print(rest.token)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
