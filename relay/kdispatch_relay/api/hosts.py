"""The live hosts and clients of a service, and the withdrawal of a host."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Final

from pydantic import Field

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.names import check_name
from kdispatch_protocol.tokens import token_digest, token_kind
from kdispatch_relay.api.exchange import Call
from kdispatch_relay.api.fields import Answer, Instant, instant
from kdispatch_relay.api.pages import NEXT, ByAgent, ByHost, page_of
from kdispatch_relay.api.route import ApiRoute, Example, Section
from kdispatch_relay.paths import PREFIX
from kdispatch_relay.store.records import AuditRecord

__all__ = ["ROUTES"]


class TokenSeen(Answer):
    """The token that a live host or client uses."""

    id: str = Field(description="the token's id")
    name: str | None = Field(default=None, description="its name, for people")


class HostSeen(Answer):
    """A live host."""

    host: str = Field(description="the host's identifier")
    since: Instant = Field(description="since when it has offered the service (RFC 3339, UTC)")
    labels: dict[str, str] = Field(description="the labels that its operator gave it")
    streams: int = Field(description="its open connections")
    source: str | None = Field(default=None, description="the address that it connects from; only for the owner")
    token: TokenSeen | None = Field(default=None, description="the token that it uses; only for the owner")


class ClientSeen(Answer):
    """An agent that is connected."""

    agent: str = Field(description="its process id")
    source: str = Field(description="the address that it connects from")
    since: Instant = Field(description="when the oldest of its open connections was opened (RFC 3339, UTC)")
    streams: int = Field(description="its open connections")
    token: TokenSeen | None = Field(default=None, description="the token that it uses; absent if everyone may connect")


class ClientList(Answer):
    """The clients that are connected to one service."""

    service: str = Field(description="the service, as `handle/name`")
    clients: list[ClientSeen] = Field(description="a page of them, by process id")
    next: str | None = Field(default=None, description=NEXT)


class HostList(Answer):
    """All live hosts of one service."""

    service: str = Field(description="the service, as `handle/name`")
    hosts: list[HostSeen] = Field(description="a page of them, by identifier")
    next: str | None = Field(default=None, description=NEXT)


async def list_hosts(call: Call) -> HostList:
    """List the hosts that offer the service now."""
    grant = await call.authority.may_read(call.service, call.token)
    owner = grant.identity if grant.identity is not None and grant.identity.kind == "adm" else None
    wanted = call.query(ByHost)
    found = call.live.hosts_of(grant.service.service, after=wanted.after, limit=wanted.limit + 1)
    live, more = page_of(found, wanted.limit, lambda host: host.host)
    names = await _names(call, {host.token for host in live}) if owner is not None else {}
    hosts = [
        HostSeen(
            host=host.host,
            since=instant(host.since),
            labels=host.labels,
            streams=host.streams,
            source=host.source if owner is not None else None,
            token=_seen(host.token, names) if owner is not None else None,
        )
        for host in live
    ]
    return HostList(service=grant.service.service, hosts=hosts, next=more)


async def list_clients(call: Call) -> ClientList:
    """List the agents that are connected to the service now."""
    owner = await call.authority.owner(call.token, call.path["handle"], "service.clients")
    if await call.repository.service(owner.handle, check_name(call.path["name"])) is None:
        raise KdispatchError("unknown_service")
    wanted = call.query(ByAgent)
    found = call.live.clients_of(call.service, after=wanted.after, limit=wanted.limit + 1)
    live, more = page_of(found, wanted.limit, lambda client: "~".join(client.place))
    names = await _names(call, {client.token for client in live})
    clients = [
        ClientSeen(
            agent=client.agent,
            source=client.source,
            since=instant(client.since),
            streams=client.streams,
            token=_seen(client.token, names),
        )
        for client in live
    ]
    return ClientList(service=call.service, clients=clients, next=more)


async def _names(call: Call, tokens: Iterable[str | None]) -> dict[str, str | None]:
    ids = [token for token in tokens if token is not None]
    return dict(zip(ids, await asyncio.gather(*map(call.repository.token_name, ids)), strict=True))


def _seen(token: str | None, names: Mapping[str, str | None]) -> TokenSeen | None:
    return None if token is None else TokenSeen(id=token, name=names.get(token))


async def withdraw_host(call: Call) -> None:
    """Take a live host off the list, at the request of the host itself or of the service's owner."""
    host_id = call.path["host"]
    token = call.token
    if token is not None and token_kind(token) == "hst":
        host = call.live.host(host_id)
        allowed = host is not None and hmac.compare_digest(token_digest(token).hex(), host.digest)
        actor = f"hst {host_id}"
    else:
        identity = await call.authority.identify(token)
        actor = identity.actor
        if identity.kind != "adm":
            raise KdispatchError("not_permitted", "This needs the host's own token, or its service's owner's.")
        host = call.live.host(host_id)
        allowed = host is not None and host.service.startswith(f"{identity.handle}/")
    if not allowed:  # not live, or another account's: both get the same answer
        raise KdispatchError("unknown_host")
    assert host is not None
    call.live.withdraw(host_id)
    call.authority.note(
        AuditRecord(
            actor=actor,
            action="host.withdraw",
            subject=host.service,
            source=call.source,
            detail={"host": host_id},
            at=int(time.time()),
        )
    )


