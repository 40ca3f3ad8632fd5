"""Refuses requests that exceed a rate limit, before anything is done for them."""

from __future__ import annotations

from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from kdispatch_relay.api.keys import LIMITER
from kdispatch_relay.door.http_connection import COUNTED
from kdispatch_relay.door.screen import TUNNEL
from kdispatch_relay.paths import PREFIX

__all__ = ["limits"]

#: Load balancers ask for health all the time, and sessions are counted at the gate.
_UNCOUNTED: Final = frozenset({"/healthz", "/readyz", TUNNEL})
#: Here a token is compared with one in memory, without a look-up: the operator's, and a host's own.
_STATE: Final = f"{PREFIX}/relay/state"
_HOST: Final = f"{PREFIX}/hosts/{{host}}"
_SIGN_UP: Final = f"{PREFIX}/admins"


@web.middleware
async def limits(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count a request for its source and for its token; raises ``rate_limited``."""
    limiter = request.app[LIMITER]
    source = request.get(COUNTED, "")
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else ""
    if route in _UNCOUNTED:
        return await handler(request)
    token = _shown(request)
    limiter.request(source, token)
    if route == _SIGN_UP:
        return await _signing_up(request, handler)
    if route == _STATE or (route == _HOST and token is not None and token.startswith("hst_")):
        return await handler(request)
    with limiter.authenticating(source, token):
        return await handler(request)


async def _signing_up(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count a sign-up, but not one that fails."""
    limiter, source = request.app[LIMITER], request.get(COUNTED, "")
    limiter.take("sign_ups", source)
    done = False
    try:
        with limiter.authenticating(source, _shown(request)):
            response = await handler(request)
        done = response.status == web.HTTPCreated.status_code
    finally:
        if not done:
            limiter.give_back("sign_ups", source)
    return response


def _shown(request: web.Request) -> str | None:
    """The token that is shown, even if it is malformed."""
    shown = request.headers.get(hdrs.AUTHORIZATION)
    return None if shown is None else shown.partition(" ")[2].strip()
