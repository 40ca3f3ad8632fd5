"""The live hosts of a service."""

from __future__ import annotations

from datetime import UTC, datetime

from aiohttp import web

from kdispatch_relay.api.exchange import PREFIX, Body, answer
from kdispatch_relay.api.keys import LIVE_HOSTS
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


ROUTES = [web.get(f"{PREFIX}/services/{{handle}}/{{name}}/hosts", list_hosts)]
