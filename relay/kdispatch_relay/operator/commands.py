"""``kdispatch relay admin``: manages the relay's accounts, directly in its database.

A relay that runs on the database sees each change within two seconds. Functions import heavy modules themselves, so
that ``--help`` stays fast.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.console import errors_told
from kdispatch_relay.operator.output import (
    OperatorOutput,
    admin_json,
    admin_lines,
    code_json,
    code_line,
    event_json,
    event_line,
)
from kdispatch_relay.settings import SETTINGS, environment_name

if TYPE_CHECKING:
    from kdispatch_relay.store.records import AdminRecord, InviteRecord
    from kdispatch_relay.store.repository import Repository

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="View and manage the relay's accounts, on its machine.")
codes = typer.Typer(no_args_is_help=True, help="Create, list and revoke sign-up codes.")
app.add_typer(codes, name="code")

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST: Final = 3650 * 86_400
_MOST_USES: Final = 10_000
_MOST_EVENTS: Final = 1_000
_PAGE: Final = 200  # admins or codes read at once
_T = TypeVar("_T")

_Database = Annotated[
    str,
    typer.Option(
        "--database", envvar=environment_name("database"), help=SETTINGS["database"].metadata["help"], metavar="URL"
    ),
]
_Handle = Annotated[str, typer.Argument(metavar="HANDLE", help="The admin's handle.")]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the bare values.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def _quota(name: str, what: str) -> Any:
    return typer.Option(f"--{name}", metavar="N|default", help=f"How many {what} it may have.")


@app.command("list", epilog="Example: kdispatch relay admin list")
def list_admins(*, database: _Database = "", quiet: _Quiet = False, as_json: _Json = False) -> None:
    """List all admins, with what they have."""
    output = OperatorOutput(quiet=quiet, as_json=as_json)

    async def work(store: Repository) -> None:
        async def pages() -> AsyncIterator[list[AdminRecord]]:
            after = ""
            while page := await store.accounts.list(after=after, limit=_PAGE):
                yield page
                after = page[-1].handle

        await output.listed(
            "admins", pages(), admin_json, quiet=lambda a: a.handle, plain=admin_lines, none="There is no admin yet."
        )

    with errors_told(as_json=as_json):
        _on(database, work)


@app.command("show", epilog="Example: kdispatch relay admin show ann")
def show(handle: _Handle, *, database: _Database = "", quiet: _Quiet = False, as_json: _Json = False) -> None:
    """Show one admin. --quiet prints active or suspended."""
    with errors_told(as_json=as_json):
        admin = _on(database, lambda store: _find(store, handle))
    OperatorOutput(quiet=quiet, as_json=as_json).result(
        admin_json(admin),
        quiet=["active" if admin.suspended is None else "suspended"],
        plain=admin_lines(admin),
    )


@app.command("suspend", epilog="Example: kdispatch relay admin suspend ann --reason spam")
def suspend(
    handle: _Handle,
    *,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; stored and shown.")] = None,
    database: _Database = "",
    quiet: _Quiet = False,
    as_json: _Json = False,
) -> None:
    """Disable all tokens and services of an admin; what uses them ends within two seconds."""
    with errors_told(as_json=as_json):
        if reason is not None and not (0 < len(reason) <= 200 and reason.isprintable()):
            raise KdispatchError("bad_request", "A reason is 1 to 200 printable characters.")
        _change(database, handle, lambda store: store.accounts.suspend(handle, reason))
    told = {"handle": handle, "suspended": True}
    OperatorOutput(quiet=quiet, as_json=as_json).result(told, quiet=[handle], plain=[f"{handle} is suspended."])


@app.command("resume", epilog="Example: kdispatch relay admin resume ann")
def resume(handle: _Handle, *, database: _Database = "", quiet: _Quiet = False, as_json: _Json = False) -> None:
    """Enable a suspended admin's tokens and services again."""
    with errors_told(as_json=as_json):
        _change(database, handle, lambda store: store.accounts.resume(handle))
    told = {"handle": handle, "suspended": False}
    OperatorOutput(quiet=quiet, as_json=as_json).result(told, quiet=[handle], plain=[f"{handle} is active."])


@app.command("quota", epilog="Example: kdispatch relay admin quota ann --services 20")
def quota(
    handle: _Handle,
    *,
    services: Annotated[str | None, _quota("services", "services")] = None,
    tokens: Annotated[str | None, _quota("tokens", "tokens beside each service's own")] = None,
    hosts: Annotated[str | None, _quota("hosts", "live hosts at a time")] = None,
    streams: Annotated[str | None, _quota("streams", "streams at a time")] = None,
    database: _Database = "",
    quiet: _Quiet = False,
    as_json: _Json = False,
) -> None:
    """Set an admin's quotas; what exists already stays. --quiet prints the four quotas, as they are now."""
    with errors_told(as_json=as_json):
        given = {"services": services, "tokens": tokens, "hosts": hosts, "streams": streams}
        quotas = {name: _number(name, text) for name, text in given.items() if text is not None}
        if not quotas:
            raise KdispatchError("bad_request", "Give at least one of --services, --tokens, --hosts and --streams.")
        _change(database, handle, lambda store: store.accounts.set_quotas(handle, quotas))
        admin = _on(database, lambda store: _find(store, handle))
    OperatorOutput(quiet=quiet, as_json=as_json).result(
        admin_json(admin),
        quiet=[str(getattr(admin.quotas, name)) for name in given],
        plain=admin_lines(admin),
    )


