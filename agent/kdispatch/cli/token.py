"""``kdispatch token``: several tokens for one account, each with a name, and revocable separately."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kdispatch.cli.account import Caller
from kdispatch.cli.ask import must_agree
from kdispatch.cli.durations import METAVAR, moment, seconds_of
from kdispatch.cli.lists import print_list
from kdispatch.cli.options import Json, OfService, Quiet, Token, TokenFile, Yes, one_of
from kdispatch.cli.output import Output, Table, run_async
from kdispatch.cli.reach import Reach, reaches_relay
from kdispatch.settings import SetupError
from kdispatch_protocol.tokens import token_digest, token_id

if TYPE_CHECKING:
    from kdispatch.rest.answers import CreatedToken, TokenInfo

__all__ = ["app"]

app = typer.Typer(help="Make further tokens for your account, list them, revoke them.")

_PURPOSES: Final = ("admin", "host", "connect")
#: What the kinds are for.
_FOR: Final = {"adm": "admin", "svc": "host", "cli": "connect"}


@app.command(epilog="Example: kdispatch token create laptop --expires 30d")
@reaches_relay
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Your name for it.")],
    *,
    purpose: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="|".join(_PURPOSES),
            help="What it permits: all that you may do, to host one service, or to connect to one. Default: admin.",
            show_default=False,
        ),
    ] = None,
    service: OfService = None,
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar=METAVAR, help="How long it is valid: 10m, 24h, 30d.", show_default=False),
    ] = None,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Make another token; it is shown once and not stored here. --quiet prints it."""
    output = Output(quiet=quiet, json=json)
    purpose = _purpose(purpose, service)
    seconds = None if expires is None else seconds_of("--expires", expires, "60s", "3650d")
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)

    async def main() -> None:
        async with caller.rest() as client:
            own = await caller.as_admin(client, service)
            created = await client.create_token(name, purpose, service=own, expires=seconds)
        output.result(asdict(created), quiet=[created.token], plain=_shown(created))
        output.note(
            "It is shown only this once, and not stored here. Where you want to use it:",
            f"  kdispatch login{caller.relay_flags}",
            f"To end it: kdispatch token revoke {created.id}",
        )

    run_async(main, output)


@app.command("list", epilog="Example: kdispatch token list")
@reaches_relay
def list_tokens(
    *,
    service: OfService = None,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """List your account's tokens, newest first; ended ones for 30 days. --quiet prints one id a line."""
    output = Output(quiet=quiet, json=json)
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)

    async def main() -> None:
        grid = Table(("ID", "FOR", "SERVICE", "NAME", "CREATED", "LAST USED", "EXPIRES"))
        async with caller.rest() as client:
            any_token = await print_list(
                output,
                client.tokens(service=await caller.as_admin(client, service)),
                key="tokens",
                data=asdict,
                quiet=lambda one: one.id,
                plain=lambda page: grid.lines(map(_row, page)),
            )
        if not any_token:
            output.note("No tokens; make one: kdispatch token create NAME")

    run_async(main, output)


@app.command(epilog="Example: kdispatch token revoke 0123456789abcdef")
@reaches_relay
def revoke(
    which: Annotated[str, typer.Argument(metavar="ID", help="The token's id, as 'token list' shows it.")],
    *,
    yes: Yes = False,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Revoke a token: hosts, connections and commands that use it end at once. --quiet prints its id."""
    output = Output(quiet=quiet, json=json)
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)
    shown = caller.must_have_token()
    if which == token_id(token_digest(shown)):
        loses = "This is the token in use: this command, and everything else that uses it, is refused from then on"
        must_agree(f"{loses}. Revoke it? Type yes: ", "yes", yes=yes, loses=loses)

    async def main() -> None:
        async with caller.rest(shown) as client:
            await client.revoke_token(which)
        dropped = caller.credentials.drop_token(caller.relay, which)
        output.result({"token": which, "dropped": dropped}, quiet=[which], plain=[f"revoked {which}"])
        if dropped:
            output.note(f"It was stored for {', '.join(dropped)}, and is dropped from {caller.credentials.path}.")

    run_async(main, output)


def _purpose(purpose: str | None, service: str | None) -> str:
    """What a new token is for; raises ``bad_request`` if that and the service do not fit together."""
    if purpose is None and service is not None:
        hint = "Add --for host or --for connect."
        raise SetupError("bad_request", "The purpose of the token for the service is missing.", hint=hint)
    purpose = one_of("--for", purpose, _PURPOSES) or "admin"
    if purpose == "admin" and service is not None:
        hint = "Omit --service, or give --for host or --for connect."
        raise SetupError("bad_request", "An admin's token is for all your services.", hint=hint)
    if purpose != "admin" and service is None:
        raise SetupError("bad_request", f"--for {purpose} needs a service.", hint="Add --service NAME.")
    return purpose


def _shown(created: CreatedToken) -> list[str]:
    lines = [f"id      {created.id}", f"name    {created.name}", f"for     {_FOR.get(created.kind, created.kind)}"]
    lines += [f"service {created.service}"] if created.service else []
    lines += [f"expires {moment(created.expires)}"] if created.expires else []
    return [*lines, f"token   {created.token}"]


def _row(token: TokenInfo) -> tuple[object, ...]:
    return (
        token.id,
        _FOR.get(token.kind, token.kind),
        token.service or "-",
        token.name,
        moment(token.created),
        moment(token.last_used) or "-",
        _end(token),
    )


def _end(token: TokenInfo) -> str:
    if token.revoked:
        return "revoked"
    if token.expires is None:
        return "never"
    return "expired" if token.expires.timestamp() <= time.time() else moment(token.expires)
