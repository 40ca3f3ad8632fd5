"""Requests that scanners send to every address, and a bare aiohttp with which a relay's cost is compared."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import Final

from tests.net.harness import Process

__all__ = ["NAME", "cpu_seconds", "ruler", "scan"]

NAME: Final = "relay.example"  # the host name of the scanned relay

_PATHS: Final = (
    "GET /wp-login.php",
    "GET /.env",
    "GET /.git/config",
    "POST /goform/formLogin",
    "GET /goform/set_LimitClient_cfg",
    "GET /cgi-bin/luci/;stok=/locale?form=country&operation=write&country=$(id)",
    "POST /vendor/phpunit/phpunit/src/Util/PHP/eval-stdin.php",
    "HEAD /robots.txt",
    "GET /actuator/health",
    "PUT /healthz",
    "GET /api/v1/pods",
    "DELETE /api/v1/services",
    "GET /",
    "OPTIONS /",
    "PROPFIND /",
    "GET /boaform/admin/formLogin?username=admin&psd=admin",
    "POST /api/v1/tunnel",
    "GET /solr/admin/info/system?wt=json",
    "GET /%2e%2e/%2e%2e/etc/passwd",
    "TRACE /",
)
_HOSTS: Final = (NAME, "192.0.2.7", NAME, "www.example.com:8080")
_BODY: Final = b"username=admin&password=admin"
_HEADERS: Final = (
    "User-Agent: Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36\r\nAccept: */*\r\n"
    "Accept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
)
_ON_ONE: Final = 4  # requests on one connection

_BARE: Final = """
import asyncio, os
from aiohttp import web
async def main():
    runner = web.AppRunner(web.Application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()
try:
    if os.environ.get("KDISPATCH_NO_UVLOOP"):
        raise ImportError
    import uvloop
except ImportError:
    asyncio.run(main())
else:
    uvloop.run(main())
"""


async def ruler(folder: Path) -> tuple[Process, int]:
    """A bare aiohttp application without routes, on the event loop that a relay uses; yields its port."""
    process = Process("ruler", [sys.executable, "-c", _BARE], folder)
    return process, int((await process.says(r"(\d+)\n"))[1])


def cpu_seconds(process: Process) -> float:
    """The processor time that it has used so far, from the kernel's account in nanoseconds."""
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


async def scan(port: int, count: int, *, at_once: int = 8) -> dict[int, int]:
    """Send this many requests, some on each connection; returns the counts of answers by status."""
    seen: dict[int, int] = {}
    numbers = iter(range(0, count, _ON_ONE))

    async def scanner() -> None:
        for first in numbers:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                for number in range(first, min(first + _ON_ONE, count)):
                    status = await _ask(reader, writer, number)
                    seen[status] = seen.get(status, 0) + 1
            finally:
                writer.close()

    await asyncio.gather(*(scanner() for _ in range(at_once)))
    return seen


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> int:
    line = _PATHS[number % len(_PATHS)]
    host = _HOSTS[number // len(_PATHS) % len(_HOSTS)]
    body = _BODY if line.startswith("POST") else b""
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    writer.write(f"{line} HTTP/1.1\r\nHost: {host}\r\n{_HEADERS}{length}\r\n".encode() + body)
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"(?i)content-length: (\d+)", head)
    if found and not line.startswith("HEAD"):
        await reader.readexactly(int(found[1]))
    return int(head[9:12])
