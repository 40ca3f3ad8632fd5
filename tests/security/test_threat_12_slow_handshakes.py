"""Threat 12: slow handshakes."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from tests.net.harness import sizes
from tests.relay.test_door import Visitor
from tests.relay.test_gate import _UPGRADE, _request
from tests.security.site import Agent, site

_HEAD: Final = b"GET /api/v1/tunnel HTTP/1.1\r\nX: " + b"x" * 999
#: First bytes, and the bytes that follow one by one: nothing, a head without an end, an upgrade without HELLO.
_KINDS: Final = ((b"", b""), (b"", _HEAD), (_request(_UPGRADE), b""))


@dataclass(frozen=True)
class _Siege:
    sockets: int
    limits: Limits
    within: float
    honest: float


async def _seconds_there(port: int, number: int, pause: float) -> float:
    first, rest = _KINDS[number % len(_KINDS)]
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with Visitor.of(port) as visitor:
        visitor.writer.write(first)
        dribbling = asyncio.create_task(visitor.dribble(rest, pause))
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(20):
                while await visitor.reader.read(65536):
                    pass
        dribbling.cancel()
    return loop.time() - began


@pytest.mark.slow
@pytest.mark.parametrize(
    "siege", sizes(_Siege(60, Limits(hello=0.5), 4.0, 10.0), _Siege(500, DEFAULT_LIMITS, 15.0, 1.0))
)
async def test_they_are_gone_in_time(folder: Path, siege: _Siege) -> None:
    """Sockets without a valid HELLO are closed in time, and the relay serves honest agents meanwhile."""
    async with site(folder, siege.limits) as relay:
        pause = siege.limits.hello / 20
        silent = [asyncio.create_task(_seconds_there(relay.port, n, pause)) for n in range(siege.sockets)]
        served: list[float] = []
        loop = asyncio.get_running_loop()
        gone, _ = await asyncio.wait(silent, timeout=0.01)
        until = loop.time() + siege.within
        while len(gone) < len(silent) and loop.time() < until:
            began = loop.time()
            async with Agent.of(relay, len(served).to_bytes(32, "big")):
                served.append(loop.time() - began)
            gone, _ = await asyncio.wait(silent, timeout=pause)
        for task in silent:
            task.cancel()
        there = await asyncio.gather(*silent, return_exceptions=True)
        longest = max((seconds for seconds in there if isinstance(seconds, float)), default=siege.within)
        print(f"{siege.sockets} gone after {longest:.1f} s at the most; a session within {max(served):.3f} s")
        assert len(gone) == siege.sockets, f"{siege.sockets - len(gone)} are still there after {siege.within} s"
        assert longest < siege.within and max(served) < siege.honest
