"""A whole relay in this process with its gate and its store, REST callers, and hand-driven agents."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import host_id
from kdispatch_protocol.wire.messages import Goaway, Offer, Open, Opened, Reset
from tests.relay.test_door import relay_with
from tests.relay.test_gate import _Agent as Agent
from tests.relay.test_limits import NONE, Caller, Site

__all__ = ["Agent", "Caller", "Site", "answer", "carried", "made", "offers", "opens", "site"]

_WAIT = 2.0  # seconds to wait for an answer


@asynccontextmanager
async def site(folder: Path, limits: Limits = DEFAULT_LIMITS, **settings: Any) -> AsyncIterator[Site]:
    """Run a relay without limits of rates and counts, except those in the arguments."""
    async with relay_with(folder, limits, **{**NONE, **settings}) as relay:
        yield Site(relay)


async def made(caller: Caller, path: str, token: str | None = None, **body: object) -> dict[str, Any]:
    """Return what a POST below ``/api/v1`` creates; the request must succeed."""
    given = await caller("POST", f"/api/v1{path}", token, json=body)
    assert given.status in {200, 201}, given.body
    return dict(given.body)


async def answer(agent: Agent, number: int) -> str:
    """Return the relay's answer for this number: a frame's name, or the code of its RESET or of the GOAWAY."""
    try:
        async with asyncio.timeout(_WAIT):
            while True:
                await agent._some_frame()
                type_, _, stream, _, payload = agent.frames.pop(0)
                if type_ == frames.GOAWAY:
                    return Goaway.parse(payload).code
                if stream == number and type_ == frames.RESET:
                    return Reset.parse(payload).code
                if stream == number:
                    return frames.TYPE_NAMES[type_]
    except TimeoutError:
        return "nothing"


async def offers(agent: Agent, number: int, service: str, token: str) -> str:
    """Offer a service, and return the answer."""
    offer = Offer(service=service, host=host_id(agent.process, service), digest="00" * 32, token=token)
    agent.send(frame(frames.OFFER, number, payload=offer.encode()))
    return await answer(agent, number)


async def opens(agent: Agent, number: int, service: str, token: str | None = None) -> str:
    """Open a stream, and return the first answer."""
    message = Open(service=service, uuid=secrets.token_hex(16), limit=1 << 18, secret="00" * 32, token=token)
    agent.send(frame(frames.OPEN, number, payload=message.encode()))
    return await answer(agent, number)


async def carried(client: Agent, host: Agent, number: int, service: str, token: str | None = None) -> int:
    """Open a stream of a service that ``host`` offers; returns its number at the host."""
    assert await opens(client, number, service, token) == "TRYING"
    _, _, at_host, _, payload = await host.next(frames.OPEN)
    attempt = Open.parse(payload).attempt or 1
    host.send(frame(frames.OPENED, at_host, payload=Opened(limit=1 << 18, attempt=attempt).encode()))
    assert await answer(client, number) == "OPENED"
    return at_host
