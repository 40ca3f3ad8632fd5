"""Services: an owner creates, changes and lists them; those who may connect can look them up."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.names import check_name
from kdispatch_relay.api.exchange import Call
from kdispatch_relay.api.fields import Answer, Body, Given, Instant, Name, Whole, instant_if, seconds_from_now
from kdispatch_relay.api.pages import NEXT, ByName, page_of
from kdispatch_relay.api.route import ApiRoute, Example, Section
from kdispatch_relay.auth import ServiceRecord
from kdispatch_relay.paths import PREFIX
from kdispatch_relay.store.records import NewToken
from kdispatch_relay.store.services import OWN_TOKENS

__all__ = ["ROUTES"]


class NewService(Body):
    """What an admin sends to create a service."""

    name: Name = Field(description="the service's name, unique among the admin's")
    access: Literal["public", "token"] = Field(
        default="public",
        description="`public`: everyone may connect. `token`: only with a token that has this right",
    )
    pins: bool = Field(default=False, description="whether clients may choose a host")


class ServiceChange(Body):
    """What to change of a service: at least one thing."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    access: Given[Literal["public", "token"]] = Field(default=None, description="who may connect, as for a new one")
    pins: Given[bool] = Field(default=None, description="whether clients may choose a host")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("there is nothing to change")
        return self


class Rotation(Body):
    """How to replace a service's token."""

    overlap: Whole = Field(default=0, ge=0, le=30 * 24 * 3600, description="seconds for which the old one stays valid")


class Rotated(Answer):
    """The only answer that ever holds this token."""

    service: str = Field(description="the service, as `handle/name`")
    token: str = Field(description="the token to host it, `svc_...`")
    id: str = Field(description="the token's id")
    old_until: Instant | None = Field(default=None, description="when the old one ends, if it has not ended")


class ServiceCreated(Answer):
    """The only answer that ever holds this token, which may host the service."""

    service: str = Field(description="the service, as `handle/name`")
    access: str = Field(description="as requested")
    pins: bool = Field(description="as requested")
    token: str = Field(description="the token to host it, `svc_...`")


class ServiceSeen(Answer):
    """A service, and how many hosts offer it now."""

    service: str = Field(description="the service, as `handle/name`")
    access: str = Field(description="`public` or `token`")
    pins: bool = Field(description="whether clients may choose a host")
    live_hosts: int = Field(description="how many hosts offer it now")


class ServiceList(Answer):
    """An admin's own services, by name."""

    services: list[ServiceSeen] = Field(description="a page of them, by name")
    next: str | None = Field(default=None, description=NEXT)


async def create_service(call: Call) -> ServiceCreated:
    """Create a service under the caller's handle."""
    owner = await call.authority.admin(call.token, "service.create")
    body = await call.body(NewService)
    token, new = NewToken.made("svc", "service")
    record = await call.repository.services.create(
        owner, body.name, new, access=body.access, pins=body.pins, source=call.source
    )
    return ServiceCreated(service=record.service, access=record.access, pins=record.pins, token=token)


async def list_services(call: Call) -> ServiceList:
    """List the caller's services."""
    owner = await call.authority.admin(call.token, "service.list")
    wanted = call.query(ByName)
    found = await call.repository.services.of(owner, after=wanted.after, limit=wanted.limit + 1)
    records, more = page_of(found, wanted.limit, lambda record: record.service.partition("/")[2])
    return ServiceList(services=[_seen(call, record) for record in records], next=more)


async def delete_service(call: Call) -> None:
    """Delete one of the caller's services; what rests on it ends at once."""
    owner = await call.authority.owner(call.token, call.path["handle"], "service.delete")
    if not await call.repository.services.delete(owner, check_name(call.path["name"]), source=call.source):
        if call.live.hosts_of(call.service):  # an earlier DELETE may have been cut off before it told the switch
            call.live.recheck(call.service)
        raise KdispatchError("unknown_service")


async def show_service(call: Call) -> ServiceSeen:
    """Show a service to those who may connect to it."""
    return _seen(call, (await call.authority.may_read(call.service, call.token)).service)


async def change_service(call: Call) -> ServiceSeen:
    """Change one of the caller's services; what is no longer allowed ends at once."""
    owner = await call.authority.owner(call.token, call.path["handle"], "service.change")
    name = check_name(call.path["name"])
    body = await call.body(ServiceChange)
    values = body.model_dump(exclude_unset=True)
    if not await call.repository.services.change(owner, name, values, source=call.source):
        raise KdispatchError("unknown_service")
    record = await call.repository.service(owner.handle, name)
    if record is None:  # deleted just now
        raise KdispatchError("unknown_service")
    return _seen(call, record)


async def rotate_service(call: Call) -> Rotated:
    """Give one of the caller's services a new token."""
    owner = await call.authority.owner(call.token, call.path["handle"], "service.rotate")
    name = check_name(call.path["name"])
    body = await call.body(Rotation)
    token, new = NewToken.made("svc", "service")
    until = seconds_from_now(body.overlap or None)
    if not await call.repository.services.rotate(owner, name, new, old_until=until, source=call.source):
        raise KdispatchError("unknown_service")
    return Rotated(service=call.service, token=token, id=new.id, old_until=instant_if(until))


