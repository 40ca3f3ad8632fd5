"""Services: created and listed by their owner, looked up by whoever may connect."""

from __future__ import annotations

import secrets
from typing import Literal

from aiohttp import web

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.names import check_name
from kdispatch_protocol.tokens import SECRET_BYTES, format_token, token_digest
from kdispatch_relay.api.exchange import PREFIX, Body, Name, answer, bearer, read_body
from kdispatch_relay.api.keys import AUTHORITY, LIVE_HOSTS, REPOSITORY
from kdispatch_relay.auth import Identity, ServiceRecord
from kdispatch_relay.http_connection import SOURCE
from kdispatch_relay.store.records import NewToken

__all__ = ["ROUTES", "readable_service"]


class NewService(Body):
    """What an admin sends to create a service."""

    name: Name
    access: Literal["public", "token"] = "public"


class ServiceCreated(Body):
    """The only answer that ever holds this token, which may host the service."""

    service: str
    access: str
    token: str


class ServiceSeen(Body):
    """A service, and how many hosts offer it at this moment."""

    service: str
    access: str
    live_hosts: int


class ServiceList(Body):
    """An admin's own services, by name."""

    services: list[ServiceSeen]


async def create_service(request: web.Request) -> web.Response:
    """Create a service under one's own handle."""
    owner = await _admin(request)
    body = await read_body(request, NewService)
    token = format_token("svc", secrets.token_bytes(SECRET_BYTES))
    record = await request.app[REPOSITORY].services.create(
        owner,
        body.name,
        NewToken(token_digest(token), "service"),
        access=body.access,
        pins=False,
        source=_source(request),
    )
    return answer(ServiceCreated(service=record.service, access=record.access, token=token), status=201)


async def list_services(request: web.Request) -> web.Response:
    """List one's own services."""
    owner = await _admin(request)
    records = await request.app[REPOSITORY].services.of(owner)
    return answer(ServiceList(services=[_seen(request, record) for record in records]))


async def delete_service(request: web.Request) -> web.Response:
    """Delete one of one's own services; what rests on it ends at once."""
    owner = await _admin(request)
    handle, name = request.match_info["handle"], request.match_info["name"]
    if handle != owner.handle:
        # Decided without a look-up, so that the answer does not tell whether it exists.
        raise KdispatchError("not_permitted", "Only its owner may delete a service.")
    if not await request.app[REPOSITORY].services.delete(owner, check_name(name), source=_source(request)):
        raise KdispatchError("unknown_service")
    return web.Response(status=204, headers={"Cache-Control": "no-store"})


async def show_service(request: web.Request) -> web.Response:
    """Show one service to whoever may connect to it."""
    return answer(_seen(request, await readable_service(request)))


async def readable_service(request: web.Request) -> ServiceRecord:
    """The service of the request's path; raise ``unknown_service`` where it is not open to the sender."""
    name = "{handle}/{name}".format_map(request.match_info)
    return (await request.app[AUTHORITY].may_read(name, bearer(request))).service


def _source(request: web.Request) -> str:
    return str(request.get(SOURCE, request.remote or ""))


async def _admin(request: web.Request) -> Identity:
    identity = await request.app[AUTHORITY].identify(bearer(request))
    if identity.kind != "adm":
        raise KdispatchError("not_permitted", "This needs an admin's token.")
    return identity


def _seen(request: web.Request, record: ServiceRecord) -> ServiceSeen:
    hosts = request.app[LIVE_HOSTS].hosts_of(record.service)
    return ServiceSeen(service=record.service, access=record.access, live_hosts=len(hosts))


ROUTES = [
    web.post(f"{PREFIX}/services", create_service),
    web.get(f"{PREFIX}/services", list_services),
    web.get(f"{PREFIX}/services/{{handle}}/{{name}}", show_service),
    web.delete(f"{PREFIX}/services/{{handle}}/{{name}}", delete_service),
]