@app.command("audit", epilog="Example: kdispatch relay admin audit ann --limit 20")
def audit(
    handle: Annotated[str | None, typer.Argument(metavar="[HANDLE]", help="Only events of this admin.")] = None,
    *,
    limit: Annotated[int, typer.Option("--limit", min=1, max=_MOST_EVENTS, help="How many events.")] = 100,
    before: Annotated[int | None, typer.Option("--before", min=1, metavar="ID", help="Only older events.")] = None,
    database: _Database = "",
    quiet: _Quiet = False,
    as_json: _Json = False,
) -> None:
    """Show who did what to what, when and from where; the newest first. --quiet prints the ids."""

    async def read(store: Repository) -> Any:
        if handle is not None:
            await _find(store, handle)
        return await store.audit.read(handle, before=before, limit=limit)

    with errors_told(as_json=as_json):
        events = _on(database, read)
    OperatorOutput(quiet=quiet, as_json=as_json).result(
        {"events": [event_json(event) for event in events]},
        quiet=[str(event.id) for event in events],
        plain=[event_line(event) for event in events] or ["There is no event."],
    )


@codes.command("create", epilog="Example: kdispatch relay admin code create --uses 5")
def create_code(
    *,
    uses: Annotated[int, typer.Option("--uses", min=1, max=_MOST_USES, help="How many handles it can create.")] = 1,
    expires: Annotated[str, typer.Option("--expires", metavar="7d", help="Time to expiry: s, m, h or d.")] = "7d",
    database: _Database = "",
    quiet: _Quiet = False,
    as_json: _Json = False,
) -> None:
    """Create a sign-up code, for a relay that requires one. It is shown only once; --quiet prints only the code."""
    from kdispatch_relay.store.records import NewToken  # noqa: PLC0415 - heavy by its package

    with errors_told(as_json=as_json):
        text, new = NewToken.made("inv", "sign-up", int(time.time()) + _seconds(expires))
        made = _on(database, lambda store: store.invites.create_code(new, uses=uses))
    OperatorOutput(quiet=quiet, as_json=as_json).result(
        {**code_json(made), "code": text},
        quiet=[text],
        plain=[code_line(made), f"code  {text}", "Use it with: kdispatch sign-up HANDLE --code -"],
    )


@codes.command("list", epilog="Example: kdispatch relay admin code list")
def list_codes(*, database: _Database = "", quiet: _Quiet = False, as_json: _Json = False) -> None:
    """List the sign-up codes; ended ones for 30 days. --quiet prints the ids."""
    output = OperatorOutput(quiet=quiet, as_json=as_json)

    async def work(store: Repository) -> None:
        async def pages() -> AsyncIterator[list[InviteRecord]]:
            after = None
            while page := await store.invites.codes(after=after, limit=_PAGE):
                yield page
                after = page[-1].created, page[-1].id

        await output.listed(
            "codes", pages(), code_json, quiet=lambda c: c.id, plain=lambda c: [code_line(c)], none="There is no code."
        )

    with errors_told(as_json=as_json):
        _on(database, work)


@codes.command("revoke", epilog="Example: kdispatch relay admin code revoke 4f1c09d2a8b35e67")
def revoke_code(
    code: Annotated[str, typer.Argument(metavar="ID", help="The code's id, of 16 hexadecimal digits.")],
    *,
    database: _Database = "",
    quiet: _Quiet = False,
    as_json: _Json = False,
) -> None:
    """Revoke a sign-up code; admins who used it stay."""
    with errors_told(as_json=as_json):
        if not (_is_text(code) and _on(database, lambda store: store.invites.revoke_code(code))):
            raise KdispatchError("unknown_invite", f"There is no code {code!r}.")
    told = {"id": code, "revoked": True}
    OperatorOutput(quiet=quiet, as_json=as_json).result(told, quiet=[code], plain=[f"The code {code} is revoked."])


def _on(location: str, work: Callable[[Repository], Awaitable[_T]]) -> _T:
    """Run ``work`` on the database and return its result; raises ``storage_unavailable`` if there is no database."""
    import asyncio  # noqa: PLC0415 - heavy

    from kdispatch_relay.store.database import Database  # noqa: PLC0415 - heavy
    from kdispatch_relay.store.location import check_there  # noqa: PLC0415 - heavy
    from kdispatch_relay.store.repository import Repository  # noqa: PLC0415 - heavy

    check_there(location)

    async def main() -> _T:
        database = Database(location)
        try:
            await database.start()
            return await work(Repository(database))
        finally:
            await database.close()

    return asyncio.run(main())


async def _find(store: Repository, handle: str) -> AdminRecord:
    found = await store.accounts.list(handle) if _is_text(handle) else []
    if not found:
        raise _unknown(handle)
    return found[0]


def _change(location: str, handle: str, work: Callable[[Repository], Awaitable[bool]]) -> None:
    if not (_is_text(handle) and _on(location, work)):
        raise _unknown(handle)


def _is_text(word: str) -> bool:
    """Whether a database query may contain it: the shell passes bytes that are not UTF-8 as lone surrogates."""
    return word.isprintable()


def _unknown(handle: str) -> KdispatchError:
    return KdispatchError("unknown_admin", f"There is no admin with the handle {handle!r}.")


def _number(name: str, text: str) -> int | None:
    if text == "default":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise KdispatchError("bad_request", f"--{name} is a number or default, not {text[:20]!r}.")
    return int(text)


def _seconds(text: str) -> int:
    number, unit = text[:-1], text[-1:]
    seconds = int(number) * _UNITS[unit] if number.isascii() and number.isdigit() and unit in _UNITS else 0
    if not 60 <= seconds <= _LONGEST:
        raise KdispatchError("bad_request", f"--expires is a time like 90m, 24h or 7d, not {text[:20]!r}.")
    return seconds