def _seen(call: Call, record: ServiceRecord) -> ServiceSeen:
    live = call.live.count_hosts(record.service)
    return ServiceSeen(service=record.service, access=record.access, pins=record.pins, live_hosts=live)


_OTHERS: Final = {"not_permitted": "not an admin's token"}

ROUTES: Final = (
    ApiRoute(
        method="POST",
        path=f"{PREFIX}/services",
        name="create_service",
        handler=create_service,
        section=Section.SERVICES,
        who="service.create",
        does="creates a service, gives the token to host it",
        text="""\
Creates a service under the admin's own handle. The answer, status 201, is the only one that ever shows the
service's token. The holder of that token may host this service, and do nothing else.""",
        body=NewService,
        status=HTTPStatus.CREATED,
        answer=ServiceCreated,
        errors={"bad_name": "", **_OTHERS, "service_exists": "", "quota_exceeded": ""},
        example=Example(
            shows="admin",
            body={"name": "web"},
            answer={"service": "ann/web", "access": "public", "pins": False, "token": "svc_..."},
            keeps="service",
        ),
    ),
    ApiRoute(
        method="GET",
        path=f"{PREFIX}/services",
        name="list_services",
        handler=list_services,
        section=Section.SERVICES,
        who="service.list",
        does="lists the admin's own services",
        text="Lists the admin's own services by name.",
        query=ByName,
        answer=ServiceList,
        errors=_OTHERS,
        example=Example(
            shows="admin",
            answer={"services": [{"service": "ann/web", "access": "public", "pins": False, "live_hosts": 1}]},
        ),
    ),
    ApiRoute(
        method="GET",
        path=f"{PREFIX}/services/{{handle}}/{{name}}",
        name="show_service",
        handler=show_service,
        section=Section.SERVICES,
        who="service.read",
        does="shows a service",
        text="""\
Shows a service. A public one is shown to everyone, without a token. One whose `access` is `token` is shown
to its owner and to its own tokens, `svc_` and `cli_`. Everyone else gets the same answer as for a service that does
not exist.""",
        answer=ServiceSeen,
        errors={"token_refused": "the token shown is not known", "unknown_service": ""},
        example=Example(
            path=f"{PREFIX}/services/ann/web",
            answer={"service": "ann/web", "access": "public", "pins": False, "live_hosts": 1},
        ),
    ),
    ApiRoute(
        method="PATCH",
        path=f"{PREFIX}/services/{{handle}}/{{name}}",
        name="change_service",
        handler=change_service,
        section=Section.SERVICES,
        who="service.change",
        does="changes a service",
        text="""\
Changes the fields that are given, and leaves the rest. When a service is no longer public, connections end
(`revoked`) unless they were opened with a token that may connect.""",
        body=ServiceChange,
        answer=ServiceSeen,
        errors={"not_permitted": "not its owner; decided without looking up the service", "unknown_service": ""},
        example=Example(
            path=f"{PREFIX}/services/ann/web",
            shows="admin",
            body={"pins": True},
            answer={"service": "ann/web", "access": "public", "pins": True, "live_hosts": 1},
        ),
    ),
    ApiRoute(
        method="POST",
        path=f"{PREFIX}/services/{{handle}}/{{name}}/rotate",
        name="rotate_service",
        handler=rotate_service,
        section=Section.SERVICES,
        who="service.rotate",
        does="gives a service a new token",
        text="""\
Replaces the token that came with the service. Without `overlap` the old token ends at once, and with it the hosts that
rest on it. With `overlap` they have that long to get the new one. Tokens created by `POST /api/v1/tokens` or by an
invitation stay valid.""",
        body=Rotation,
        answer=Rotated,
        errors={
            "not_permitted": "not its owner; decided without looking up the service",
            "unknown_service": "",
            "quota_exceeded": f"with `overlap`, if the service already has {OWN_TOKENS} valid tokens of its own",
        },
        example=Example(
            path=f"{PREFIX}/services/ann/web/rotate",
            shows="admin",
            body={"overlap": 86400},
            answer={
                "service": "ann/web",
                "token": "svc_...",
                "id": "6f1c09d2a8b35e67",
                "old_until": "2026-01-31T09:30:00Z",
            },
            keeps="service",
        ),
    ),
    ApiRoute(
        method="DELETE",
        path=f"{PREFIX}/services/{{handle}}/{{name}}",
        name="delete_service",
        handler=delete_service,
        section=Section.SERVICES,
        who="service.delete",
        does="deletes a service and ends what rests on it",
        text="""\
Deletes a service and its tokens; only its owner's admin token may. The answer, status 204, is empty. At once
its hosts are refused (`revoked`), its open streams are reset (`revoked`), and pending opens fail
(`unknown_service`). A new service of the same name has a new token; the old one stays refused.""",
        status=HTTPStatus.NO_CONTENT,
        errors={
            "not_permitted": "not an admin's token, or another admin's; decided without looking up the service",
            "unknown_service": "",
        },
        example=Example(path=f"{PREFIX}/services/ann/web", shows="admin"),
    ),
)
