"""The address of the tunnel, which hands connections to the switch."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aiohttp import web

from kdispatch_relay.api.exchange import Call
from kdispatch_relay.api.keys import GATE
from kdispatch_relay.api.route import ApiRoute, Section
from kdispatch_relay.paths import PREFIX

__all__ = ["ROUTES"]


async def open_tunnel(call: Call) -> web.StreamResponse:
    """Hand the connection to the switch."""
    return await call.request.app[GATE].handle(call.request)


ROUTES: Final = (
    ApiRoute(
        method="GET",
        path=f"{PREFIX}/tunnel",
        name="open_tunnel",
        handler=open_tunnel,
        section=Section.TUNNEL,
        who="anybody",
        does="the WebSocket of agents",
        text="""\
The WebSocket over which agents offer services and open streams. It is not for manual use. The request is an upgrade
to the subprotocol `kdispatch.1`. [The protocol](protocol.md) describes what follows; tokens travel inside it.""",
        status=HTTPStatus.SWITCHING_PROTOCOLS,
        errors={"bad_request": "not an upgrade, or a malformed one", "version_unsupported": ""},
        general=("not_permitted", "rate_limited", "misdirected", "internal_error", "busy"),
        head=False,
        any_query=True,
    ),
)
