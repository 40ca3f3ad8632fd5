"""The relay as one aiohttp application: REST, health and the tunnel on one port."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from aiohttp import http_parser, web

from kdispatch_relay.api.exchange import BODY_LIMIT
from kdispatch_relay.api.keys import ARRIVALS, AUTHORITY, GATE, LIMITER, LIVE_HOSTS, OPERATOR, READINESS, REPOSITORY
from kdispatch_relay.api.limits import limits
from kdispatch_relay.api.routes import add_routes
from kdispatch_relay.auth import Authority
from kdispatch_relay.door.arrivals import Arrivals
from kdispatch_relay.feed import Feed
from kdispatch_relay.health import Readiness
from kdispatch_relay.limiter import Limiter
from kdispatch_relay.problems import problems
from kdispatch_relay.seams import TunnelGate

__all__ = ["make_app"]

_log = logging.getLogger(__name__)


def make_app(
    authority: Authority,
    gate: TunnelGate,
    arrivals: Arrivals,
    limiter: Limiter,
    *,
    operator: bytes | None = None,
    audit_days: int = 90,
) -> web.Application:
    """Build the application. When it starts, it opens the database and starts ``gate``.

    ``operator`` is the SHA-256 of the token that shows the relay's state to other machines. The audit is kept for
    ``audit_days``.
    """
    app = web.Application(middlewares=[problems, limits], client_max_size=BODY_LIMIT)
    readiness = Readiness(authority.repository)
    app[ARRIVALS] = arrivals
    app[AUTHORITY] = authority
    app[LIMITER] = limiter
    app[GATE] = app[LIVE_HOSTS] = gate
    app[OPERATOR] = operator
    app[READINESS] = readiness
    app[REPOSITORY] = authority.repository
    add_routes(app)

    async def storage(_app: web.Application) -> AsyncIterator[None]:
        _check_parser()
        try:
            await authority.repository.database.start()
            yield
        finally:
            await readiness.close()
            await authority.repository.database.close()

    feed = Feed(authority.repository, gate, audit_days=audit_days)

    async def open_gate(_app: web.Application) -> None:
        await gate.start(await authority.repository.relay_id())
        await feed.start()

    async def close_gate(_app: web.Application) -> None:
        await gate.close()
        await feed.close()

    app.cleanup_ctx.append(storage)
    app.on_startup.append(open_gate)
    # Sessions end at shutdown, while the database is still open; aiohttp then waits for their handlers.
    app.on_shutdown.append(close_gate)
    return app


def _check_parser() -> None:
    # aiohttp's fixes against request smuggling are tested on its C parser, which is also several times as fast.
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        _log.error("aiohttp runs without its C parser: slow, and less safe. Install a wheel built for this Python.")
