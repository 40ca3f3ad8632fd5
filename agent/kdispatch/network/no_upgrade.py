"""Why an upgrade fails that a relay would accept: for doctor, and for an agent whose first start fails."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from kdispatch.network.asking import Connect, ask
from kdispatch.network.proxy import Proxy
from kdispatch.network.spoiled import no_websocket, upgrade_lost
from kdispatch.network.upgrade import NoUpgradeError, Refusal
from kdispatch.relay_url import RelayUrl
from kdispatch_protocol.errors import KdispatchError

__all__ = ["explain", "explain_start"]

#: Seconds by which this may delay the failure of an agent's start.
_SECONDS: Final = 5.0


async def explain(relay: RelayUrl, proxy: Proxy | None, connect: Connect, error: KdispatchError) -> KdispatchError:
    """Find what blocks an upgrade although plain requests reach the relay. ``error`` is the upgrade's failure."""
    try:
        answer = await ask(relay, connect, upgrade=True)
    except KdispatchError as again:
        text = f"Plain requests reach the relay, but an upgrade is not answered: {again.text}"
        return no_websocket(relay, proxy, text, again.code)
    if answer.missing or (isinstance(error, Refusal) and error.code == answer.code == "bad_request"):
        return upgrade_lost(relay, answer.missing, answer.headers)
    if answer.code is not None or answer.status == 101:
        return error
    text = (
        f"Something on the way answers the upgrade by {answer.status} and {answer.kind} in the relay's place"
        f"{answer.author}, but lets plain requests pass."
    )
    return no_websocket(relay, proxy, text)


async def explain_start(
    relay: RelayUrl, proxy: Proxy | None, connect: Connect, error: KdispatchError
) -> KdispatchError:
    """The same for a failed start, whatever is at the address; returns ``error`` itself if nothing was found."""
    strangers = isinstance(error, Refusal) and error.code == "relay_unreachable"  # a status from a device on the path
    if isinstance(error, NoUpgradeError) or strangers:
        with contextlib.suppress(KdispatchError, OSError, TimeoutError):
            async with asyncio.timeout(_SECONDS):
                if (await ask(relay, connect)).code is not None:
                    return await explain(relay, proxy, connect, error)
    return error
