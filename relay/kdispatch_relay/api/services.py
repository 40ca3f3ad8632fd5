"""Services: created and listed by their owner, looked up by whoever may connect."""

from __future__ import annotations

import secrets
from http import HTTPStatus
from typing import Final, Literal

from pydantic import Field

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.names import check_name
from kdispatch_protocol.tokens import SECRET_BYTES, format_token, token_digest
from kdispatch_relay.api.exchange import Call
from kdispatch_relay.api.fields import Answer, Body, Name
from kdispatch_relay.api.paths import PREFIX
from kdispatch_relay.api.route import Example, Route, Section
from kdispatch_relay.auth import Identity, ServiceRecord
from kdispatch_relay.store.records import NewToken

__all__ = ["ROUTES"]


class NewService(Body):
    """What an admin sends to create a service."""

    name: Name = Field(description="the service's name, unique among the admin's")
    access: Literal["public", "token"] = Field(
        default="public",
        description="`public`: everybody may connect. `token`: whoever shows a token with that right",
    )


class ServiceCreated(Answer):
    """The only answer that ever holds this token, which may host the service."""

    service: str = Field(description="the service, as `handle/name`")
    access: str = Field(description="as it was wished")
    token: str = Field(description="the token to host it, `svc_...`")


class ServiceSeen(Answer):
    """A service, and how many hosts offer it at this moment."""

    service: str = Field(description="the service, as `handle/name`")
    access: str = Field(description="`public` or `token`")
    live_hosts: int = Field(description="how many hosts offer it at this moment")


class ServiceList(Answer):
    """An admin's own services, by name."""

    services: list[ServiceSeen] = Field(description="all of them, by name")


async def create_service(call: Call) -> ServiceCreated:
    """Create a service under one's own handle."""
    owner = await _admin(call)
    body = await call.body(NewService)
    token = format_token("svc", secrets.token_bytes(SECRET_BYTES))
    new = NewToken(token_digest(token), "service")
    record = await call.repository.services.create(
        owner, body.name, new, access=body.access, pins=False, source=call.source
    )
    return ServiceCreated(service=record.service, access=record.access, token=token)


async def list_services(call: Call) -> ServiceList:
    """List one's own services."""
    owner = await _admin(call)
    records = await call.repository.services.of(owner)
    return ServiceList(services=[_seen(call, record) for record in records])


async def delete_service(call: Call) -> None:
    """Delete one of one's own services; what rests on it ends at once."""
    owner = await _admin(call)
    if call.path["handle"] != owner.handle:
        # Decided without a look-up, so that the answer does not tell whether it exists.
        raise KdispatchError("not_permitted", "Only its owner may delete a service.")
    if not await call.repository.services.delete(owner, check_name(call.path["name"]), source=call.source):
        raise KdispatchError("unknown_service")


async def show_service(call: Call) -> ServiceSeen:
    """Show one service to whoever may connect to it."""
    return _seen(call, (await call.authority.may_read(call.service, call.token)).service)


async def _admin(call: Call) -> Identity:
    identity = await call.authority.identify(call.token)
    if identity.kind != "adm":
        raise KdispatchError("not_permitted", "This needs an admin's token.")
    return identity


def _seen(call: Call, record: ServiceRecord) -> ServiceSeen:
    return ServiceSeen(service=record.service, access=record.access, live_hosts=len(call.live.hosts_of(record.service)))


_OTHERS: Final = {"not_permitted": "not an admin's token"}

ROUTES: Final = (
    Route(
        method="POST",
        path=f"{PREFIX}/services",
        name="create_service",
        handler=create_service,
        section=Section.SERVICES,
        who="service.create",
        does="creates a service, gives the token to host it",
        text="""\
Creates a service under the admin's own handle. The answer, status 201, is the only one that ever shows the
service's token. Whoever has that token may host this service, and nothing else.""",
        body=NewService,
        status=HTTPStatus.CREATED,
        answer=ServiceCreated,
        errors={"bad_name": "", **_OTHERS, "service_exists": ""},
        example=Example(
            shows="admin",
            body={"name": "web"},
            answer={"service": "ann/web", "access": "public", "token": "svc_..."},
            keeps="service",
        ),
    ),
    Route(
        method="GET",
        path=f"{PREFIX}/services",
        name="list_services",
        handler=list_services,
        section=Section.SERVICES,
        who="service.list",
        does="lists the admin's own services",
        text="Lists the admin's own services by name.",
        answer=ServiceList,
        errors=_OTHERS,
        example=Example(
            shows="admin",
            answer={"services": [{"service": "ann/web", "access": "public", "live_hosts": 1}]},
        ),
    ),
    Route(
        method="GET",
        path=f"{PREFIX}/services/{{handle}}/{{name}}",
        name="show_service",
        handler=show_service,
        section=Section.SERVICES,
        who="service.read",
        does="shows a service",
        text="""\
Shows a service. A public one is shown to everybody, without a token. One whose `access` is `token` is shown
to its owner and to its own token. For everybody else it looks exactly like one that does not exist.""",
        answer=ServiceSeen,
        errors={"token_refused": "a token is shown but not known", "unknown_service": ""},
        example=Example(
            path=f"{PREFIX}/services/ann/web",
            answer={"service": "ann/web", "access": "public", "live_hosts": 1},
        ),
    ),
    Route(
        method="DELETE",
        path=f"{PREFIX}/services/{{handle}}/{{name}}",
        name="delete_service",
        handler=delete_service,
        section=Section.SERVICES,
        who="service.delete",
        does="deletes a service and ends what rests on it",
        text="""\
Deletes a service and its tokens; only its owner's admin token may. The answer, status 204, is empty. At once
its hosts are refused (`revoked`), its open streams are reset (`revoked`), and opens that wait for it fail
(`unknown_service`). A new service of the same name has a new token; the old one stays refused.""",
        status=HTTPStatus.NO_CONTENT,
        errors={
            "not_permitted": "not an admin's token, or another admin's; told without a look at the service",
            "unknown_service": "",
        },
        example=Example(path=f"{PREFIX}/services/ann/web", shows="admin"),
    ),
)
