"""The live hosts of a service, and taking one away."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

from pydantic import Field

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.tokens import token_digest, token_kind
from kdispatch_relay.api.exchange import Call
from kdispatch_relay.api.fields import Answer, Instant
from kdispatch_relay.api.paths import PREFIX
from kdispatch_relay.api.route import Example, Route, Section

__all__ = ["ROUTES"]


class HostSeen(Answer):
    """A live host."""

    host: str = Field(description="the host's identifier")
    since: Instant = Field(description="since when it offers the service (RFC 3339, UTC)")
    labels: dict[str, str] = Field(description="what its operator calls it")
    streams: int = Field(description="connections that are open through it")


class HostList(Answer):
    """All live hosts of one service."""

    service: str = Field(description="the service, as `handle/name`")
    hosts: list[HostSeen] = Field(description="all of them")


async def list_hosts(call: Call) -> HostList:
    """List who offers the service at this moment."""
    record = (await call.authority.may_read(call.service, call.token)).service
    hosts = [
        HostSeen(
            host=host.host, since=datetime.fromtimestamp(host.since, UTC), labels=host.labels, streams=host.streams
        )
        for host in call.live.hosts_of(record.service)
    ]
    return HostList(service=record.service, hosts=hosts)


async def withdraw_host(call: Call) -> None:
    """Take a live host off the list: by the host's own token, or by its service's owner."""
    host_id = call.path["host"]
    token = call.token
    if token is not None and token_kind(token) == "hst":
        host = call.live.host(host_id)
        allowed = host is not None and hmac.compare_digest(token_digest(token).hex(), host.digest)
    else:
        identity = await call.authority.identify(token)
        if identity.kind != "adm":
            raise KdispatchError("not_permitted", "This needs the host's own token, or its service's owner's.")
        host = call.live.host(host_id)
        allowed = host is not None and host.service.startswith(f"{identity.handle}/")
    if not allowed:  # not live, or somebody else's: the two can't be told apart
        raise KdispatchError("unknown_host")
    call.live.withdraw(host_id)


ROUTES: Final = (
    Route(
        method="GET",
        path=f"{PREFIX}/services/{{handle}}/{{name}}/hosts",
        name="list_hosts",
        handler=list_hosts,
        section=Section.SERVICES,
        who="service.read",
        does="lists a service's live hosts",
        text="Lists the hosts that offer the service at this moment, to whom the service itself is shown.",
        answer=HostList,
        errors={"token_refused": "a token is shown but not known", "unknown_service": ""},
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
    Route(
        method="DELETE",
        path=f"{PREFIX}/hosts/{{host}}",
        name="withdraw_host",
        handler=withdraw_host,
        section=Section.SERVICES,
        who="host.withdraw",
        does="withdraws a live host",
        text="""\
Withdraws a live host: by its own token (`hst_...`, made by the agent when it starts) or by the admin's token of its
service's owner. The answer, status 204, is empty. The host leaves the list at once and its agent is told (`withdrawn`);
connections that are open through it go on. It stays refused until its agent is started anew.""",
        status=HTTPStatus.NO_CONTENT,
        errors={
            "not_permitted": "a service's token",
            "unknown_host": "no such host is live, the identifier can't be one, or the token gives no right to it: "
            "the three can't be told apart",
        },
        example=Example(path=f"{PREFIX}/hosts/4f1c09d2a8b35e6710fd42c98e6ba173", shows="admin"),
    ),
)
