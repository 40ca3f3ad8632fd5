"""The objects that handlers find in the app."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from kdispatch_relay.auth import Authority
from kdispatch_relay.door.arrivals import Arrivals
from kdispatch_relay.health import Readiness
from kdispatch_relay.limiter import Limiter
from kdispatch_relay.seams import LiveHosts, TunnelGate
from kdispatch_relay.store.repository import Repository

__all__ = ["ARRIVALS", "AUTHORITY", "GATE", "LIMITER", "LIVE_HOSTS", "OPERATOR", "READINESS", "REPOSITORY"]

#: Unauthenticated connections, and what was refused at once.
ARRIVALS: Final = web.AppKey("arrivals", Arrivals)
AUTHORITY: Final = web.AppKey("authority", Authority)
GATE: Final = web.AppKey[TunnelGate]("gate")
#: The rate limits.
LIMITER: Final = web.AppKey("limiter", Limiter)
LIVE_HOSTS: Final = web.AppKey[LiveHosts]("live_hosts")
#: SHA-256 of the operator's token, if there is one.
OPERATOR: Final = web.AppKey[bytes | None]("operator")
READINESS: Final = web.AppKey("readiness", Readiness)
REPOSITORY: Final = web.AppKey("repository", Repository)
