"""The live hosts of a service, and taking one away."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime

from aiohttp import web

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.tokens import token_digest, token_kind
from kdispatch_relay.api.exchange import PREFIX, Body, answer, bearer
from kdispatch_relay.api.keys import AUTHORITY, LIVE_HOSTS
from kdispatch_relay.api.services import readable_service

__all__ = ["ROUTES"]


class HostSeen(Body):
    """A live host; ``since`` is written as RFC 3339, in UTC."""

    host: str
    since: datetime
    labels: dict[str, str]
    streams: int


class HostList(Body):
    """All live hosts of one service."""

    service: str
    hosts: list[HostSeen]


async def list_hosts(request: web.Request) -> web.Response:
    """List who offers the service at this moment."""
    record = await readable_service(request)
    hosts = [
        HostSeen(
            host=host.host, since=datetime.fromtimestamp(host.since, UTC), labels=host.labels, streams=host.streams
        )
        for host in request.app[LIVE_HOSTS].hosts_of(record.service)
    ]
    return answer(HostList(service=record.service, hosts=hosts))


async def withdraw_host(request: web.Request) -> web.Response:
    """Take a live host off the list: by the host's own token, or by its service's owner."""
    host_id = request.match_info["host"]
    token = bearer(request)
    live = request.app[LIVE_HOSTS]
    if token is not None and token_kind(token) == "hst":
        host = live.host(host_id)
        allowed = host is not None and hmac.compare_digest(token_digest(token).hex(), host.digest)
    else:
        identity = await request.app[AUTHORITY].identify(token)
        if identity.kind != "adm":
            raise KdispatchError("not_permitted", "This needs the host's own token, or its service's owner's.")
        host = live.host(host_id)
        allowed = host is not None and host.service.startswith(f"{identity.handle}/")
    if not allowed:  # not live, or somebody else's: the two can't be told apart
        raise KdispatchError("unknown_host")
    live.withdraw(host_id)
    return web.Response(status=204, headers={"Cache-Control": "no-store"})


ROUTES = [
    web.get(f"{PREFIX}/services/{{handle}}/{{name}}/hosts", list_hosts),
    web.delete(f"{PREFIX}/hosts/{{host}}", withdraw_host),
]
