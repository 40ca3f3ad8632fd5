"""The audit of the caller's own account."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from kdispatch_relay.api.exchange import Call
from kdispatch_relay.api.fields import DIGITS, Answer, Body, Given, Instant, Name, Number, instant
from kdispatch_relay.api.route import ApiRoute, Section
from kdispatch_relay.paths import PREFIX

__all__ = ["ROUTES"]


class EventsOf(Body):
    """Which events to return."""

    service: Given[Name] = Field(default=None, description="only those of the service with this name")
    before: Given[Annotated[int, Field(ge=1, le=(1 << 63) - 1), DIGITS]] = Field(
        default=None, description="only those with a smaller id"
    )
    limit: Number = Field(default=100, ge=1, le=1000, description="how many at most")


class Event(Answer):
    """One event: an action, or several merged ones."""

    id: int = Field(description="later events have larger ones")
    at: Instant = Field(description="when it first happened (RFC 3339, UTC)")
    last: Instant = Field(description="when it last happened: later than `at` if events were merged")
    count: int = Field(description="how often: more than once if events were merged")
    actor: str = Field(description="who: a token's kind, id and name; `anybody`, `operator`, `several`")
    action: str = Field(description="what was done, for example `token.create`")
    subject: str = Field(description="on what: a service, or the handle")
    source: str = Field(
        description="from which address, or IPv6 network if several are merged; empty for the relay's own machine, "
        "and if too many are merged"
    )
    detail: dict[str, Any] = Field(description="further details; never a secret")


class EventList(Answer):
    """Some events of one account."""

    events: list[Event] = Field(description="the newest first")
    next: int | None = Field(default=None, description="give it as `before` to get older events; absent at the end")


async def read_audit(call: Call) -> EventList:
    """Return the audit of the caller's own account."""
    owner = await call.authority.admin(call.token, "audit.read")
    wanted = call.query(EventsOf)
    service = None if wanted.service is None else f"{owner.handle}/{wanted.service}"
    found = await call.repository.audit.read(
        owner.handle, service=service, before=wanted.before, limit=wanted.limit + 1
    )
    events = [
        Event(
            id=event.id,
            at=instant(event.at),
            last=instant(event.last),
            count=event.count,
            actor=event.actor,
            action=event.action,
            subject=event.subject,
            source=event.source,
            detail=dict(event.detail),
        )
        for event in found[: wanted.limit]
    ]
    return EventList(events=events, next=events[-1].id if len(found) > wanted.limit else None)


ROUTES: Final = (
    ApiRoute(
        method="GET",
        path=f"{PREFIX}/audit",
        name="read_audit",
        handler=read_audit,
        section=Section.AUDIT,
        who="audit.read",
        does="lists what was done in the account",
        text="""\
Lists who did what to what, from where, and when: all changes, and who began to host and to connect (a second late, and
once for each session of an agent). The relay keeps it as long as its operator wants, 90 days by default: of each action
the newest 10,000 entries, of hosting and connecting the newest 5,000.

Within an hour of the clock, the relay merges what the same token, or anybody, does to the same service from the same
source into [one entry](security.md#limits-audit-logs), with `count`, `at` and `last`; `detail` has what was the same
each time. If there are too many, an entry counts those of several services (`subject` is the handle), tokens (`actor`
is `several`) or sources. Only hosting, connecting and a host's withdrawal by its own token are merged.""",
        query=EventsOf,
        answer=EventList,
        errors={"bad_name": "", "not_permitted": "not an admin's token"},
    ),
)
