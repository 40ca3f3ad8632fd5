"""``kdispatch invite``: a code that other people exchange for their own token."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from kdispatch.cli.account import Caller
from kdispatch.cli.durations import METAVAR, moment, seconds_of
from kdispatch.cli.lists import print_list
from kdispatch.cli.options import Json, Quiet, Service, ServiceOption, Token, TokenFile, one_of, one_service
from kdispatch.cli.output import Output, Table, run_async
from kdispatch.cli.reach import Reach, reaches_relay
from kdispatch.credentials import given_code

if TYPE_CHECKING:
    from kdispatch.rest.answers import AcceptedInvite, CreatedInvite, InviteInfo

__all__ = ["app"]

app = typer.Typer(help="Invite others to host a service or to connect to it, and accept invitations.")

_PURPOSES: Final = ("host", "connect")


@app.command(epilog="Example: kdispatch invite create ann/web --for connect --uses 5")
@reaches_relay
def create(
    service: Service = None,
    *,
    service_option: ServiceOption = None,
    purpose: Annotated[str, typer.Option("--for", metavar="|".join(_PURPOSES), help="What the invited person may do.")],
    uses: Annotated[int, typer.Option("--uses", min=1, max=10_000, help="How often it can be accepted.")] = 1,
    expires: Annotated[
        str, typer.Option("--expires", metavar=METAVAR, help="How long it can be accepted: 10m, 1h, 7d.")
    ] = "24h",
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Your name for it and for its tokens.", show_default=False),
    ] = None,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Make a code that others exchange for a token of their own. --quiet prints the code."""
    output = Output(quiet=quiet, json=json)
    typed = one_service(service, service_option)
    purpose = one_of("--for", purpose, _PURPOSES) or ""
    seconds = seconds_of("--expires", expires, "60s", "365d")
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)

    async def main() -> None:
        async with caller.rest() as client:
            full_name = await caller.as_owner(client, typed)
            made = await client.create_invite(full_name, purpose, uses=uses, expires=seconds, name=name)
        command = f"kdispatch invite accept {made.code}{caller.relay_flags}"
        output.result(_fields(made) | {"command": command}, quiet=[made.code], plain=_shown(made, command))
        output.note(
            "Send the last line to the invited person: the code is shown only this once.",
            f"To take it back: kdispatch invite revoke {made.service} {made.id}",
        )

    run_async(main, output)


@app.command("list", epilog="Example: kdispatch invite list ann/web")
@reaches_relay
def list_invites(
    service: Service = None,
    *,
    service_option: ServiceOption = None,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """List a service's invitations. --quiet prints one id a line."""
    output = Output(quiet=quiet, json=json)
    typed = one_service(service, service_option)
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)

    async def main() -> None:
        grid = Table(("ID", "FOR", "NAME", "USED", "CREATED", "EXPIRES"))
        async with caller.rest() as client:
            full_name = await caller.as_owner(client, typed)
            any_invite = await print_list(
                output,
                client.invites(full_name),
                key="invites",
                data=_fields,
                quiet=lambda one: one.id,
                plain=lambda page: grid.lines(map(_row, page)),
                service=full_name,
            )
        if not any_invite:
            output.note(f"No invitations to {full_name}; make one: kdispatch invite create {full_name} --for connect")

    run_async(main, output)


@app.command(epilog="Example: kdispatch invite revoke ann/web 0123456789abcdef")
@reaches_relay
def revoke(
    service: Annotated[str, typer.Argument(metavar="SERVICE", help="HANDLE/NAME, or NAME of your own handle.")],
    which: Annotated[str, typer.Argument(metavar="ID", help="The invitation's id, as 'invite list' shows it.")],
    *,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Revoke the tokens made from it, too, and end all that uses them.")
    ] = False,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Revoke an invitation, so that it can't be accepted any more. --quiet prints its id."""
    output = Output(quiet=quiet, json=json)
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)

    async def main() -> None:
        async with caller.rest() as client:
            full_name = await caller.as_owner(client, service)
            await client.revoke_invite(full_name, which, tokens=tokens)
        output.result(
            {"service": full_name, "invite": which, "tokens": tokens}, quiet=[which], plain=[f"revoked {which}"]
        )
        if not tokens:
            output.note("Tokens made from it stay valid; --tokens revokes them, too.")

    run_async(main, output)


@app.command(epilog="Example: kdispatch invite accept @code.txt")
@reaches_relay
def accept(
    code: Annotated[
        str | None,
        typer.Argument(
            metavar="CODE",
            help="The code; '-' reads it from standard input, '@FILE' from a file, without it, it is asked for.",
            show_default=False,
        ),
    ] = None,
    *,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="The name that the service's owner sees.", show_default=False),
    ] = None,
    reach: Reach,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Exchange an invitation's code for a token of your own, which is stored. --quiet prints the token."""
    output = Output(quiet=quiet, json=json)
    caller = Caller.load(output, reach=reach, ignore_given=True)
    # Ask outside of the event loop, where Ctrl-C ends the program at once.
    invitation = given_code(code)

    async def main() -> None:
        # The code may be valid only once, so detect now what would prevent storing the token.
        caller.credentials.check()
        async with caller.rest() as client:
            accepted = await client.accept_invite(invitation, name=name)
        stored = False
        try:
            caller.credentials.store_for(accepted.kind, caller.relay, accepted.service, accepted.token)
            stored = True
            caller.remember_relay()
        finally:
            plain = [f"service {accepted.service}", f"for     {accepted.purpose}", f"relay   {caller.relay}"]
            plain += [] if stored else [f"token   {accepted.token}"]  # otherwise it would be lost
            data = _fields(accepted) | {"relay": str(caller.relay)}
            output.result(data, quiet=[accepted.token], plain=plain)
        output.note(*_what_next(caller, accepted))

    run_async(main, output)


def _fields(invite: Any) -> dict[str, Any]:
    """The fields as in REST, which has ``for``, a keyword in Python."""
    return {"for" if name == "purpose" else name: value for name, value in asdict(invite).items()}


def _shown(made: CreatedInvite, command: str) -> list[str]:
    return [
        f"id      {made.id}",
        f"service {made.service}",
        f"for     {made.purpose}",
        f"uses    {made.uses}",
        f"expires {moment(made.expires)}",
        f"code    {made.code}",
        f"send    {command}",
    ]


def _row(invite: InviteInfo) -> tuple[object, ...]:
    used = f"{invite.used} of {invite.uses}"
    return invite.id, invite.purpose, invite.name, used, moment(invite.created), _end(invite)


def _end(invite: InviteInfo) -> str:
    if invite.revoked:
        return "revoked"
    if invite.used >= invite.uses:
        return "used up"
    return "expired" if invite.expires.timestamp() <= time.time() else moment(invite.expires)


def _what_next(caller: Caller, accepted: AcceptedInvite) -> tuple[str, ...]:
    agent = "host" if accepted.kind == "svc" else "connect"
    port = "8080" if accepted.kind == "svc" else "9090"
    where = "with the port of your service" if accepted.kind == "svc" else "with a free port"
    return (
        f"The token is stored in {caller.credentials.path}.",
        f"Next, {where}:",
        f"  kdispatch agent {agent} {accepted.service} --port {port}",
    )
