"""A load of look-ups: many connections, each of which asks again as soon as it has an answer. Prints one JSON object.

Usage: python -m tests.net.look_ups URL PATH CONNECTIONS SECONDS      # the token comes on standard input
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit


async def _ask(host: str, port: int, request: bytes, until: float, times: list[float]) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    while time.monotonic() < until:
        began = time.perf_counter()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
        times.append(time.perf_counter() - began)
    writer.close()


async def _main(url: str, path: str, connections: int, seconds: float, token: str) -> None:
    place = urlsplit(url)
    assert place.hostname is not None and place.port is not None
    times: list[float] = []
    request = f"GET {path} HTTP/1.1\r\nHost: {place.netloc}\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    until = time.monotonic() + seconds
    loads = (_ask(place.hostname, place.port, request, until, times) for _ in range(connections))
    await asyncio.gather(*loads)
    times.sort()
    found = {"rate": len(times) / seconds, "p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.stdin.readline().strip()))
