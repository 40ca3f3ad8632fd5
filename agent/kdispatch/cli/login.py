"""``kdispatch login`` and ``logout``: store existing tokens, and remove them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Final

import typer

from kdispatch.cli.account import Caller
from kdispatch.cli.ask import must_agree
from kdispatch.cli.options import Json, Quiet, Token, TokenFile, Yes
from kdispatch.cli.output import Output, run_async
from kdispatch.cli.reach import Reach, names_relay, reaches_relay
from kdispatch.credentials import typed_token
from kdispatch.settings import SetupError
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.tokens import token_kind

__all__ = ["app"]

app = typer.Typer()

#: Why a token of another kind is not stored.
_NOT_STORED: Final = {
    "hst": "An hst_ token withdraws one host and ends with it: give it to 'service withdraw' with --token-file.",
    "inv": "An inv_ token is an invitation: exchange it with 'kdispatch invite accept', or 'sign-up --code'.",
}


@app.command(epilog="Example: kdispatch login --token-file token.txt")
@reaches_relay
def login(
    *,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Store a token that you have, of an admin, to host or to connect; it is asked for, or read from standard input."""
    output = Output(quiet=quiet, json=json)
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)
    # Ask outside of the event loop, where Ctrl-C ends the program at once.
    secret = caller.given or typed_token()
    kind = token_kind(secret)
    if kind in _NOT_STORED:
        raise SetupError("not_permitted", f"A token of kind {kind}_ is not for login.", hint=_NOT_STORED[kind])

    async def main() -> None:
        async with caller.rest(secret) as client:
            identity = await client.whoami()
        if (identity.kind, identity.service is None) != (kind, kind == "adm"):
            raise KdispatchError("not_a_relay", f"{caller.relay} reports another kind for the token.")
        if identity.service is None:
            caller.credentials.store_admin(caller.relay, identity.handle, secret)
        else:
            caller.credentials.store_for(identity.kind, caller.relay, identity.service, secret)
        caller.remember_relay()
        name = identity.service or identity.handle
        output.result(
            {**asdict(identity), "relay": str(caller.relay)},
            quiet=[name],
            plain=[f"{'service' if identity.service else 'handle '} {name}", f"relay   {caller.relay}"],
        )
        output.note(f"The token is stored in {caller.credentials.path}.")

    run_async(main, output)


@app.command(epilog="Example: kdispatch logout ann --yes")
@names_relay
def logout(
    handle: Annotated[
        str | None, typer.Argument(metavar="HANDLE", help="The handle; by default the current one.", show_default=False)
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Drop all tokens that are stored for the relay.")] = False,
    yes: Yes = False,
    reach: Reach,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Drop a handle's stored tokens, its services' too; they stay valid at the relay. --quiet prints their names."""
    output = Output(quiet=quiet, json=json)
    caller = Caller.load(output, reach=reach, ignore_given=True)
    handles, services, clients = _to_drop(caller, handle, every=every)
    if handles:
        loses = f"The stored admin token of {', '.join(handles)} can't be shown again once it is dropped"
        must_agree(f"{loses}. Drop it? Type yes: ", "yes", yes=yes, loses=loses)
    caller.credentials.drop(caller.relay, handles=handles, services=services, clients=clients)
    output.result(
        {"relay": str(caller.relay), "handles": handles, "services": services, "clients": clients},
        quiet=[*handles, *services, *(name for name in clients if name not in services)],
        plain=[
            *(f"dropped handle  {name}" for name in handles),
            *(f"dropped service {name}" for name in services),
            *(f"dropped client  {name}" for name in clients),
        ],
    )
    output.note(f"The tokens are still valid at {caller.relay}; anyone with a copy can use them.")


def _to_drop(caller: Caller, handle: str | None, *, every: bool) -> tuple[list[str], list[str], list[str]]:
    if every and handle is not None:
        raise SetupError("bad_request", "HANDLE and --all exclude each other.", hint="kdispatch logout --help")
    stored, relay = caller.credentials, caller.relay
    handles, services, clients = stored.handles(relay), stored.services(relay), stored.clients(relay)
    owners = {*handles, *(service.partition("/")[0] for service in (*services, *clients))}
    if not every:
        wanted = handle or caller.credentials.handle(caller.relay) or (next(iter(owners)) if len(owners) == 1 else None)
        if wanted is None and owners:
            hint = f"kdispatch logout {min(owners)}, or kdispatch logout --all"
            raise SetupError("bad_request", f"Which of {', '.join(sorted(owners))} is meant?", hint=hint)
        owners &= {wanted}
    if not owners:
        who = f"of {handle} " if handle else ""
        raise SetupError(
            "not_logged_in", f"No token {who}is stored for {caller.relay}.", hint="There is nothing to do."
        )
    ours = [[name for name in names if name.partition("/")[0] in owners] for names in (handles, services, clients)]
    return ours[0], ours[1], ours[2]
