"""``kdispatch service``: create services, look them up, change them; hosts and clients are in ``live.py``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from kdispatch.cli import live
from kdispatch.cli.account import Caller
from kdispatch.cli.ask import must_agree
from kdispatch.cli.durations import METAVAR, moment, seconds_of, written
from kdispatch.cli.lists import print_list
from kdispatch.cli.options import (
    Json,
    Quiet,
    Service,
    ServiceOption,
    Token,
    TokenFile,
    Yes,
    one_of,
    one_service,
)
from kdispatch.cli.output import Output, Table, run_async
from kdispatch.cli.reach import Reach, reaches_relay
from kdispatch.settings import SetupError
from kdispatch_protocol.names import check_name

if TYPE_CHECKING:
    from kdispatch.network.answers import ServiceInfo
    from kdispatch.rest.answers import CreatedService, RotatedService

__all__ = ["app"]

app = typer.Typer(help="Create services, look them up, see who hosts and uses them.")

_ACCESS: Final = ("public", "token")
_Access = Annotated[
    str | None,
    typer.Option(
        "--access",
        metavar="|".join(_ACCESS),
        help="Who may connect: everybody, or only with a token for it.",
        show_default=False,
    ),
]


@app.command(epilog="Example: kdispatch service create web")
@reaches_relay
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The service's name; it becomes HANDLE/NAME.")],
    *,
    access: _Access = None,
    pins: Annotated[bool, typer.Option("--pins", help="Let clients choose their host.")] = False,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Create a service and its token. The token gives the right to host the service."""
    output = Output(quiet=quiet, json=json)
    check_name(name, "service name")
    access = one_of("--access", access, _ACCESS) or "public"
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)

    async def main() -> None:
        # The new token is sent only once, so detect now what would prevent storing it.
        caller.credentials.check()
        async with caller.rest(caller.must_have_token()) as client:
            created = await client.create_service(name, access=access, pins=pins)
        try:
            caller.credentials.store_service(caller.relay, created.service, created.token)
        finally:
            lines = [f"service {created.service}", f"access  {created.access}"]
            lines += ["pins    yes"] if created.pins else []
            output.result(asdict(created), quiet=[created.token], plain=[*lines, f"token   {created.token}"])
        output.note(*_what_next(caller, created))

    run_async(main, output)


@app.command("list", epilog="Example: kdispatch service list")
@reaches_relay
def list_services(
    *,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """List your services. --quiet prints one name a line."""
    output = Output(quiet=quiet, json=json)
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)

    async def main() -> None:
        grid = Table(("SERVICE", "ACCESS", "PINS", "LIVE HOSTS"))
        async with caller.rest(caller.must_have_token()) as client:
            any_service = await print_list(
                output,
                client.services(),
                key="services",
                data=asdict,
                quiet=lambda one: one.service,
                plain=lambda page: grid.lines((s.service, s.access, _yes(s.pins), s.live_hosts) for s in page),
            )
        if not any_service:
            output.note("No services yet; create one: kdispatch service create NAME")

    run_async(main, output)


@app.command(epilog="Example: kdispatch service show ann/web")
@reaches_relay
def show(
    service: Service = None,
    *,
    service_option: ServiceOption = None,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Show one service. --quiet prints how many hosts offer it now."""
    output = Output(quiet=quiet, json=json)
    typed = one_service(service, service_option)
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)

    async def main() -> None:
        async with caller.rest() as client:
            seen = await client.service(await caller.as_reader(client, typed))
        output.result(asdict(seen), quiet=[str(seen.live_hosts)], plain=_shown(seen))

    run_async(main, output)


@app.command(epilog="Example: kdispatch service update ann/web --pins")
@reaches_relay
def update(
    service: Service = None,
    *,
    service_option: ServiceOption = None,
    access: _Access = None,
    pins: Annotated[
        bool | None, typer.Option("--pins/--no-pins", help="Whether clients may choose their host.", show_default=False)
    ] = None,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Change who may connect to a service, and how. --quiet prints its name."""
    output = Output(quiet=quiet, json=json)
    typed = one_service(service, service_option)
    access = one_of("--access", access, _ACCESS)
    if access is None and pins is None:
        hint = "Give --access public|token, --pins or --no-pins."
        raise SetupError("bad_request", "There is nothing to change.", hint=hint)
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)

    async def main() -> None:
        async with caller.rest() as client:
            seen = await client.update_service(await caller.as_owner(client, typed), access=access, pins=pins)
        output.result(asdict(seen), quiet=[seen.service], plain=_shown(seen))
        if access == "token":
            output.note(
                "Clients without a token for it were disconnected. To give tokens:",
                f"  kdispatch invite create {seen.service} --for connect",
            )

    run_async(main, output)


