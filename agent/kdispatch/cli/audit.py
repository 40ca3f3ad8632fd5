"""``kdispatch audit``: who did what in the user's account."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kdispatch.cli.account import Caller
from kdispatch.cli.durations import moment
from kdispatch.cli.options import Json, OfService, Quiet, Token, TokenFile
from kdispatch.cli.output import Output, run_async, table
from kdispatch.cli.reach import Reach, reaches_relay

if TYPE_CHECKING:
    from kdispatch.rest.answers import AuditEvent
    from kdispatch.rest.client import RestClient

__all__ = ["app"]

app = typer.Typer()

_MOMENTS: Final = frozenset({"expires", "old_until"})  #: details that are times
_PAGE: Final = 1000  #: events per request, the most that a relay returns


@app.command(epilog="Example: kdispatch audit --service web --limit 20")
@reaches_relay
def audit(
    *,
    service: OfService = None,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="The largest number of events.")] = 50,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Show who did what in your account, from where, when, and how often within an hour; the newest first.

    --quiet omits the table's head.
    """
    output = Output(quiet=quiet, json=json)
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)

    async def main() -> None:
        async with caller.rest() as client:
            events, more = await _newest(client, await caller.as_admin(client, service), limit)
        lines = table(("AT", "TIMES", "LAST", "ACTOR", "ACTION", "SUBJECT", "SOURCE", "DETAIL"), map(_row, events))
        output.result({"events": [asdict(event) for event in events], "more": more}, quiet=lines[1:], plain=lines)
        if more:
            output.note(f"There are older ones: --limit {2 * limit}")
        elif not events:
            output.note("Nothing has happened yet.")

    run_async(main, output)


async def _newest(client: RestClient, service: str | None, limit: int) -> tuple[list[AuditEvent], bool]:
    """At most ``limit`` events, and whether there are older ones."""
    events: list[AuditEvent] = []
    before: int | None = None
    while True:
        page = await client.audit(service=service, before=before, limit=min(_PAGE, limit - len(events)))
        events += page.events
        before = page.next
        if before is None or not page.events or len(events) >= limit:
            return events[:limit], before is not None


def _row(event: AuditEvent) -> tuple[object, ...]:
    detail = " ".join(f"{key}={_told(key, value)}" for key, value in event.detail.items())
    merged = (event.count, moment(event.last)) if event.count > 1 else (1, "-")
    return moment(event.at), *merged, event.actor, event.action, event.subject, event.source, detail


def _told(key: str, value: object) -> object:
    """A detail for people; times, which are in seconds, are formatted as elsewhere."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key in _MOMENTS and isinstance(value, int):
        with contextlib.suppress(ValueError, OverflowError, OSError):
            return moment(datetime.fromtimestamp(value, UTC))
    return value