ROUTES: Final = (
    ApiRoute(
        method="GET",
        path=f"{PREFIX}/services/{{handle}}/{{name}}/hosts",
        name="list_hosts",
        handler=list_hosts,
        section=Section.SERVICES,
        who="service.read",
        does="lists a service's live hosts",
        text="Lists the hosts that offer the service now, to those who may see the service itself.",
        query=ByHost,
        answer=HostList,
        errors={"token_refused": "the token shown is not known", "unknown_service": ""},
        example=Example(
            path=f"{PREFIX}/services/ann/web/hosts",
            shows="service",
            answer={
                "service": "ann/web",
                "hosts": [
                    {
                        "host": "4f1c09d2a8b35e6710fd42c98e6ba173",
                        "since": "2026-01-31T09:30:00Z",
                        "labels": {"region": "eu"},
                        "streams": 2,
                    }
                ],
            },
        ),
    ),
    ApiRoute(
        method="GET",
        path=f"{PREFIX}/services/{{handle}}/{{name}}/clients",
        name="list_clients",
        handler=list_clients,
        section=Section.SERVICES,
        who="service.clients",
        does="lists the clients of a service",
        text="Lists for the owner the agents that have open connections to the service now.",
        query=ByAgent,
        answer=ClientList,
        errors={"not_permitted": "not its owner", "unknown_service": ""},
        example=Example(
            path=f"{PREFIX}/services/ann/web/clients",
            shows="admin",
            answer={
                "service": "ann/web",
                "clients": [
                    {
                        "agent": "9a1de3c2f04b4a5c8f2e6d7b1c0a3e58",
                        "source": "192.0.2.7",
                        "since": "2026-01-31T09:30:00Z",
                        "streams": 1,
                    }
                ],
            },
        ),
    ),
    ApiRoute(
        method="DELETE",
        path=f"{PREFIX}/hosts/{{host}}",
        name="withdraw_host",
        handler=withdraw_host,
        section=Section.SERVICES,
        who="host.withdraw",
        does="withdraws a live host",
        text="""\
Withdraws a live host: by its own token (`hst_...`, made by the agent when it starts) or by the admin's token of its
service's owner. The answer, status 204, is empty. The host leaves the list at once and its agent is told (`withdrawn`).
Its open connections go on. It stays refused until its agent is restarted.""",
        status=HTTPStatus.NO_CONTENT,
        errors={
            "not_permitted": "a service's token",
            "unknown_host": "the host is not live, the identifier is invalid, or the token gives no right to it; "
            "all three get the same answer",
        },
        example=Example(path=f"{PREFIX}/hosts/4f1c09d2a8b35e6710fd42c98e6ba173", shows="admin"),
    ),
)