@app.command(epilog="Example: kdispatch service rotate ann/web --overlap 24h")
@reaches_relay
def rotate(
    service: Service = None,
    *,
    service_option: ServiceOption = None,
    overlap: Annotated[
        str, typer.Option("--overlap", metavar=METAVAR, help="How long the old token stays valid: 10m, 24h, 7d.")
    ] = "0s",
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Replace a service's token by a new one; the old one ends. --quiet prints the new one."""
    output = Output(quiet=quiet, json=json)
    typed = one_service(service, service_option)
    seconds = seconds_of("--overlap", overlap, "0s", "30d")
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)

    async def main() -> None:
        caller.credentials.check()
        async with caller.rest() as client:
            rotated = await client.rotate_service(await caller.as_owner(client, typed), overlap=seconds)
        stored = rotated.service in caller.credentials.services(caller.relay)
        try:
            if stored:
                caller.credentials.store_service(caller.relay, rotated.service, rotated.token)
        finally:
            output.result(
                {**asdict(rotated), "stored": stored},
                quiet=[rotated.token],
                plain=[f"service {rotated.service}", f"token   {rotated.token}"],
            )
        output.note(*_what_rotating_did(caller, rotated, seconds, stored=stored))

    run_async(main, output)


@app.command(epilog="Example: kdispatch service delete ann/web --yes")
@reaches_relay
def delete(
    service: Service = None,
    *,
    service_option: ServiceOption = None,
    yes: Yes = False,
    reach: Reach,
    token: Token = None,
    token_file: TokenFile = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Delete a service and its tokens; its hosts and connections end. --quiet prints its name."""
    output = Output(quiet=quiet, json=json)
    typed = one_service(service, service_option)
    caller = Caller.load(output, reach=reach, token=token, token_file=token_file)
    shown = typed if caller.given else caller.credentials.full_name(caller.relay, typed)
    loses = f"{shown} is deleted for good, with its tokens"
    must_agree(f"{loses}. Type its name to delete it: ", shown, yes=yes, loses=loses)

    async def main() -> None:
        async with caller.rest() as client:
            full_name = await caller.as_owner(client, typed)
            await client.delete_service(full_name)
        caller.credentials.drop(caller.relay, services=[full_name], clients=[full_name])
        output.result({"service": full_name}, quiet=[full_name], plain=[f"deleted {full_name}"])

    run_async(main, output)


app.add_typer(live.app)


def _shown(seen: ServiceInfo) -> list[str]:
    return [
        f"service    {seen.service}",
        f"access     {seen.access}",
        f"pins       {_yes(seen.pins)}",
        f"live hosts {seen.live_hosts}",
    ]


def _yes(what: bool) -> str:  # noqa: FBT001 - the word for it
    return "yes" if what else "no"


def _what_next(caller: Caller, created: CreatedService) -> tuple[str, ...]:
    flags = caller.relay_flags
    public = created.access == "public"
    access = "everyone who knows the name may connect" if public else "connecting needs a token"
    invite = () if public else ("To let others connect:", f"  kdispatch invite create {created.service} --for connect")
    return (
        f"It is {created.access}: {access}. The token is stored in {caller.credentials.path};",
        "it is shown only this once, and gives the right to host the service.",
        "Next, where the service runs, with its port; 'login' asks for the token, and isn't needed on this machine:",
        f"  kdispatch login{flags}",
        f"  kdispatch agent host {created.service} --port 8080{flags}",
        "and where it is used, with a free port:",
        f"  kdispatch agent connect {created.service} --port 9090{flags}",
        *invite,
    )


def _what_rotating_did(caller: Caller, rotated: RotatedService, seconds: int, *, stored: bool) -> tuple[str, ...]:
    service = rotated.service
    where = f"It is stored in {caller.credentials.path}" if stored else "It is not stored here, as the old one was not"
    if rotated.old_until is None:
        hosts = "The old token has ended, and with it every host that uses it (exit 4): start those again"
    else:
        until = f"{moment(rotated.old_until)}, in {written(seconds)}"
        hosts = f"The old token ends at {until}: start the hosts that use it again before that"
    return (
        f"{where}; it is shown only this once.",
        f"{hosts}, with the new token:",
        f"  kdispatch login{caller.relay_flags}",
        f"  kdispatch agent host {service} --port 8080{caller.relay_flags}",
        "Hosts with another token, such as an invitation's or yours, continue.",
    )
