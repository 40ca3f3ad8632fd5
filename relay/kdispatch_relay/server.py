"""A running relay: from settings to a listening socket, and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from aiohttp import web

from kdispatch_protocol.limits import DEFAULT_LIMITS, Limits
from kdispatch_protocol.process.descriptors import limit
from kdispatch_relay.api.keys import ARRIVALS, AUTHORITY, LIMITER
from kdispatch_relay.app import make_app
from kdispatch_relay.auth import Authority
from kdispatch_relay.door.arrivals import Arrivals
from kdispatch_relay.door.certificates import Certificates
from kdispatch_relay.door.connections import Connections
from kdispatch_relay.door.http_connection import HttpConnections, http_options
from kdispatch_relay.door.listener import Listener, Port
from kdispatch_relay.door.screen import RequestScreen
from kdispatch_relay.limiter import Limiter
from kdispatch_relay.operator.token import operator_digest
from kdispatch_relay.room import Room
from kdispatch_relay.seams import TunnelGate
from kdispatch_relay.settings import RelaySettings
from kdispatch_relay.store.database import Database
from kdispatch_relay.store.repository import Repository
from kdispatch_relay.switch.views import Left

__all__ = ["RunningRelay", "running_relay"]

_SHUTDOWN: Final = 5.0  # seconds for requests under way
_FIRST_REQUEST: Final = 1.0  # seconds for the first request of a connection that came just before the end


class RunningRelay:
    """A relay that listens. ``url`` has no trailing slash, ``port`` is the actual port."""

    def __init__(
        self,
        url: str,
        app: web.Application,
        gate: TunnelGate,
        listener: Listener,
        connections: Connections,
    ) -> None:
        self.url = url
        self.authority = app[AUTHORITY]
        self.gate = gate
        self.arrivals = app[ARRIVALS]
        self.limiter = app[LIMITER]
        self._listener = listener
        self._connections = connections
        self.certificates: Certificates | None = None  # the relay's own, if it terminates TLS itself

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._listener.port)

    async def turn_away(self) -> Port:
        """Direct new connections to another relay on the same port, if there is one."""
        return await self._listener.turn_away()

    async def drain(self, seconds: float, tell: Callable[[Left], None]) -> Left:
        """Finish, after :meth:`turn_away`: take the last connections, stop listening, let agents and requests end."""
        arriving = asyncio.create_task(self._last_arrivals(), name="last arrivals")
        try:
            left = await self.gate.drain(seconds, tell, arriving)
        finally:
            await arriving
        return left

    async def _last_arrivals(self) -> None:
        await asyncio.gather(self._listener.close(), self._connections.end())
        await self._connections.ended(_FIRST_REQUEST)


@asynccontextmanager
async def running_relay(
    settings: RelaySettings,
    make_gate: Callable[[Authority], TunnelGate],
    *,
    limits: Limits = DEFAULT_LIMITS,
    migrate_apart: bool = False,
) -> AsyncIterator[RunningRelay]:
    """Serve until the end of the block, then close sessions, requests and database, in this order.

    With ``migrate_apart``, another process migrates the database: this saves the memory of the migration code, but a
    start that migrates takes longer.

    Raises ``port_in_use``, ``port_forbidden`` or ``address_not_here`` if it cannot listen, ``storage_unavailable``, or
    ``bad_request`` for unusable files.
    """
    certificates = await _certificates(settings)
    operator = await asyncio.to_thread(operator_digest, settings.operator_token_file)
    database = Database(settings.database, wait=settings.database_wait, migrate_apart=migrate_apart)
    authority = Authority(Repository(database), sign_up=settings.sign_up)
    gate = make_gate(authority)
    room = Room.of(limit(), settings.limit_sessions, limits.arrivals)
    arrivals = Arrivals(settings.trusted_proxies, replace(limits, arrivals=room.arrivals))
    limiter = Limiter(settings, authority.accepted, asyncio.get_running_loop().time, room.sessions)
    app = make_app(authority, gate, arrivals, limiter, operator=operator, audit_days=settings.audit_days)
    runner = web.AppRunner(app, shutdown_timeout=_SHUTDOWN)
    connections = Connections(runner, _SHUTDOWN)
    listener: Listener | None = None
    watching = asyncio.create_task(certificates.watch(), name="certificates") if certificates else None
    try:
        await runner.setup()
        listener = await Listener.bound(settings, certificates)
        screen = RequestScreen(app, settings.allowed_hosts, arrivals.refused)
        await listener.start(HttpConnections(runner, arrivals, screen, http_options(limits), connections.answered))
        url = f"{'https' if certificates else 'http'}://{listener.where}"
        running = RunningRelay(url, app, gate, listener, connections)
        running.certificates = certificates
        yield running
    finally:
        if watching is not None:
            watching.cancel()
        if listener is not None:
            await listener.close()
        await runner.cleanup()
        arrivals.close()


async def _certificates(settings: RelaySettings) -> Certificates | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return await asyncio.to_thread(Certificates, settings.tls_cert, settings.tls_key)
