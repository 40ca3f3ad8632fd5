"""Output of ``kdispatch relay admin``, for people and for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from kdispatch_protocol.console import SCHEMA, JsonList, escaped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from kdispatch_relay.store.records import AdminRecord, AuditRecord, InviteRecord

__all__ = ["OperatorOutput", "admin_json", "admin_lines", "code_json", "code_line", "event_json", "event_line"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorOutput:
    """The output of one command; ``as_json`` takes precedence over ``quiet``."""

    quiet: bool
    as_json: bool

    async def listed(
        self,
        key: str,
        pages: AsyncIterator[Sequence[_T]],
        data: Callable[[_T], Mapping[str, Any]],
        *,
        quiet: Callable[[_T], str],
        plain: Callable[[_T], list[str]],
        none: str,
    ) -> None:
        """Print a list like :meth:`result`, page by page; ``none`` is the text for an empty list."""
        objects = JsonList(lambda text: typer.echo(text, nl=False), key)
        printed = False
        async for page in pages:
            printed = printed or bool(page)
            if self.as_json:
                objects.add(map(data, page))
                continue
            for item in page:
                for line in [quiet(item)] if self.quiet else plain(item):
                    typer.echo(escaped(line))
        if self.as_json:
            objects.end()
        elif not (printed or self.quiet):
            typer.echo(none)

    def result(self, data: Mapping[str, Any], *, quiet: Sequence[str], plain: Sequence[str]) -> None:
        """Print ``data`` as JSON, or the ``quiet`` lines, or the ``plain`` ones."""
        if self.as_json:
            typer.echo(json.dumps({"schema": SCHEMA, **data}))
            return
        for line in quiet if self.quiet else plain:
            typer.echo(escaped(line))


def admin_json(admin: AdminRecord) -> dict[str, Any]:
    """An admin as JSON; ``own_quotas`` names the quotas that differ from the relay's defaults."""
    found: dict[str, Any] = {"handle": admin.handle, "created": _time(admin.created)}
    if admin.suspended is not None:
        found["suspended"] = _time(admin.suspended)
        if admin.suspended_for is not None:
            found["reason"] = admin.suspended_for
    counts = {"services": admin.services, "tokens": admin.tokens}
    return {**found, **counts, "quotas": asdict(admin.quotas), "own_quotas": list(admin.own)}


def admin_lines(admin: AdminRecord) -> list[str]:
    """An admin as lines for people."""
    state = ""
    if admin.suspended is not None:
        state = f", suspended {_time(admin.suspended)}{f': {admin.suspended_for}' if admin.suspended_for else ''}"
    quotas = (
        f"{value:,} {name}{'*' if name in admin.own else ''}" for name, value in asdict(admin.quotas).items()
    )  # fmt: skip
    return [
        f"{admin.handle}  since {_time(admin.created)}{state}",
        f"  has {admin.services:,} services and {admin.tokens:,} tokens; may have {', '.join(quotas)}",
    ]


def code_json(code: InviteRecord) -> dict[str, Any]:
    """A sign-up code as JSON, without the code itself."""
    found = {"id": code.id, "uses": code.uses, "used": code.used}
    return {**found, "created": _time(code.created), "expires": _time(code.expires), "revoked": code.revoked}


def code_line(code: InviteRecord) -> str:
    """A sign-up code as a line for people."""
    state = ", revoked" if code.revoked else ""
    return f"{code.id}  used {code.used:,} of {code.uses:,} times, until {_time(code.expires)}{state}"


def event_json(event: AuditRecord) -> dict[str, Any]:
    """An event of the audit as JSON."""
    found = {"id": event.id, "at": _time(event.at), "actor": event.actor, "action": event.action}
    found |= {"last": _time(event.last), "count": event.count}
    more = {"detail": dict(event.detail)} if event.detail else {}
    return {**found, "subject": event.subject, "source": event.source, **more}


def event_line(event: AuditRecord) -> str:
    """An event of the audit as a line for people."""
    detail = " ".join(f"{name}={value}" for name, value in event.detail.items())
    times = f"{event.count:,} times until {_time(event.last)}" if event.count > 1 else ""
    words = (str(event.id), _time(event.at), times, event.actor, event.action, event.subject, event.source, detail)
    return "  ".join(word for word in words if word)


def _time(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
